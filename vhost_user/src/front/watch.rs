//! Who watches a back end: on the thread of quiet devices as long as there is one, and while there is none on a thread that looks for
//! the next.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device::{Attached, Task, Watch, guest_warn};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::dial::{AGAIN, Way, absent, config_of, dial};
use super::shared::{Shared, Talk};
use crate::BackError;
use crate::channel::Channel;
use crate::wire::{CONFIG_CHANGE, Message, flag};

const SOCKET: u32 = 0;
const REQUESTS: u32 = 1;
const WAKE: u32 = 2;
const BELL: u32 = 3;
const ERROR: u32 = 4;
const RETRY: u32 = 5;

/// How long to leave a back end alone that did what it must not.
const LATER: Duration = Duration::from_secs(1);

/// Watches the connection.
pub(super) struct Watching {
    shared: Arc<Shared>,
    /// The connection, once more: it stays a descriptor of ours until we have seen its end.
    socket: Option<UnixStream>,
    /// Where the back end asks us.
    requests: Option<Channel>,
    /// Looks for the next back end.
    search: Option<Attached<Search>>,
    /// Goes off when it is time to begin to look once more: the host had no thread or no descriptor for it.
    retry: Option<TimerFd>,
}

impl Watching {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Watching { shared, socket: None, requests: None, search: None, retry: None }
    }

    /// Watches the back end that there is, or looks for one.
    fn follow(&mut self, watch: &mut Watch<'_>) {
        self.search = None;
        let shared = self.shared.clone();
        let mut talk = shared.talk();
        if let Err(source) = self.watch_both(&mut talk, watch) {
            shared.lose(&mut talk, &BackError::Host { what: "watch the connection", source });
        }
        drop(talk);
        if self.socket.is_none() {
            self.look(watch);
        }
    }

    fn watch_both(&mut self, talk: &mut Talk, watch: &mut Watch<'_>) -> io::Result<()> {
        let Some(client) = &talk.client else { return Ok(()) };
        let socket = client.stream()?;
        if let Some(back) = talk.back.take() {
            let channel = Channel::new(back)?;
            watch.add(channel.fd(), REQUESTS, EventSet::IN)?;
            self.requests = Some(channel);
        }
        // Answers are read by those who asked.
        watch.add(socket.as_raw_fd(), SOCKET, EventSet::READ_HANG_UP)?;
        self.socket = Some(socket);
        Ok(())
    }

    /// The connection ended.
    fn ended(&mut self, watch: &mut Watch<'_>) {
        let shared = self.shared.clone();
        shared.lose(&mut shared.talk(), &BackError::Peer(crate::PeerError::HungUp));
        if let Some(socket) = self.socket.take() {
            forget(watch, socket.as_raw_fd());
        }
        self.look(watch);
    }

    /// Looks for the next back end.
    fn look(&mut self, watch: &mut Watch<'_>) {
        self.deaf(watch);
        let Some(grant) = self.shared.grant.get() else { return };
        let started = timer().and_then(|timer| {
            let worker = grant.workers.own(&self.shared.wish.id, &[]).map_err(io::Error::other)?;
            worker.attach(Search { shared: self.shared.clone(), timer, said: String::new() })
        });
        match started {
            Ok(search) => self.search = Some(search),
            Err(e) => {
                let (limit, id) = (&self.shared.limit, &self.shared.wish.id);
                guest_warn!(*limit, "{id}: cannot look for a back end: {e}; trying again");
                if let Some(Err(e)) = self.retry.as_mut().map(|timer| set(timer, LATER)) {
                    log::error!("{id}: cannot look for a back end any more: {e}");
                }
            }
        }
    }

    /// Begins to look once more, unless that was possible meanwhile.
    fn look_once_more(&mut self, watch: &mut Watch<'_>) {
        if let Some(Err(e)) = self.retry.as_mut().map(TimerFd::wait) {
            log::debug!("{}: a timer: {e}", self.shared.wish.id);
        }
        if self.socket.is_none() && self.search.is_none() {
            self.look(watch);
        }
    }

    /// Listens to the back end no longer.
    fn deaf(&mut self, watch: &mut Watch<'_>) {
        if let Some(channel) = self.requests.take() {
            forget(watch, channel.fd());
        }
    }

    /// Takes a request of the back end's.
    fn asked(&mut self, watch: &mut Watch<'_>) {
        let Some(channel) = &mut self.requests else { return };
        match channel.receive() {
            Ok(None) => {}
            Ok(Some(message)) => {
                let known = message.request == CONFIG_CHANGE;
                if let Err(e) = acknowledge(channel, &message, known) {
                    log::debug!("{}: {e}", self.shared.wish.id);
                }
                if known {
                    self.look_again();
                }
            }
            Err(e) => {
                guest_warn!(self.shared.limit, "{}: requests of the back end: {e}", self.shared.wish.id);
                self.deaf(watch);
            }
        }
    }

    /// The configuration space changed.
    fn look_again(&self) {
        let shared = &self.shared;
        let mut talk = shared.talk();
        let config = shared.say_or_break(&mut talk, |client, _| config_of(client, &shared.wish));
        drop(talk);
        if let Some(config) = config {
            shared.show(&config);
        }
    }

    /// Interrupts without a vector.
    fn rung(&self) {
        drain(&self.shared.bell);
        let Some(link) = self.shared.link() else { return };
        let talk = self.shared.talk();
        for (index, _) in talk.driver.rings.iter().enumerate().filter(|(_, ring)| ring.is_some()) {
            let index = index as u16;
            if link.queue_event(index).is_none() {
                link.queue_used(index);
            }
        }
    }

    /// The back end cannot go on with a queue. Whether it is one of the driver's that there is now is settled under the lock: a driver that
    /// begins anew takes back what was said of the rings before.
    fn given_up(&self) {
        let talk = self.shared.talk();
        if self.shared.error.read().is_ok() {
            guest_warn!(self.shared.limit, "{}: the back end gave a queue up", self.shared.wish.id);
            self.shared.link().inspect(|link| link.needs_reset());
        }
        drop(talk);
    }
}

