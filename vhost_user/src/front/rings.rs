//! What a back end is told of the guest: features, memory and rings; and what is kept of it to tell the next one.
//!
//! A back end may die at any moment. What the guest gave it is in guest memory; what it had taken and not given back is written down
//! in the area for requests under way, if it offers one. Where neither says what was done, nothing is guessed.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use device::LiveQueue;
use device::ram::RamMap;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::client::Client;
use crate::BackError;
use crate::wire::{
    F_PROTOCOL_FEATURES, InflightBody, MAX_DESCRIPTORS, NO_DESCRIPTOR, RegionBody, protocol, request,
};

/// Features and rings of a driver, whoever serves them.
#[derive(Default)]
pub(super) struct Driver {
    /// Features that were accepted, once the driver is ready.
    pub(super) features: Option<u64>,
    /// Features of the present back end: what else was accepted is not its business.
    pub(super) theirs: u64,
    /// Rings that run.
    pub(super) rings: Vec<Option<Ring>>,
    /// Rings that the driver has no use for at the moment.
    pub(super) unused: Vec<usize>,
    /// The area for requests under way.
    pub(super) inflight: Option<(InflightBody, OwnedFd)>,
}

/// A ring that runs.
pub(super) struct Ring {
    pub(super) live: LiveQueue,
    /// Where it goes on, until a back end has it.
    pub(super) base: Option<u16>,
}

/// How far a ring has come, as guest memory tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Chains that the driver made available.
    pub(super) available: u16,
    /// Chains that were given back.
    pub(super) used: u16,
}

/// Index in a ring, behind its flags.
const INDEX: u64 = 2;

/// Looks at a ring in guest memory.
pub(super) fn progress(map: &RamMap, queue: &QueueState) -> Option<Progress> {
    let index = |ring: u64| {
        let at = GuestAddress(ring.checked_add(INDEX)?);
        map.load::<u16>(at, Ordering::Acquire).ok().map(u16::from_le)
    };
    Some(Progress { available: index(queue.avail_ring)?, used: index(queue.used_ring)? })
}

/// Entries of the rings, behind flags and index (virtio 1.3 §2.7.6, §2.7.8), and their sizes.
const ENTRIES: u64 = 4;
const AVAILABLE: u64 = 2;
const USED: u64 = 8;

/// Whether chains came back in the order in which they were made available, as far back as the rings tell. Then those that are under way are the
/// last ones.
pub(super) fn in_order(map: &RamMap, queue: &QueueState) -> bool {
    let Some(Progress { available, used }) = progress(map, queue) else { return false };
    let under_way = available.wrapping_sub(used);
    if under_way > queue.size {
        return false;
    }
    (1..=queue.size - under_way).all(|back| {
        // Sizes are powers of two.
        let slot = u64::from(used.wrapping_sub(back) & (queue.size - 1));
        let at = |ring: u64, size: u64| ring.checked_add(ENTRIES + slot * size).map(GuestAddress);
        let taken = at(queue.avail_ring, AVAILABLE).and_then(|at| map.read_obj::<u16>(at).ok());
        let given = at(queue.used_ring, USED).and_then(|at| map.read_obj::<u32>(at).ok());
        taken.zip(given).is_some_and(|(taken, given)| u32::from(u16::from_le(taken)) == u32::from_le(given))
    })
}

impl Driver {
    /// Tells a back end what does not belong to one ring.
    pub(super) fn begin(
        &mut self,
        client: &mut Client,
        agreed: u64,
        sizes: &[u16],
        map: &RamMap,
    ) -> Result<(), BackError> {
        let Some(features) = self.features else { return Ok(()) };
        client.tell(
            request::SET_FEATURES,
            &(features & self.theirs | F_PROTOCOL_FEATURES).to_ne_bytes(),
            &[],
        )?;
        if agreed & protocol::INFLIGHT_SHMFD != 0 {
            if self.inflight.is_none() {
                self.inflight = area(client, sizes)?;
            }
            if let Some((body, file)) = &self.inflight {
                client.tell(
                    request::SET_INFLIGHT_FD,
                    &body.bytes(InflightBody::SIZE),
                    &[file.as_raw_fd()],
                )?;
            }
        }
        tell_memory(client, map)
    }

