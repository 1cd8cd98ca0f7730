//! A virtio network driver with one queue pair (virtio 1.3, 5.1), and as much of Ethernet, ARP, IPv4, IPv6, ICMP and UDP as its tests need.

use super::queue::{Buffer, Queue};
use super::{Device, F_EVENT_IDX, NO_VECTOR, kind};
use crate::arena::Arena;
use crate::clock::Clock;
use crate::io::Region;
use crate::pci::Bus;
use crate::text::Text;

pub(crate) const F_CSUM: u64 = 1 << 0;
pub(crate) const F_GUEST_CSUM: u64 = 1 << 1;
pub(crate) const F_MTU: u64 = 1 << 3;
pub(crate) const F_MAC: u64 = 1 << 5;
pub(crate) const F_GUEST_TSO4: u64 = 1 << 7;
pub(crate) const F_HOST_TSO4: u64 = 1 << 11;
pub(crate) const F_MRG_RXBUF: u64 = 1 << 15;
pub(crate) const F_STATUS: u64 = 1 << 16;
pub(crate) const F_CTRL_VQ: u64 = 1 << 17;
pub(crate) const F_MQ: u64 = 1 << 22;

/// Byte size of `virtio_net_hdr` with VERSION_1.
pub(crate) const HEADER: u64 = 12;
const SLOT: u64 = 2048;
/// Frames that are taken at once.
pub(crate) const TOGETHER: usize = 64;

/// A started network card.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) device: Device,
    pub(crate) receive: Queue,
    pub(crate) transmit: Queue,
    /// The control queue, where there is one.
    pub(crate) control: Option<Queue>,
    pub(crate) mac: [u8; 6],
    clock: Clock,
    slots: Region,
    /// Which receive slot each head stands for.
    slot_of: [u16; 1024],
    frame: Region,
}

impl Card {
    /// Opens and starts the `nth` card, its receive queue full. `Ok(None)`: there is no such card.
    pub(crate) fn open(
        bus: &Bus,
        arena: &mut Arena,
        clock: Clock,
        nth: u64,
        features: u64,
    ) -> Result<Option<Card>, Text> {
        let Some(device) = Device::find(bus, kind::NET, nth) else { return Ok(None) };
        Card::on(device?, arena, clock, features, NO_VECTOR).map(Some)
    }

    /// Starts a card, its receive queue full, with the interrupt `vector` for that.
    pub(crate) fn on(
        mut device: Device,
        arena: &mut Arena,
        clock: Clock,
        features: u64,
        vector: u16,
    ) -> Result<Card, Text> {
        device.negotiate(features | F_MAC | F_STATUS | F_EVENT_IDX)?;
        let bdf = device.function.bdf;
        let mut receive = device.queue(arena, 0, 256, vector)?;
        let transmit = device.queue(arena, 1, 256, NO_VECTOR)?;
        let control = if device.features & F_CTRL_VQ != 0 {
            // Behind all the pairs that the device has, even without MQ (5.1.2).
            let last = device.queue_count() - 1;
            Some(device.queue(arena, if device.features & F_MQ != 0 { last } else { 2 }, 64, NO_VECTOR)?)
        } else {
            None
        };
        let config = device.config.ok_or_else(|| text!("{bdf}: no device configuration"))?;
        let mac = [0, 1, 2, 3, 4, 5].map(|i| config.read8(i));
        let slots = arena.take(u64::from(receive.size) * SLOT, 4096);
        let mut slot_of = [0; 1024];
        for slot in 0..receive.size {
            let region = slots.part(u64::from(slot) * SLOT, SLOT);
            let head =
                receive.add(&[Buffer::writable(region)]).ok_or_else(|| text!("{bdf}: the queue is full"))?;
            slot_of[usize::from(head)] = slot;
        }
        device.start()?;
        receive.kick();
        let frame = arena.take(HEADER + 65536, 4096);
        Ok(Card { device, receive, transmit, control, mac, clock, slots, slot_of, frame })
    }

    /// The frame to fill before `send`, behind its virtio header.
    pub(crate) fn frame(&self) -> Region {
        self.frame.part(HEADER, 65536)
    }

    /// The virtio header in front of it.
    pub(crate) fn header(&self) -> Region {
        self.frame.part(0, HEADER)
    }

