//! Tells on the terminal how far something is that takes its time, while its answer is waited for.
//!
//! It asks the same server over a connection of its own, and says nothing where standard error is no terminal.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use api::client;
use api::info::Progress;
use serde::Deserialize;

/// What is over sooner needs no telling.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is told.
const EVERY: Duration = Duration::from_secs(1);

/// The part of `vm.info` that is looked at.
#[derive(Deserialize)]
struct Info {
    progress: Option<Progress>,
}

/// Runs `work` and tells of its progress.
pub fn telling<R>(socket: &Path, work: impl FnOnce() -> R) -> R {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut patience, mut told) = (PATIENCE, false);
            while wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                patience = EVERY;
                if let Some(progress) = ask(socket) {
                    // It is for who looks on; a terminal that is gone sees nothing.
                    let _ = write!(std::io::stderr(), "\r{}", spec::plain(&line(&progress)));
                    told = true;
                }
            }
            if told {
                let _ = writeln!(std::io::stderr());
            }
        });
        let result = work();
        // The thread sees that nothing more comes.
        drop(done);
        result
    })
}

/// How far it is; `None` if there is nothing, or the server does not say.
fn ask(socket: &Path) -> Option<Progress> {
    let text = client::ask(socket, crate::route("info")?, None, &[]).ok()?;
    serde_json::from_str::<Info>(&text).ok()?.progress
}

fn line(progress: &Progress) -> String {
    let Progress { operation, done, total, bytes_per_second } = progress;
    let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(0).min(100);
    format!("{operation}: {percent:3} % of {} MiB at {} MiB/s    ", total >> 20, bytes_per_second >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_share_size_and_rate() {
        let progress = Progress {
            operation: "snapshot".into(),
            done: 3 << 29,
            total: 1 << 31,
            bytes_per_second: 800 << 20,
        };
        assert_eq!(line(&progress), "snapshot:  75 % of 2048 MiB at 800 MiB/s    ");
        assert!(line(&Progress { total: 0, ..progress }).starts_with("snapshot:   0 % of 0 MiB"));
    }

    #[test]
    fn the_answer_of_the_work_is_given_back() {
        assert_eq!(telling(Path::new("/nowhere"), || 7), 7);
    }
}
