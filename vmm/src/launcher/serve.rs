//! The launcher at work: answers questions, listens to what its programs say, and is asked whom they may connect to.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use sandbox::Mode;

use super::passt::Passt;
use super::words::{Answer, Question, What, hear, say};

/// How long a program whose connection is gone may take to end.
const SETTLE: Duration = Duration::from_millis(500);

/// Ends that are remembered.
const REMEMBERED: usize = 64;

/// See the module.
pub(super) struct Serve {
    socket: UnixDatagram,
    /// What to run, or why there is nothing.
    program: Result<PathBuf, String>,
    filter: Mode,
    /// Those at work, by device.
    running: BTreeMap<String, Passt>,
    /// How others ended, the oldest first.
    ended: VecDeque<(String, String)>,
}

impl Serve {
    pub(super) fn new(socket: UnixDatagram, program: Result<PathBuf, String>, filter: Mode) -> Self {
        Serve { socket, program, filter, running: BTreeMap::new(), ended: VecDeque::new() }
    }

    /// Serves until the VMM is gone; nothing that was started is left then.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            let mut waits = vec![readable(self.socket.as_raw_fd())];
            for passt in self.running.values() {
                waits.extend([readable(passt.messages()), readable(passt.questions().unwrap_or(-1))]);
            }
            // SAFETY: the structures are valid for their number.
            if unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, -1) } < 0 {
                let e = io::Error::last_os_error();
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(e);
            }
            let mut over = Vec::new();
            for ((id, passt), events) in self.running.iter_mut().zip(waits[1..].chunks(2)) {
                if events[1].revents != 0 {
                    passt.answer();
                }
                if events[0].revents != 0 && !passt.listen() {
                    over.push(id.clone());
                }
            }
            over.iter().for_each(|id| self.over(id));
            if waits[0].revents != 0 && !self.question()? {
                // Dropped, they are killed and waited for.
                return Ok(());
            }
        }
    }

    /// Answers a question; `false` when there will be no other.
    fn question(&mut self) -> io::Result<bool> {
        let Some((Question { number, id, what }, _)) = hear(&self.socket)? else { return Ok(false) };
        let (said, with) = match what {
            What::Start(task) => match self.start(&id, &task) {
                Ok(stream) => (Ok(None), Some(stream)),
                Err(e) => (Err(e), None),
            },
            What::Ended => (Ok(self.how_it_ended(&id)), None),
        };
        say(&self.socket, &Answer { number, said }, with.as_ref().map(AsRawFd::as_raw_fd))?;
        Ok(true)
    }

    fn start(&mut self, id: &str, task: &str) -> Result<UnixStream, String> {
        let task = serde_json::from_str(task)
            .map_err(|e| format!("what passt is to do cannot be understood: {e}"))?;
        self.running.remove(id);
        self.ended.retain(|(of, _)| of != id);
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let (passt, stream) = Passt::start(program, &task, self.filter)
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        self.running.insert(id.to_owned(), passt);
        Ok(stream)
    }

    fn how_it_ended(&mut self, id: &str) -> Option<String> {
        if self.running.get_mut(id).is_some_and(|passt| passt.settles(SETTLE)) {
            self.over(id);
        }
        self.ended.iter().find(|(of, _)| of == id).map(|(_, how)| how.clone())
    }

    /// A program ended.
    fn over(&mut self, id: &str) {
        let Some(passt) = self.running.remove(id) else { return };
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((id.to_owned(), passt.end()));
    }
}

fn readable(fd: libc::c_int) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}
