//! A virtio socket driver (virtio 1.3, 5.10): packets out, packets and events in. It knows no connections.

use super::queue::{Buffer, Queue};
use super::{Device, NO_VECTOR};
use crate::arena::Arena;
use crate::io::Region;
use crate::text::Text;

/// Byte size of a packet's header (5.10.6).
pub(crate) const HEADER: u64 = 44;
/// Most bytes of data in a packet of ours, and in one to us.
pub(crate) const LARGEST: u64 = 4096 - HEADER;
const SLOT: u64 = 4096;
const SLOTS: u64 = 64;
const HOST: u64 = 2;
const STREAM: u16 = 1;

/// What a packet is for.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// A packet's header, as far as connections differ in it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Packet {
    pub(crate) host: u32,
    pub(crate) guest: u32,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

/// A started device.
#[derive(Debug)]
pub(crate) struct Sockets {
    device: Device,
    receive: Queue,
    transmit: Queue,
    events: Queue,
    /// Where packets come in; the first half of the slots.
    slots: Region,
    /// The slot behind each head of the receive queue, and of the transmit queue.
    slot_of: [[u16; 1024]; 2],
    /// Slots for packets of ours that the device does not have.
    free: [u16; SLOTS as usize],
    free_count: usize,
    event: Region,
}

impl Sockets {
    /// Starts a device, its receive and event queues full.
    pub(crate) fn on(mut device: Device, arena: &mut Arena) -> Result<Sockets, Text> {
        device.negotiate(0)?;
        let bdf = device.function.bdf;
        let mut receive = device.queue(arena, 0, SLOTS as u16, NO_VECTOR)?;
        let transmit = device.queue(arena, 1, SLOTS as u16, NO_VECTOR)?;
        let mut events = device.queue(arena, 2, 2, NO_VECTOR)?;
        let slots = arena.take(2 * SLOTS * SLOT, 4096);
        let event = arena.take(8, 8);
        let mut slot_of = [[0; 1024]; 2];
        let full = || text!("{bdf}: the queue is full");
        for slot in 0..receive.size {
            let region = slots.part(u64::from(slot) * SLOT, SLOT);
            let head = receive.add(&[Buffer::writable(region)]).ok_or_else(full)?;
            slot_of[0][usize::from(head)] = slot;
        }
        events.add(&[Buffer::writable(event)]).ok_or_else(full)?;
        device.start()?;
        receive.kick();
        events.kick();
        let mut free = [0; SLOTS as usize];
        for (i, slot) in free.iter_mut().enumerate() {
            *slot = (SLOTS as usize + i) as u16;
        }
        let free_count = usize::from(transmit.size).min(free.len());
        Ok(Sockets { device, receive, transmit, events, slots, slot_of, free, free_count, event })
    }

    /// Our own context ID.
    pub(crate) fn cid(&self) -> u64 {
        self.device.config.map_or(0, |config| config.read64(0))
    }

    /// The next event, if there is one.
    pub(crate) fn event(&mut self) -> Option<u32> {
        self.events.pop()?;
        let what = self.event.read32(0);
        let _ = self.events.add(&[Buffer::writable(self.event)]);
        self.events.kick();
        Some(what)
    }

    /// Whether a packet can be sent at once.
    pub(crate) fn has_room(&mut self) -> bool {
        while let Some((head, _)) = self.transmit.pop() {
            self.free[self.free_count] = self.slot_of[1][usize::from(head)];
            self.free_count += 1;
        }
        self.free_count > 0
    }

    /// Sends a packet with `len` bytes of data, which `fill` writes. Only when there [is room](Sockets::has_room).
    pub(crate) fn send(&mut self, packet: &Packet, len: u64, fill: impl FnOnce(Region)) {
        self.free_count -= 1;
        let slot = self.free[self.free_count];
        let bytes = self.slots.part(u64::from(slot) * SLOT, HEADER + len);
        bytes.write64(0, self.cid());
        bytes.write64(8, HOST);
        bytes.write32(16, packet.guest);
        bytes.write32(20, packet.host);
        bytes.write32(24, len as u32);
        bytes.write16(28, STREAM);
        bytes.write16(30, packet.op);
        bytes.write32(32, packet.flags);
        bytes.write32(36, packet.buf_alloc);
        bytes.write32(40, packet.fwd_cnt);
        fill(bytes.part(HEADER, len));
        if let Some(head) = self.transmit.add(&[Buffer::readable(bytes)]) {
            self.slot_of[1][usize::from(head)] = slot;
        }
        self.transmit.kick();
    }

    /// The next packet that came, and its data, as `then` sees it; its slot goes back afterwards. An error is what the device did wrong.
    pub(crate) fn receive<T>(&mut self, then: impl FnOnce(Packet, Region) -> T) -> Option<Result<T, Text>> {
        let (head, written) = self.receive.pop()?;
        let slot = self.slot_of[0][usize::from(head)];
        let bytes = self.slots.part(u64::from(slot) * SLOT, SLOT);
        let len = u64::from(bytes.read32(24));
        let good =
            bytes.read64(0) == HOST && bytes.read64(8) == self.cid() && HEADER + len == u64::from(written);
        let answer = if good {
            let packet = Packet {
                host: bytes.read32(16),
                guest: bytes.read32(20),
                op: bytes.read16(30),
                flags: bytes.read32(32),
                buf_alloc: bytes.read32(36),
                fwd_cnt: bytes.read32(40),
            };
            Ok(then(packet, bytes.part(HEADER, len)))
        } else {
            Err(text!("a packet of {written} bytes says {len} of data, from {}", bytes.read64(0)))
        };
        if let Some(head) = self.receive.add(&[Buffer::writable(bytes)]) {
            self.slot_of[0][usize::from(head)] = slot;
        }
        self.receive.kick();
        Some(answer)
    }
}
