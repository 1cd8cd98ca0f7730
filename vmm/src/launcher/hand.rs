//! The VMM's side: asks the launcher, and waits for an answer no longer than a time.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use device::Launcher;

use super::words::{Answer, Question, What, hear, say};

/// How long an answer may take: programs are started meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the launcher may take to its end.
const END: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Hand {
    talk: Mutex<Talk>,
    pid: libc::pid_t,
}

#[derive(Debug)]
struct Talk {
    socket: UnixDatagram,
    /// The last question's.
    number: u64,
}

impl Hand {
    pub(super) fn new(socket: UnixDatagram, pid: libc::pid_t) -> Self {
        Hand { talk: Mutex::new(Talk { socket, number: 0 }), pid }
    }

    fn ask(&self, id: &str, what: What) -> Result<(Option<String>, Option<OwnedFd>), String> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        talk.ask(id, what).map_err(|e| format!("the process that starts passt does not answer: {e}"))?
    }

    /// Has the launcher end, with all that it started, and waits for that.
    pub fn finish(&self) {
        let talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = talk.socket.shutdown(Shutdown::Both) {
            log::debug!("the connection to the launcher: {e}");
        }
        let until = Instant::now() + END;
        // SAFETY: our own child, which nobody else waits for; its status is not asked for.
        while unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) } == 0 {
            if Instant::now() > until {
                log::warn!("the process {} that starts passt does not end", self.pid);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

type Said = Result<(Option<String>, Option<OwnedFd>), String>;

impl Talk {
    fn ask(&mut self, id: &str, what: What) -> io::Result<Said> {
        self.number += 1;
        let number = self.number;
        say(&self.socket, &Question { number, id: id.to_owned(), what }, None)?;
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if device::ready(self.socket.as_raw_fd(), libc::POLLIN, left)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let heard = hear::<Answer>(&self.socket)?;
            let (answer, with) =
                heard.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "it is gone"))?;
            // Others are to questions that nobody waited for any more.
            if answer.number == number {
                return Ok(answer.said.map(|said| (said, with)));
            }
        }
    }
}

impl Launcher for Hand {
    fn start(&self, id: &str, task: &str) -> Result<UnixStream, String> {
        let (_, with) = self.ask(id, What::Start(task.to_owned()))?;
        with.map(UnixStream::from)
            .ok_or_else(|| "the process that starts passt sent no connection".to_owned())
    }

    fn ended(&self, id: &str) -> Option<String> {
        self.ask(id, What::Ended).map_or_else(Some, |(said, _)| said)
    }
}
