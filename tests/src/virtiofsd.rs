//! The program that shows a folder of the host to a guest: `VIRGA_VIRTIOFSD` in the environment, else the one on the PATH.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// virtiofsd at work on a folder; killed on drop.
#[derive(Debug)]
pub struct Virtiofsd(Child);

fn program() -> PathBuf {
    std::env::var_os("VIRGA_VIRTIOFSD").unwrap_or_else(|| "virtiofsd".into()).into()
}

/// Whether there is none, which is told.
pub fn is_missing() -> bool {
    let missing = Command::new(program()).arg("--version").output().is_err();
    if missing {
        println!("SKIPPED: there is no virtiofsd on the PATH");
    }
    missing
}

impl Virtiofsd {
    /// Serves a folder at a socket; what it says is in a file beside that.
    ///
    /// # Panics
    /// If it does not come to listen.
    pub fn start(folder: &Path, socket: &Path, arguments: &[&str]) -> Virtiofsd {
        // Of one that was killed; there may be none.
        let _ = fs::remove_file(socket);
        let said = socket.with_extension("said");
        let mut command = Command::new(program());
        command.arg("--shared-dir").arg(folder).arg("--socket-path").arg(socket);
        command.args(["--sandbox", "none"]).args(arguments).stdin(Stdio::null());
        command.stderr(File::create(&said).expect("the socket's directory takes files"));
        let mut daemon = Virtiofsd(command.spawn().expect("virtiofsd starts"));
        let begun = Instant::now();
        while !socket.exists() {
            let ended = daemon.0.try_wait().expect("a child can be waited for");
            let said = || fs::read_to_string(&said).unwrap_or_default();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "it does not listen: {ended:?} {}",
                said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // Both fail only if it has ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
