//! A program that serves devices at work, to be killed and started again.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::programs;

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon; killed on drop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    order: Order,
}

/// What it is told when it starts.
#[derive(Clone, Debug)]
struct Order {
    program: PathBuf,
    flag: &'static str,
    line: String,
    socket: PathBuf,
}

impl Daemon {
    /// Serves an image at a socket; `keys` is the rest of the line, with a comma in front.
    ///
    /// # Panics
    /// If it does not come to listen.
    pub fn start(image: &Path, socket: &Path, keys: &str) -> Daemon {
        let keys = format!("path={}{keys}", image.display());
        Daemon::of(programs::vhost_user_block(), "--block-backend", socket, &keys)
    }

    /// Serves a device of these keys at a socket, both told behind `flag`.
    ///
    /// # Panics
    /// If it does not come to listen.
    pub fn of(program: PathBuf, flag: &'static str, socket: &Path, keys: &str) -> Daemon {
        let line = format!("socket={},{keys}", socket.display());
        Daemon::go(Order { program, flag, line, socket: socket.to_path_buf() })
    }

    fn go(order: Order) -> Daemon {
        let mut command = Command::new(&order.program);
        command.args([order.flag, &order.line]).stdin(Stdio::null());
        programs::ends_with_us(&mut command, libc::SIGKILL);
        let child = command.spawn();
        let mut daemon = Daemon { child: child.expect("the daemon starts"), order };
        let begun = Instant::now();
        while UnixStream::connect(&daemon.order.socket).is_err() {
            let ended = daemon.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "the daemon does not listen: {ended:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// Kills it; the line that starts it again.
    pub fn die(mut self) -> Dead {
        self.child.kill().expect("the daemon runs");
        self.child.wait().expect("a child can be waited for");
        Dead(self.order.clone())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    /// If the host cannot tell.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Killed, and another one in its place.
    #[must_use]
    pub fn die_and_rise(self) -> Daemon {
        self.die().rise()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon that was killed.
#[derive(Debug)]
pub struct Dead(Order);

impl Dead {
    /// Another one in its place.
    pub fn rise(self) -> Daemon {
        Daemon::go(self.0)
    }
}
