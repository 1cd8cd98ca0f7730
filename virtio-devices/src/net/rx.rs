//! From the tap to the driver. While the driver has no buffers the tap is not looked at: frames wait in the kernel, which
//! drops what is too much.
//!
//! The tap does not tell how large the next frame is. After a small one the next is read into memory of ours ([`super::held`]) and copied, which
//! costs less than it takes the kernel to look at a list of buffers. After a large one it goes where it belongs: enough buffers for one like
//! the last are at hand, and what does not fit is caught in memory of ours, so that a larger frame is not lost but copied, when there are
//! buffers for it. A driver that takes frames in several buffers (MRG_RXBUF) is given each in as few as it needs.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use device::limit::LogLimit;
use device::{DeviceError, LiveQueue, Task, Watch, guest_warn};
use log::{error, warn};
use net_util::VNET_HDR_LEN;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::Shared;
use super::window::{Filled, Room, Wanted};
use super::wire::{ETHERNET_HEADER, MAX_FRAME, NUM_BUFFERS_OFFSET, feature};
use crate::buffers::{drain_event, kick_again};
use crate::rate::Throttle;

const KICK: u32 = 0;
const TAP: u32 = 1;
const CHANGED: u32 = 2;
const LIMIT: u32 = 3;
const SERVICE: u32 = 4;
const DUE: u32 = 5;

/// Most frames received before other events of the thread are looked at.
pub const BUDGET: usize = 64;

/// Least bytes of buffers to have at hand: more than most frames of an Ethernet have, and so what a small frame has at most.
const LEAST_WANTED: usize = 2048;

/// Most buffers taken at once for small frames, and frames that the driver is shown at once.
const AHEAD: usize = 16;

/// The least time after which the service is looked at again: a timer set to nothing never goes off.
const LEAST_WAIT: Duration = Duration::from_millis(1);

static BAD_BUFFER: LogLimit = LogLimit::new();
static TOO_SMALL: LogLimit = LogLimit::new();

/// Why a round of receiving ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// No more frames for now, or enough for one round.
    Wait,
    /// No buffers: wait for a kick.
    Starved,
    /// The pair is out of use.
    Inactive,
    /// The limit is reached.
    Limited,
    /// The tap has gone.
    Lost,
}

/// Serves one receive queue.
pub(super) struct Rx {
    pub(super) queue: LiveQueue,
    shared: Arc<Shared>,
    pair: usize,
    throttle: Option<Throttle>,
    /// When there is something to do for the card's own service; with the first pair, if there is one.
    due: Option<TimerFd>,
    room: Room,
    /// Bytes of buffers to have at hand for a frame, where frames may go into several.
    wanted: usize,
    polling: bool,
    lost: bool,
}

impl Rx {
    pub(super) fn new(queue: LiveQueue, shared: Arc<Shared>, pair: usize) -> Result<Self, DeviceError> {
        let throttle = shared.throttle(0)?;
        let serves = pair == 0 && shared.service.is_some();
        let due = serves.then(TimerFd::new).transpose();
        let due = due.map_err(|e| DeviceError::new("cannot make a timer", io::Error::from(e)))?;
        let (room, wanted) = (Room::new(), LEAST_WANTED);
        Ok(Rx { queue, shared, pair, throttle, due, room, wanted, polling: false, lost: false })
    }

    /// Receives, and then waits for whatever it needs to go on.
    fn serve(&mut self, watch: &mut Watch<'_>) {
        self.follow_service();
        let end = if self.lost { End::Lost } else { self.receive() };
        if self.follow_service()
            && end == End::Wait
            && let Some(service) = &self.shared.service
        {
            service.changed();
            service.tell();
        }
        if end == End::Lost && !self.lost {
            self.lost = true;
            error!("tap \"{}\" is gone: nothing will be received from it", self.shared.pairs.name);
        }
        let tap = (self.shared.pairs.list[self.pair].rx.as_raw_fd(), TAP, EventSet::IN);
        if let Err(e) = watch.want(&mut self.polling, end == End::Wait, tap) {
            warn!("cannot wait for tap \"{}\": {e}", self.shared.pairs.name);
        }
    }

    /// Has the card's own service do what is due if anything changed, and sets the timer for what will be. Tells whether there is a frame
    /// of it for the driver that there was not before.
    fn follow_service(&mut self) -> bool {
        let (Some(timer), Some(service)) = (&mut self.due, &self.shared.service) else { return false };
        let Some(wait) = service.follow(Instant::now()) else { return false };
        let set = match wait {
            Some(wait) => timer.reset(wait.max(LEAST_WAIT), None),
            None => timer.clear(),
        };
        if let Err(e) = set {
            error!("{}: cannot set a timer: {e}", self.shared.id);
        }
        service.has_frame()
    }

