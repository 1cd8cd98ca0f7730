//! From a descriptor chain to a request (virtio 1.3 §5.2.6).
//!
//! The driver may cut header, data and status into buffers as it likes (§2.7.4), so nothing is assumed about that. The
//! header is read once, here. The data is never looked at: it is handed on as addresses.

use block::{SECTOR, Segment};
use device::ram::RamMap;
use device::virtio::Chain;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::wire::{HEADER_LENGTH, MAX_SEGMENTS, RANGE_LENGTH, RANGE_UNMAP, Status, kind};

/// Most pieces of guest memory in one request; longer ones fail. A buffer across two regions of memory makes two.
pub const MAX_PIECES: usize = MAX_SEGMENTS as usize + 66;

/// Why a chain cannot even be answered. The driver has to reset the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadChain {
    /// It is empty, loops, or leads to a descriptor that does not exist or cannot be read.
    #[error("a request's descriptor chain is broken")]
    Broken,
    /// A buffer to be read follows one to be written (§2.7.4.2).
    #[error("a request's buffers are out of order")]
    Order,
    /// There is no byte in RAM for the status.
    #[error("a request has no room for its status")]
    NoStatus,
}

/// What the driver asks for. Positions and lengths are in bytes and not checked against the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    Identify,
    Discard {
        offset: u64,
        length: u64,
    },
    Zero {
        offset: u64,
        length: u64,
        may_free: bool,
    },
    /// Something to be answered with this at once.
    Fail(Status),
}

impl Operation {
    /// Bytes that it discards or zeroes, if that is what it does.
    pub(super) fn zeroed(self) -> Option<u64> {
        match self {
            Operation::Discard { length, .. } | Operation::Zero { length, .. } => Some(length),
            _ => None,
        }
    }
}

/// The status byte of a request, in guest memory that the queue keeps mapped until the request is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusByte(*mut u8);

// SAFETY: an address in guest memory, which is shared between threads anyway; see `StatusByte::set`.
unsafe impl Send for StatusByte {}

impl StatusByte {
    /// Writes the status.
    ///
    /// # Safety
    /// The memory map that the request was parsed with is still held.
    pub(super) unsafe fn set(self, status: Status) {
        // SAFETY: the address was taken from that map; the guest may access it at the same time, hence volatile.
        unsafe { self.0.write_volatile(status as u8) }
    }
}

/// A request, but for its data, which is in the [`Pieces`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) status: StatusByte,
    /// Bytes of data.
    pub(super) length: u64,
}

/// The buffers of one chain; kept between chains so that none is allocated per request.
pub(super) struct Pieces {
    segments: Vec<Segment>,
    /// Those before this are for the device to read.
    readable: usize,
}

impl Pieces {
    pub(super) fn new() -> Self {
        Pieces { segments: Vec::with_capacity(MAX_PIECES), readable: 0 }
    }

    /// Reads a chain. Afterwards `data` has the buffers for the operation.
    ///
    /// # Errors
    /// The chain is so broken that it cannot be answered.
    pub(super) fn parse(&mut self, map: &RamMap, chain: Chain<'_>) -> Result<Request, BadChain> {
        let complete = self.gather(map, chain)?;
        let status = self.split_status().ok_or(BadChain::NoStatus)?;
        let (operation, length) = if complete { self.operation() } else { (FAIL, 0) };
        Ok(Request { operation, status, length })
    }

    /// The data of the request parsed last.
    pub(super) fn data(&self, operation: Operation) -> &[Segment] {
        match operation {
            Operation::Read { .. } | Operation::Identify => &self.segments[self.readable..],
            Operation::Write { .. } => &self.segments[..self.readable],
            _ => &[],
        }
    }

    /// Collects the buffers. Returns whether all of them are in RAM and not too many; the last one always is.
    fn gather(&mut self, map: &RamMap, chain: Chain<'_>) -> Result<bool, BadChain> {
        self.segments.clear();
        self.readable = 0;
        let (mut complete, mut ended, mut writing, mut has_status) = (true, false, false, false);
        for descriptor in chain {
            if writing && !descriptor.is_write_only() {
                return Err(BadChain::Order);
            }
            writing = descriptor.is_write_only();
            ended = !descriptor.has_next();
            if descriptor.len() == 0 {
                continue;
            }
            let in_ram = self.add(map, descriptor.addr(), descriptor.len() as usize, writing, &mut complete);
            complete &= in_ram;
            has_status = writing && in_ram;
            if !writing {
                self.readable = self.segments.len();
            }
        }
        // The iterator stops at whatever it cannot follow; only the last descriptor of a chain says that it is the last.
        if !ended {
            return Err(BadChain::Broken);
        }
        if has_status { Ok(complete) } else { Err(BadChain::NoStatus) }
    }