    /// Sends the first `len` bytes of `frame` and waits until the device has them.
    pub(crate) fn send(&mut self, len: u64) -> Result<(), Text> {
        let buffer = Buffer::readable(self.frame.part(0, HEADER + len));
        self.transmit.add(&[buffer]).ok_or_else(|| text!("the transmit queue is full"))?;
        self.transmit.kick();
        self.device.complete(&mut self.transmit, &self.clock)?;
        self.header().fill(0);
        Ok(())
    }

    /// The next frame that `wanted` accepts within `millis`, handed to `then`. Others are dropped; every slot goes back.
    pub(crate) fn receive<T>(
        &mut self,
        millis: u64,
        mut wanted: impl FnMut(Region) -> Option<T>,
    ) -> Option<T> {
        let mut found = None;
        let clock = self.clock;
        clock.wait(millis, || {
            self.drain(|frame| {
                if found.is_none() {
                    found = wanted(frame);
                }
            });
            found.is_some()
        });
        found
    }

    /// What `wanted` makes of the frames that come together, the first within `millis`. No more than [`TOGETHER`] are taken, and they are
    /// good until so many others have come as the queue is long.
    pub(crate) fn gather<T>(
        &mut self,
        millis: u64,
        mut wanted: impl FnMut(Region) -> Option<T>,
    ) -> [Option<T>; TOGETHER] {
        let mut found = [const { None }; TOGETHER];
        let mut count = 0;
        let clock = self.clock;
        clock.wait(millis, || {
            self.drain(|frame| {
                if let Some((place, one)) = found.get_mut(count).zip(wanted(frame)) {
                    *place = Some(one);
                    count += 1;
                }
            });
            count > 0
        });
        found
    }

    /// Hands every frame that has come to `then`. Every slot goes back.
    pub(crate) fn drain(&mut self, mut then: impl FnMut(Region)) {
        let mut came = false;
        while let Some((head, len)) = self.receive.pop() {
            let slot = self.slot_of[usize::from(head)];
            let region = self.slots.part(u64::from(slot) * SLOT, SLOT);
            if (HEADER..=SLOT).contains(&u64::from(len)) {
                then(region.part(HEADER, u64::from(len) - HEADER));
            }
            if let Some(head) = self.receive.add(&[Buffer::writable(region)]) {
                self.slot_of[usize::from(head)] = slot;
            }
            came = true;
        }
        if came {
            self.receive.kick();
        }
    }
}

/// Writes a big-endian 16-bit number.
pub(crate) fn put16(region: Region, at: u64, value: u16) {
    region.write16(at, value.to_be());
}

pub(crate) fn get16(region: Region, at: u64) -> u16 {
    u16::from_be(region.read16(at))
}

/// The Internet checksum's sum of `bytes`, continued from `sum`.
pub(crate) fn sum(bytes: Region, sum: u32) -> u32 {
    let even = bytes.len() & !1;
    let mut sum = (0..even).step_by(2).fold(sum, |sum, i| {
        let sum = sum + u32::from(get16(bytes, i));
        (sum & 0xffff) + (sum >> 16)
    });
    if even < bytes.len() {
        sum += u32::from(bytes.read8(even)) << 8;
    }
    (sum & 0xffff) + (sum >> 16)
}

/// An Ethernet header.
pub(crate) fn ethernet(frame: Region, to: [u8; 6], from: [u8; 6], kind: u16) {
    frame.store(0, &to);
    frame.store(6, &from);
    put16(frame, 12, kind);
}

/// An IPv4 header of 20 bytes at offset 14 for `len` bytes of payload.
pub(crate) fn ipv4(frame: Region, from: [u8; 4], to: [u8; 4], protocol: u8, len: u16) {
    let header = frame.part(14, 20);
    header.fill(0);
    header.write8(0, 0x45);
    put16(header, 2, 20 + len);
    header.write8(8, 64);
    header.write8(9, protocol);
    header.store(12, &from);
    header.store(16, &to);
    put16(header, 10, !(sum(header, 0) as u16));
}

/// An IPv6 header of 40 bytes at offset 14 for `len` bytes of payload; no more than so many hops.
pub(crate) fn ipv6(frame: Region, from: [u8; 16], to: [u8; 16], (next, hops): (u8, u8), len: u16) {
    let header = frame.part(14, 40);
    header.store(0, &[0x60, 0, 0, 0, 0, 0, next, hops]);
    put16(header, 4, len);
    header.store(8, &from);
    header.store(24, &to);
}

/// `a.b.c.d`.
pub(crate) fn address(text: &str) -> Option<[u8; 4]> {
    let mut bytes = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut bytes {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(bytes)
}