/// Answers a request, if it wants to be.
fn acknowledge(channel: &Channel, message: &Message, done: bool) -> Result<(), crate::PeerError> {
    if !message.need_reply {
        return Ok(());
    }
    channel.send(message.request, flag::REPLY, &u64::from(!done).to_ne_bytes(), &[])
}

pub(super) fn drain(event: &EventFd) {
    // Nothing to read means that somebody was faster.
    let _ = event.read();
}

fn timer() -> io::Result<TimerFd> {
    TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

fn set(timer: &mut TimerFd, after: Duration) -> io::Result<()> {
    timer.reset(after, None).map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

fn forget(watch: &mut Watch<'_>, fd: std::os::fd::RawFd) {
    if let Err(e) = watch.remove(fd) {
        log::debug!("epoll: cannot forget {fd}: {e}");
    }
}

impl Task for Watching {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        let shared = self.shared.clone();
        for (event, token) in [(&shared.wake, WAKE), (&shared.bell, BELL), (&shared.error, ERROR)] {
            watch.add(event.as_raw_fd(), token, EventSet::IN)?;
        }
        // Made now, as there may be no descriptor left when it is needed.
        let retry = timer()?;
        watch.add(retry.as_raw_fd(), RETRY, EventSet::IN)?;
        self.retry = Some(retry);
        self.follow(watch);
        Ok(())
    }

    fn ready(&mut self, token: u32, _: EventSet, watch: &mut Watch<'_>) {
        match token {
            // What is left of a round in which it ended is no news.
            SOCKET if self.socket.is_some() => self.ended(watch),
            REQUESTS => self.asked(watch),
            WAKE => {
                drain(&self.shared.wake);
                self.follow(watch);
            }
            BELL => self.rung(),
            RETRY => self.look_once_more(watch),
            ERROR => self.given_up(),
            _ => {}
        }
    }
}

/// Looks for a back end.
struct Search {
    shared: Arc<Shared>,
    timer: TimerFd,
    /// What was said of the last failure.
    said: String,
}

impl Task for Search {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.timer.as_raw_fd(), 0, EventSet::IN)?;
        let Way::Start(program) = &self.shared.wish.way else { return set(&mut self.timer, AGAIN) };
        let after = self.shared.trials().next(Instant::now());
        if let Some(last_words) = program.launcher.ended(&self.shared.wish.id) {
            log::warn!("{}: {last_words}; starting it again", self.shared.wish.id);
        }
        set(&mut self.timer, after)
    }

    fn ready(&mut self, _: u32, _: EventSet, watch: &mut Watch<'_>) {
        let shared = &self.shared;
        let found = dial(&shared.wish, &shared.gone).and_then(|(client, offer)| shared.adopt(client, offer));
        let after = match found {
            Ok(()) => {
                forget(watch, self.timer.as_raw_fd());
                if let Err(e) = shared.wake.write(1) {
                    log::error!("{}: cannot tell of a back end: {e}", shared.wish.id);
                }
                return;
            }
            Err(BackError::Gone) => AGAIN,
            Err(BackError::Connect { source, .. }) if absent(&source) => AGAIN,
            Err(e) => {
                let started = matches!(shared.wish.way, Way::Start(_));
                let after = if started { shared.trials().next(Instant::now()) } else { LATER };
                let line = e.line();
                if line != self.said {
                    log::warn!(
                        "{}: no back end at {}: {line}; trying again",
                        shared.wish.id,
                        shared.wish.way
                    );
                    self.said = line;
                }
                after
            }
        };
        if let Err(e) = set(&mut self.timer, after) {
            log::error!("{}: cannot look for a back end any more: {e}", self.shared.wish.id);
        }
    }
}
