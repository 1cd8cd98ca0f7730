//! QEMU's program that serves disks: `VIRGA_STORAGE_DAEMON` in the environment, else the one on the PATH. Before QEMU 10 it may fail when a
//! queue with requests under way is stopped.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program at work; killed on drop.
#[derive(Debug)]
pub struct StorageDaemon(Child);

impl StorageDaemon {
    /// Serves a raw image at a socket, by that many queues.
    ///
    /// # Panics
    /// If it does not come to listen.
    pub fn start(image: &Path, socket: &Path, queues: u16) -> StorageDaemon {
        // Of one that was killed; there may be none.
        let _ = std::fs::remove_file(socket);
        let program =
            std::env::var_os("VIRGA_STORAGE_DAEMON").unwrap_or_else(|| OsString::from("qemu-storage-daemon"));
        let disk = format!("driver=file,node-name=disk,filename={}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},addr.type=unix,addr.path={}",
            socket.display()
        );
        let mut command = Command::new(&program);
        let child = command.args(["--blockdev", &disk, "--export", &export]).stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|e| panic!("{} does not start: {e}", program.display()));
        let mut daemon = StorageDaemon(child);
        let begun = Instant::now();
        while !socket.exists() {
            let ended = daemon.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "it does not listen: {ended:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // Both fail only if it has ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
