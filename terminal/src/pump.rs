//! What waits for the other end: input, room for output, clients that come and go.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use device::{Task, Watch, guest_warn};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::Input;
use crate::outlet::{Loss, Manner, Outlet};
use crate::shared::Shared;
use crate::socket::Listener;

/// How often a pseudo-terminal that nobody has open is looked at: the kernel does not report that somebody opened it.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes read at once, and reads in a row, before others on the thread have their turn.
const CHUNK: usize = 4096;
const ROUNDS: usize = 16;

/// The descriptors of the other end.
pub(crate) enum Ends {
    Tty {
        input: Option<Arc<OwnedFd>>,
        output: Option<Arc<OwnedFd>>,
    },
    Pty {
        main: Arc<OwnedFd>,
        timer: TimerFd,
        connected: bool,
    },
    /// `ended`: the client sends no more, but may still read.
    Socket {
        listener: Listener,
        client: Option<Arc<OwnedFd>>,
        ended: bool,
    },
}

impl Ends {
    pub(crate) fn pty(main: Arc<OwnedFd>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Ends::Pty { main, timer, connected: false })
    }
}

impl Default for Ends {
    /// None.
    fn default() -> Self {
        Ends::Tty { input: None, output: None }
    }
}

const KICK: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 2;
const CLIENT: u32 = 3;
const TIMER: u32 = 4;

/// The task that serves one terminal. When it goes, whether it ever ran or not, its ends are the terminal's again.
pub(crate) struct Pump {
    ends: Ends,
    shared: Arc<Shared>,
    input: Arc<dyn Input>,
    size: Option<(u16, u16)>,
    // What is waited for at present, by token - INPUT.
    watched: [Option<(RawFd, EventSet)>; 2],
}

impl Pump {
    pub(crate) fn new(ends: Ends, shared: Arc<Shared>, input: Arc<dyn Input>) -> Self {
        let size = shared.size();
        Pump { ends, shared, input, size, watched: [None, None] }
    }

    /// Waits for what is needed now and for nothing else, so that an end nobody reads does not wake the thread for ever.
    fn settle(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        let reading = if self.shared.paused() { EventSet::empty() } else { EventSet::IN };
        let writing = if self.shared.waiting() { EventSet::OUT } else { EventSet::empty() };
        let some = |fd: &Option<Arc<OwnedFd>>, events: EventSet| {
            fd.as_ref().filter(|_| !events.is_empty()).map(|fd| (fd.as_raw_fd(), events))
        };
        let (input, output) = match &self.ends {
            Ends::Tty { input, output } => (some(input, reading), some(output, writing)),
            // Without events a hang-up is still reported, and must be: output would be lost otherwise.
            Ends::Pty { main, connected: true, .. } => (Some((main.as_raw_fd(), reading | writing)), None),
            Ends::Pty { .. } => (None, None),
            Ends::Socket { client: Some(client), ended: true, .. } => {
                (Some((client.as_raw_fd(), writing)), None)
            }
            Ends::Socket { client, .. } => (some(client, reading | writing), None),
        };
        self.watch(watch, INPUT, input)?;
        self.watch(watch, OUTPUT, output)
    }

    fn watch(
        &mut self,
        watch: &mut Watch<'_>,
        token: u32,
        want: Option<(RawFd, EventSet)>,
    ) -> io::Result<()> {
        let have = &mut self.watched[(token - INPUT) as usize];
        if *have == want {
            return Ok(());
        }
        match (*have, want) {
            (Some((old, _)), Some((fd, events))) if old == fd => watch.modify(fd, token, events)?,
            (old, want) => {
                if let Some((fd, _)) = old {
                    watch.remove(fd)?;
                }
                if let Some((fd, events)) = want {
                    watch.add(fd, token, events)?;
                }
            }
        }
        *have = want;
        Ok(())
    }

    fn source(&self) -> Option<Arc<OwnedFd>> {
        match &self.ends {
            Ends::Tty { input, .. } => input.clone(),
            Ends::Pty { main, .. } => Some(main.clone()),
            Ends::Socket { client, .. } => client.clone(),
        }
    }

    /// Reads while there is something and the device has room. `false` when the other end is gone and nothing is left of it.
    fn read(&mut self) -> bool {
        let Some(source) = self.source() else { return true };
        let mut buffer = [0; CHUNK];
        // A blocking copy of standard input must not be read twice for one event.
        let rounds = if matches!(self.ends, Ends::Tty { .. }) { 1 } else { ROUNDS };
        for _ in 0..rounds {
            let room = self.shared.room(&*self.input).min(CHUNK);
            if room == 0 {
                return true;
            }
            // SAFETY: the buffer has at least `room` bytes.
            let count = unsafe { libc::read(source.as_raw_fd(), buffer.as_mut_ptr().cast(), room) };
            match usize::try_from(count) {
                Ok(0) => return false,
                Ok(count) => {
                    self.look_at_size();
                    self.input.put(&buffer[..count]);
                }
                Err(_) => {
                    let e = io::Error::last_os_error();
                    return matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                }
            }
        }
        true
    }

