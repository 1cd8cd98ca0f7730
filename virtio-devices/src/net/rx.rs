//! From the tap to the driver. While the driver has no buffers the tap is not looked at: frames wait in the kernel, which
//! drops what is too much.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use device::limit::LogLimit;
use device::{DeviceError, LiveQueue, Task, Watch, guest_warn};
use log::{error, warn};
use net_util::VNET_HDR_LEN;
use virtio_queue::QueueOwnedT;
use vmm_sys_util::epoll::EventSet;

use super::Shared;
use super::wire::{ETHERNET_HEADER, NUM_BUFFERS_OFFSET};
use crate::buffers::{Direction, Pieces, drain_event, next_chain};
use crate::rate::Throttle;

const KICK: u32 = 0;
const TAP: u32 = 1;
const CHANGED: u32 = 2;
const LIMIT: u32 = 3;

/// Most frames received before other events of the thread are looked at.
pub const BUDGET: usize = 64;

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
    pieces: Pieces,
    polling: bool,
    lost: bool,
}

impl Rx {
    pub(super) fn new(queue: LiveQueue, shared: Arc<Shared>, pair: usize) -> Result<Self, DeviceError> {
        let throttle = shared.throttle(0)?;
        Ok(Rx { queue, shared, pair, throttle, pieces: Pieces::new(), polling: false, lost: false })
    }

    /// Receives, and then waits for whatever it needs to go on.
    fn serve(&mut self, watch: &mut Watch<'_>) {
        let end = if self.lost { End::Lost } else { self.receive() };
        let poll = end == End::Wait;
        if end == End::Lost && !self.lost {
            self.lost = true;
            error!("tap \"{}\" is gone: nothing will be received from it", self.shared.pairs.name);
        }
        if poll == self.polling {
            return;
        }
        let fd = self.shared.pairs.list[self.pair].rx.as_raw_fd();
        let done = if poll { watch.add(fd, TAP, EventSet::IN) } else { watch.remove(fd) };
        match done {
            Ok(()) => self.polling = poll,
            Err(e) => warn!("cannot wait for tap \"{}\": {e}", self.shared.pairs.name),
        }
    }

    fn receive(&mut self) -> End {
        let Rx { queue, shared, pair, throttle, pieces, .. } = self;
        let pair = &shared.pairs.list[*pair];
        let active = pair.active();
        if !*active {
            return End::Inactive;
        }
        let map = queue.ram.map();
        let (mut frames, mut bytes, mut dropped, mut used) = (0, 0, 0, 0);
        let mut end = End::Wait;
        // Kicks are wanted only when buffers have run out.
        queue.quiet(&*map);
        let now = Instant::now();
        for _ in 0..BUDGET {
            if let Some(throttle) = throttle
                && !throttle.may_go(now)
            {
                end = End::Limited;
                break;
            }
            let Some(chain) = next_chain(queue, &map) else {
                end = End::Starved;
                break;
            };
            let head = chain.head_index();
            let mut buffers = match pieces.gather(&map, chain, Direction::ToDriver) {
                Ok(buffers) if buffers.length() >= VNET_HDR_LEN + ETHERNET_HEADER => buffers,
                bad => {
                    match bad {
                        Ok(short) => {
                            guest_warn!(
                                BAD_BUFFER,
                                "{}: a receive buffer of {} bytes",
                                shared.id,
                                short.length()
                            )
                        }
                        Err(e) => guest_warn!(BAD_BUFFER, "{}: receive buffer: {e}", shared.id),
                    }
                    queue.push(&map, head, 0);
                    (used, dropped) = (used + 1, dropped + 1);
                    continue;
                }
            };
            let room = buffers.length();
            let mut spill = [0u8; 1];
            // SAFETY: the buffers are guest memory that the driver gave for writing, mapped while `map` is held, and `spill`.
            match unsafe { pair.rx.readv(buffers.iovecs_and(&mut spill)) } {
                Ok(length) if length > room => {
                    guest_warn!(
                        TOO_SMALL,
                        "{}: a frame does not fit into a receive buffer of {room} bytes",
                        shared.id
                    );
                    dropped += 1;
                    queue.queue.go_to_previous_position();
                }
                Ok(length) => {
                    buffers.write(NUM_BUFFERS_OFFSET, &1u16.to_le_bytes());
                    // At most `MAX_FRAME`, which the kernel does not exceed.
                    queue.push(&map, head, length as u32);
                    (used, frames) = (used + 1, frames + 1);
                    let length = length.saturating_sub(VNET_HDR_LEN) as u64;
                    bytes += length;
                    if let Some(throttle) = throttle {
                        throttle.count(now, length);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    queue.queue.go_to_previous_position();
                    break;
                }
                Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                    guest_warn!(BAD_BUFFER, "{}: a receive buffer cannot be written", shared.id);
                    queue.push(&map, head, 0);
                    (used, dropped) = (used + 1, dropped + 1);
                }
                Err(e) => {
                    warn!("tap \"{}\": {e}", shared.pairs.name);
                    queue.queue.go_to_previous_position();
                    end = End::Lost;
                    break;
                }
            }
        }
        if used > 0 {
            queue.signal(&map);
        }
        shared.stats.received(frames, bytes, dropped);
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
            _ => {}
        }
        self.serve(watch);
    }

    fn stop(&mut self) {
        // The worker forgets the descriptors.
        self.polling = false;
    }
}
