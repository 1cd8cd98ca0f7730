//! The only queue: requests to make durable what was written (virtio 1.3 §5.19.6).
//!
//! Requests that wait together are answered by one flush of the host's, which begins after all of them were taken.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use device::limit::LogLimit;
use device::ram::RamMap;
use device::virtio::Chain;
use device::{LiveQueue, Task, Watch, guest_warn};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::QUEUE_SIZE;
use super::backing::Backing;
use crate::buffers::{drain_event, kick_again, next_chain};

/// The only kind of request (§5.19.6).
pub(super) const FLUSH: u32 = 0;
/// What is answered: all is durable (§5.19.6.1).
pub(super) const OK: u32 = 0;
/// It may not be.
pub(super) const FAILED: u32 = 1;
/// Length of a request, and of an answer.
const WORD: usize = 4;
/// Most descriptors of a chain that are looked at.
pub(super) const MAX_DESCRIPTORS: usize = 16;

static BAD_REQUEST: LogLimit = LogLimit::new();
static NOT_DURABLE: LogLimit = LogLimit::new();

/// A request that was taken.
struct Asked {
    head: u16,
    /// Whether it is a flush.
    known: bool,
    /// Where the bytes of the answer go; none if there is no room for them.
    answer: Option<[GuestAddress; WORD]>,
}

/// Serves the queue.
pub(super) struct Flusher {
    id: String,
    queue: LiveQueue,
    backing: Arc<Backing>,
    /// At most as many as the queue is long; kept so that none is allocated per request.
    asked: Vec<Asked>,
}

impl Flusher {
    pub(super) fn new(id: &str, queue: LiveQueue, backing: Arc<Backing>) -> Self {
        Flusher { id: id.to_owned(), queue, backing, asked: Vec::with_capacity(usize::from(QUEUE_SIZE)) }
    }

    /// Where the queue is.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes what is there and answers it.
    fn serve(&mut self) {
        let Flusher { id, queue, backing, asked } = self;
        let map = queue.ram.map();
        queue.quiet(&*map);
        while asked.len() < usize::from(QUEUE_SIZE) {
            let Some(chain) = next_chain(queue, &map) else { break };
            asked.push(read(id, &map, chain));
        }
        if asked.is_empty() {
            return;
        }
        if asked.len() == usize::from(QUEUE_SIZE) {
            // There may be more; others, such as whoever wants to stop us, have their turn first.
            kick_again(&queue.kick);
        }
        let flush = asked.iter().any(|one| one.known && one.answer.is_some());
        let done = if flush { backing.flush() } else { Ok(()) };
        if let Err(e) = &done {
            guest_warn!(NOT_DURABLE, "{id}: what was written is not durable: {e}");
        }
        for Asked { head, known, answer } in asked.drain(..) {
            let verdict = if known && done.is_ok() { OK } else { FAILED };
            let write = |places: [GuestAddress; WORD]| {
                verdict.to_le_bytes().iter().zip(places).all(|(byte, at)| map.write_obj(*byte, at).is_ok())
            };
            let written = match answer.map(write) {
                Some(true) => WORD as u32,
                Some(false) => {
                    guest_warn!(BAD_REQUEST, "{id}: the answer to a request is outside of RAM");
                    0
                }
                None => 0,
            };
            queue.push(&map, head, written);
        }
        queue.signal(&map);
    }
}

/// Reads a request. It may be in pieces, and so may the room for its answer.
fn read(id: &str, map: &RamMap, chain: Chain<'_>) -> Asked {
    let head = chain.head_index();
    let (mut request, mut have) = ([0; WORD], 0);
    let (mut answer, mut room) = ([GuestAddress(0); WORD], 0);
    let mut whole = true;
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        let length = descriptor.len() as usize;
        if descriptor.is_write_only() {
            for offset in (0..length as u64).take(WORD - room) {
                answer[room] = GuestAddress(descriptor.addr().0.saturating_add(offset));
                room += 1;
            }
        } else {
            let part = &mut request[have..];
            let part = &mut part[..length.min(WORD - have)];
            whole &= map.read_slice(part, descriptor.addr()).is_ok();
            have += part.len();
        }
    }
    let whole = whole && have == WORD;
    let known = whole && u32::from_le_bytes(request) == FLUSH;
    if !known {
        guest_warn!(BAD_REQUEST, "{id}: {}", if whole { "an unknown request" } else { "half a request" });
    }
    if room < WORD {
        guest_warn!(BAD_REQUEST, "{id}: a request without room for the answer");
    }
    Asked { head, known, answer: (room == WORD).then_some(answer) }
}

impl Task for Flusher {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), 0, EventSet::IN)?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) {
        drain_event(&self.queue.kick);
        self.serve();
    }
}