    fn look_at_size(&mut self) {
        let size = self.shared.size();
        if size != self.size {
            self.size = size;
            self.input.resized();
        }
    }

    /// A pseudo-terminal may have been opened or closed.
    fn look_at_pty(&mut self) -> io::Result<()> {
        // What somebody wrote who is gone already.
        self.read();
        let Ends::Pty { main, timer, connected } = &mut self.ends else { return Ok(()) };
        let open = device::ready(main.as_raw_fd(), 0, Duration::ZERO)? & libc::POLLHUP == 0;
        match (*connected, open) {
            (false, true) => {
                *connected = true;
                timer.clear().map_err(io::Error::from)?;
                self.shared.connect(Outlet { fd: main.clone(), manner: Manner::Write, loss: Loss::Keep });
                self.look_at_size();
            }
            (true, false) => {
                *connected = false;
                timer.reset(LOOK, Some(LOOK)).map_err(io::Error::from)?;
                self.shared.disconnect();
            }
            _ => {}
        }
        Ok(())
    }

    fn accept(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        let Ends::Socket { listener, .. } = &self.ends else { return Ok(()) };
        let stream = match listener.socket().accept() {
            Ok((stream, _)) => stream,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        stream.set_nonblocking(true)?;
        self.drop_client(watch)?;
        let fd = Arc::new(OwnedFd::from(stream));
        if let Ends::Socket { client, ended, .. } = &mut self.ends {
            (*client, *ended) = (Some(fd.clone()), false);
        }
        self.shared.connect(Outlet { fd, manner: Manner::Send, loss: Loss::Keep });
        Ok(())
    }

    fn drop_client(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        // Before the descriptor is closed: its number may come back at once.
        self.watch(watch, INPUT, None)?;
        self.shared.disconnect();
        if let Ends::Socket { client, .. } = &mut self.ends
            && let Some(client) = client.take()
        {
            // SAFETY: the descriptor is open; a client that is gone already answers with an error that says so.
            unsafe { libc::shutdown(client.as_raw_fd(), libc::SHUT_RDWR) };
        }
        Ok(())
    }

    /// Standard input has ended, or the user has hung up.
    fn end_input(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        self.watch(watch, INPUT, None)?;
        if let Ends::Tty { input, .. } = &mut self.ends {
            *input = None;
        }
        Ok(())
    }

    fn serve(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) -> io::Result<()> {
        let hung_up = events.contains(EventSet::HANG_UP);
        match token {
            KICK => {
                // Only a wake-up: what is to be done is looked for here and below.
                let _ = self.shared.kick.read();
                if matches!(self.ends, Ends::Pty { connected: false, .. }) {
                    self.read();
                }
            }
            CLIENT => self.accept(watch)?,
            TIMER => {
                if let Ends::Pty { timer, .. } = &mut self.ends {
                    timer.wait().map_err(io::Error::from)?;
                }
                self.look_at_pty()?;
            }
            INPUT if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) => {
                let over = !self.read();
                match &mut self.ends {
                    Ends::Pty { .. } if over || hung_up => self.look_at_pty()?,
                    Ends::Tty { .. } if over => self.end_input(watch)?,
                    // A client that hung up may have left more than there is room for now: not before the last byte is read.
                    Ends::Socket { .. } if over && (hung_up || events.contains(EventSet::ERROR)) => {
                        self.drop_client(watch)?;
                    }
                    Ends::Socket { ended, .. } if over => *ended = true,
                    _ => {}
                }
            }
            _ => {}
        }
        if self.shared.waiting() {
            self.shared.resume_output();
        }
        self.settle(watch)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        *self.shared.ends() = Some(std::mem::take(&mut self.ends));
    }
}

impl Task for Pump {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.shared.kick.as_raw_fd(), KICK, EventSet::IN)?;
        // The device may have been another one before, with less room.
        self.shared.room(&*self.input);
        match &mut self.ends {
            Ends::Tty { .. } => {}
            Ends::Pty { timer, connected, .. } => {
                watch.add(timer.as_raw_fd(), TIMER, EventSet::IN)?;
                if !*connected {
                    timer.reset(LOOK, Some(LOOK)).map_err(io::Error::from)?;
                    self.look_at_pty()?;
                }
            }
            Ends::Socket { listener, .. } => {
                watch.add(listener.socket().as_raw_fd(), CLIENT, EventSet::IN)?;
            }
        }
        self.settle(watch)
    }

    fn ready(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) {
        if let Err(e) = self.serve(token, events, watch) {
            guest_warn!(self.shared.limit, "console: {e}");
        }
    }

    fn stop(&mut self) {
        self.watched = [None, None];
    }
}