    fn receive(&mut self) -> End {
        let Rx { queue, shared, pair, throttle, due, room, wanted, .. } = self;
        let service = shared.service.as_ref().filter(|_| due.is_some());
        let pair = &shared.pairs.list[*pair];
        let active = pair.active();
        if !*active {
            return End::Inactive;
        }
        let mut held = pair.held();
        let merges = shared.features.load(Ordering::Acquire) & feature::MRG_RXBUF != 0;
        let map = queue.ram.map();
        let mut window = room.open(&map);
        let (mut frames, mut bytes, mut dropped, mut used) = (0, 0, 0, 0);
        let mut end = End::Wait;
        // Kicks are wanted only when buffers have run out.
        queue.quiet(&*map);
        let now = Instant::now();
        let mut left = BUDGET;
        // A frame at hand is seen to: nothing would tell of it later.
        while left > 0 || held.length() > 0 {
            if let Some(throttle) = throttle
                && !throttle.may_go(now)
            {
                end = End::Limited;
                break;
            }
            if held.length() == 0 {
                left -= 1;
                if let Some(service) = service {
                    service.give(&mut held, now);
                }
            }
            let wants = match (merges, held.length()) {
                // As many again as this round has had: the next frame may be the last.
                (true, 0) => Wanted { bytes: *wanted, least: VNET_HDR_LEN, ahead: frames.min(AHEAD) },
                (true, length) => Wanted { bytes: length, least: VNET_HDR_LEN, ahead: 0 },
                // Each frame has a buffer of its own.
                (false, _) => Wanted { bytes: 1, least: VNET_HDR_LEN + ETHERNET_HEADER, ahead: 0 },
            };
            let filled = window.fill(queue, wants, |bad| {
                guest_warn!(BAD_BUFFER, "{}: {bad}", shared.id);
                (used, dropped) = (used + 1, dropped + 1);
            });
            if window.is_empty() {
                end = End::Starved;
                if filled == Filled::Tired {
                    kick_again(&queue.kick);
                }
                break;
            }
            let room = window.length();
            let length = if held.length() > room {
                if filled == Filled::Dry {
                    end = End::Starved;
                    break;
                }
                guest_warn!(
                    TOO_SMALL,
                    "{}: a frame does not fit into {room} bytes of receive buffers",
                    shared.id
                );
                held.clear();
                dropped += 1;
                continue;
            } else if held.length() > 0 {
                window.all().write(0, held.frame());
                held.clear()
            } else {
                let (mut one, mut gathered) = ([0u8; 1], window.all());
                let read = if *wanted == LEAST_WANTED {
                    held.read(&pair.rx).map(|()| 0)
                } else {
                    let spill = if merges { held.room() } else { &mut one };
                    // SAFETY: the buffers are guest memory that the driver gave for writing, mapped while `map` is held, and ours.
                    gathered.and(spill, |buffers| unsafe { pair.rx.readv(buffers) })
                };
                match read {
                    // It is at hand now.
                    Ok(0) => continue,
                    Ok(length) if length > room => {
                        if !(merges && held.take_back(&gathered, length)) {
                            guest_warn!(
                                TOO_SMALL,
                                "{}: a frame does not fit into a receive buffer of {room} bytes",
                                shared.id
                            );
                            dropped += 1;
                        }
                        continue;
                    }
                    Ok(length) => length,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                        guest_warn!(BAD_BUFFER, "{}: a receive buffer cannot be written", shared.id);
                        window.hand_over(queue, 1, 0);
                        (used, dropped) = (used + 1, dropped + 1);
                        continue;
                    }
                    Err(e) => {
                        warn!("tap \"{}\": {e}", shared.pairs.name);
                        end = End::Lost;
                        break;
                    }
                }
            };
            // The next one may be as large.
            *wanted = length.clamp(LEAST_WANTED, MAX_FRAME);
            let count = window.needed(length);
            // A ring has no more descriptors than that.
            window.all().write(NUM_BUFFERS_OFFSET, &(count as u16).to_le_bytes());
            window.hand_over(queue, count, length);
            (used, frames) = (used + 1, frames + 1);
            // The first at once, and of those that follow as many as came before.
            if 2 * usize::from(queue.unseen()) > frames.min(2 * AHEAD) {
                queue.show(&map);
            }
            let length = length.saturating_sub(VNET_HDR_LEN) as u64;
            bytes += length;
            if let Some(throttle) = throttle {
                throttle.count(now, length);
            }
        }
        window.give_back(queue);
        if used > 0 {
            queue.signal(&map);
        }
        shared.stats.received(frames as u64, bytes, dropped);
        end
    }
}

impl Task for Rx {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), KICK, EventSet::IN)?;
        watch.add(self.shared.pairs.list[self.pair].changed.as_raw_fd(), CHANGED, EventSet::IN)?;
        if let Some(throttle) = &self.throttle {
            throttle.watch(watch, LIMIT)?;
        }
        if let (Some(timer), Some(service)) = (&self.due, &self.shared.service) {
            watch.add(service.given.as_raw_fd(), SERVICE, EventSet::IN)?;
            // Edge-triggered: the timer need not be read.
            watch.add(timer.as_raw_fd(), DUE, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
            service.changed();
        }
        self.serve(watch);
        Ok(())
    }

    fn ready(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) {
        match token {
            KICK => drain_event(&self.queue.kick),
            CHANGED => drain_event(&self.shared.pairs.list[self.pair].changed),
            // A detached queue reports an error too; `serve` tells the one from the other.
            TAP if events.contains(EventSet::ERROR) && *self.shared.pairs.list[self.pair].active() => {
                warn!("tap \"{}\" reports an error", self.shared.pairs.name);
            }
            LIMIT => {
                if let Some(throttle) = &mut self.throttle {
                    throttle.woken();
                }
            }
            SERVICE | DUE => {
                if let Some(service) = &self.shared.service {
                    if token == SERVICE {
                        drain_event(&service.given);
                    }
                    service.changed();
                }
            }
            _ => {}
        }
        self.serve(watch);
    }

    fn stop(&mut self) {
        // The worker forgets the descriptors.
        self.polling = false;
    }
}
