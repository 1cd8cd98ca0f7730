//! Asking a VMM with `ch-remote`.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::programs;

/// How long a VMM may take to its socket.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `ch-remote` answers, or its error. Waits for the socket of a VMM that has only just been started.
///
/// # Errors
/// What it wrote to its standard error.
pub fn ask(socket: &Path, command: &[&str]) -> Result<String, String> {
    let deadline = Instant::now() + PATIENCE;
    // A socket has its name a moment before somebody listens there.
    while UnixStream::connect(socket).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = program().arg("--api-socket").arg(socket).args(command).output();
    let output = output.expect("ch-remote starts");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The program, for those who give it more than arguments.
pub fn program() -> Command {
    Command::new(programs::beside("VIRGA_CH_REMOTE", "ch-remote", "ch-remote"))
}
