//! From the driver to the tap.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use device::limit::LogLimit;
use device::{DeviceError, LiveQueue, Task, Watch, guest_warn};
use log::warn;
use net_util::VNET_HDR_LEN;
use virtio_queue::QueueOwnedT;
use vmm_sys_util::epoll::EventSet;

use super::Shared;
use super::wire::{ETHERNET_HEADER, MAX_FRAME};
use crate::buffers::{Direction, Pieces, drain_event, kick_again, next_chain};
use crate::rate::Throttle;

const KICK: u32 = 0;
const TAP: u32 = 1;
const LIMIT: u32 = 2;

/// Most frames sent before other events of the thread are looked at.
pub const BUDGET: usize = 64;

static BAD_FRAME: LogLimit = LogLimit::new();
static REFUSED: LogLimit = LogLimit::new();

/// Why a round of sending ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Everything was sent: wait for a kick.
    Empty,
    /// There may be more, but others wait.
    More,
    /// The tap takes no more for now.
    Full,
    /// The limit is reached.
    Limited,
}

/// Serves one transmit queue.
pub(super) struct Tx {
    pub(super) queue: LiveQueue,
    shared: Arc<Shared>,
    pair: usize,
    throttle: Option<Throttle>,
    pieces: Pieces,
    polling: bool,
}

impl Tx {
    pub(super) fn new(queue: LiveQueue, shared: Arc<Shared>, pair: usize) -> Result<Self, DeviceError> {
        let throttle = shared.throttle(1)?;
        Ok(Tx { queue, shared, pair, throttle, pieces: Pieces::new(), polling: false })
    }

    fn serve(&mut self, watch: &mut Watch<'_>) {
        let end = self.send();
        if end == End::More {
            kick_again(&self.queue.kick);
        }
        let tap = (self.shared.pairs.list[self.pair].tx.as_raw_fd(), TAP, EventSet::OUT);
        if let Err(e) = watch.want(&mut self.polling, end == End::Full, tap) {
            warn!("cannot wait for tap \"{}\": {e}", self.shared.pairs.name);
        }
    }

    fn send(&mut self) -> End {
        let Tx { queue, shared, pair, throttle, pieces, .. } = self;
        let tap = &shared.pairs.list[*pair].tx;
        let map = queue.ram.map();
        let (mut frames, mut bytes, mut dropped, mut used) = (0, 0, 0, 0);
        let mut end = End::More;
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
                end = End::Empty;
                break;
            };
            let head = chain.head_index();
            match pieces.gather(&map, chain, Direction::ToDevice) {
                Ok(frame) if (VNET_HDR_LEN + ETHERNET_HEADER..=MAX_FRAME).contains(&frame.length()) => {
                    let answered = shared.service.as_ref().is_some_and(|service| service.take(&frame, now));
                    let sent = match answered {
                        true => Ok(frame.length()),
                        // SAFETY: the buffers are guest memory, mapped while `map` is held, and only read.
                        false => unsafe { tap.writev(frame.iovecs()) },
                    };
                    match sent {
                        Ok(length) => {
                            frames += 1;
                            let length = length.saturating_sub(VNET_HDR_LEN) as u64;
                            bytes += length;
                            if let Some(throttle) = throttle {
                                throttle.count(now, length);
                            }
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            queue.queue.go_to_previous_position();
                            end = End::Full;
                            break;
                        }
                        // A header that the kernel finds wanting, an interface that is down or gone: the frame is lost,
                        // as on a cable that is not plugged in.
                        Err(e) => {
                            guest_warn!(REFUSED, "{}: a frame was not sent: {e}", shared.id);
                            dropped += 1;
                        }
                    }
                }
                Ok(frame) => {
                    guest_warn!(BAD_FRAME, "{}: a frame of {} bytes was not sent", shared.id, frame.length());
                    dropped += 1;
                }
                Err(e) => {
                    guest_warn!(BAD_FRAME, "{}: a frame was not sent: {e}", shared.id);
                    dropped += 1;
                }
            }
            queue.push(&map, head, 0);
            used += 1;
        }
        if used > 0 {
            queue.signal(&map);
        }
        if let Some(service) = &shared.service {
            service.tell();
        }
        shared.stats.sent(frames, bytes, dropped);
        end
    }
}

impl Task for Tx {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), KICK, EventSet::IN)?;
        if let Some(throttle) = &self.throttle {
            throttle.watch(watch, LIMIT)?;
        }
        self.serve(watch);
        Ok(())
    }

    fn ready(&mut self, token: u32, _: EventSet, watch: &mut Watch<'_>) {
        match token {
            KICK => drain_event(&self.queue.kick),
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