    /// Has a back end serve a ring, from `base` on. `call` and `error` are what it signals.
    pub(super) fn serve(
        &mut self,
        client: &mut Client,
        index: usize,
        base: u16,
        call: &EventFd,
        error: &EventFd,
    ) -> Result<(), BackError> {
        let enabled = !self.unused.contains(&index);
        let Some(ring) = self.rings.get_mut(index).and_then(Option::as_mut) else { return Ok(()) };
        let queue = ring.live.queue.state();
        let addresses = addresses(&ring.live.ram.map(), index, &queue)?;
        client.tell_ring(request::SET_VRING_NUM, index, queue.size.into())?;
        client.tell_ring(request::SET_VRING_BASE, index, base.into())?;
        client.tell(request::SET_VRING_ADDR, &addresses, &[])?;
        tell_event(client, request::SET_VRING_ERR, index, error)?;
        tell_event(client, request::SET_VRING_CALL, index, call)?;
        tell_event(client, request::SET_VRING_KICK, index, &ring.live.kick)?;
        client.tell_ring(request::SET_VRING_ENABLE, index, enabled.into())?;
        ring.base = None;
        // What is available may have been announced to somebody else.
        if let Err(e) = ring.live.kick.write(1) {
            log::debug!("queue {index}: cannot kick: {e}");
        }
        Ok(())
    }
}

/// Says what eventfd belongs to a ring.
pub(super) fn tell_event(
    client: &mut Client,
    number: u32,
    index: usize,
    event: &EventFd,
) -> Result<(), BackError> {
    // Rings are counted in eight bits, so this is none of the flags.
    debug_assert!((index as u64) < NO_DESCRIPTOR);
    client.tell(number, &(index as u64).to_ne_bytes(), &[event.as_raw_fd()])
}

/// Asks for an area; none if the back end has no use for one.
fn area(client: &mut Client, sizes: &[u16]) -> Result<Option<(InflightBody, OwnedFd)>, BackError> {
    let queues = u16::try_from(sizes.len()).unwrap_or(u16::MAX);
    let queue_size = sizes.iter().copied().max().unwrap_or_default();
    let wish = InflightBody { size: 0, offset: 0, queues, queue_size };
    let mut answer = client.ask(request::GET_INFLIGHT_FD, &wish.bytes(InflightBody::SIZE))?;
    let got = InflightBody::read(answer.fields())?;
    if got.size == 0 {
        return Ok(None);
    }
    Ok(Some((InflightBody { queues, queue_size, ..got }, answer.descriptor()?)))
}

/// Shows a back end guest memory.
fn tell_memory(client: &mut Client, map: &RamMap) -> Result<(), BackError> {
    let count = map.num_regions();
    if count > MAX_DESCRIPTORS {
        return Err(BackError::Regions(count));
    }
    let mut body = [count as u32, 0].map(u32::to_ne_bytes).concat();
    let mut files: Vec<RawFd> = Vec::with_capacity(count);
    for region in map.iter() {
        let guest = region.start_addr().0;
        let file = region.file_offset().ok_or(BackError::Private { guest })?;
        let told =
            RegionBody { guest, size: region.len(), user: region.as_ptr() as u64, offset: file.start() };
        body.extend_from_slice(&told.bytes());
        files.push(file.file().as_raw_fd());
    }
    client.tell(request::SET_MEM_TABLE, &body, &files)
}

/// Where a ring is, by our own addresses, which is how back ends are told.
fn addresses(map: &RamMap, index: usize, queue: &QueueState) -> Result<Vec<u8>, BackError> {
    let user = |guest: u64| {
        let host = map.get_host_address(GuestAddress(guest));
        host.map(|host| host as u64).map_err(|_| BackError::Ring { index })
    };
    // Number and flags, then addresses, the last one that of a log.
    let mut body = [index as u32, 0].map(u32::to_ne_bytes).concat();
    for guest in [queue.desc_table, queue.used_ring, queue.avail_ring] {
        body.extend_from_slice(&user(guest)?.to_ne_bytes());
    }
    body.extend_from_slice(&0u64.to_ne_bytes());
    Ok(body)
}
