//! A virtio-pmem driver (virtio 1.3, 5.19).

use super::queue::{Buffer, Queue};
use super::{Device, NO_VECTOR, kind};
use crate::arena::Arena;
use crate::clock::Clock;
use crate::io::Region;
use crate::text::Text;

/// The only request there is.
pub(crate) const FLUSH: u32 = 0;

pub(crate) const OK: u32 = 0;
pub(crate) const FAILED: u32 = 1;
/// An answer that no device gives.
pub(crate) const UNANSWERED: u32 = 0xeeee_eeee;

/// What the guest and a device agree to be started.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    /// The memory itself.
    pub(crate) content: Region,
    pub(crate) request: Region,
    pub(crate) answer: Region,
    clock: Clock,
}

impl Memory {
    /// Opens and starts the first such device. `Ok(None)`: there is none.
    pub(crate) fn open(
        bus: &crate::pci::Bus,
        arena: &mut Arena,
        clock: Clock,
    ) -> Result<Option<Memory>, Text> {
        let Some(device) = Device::find(bus, kind::PMEM, 0) else { return Ok(None) };
        Memory::on(device?, arena, clock).map(Some)
    }

    pub(crate) fn on(mut device: Device, arena: &mut Arena, clock: Clock) -> Result<Memory, Text> {
        device.negotiate(0)?;
        let queue = device.queue(arena, 0, 64, NO_VECTOR)?;
        device.start()?;
        let bdf = device.function.bdf;
        let config = device.config.ok_or_else(|| text!("{bdf}: no device configuration"))?;
        let (start, len) = (config.read64(0), config.read64(8));
        if start % (2 << 20) != 0 || len % (2 << 20) != 0 || start < 1 << 32 || len == 0 {
            return Err(text!("{bdf}: {len:#x} bytes of memory at {start:#x}"));
        }
        // SAFETY: memory of the device's, which is nobody else's.
        let content = unsafe { Region::new(start, len) };
        Ok(Memory { device, queue, content, request: arena.take(4, 4), answer: arena.take(4, 4), clock })
    }

    /// One request, done to the end: what is in the room for the answer, and the length that the device says it wrote.
    pub(crate) fn ask(&mut self, request: u32, chain: &[Buffer]) -> Result<(u32, u32), Text> {
        self.request.write32(0, request);
        self.answer.write32(0, UNANSWERED);
        let head = self.queue.add(chain).ok_or_else(|| text!("the queue is full"))?;
        self.queue.kick();
        let (done, written) = self.device.complete(&mut self.queue, &self.clock)?;
        if done != head {
            return Err(text!("{head} was asked, {done} is done"));
        }
        Ok((self.answer.read32(0), written))
    }

    /// A flush: its answer.
    pub(crate) fn flush(&mut self) -> Result<u32, Text> {
        let chain = [Buffer::readable(self.request), Buffer::writable(self.answer)];
        let (answer, written) = self.ask(FLUSH, &chain)?;
        if written != 4 {
            return Err(text!("{written} bytes of an answer"));
        }
        Ok(answer)
    }
}