    /// Adds the pieces of one buffer, or none and `false` if not all of it is in RAM. When there are too many, the last of them
    /// are kept, for the status is there, and the chain is not `complete`.
    fn add(
        &mut self,
        map: &RamMap,
        address: GuestAddress,
        length: usize,
        write: bool,
        complete: &mut bool,
    ) -> bool {
        let access = if write { Permissions::Write } else { Permissions::Read };
        let before = self.segments.len();
        let Ok(slices) = GuestMemory::get_slices(map, address, length, access) else { return false };
        for slice in slices {
            let Ok(slice) = slice else {
                self.segments.truncate(before);
                return false;
            };
            if self.segments.len() == MAX_PIECES {
                self.segments.pop();
                *complete = false;
            }
            let guard = slice.ptr_guard_mut();
            self.segments.push(Segment::new(guard.as_ptr(), guard.len()));
        }
        true
    }

    /// Takes the last writable byte away from the data.
    fn split_status(&mut self) -> Option<StatusByte> {
        let last = self.segments.last_mut()?;
        let length = last.len().checked_sub(1)?;
        let status = last.base().wrapping_add(length);
        *last = Segment::new(last.base(), length);
        if length == 0 {
            self.segments.pop();
            self.readable = self.readable.min(self.segments.len());
        }
        Some(StatusByte(status))
    }

    /// Reads the header, and what else belongs to the operation, and cuts it off the data.
    fn operation(&mut self) -> (Operation, u64) {
        let mut header = [0; HEADER_LENGTH];
        if !self.take(&mut header) {
            return (FAIL, 0);
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let offset = u64::from_le_bytes(sector).checked_mul(SECTOR);
        let code = u32::from_le_bytes([a, b, c, d]);
        let (readable, writable) = self.segments.split_at(self.readable);
        match (code, offset) {
            (kind::IN, Some(offset)) => transfer(Operation::Read { offset }, writable),
            (kind::OUT, Some(offset)) => transfer(Operation::Write { offset }, readable),
            (kind::IN | kind::OUT, None) => (FAIL, 0),
            (kind::FLUSH, _) => (Operation::Flush, 0),
            (kind::GET_ID, _) => (Operation::Identify, total(writable)),
            (kind::DISCARD | kind::WRITE_ZEROES, _) => (self.range(code == kind::DISCARD), 0),
            _ => (Operation::Fail(Status::Unsupported), 0),
        }
    }

    /// Reads the one range of a request to discard or zero.
    fn range(&mut self, discard: bool) -> Operation {
        let mut range = [0; RANGE_LENGTH];
        if !self.take(&mut range) || self.readable != 0 {
            return FAIL;
        }
        let [first @ .., a, b, c, d, e, f, g, h] = range;
        let offset = u64::from_le_bytes(first).checked_mul(SECTOR);
        let length = u64::from(u32::from_le_bytes([a, b, c, d])) * SECTOR;
        match (u32::from_le_bytes([e, f, g, h]), offset) {
            (0, Some(offset)) if discard => Operation::Discard { offset, length },
            (flags @ (0 | RANGE_UNMAP), Some(offset)) if !discard => {
                Operation::Zero { offset, length, may_free: flags == RANGE_UNMAP }
            }
            (_, None) => FAIL,
            // Flags that are unknown, or not for discarding (§5.2.6.2).
            _ => Operation::Fail(Status::Unsupported),
        }
    }

    /// Reads the first readable bytes and cuts them off. `false` if there are not enough.
    fn take(&mut self, out: &mut [u8]) -> bool {
        let (mut done, mut used) = (0, 0);
        for segment in &mut self.segments[..self.readable] {
            let step = segment.len().min(out.len() - done);
            for (i, byte) in out[done..done + step].iter_mut().enumerate() {
                // SAFETY: within the segment, which is mapped guest memory; the guest may write it meanwhile, hence volatile.
                *byte = unsafe { segment.base().add(i).read_volatile() };
            }
            done += step;
            if step < segment.len() {
                *segment = Segment::new(segment.base().wrapping_add(step), segment.len() - step);
                break;
            }
            used += 1;
        }
        self.segments.drain(..used);
        self.readable -= used;
        done == out.len()
    }
}

const FAIL: Operation = Operation::Fail(Status::Error);

/// A read or write, if it is of whole sectors.
fn transfer(operation: Operation, data: &[Segment]) -> (Operation, u64) {
    let length = total(data);
    if length.is_multiple_of(SECTOR) { (operation, length) } else { (FAIL, 0) }
}

/// Bytes in all; the chain's iterator ends before there are 4 GiB.
fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
}

/// Writes `bytes` to the segments, as far as there is room; returns how many fitted.
///
/// # Safety
/// The segments are writable guest memory of a map that is held.
pub(super) unsafe fn fill(segments: &[Segment], bytes: &[u8]) -> u32 {
    let mut done = 0;
    for segment in segments {
        for (i, byte) in bytes[done..].iter().take(segment.len()).enumerate() {
            // SAFETY: within the segment, as the caller promises.
            unsafe { segment.base().add(i).write_volatile(*byte) };
        }
        done += segment.len().min(bytes.len() - done);
    }
    done as u32
}
