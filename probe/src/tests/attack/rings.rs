//! Rounds in which a live device's rings lie: chains of all shapes, indices that jump, tables that change while they are read.

use super::pick::Picks;
use super::{Attack, bus, still_works};
use crate::io::Region;
use crate::processors;
use crate::verdict::Stop;
use crate::virtio::queue::{D_INDIRECT, D_NEXT, D_WRITE, DESCRIPTOR, Queue};
use crate::virtio::{self, Device, NO_VECTOR, common, kind};

const QUEUES: usize = 8;

/// Byte sizes of what a request begins with.
const HEADER: u64 = 64;

/// A live device, as far as it came.
pub(super) struct Live {
    pub(super) device: Device,
    pub(super) queues: [Option<Queue>; QUEUES],
    pub(super) kind: u16,
}

impl Live {
    /// Brings a device up with some of its features, some of its queues, of any size.
    pub(super) fn start(attack: &mut Attack<'_>) -> Result<Option<Live>, Stop> {
        let Some(function) = attack.function() else { return Ok(None) };
        let mut device = Device::open(function).map_err(Stop::Fail)?;
        let wanted = if attack.random.one_in(3) { attack.random.next() } else { u64::MAX };
        if device.negotiate(wanted).is_err() {
            // Features that need others which were not taken may be refused.
            return Ok(None);
        }
        let mut queues = [const { None }; QUEUES];
        let count = usize::from(device.queue_count()).min(QUEUES);
        for (index, slot) in queues.iter_mut().enumerate().take(count) {
            if attack.random.one_in(8) {
                continue;
            }
            let size = 1u16 << attack.random.below(9);
            *slot = device.queue(&mut attack.machine.arena, index as u16, size, NO_VECTOR).ok();
        }
        // Without all of its queues it may ask for a reset.
        device.add_status(virtio::S_DRIVER_OK);
        let kind = virtio::type_of(&function).unwrap_or(0);
        Ok(Some(Live { device, queues, kind }))
    }

    /// A queue that is there, likely the first.
    fn queue(&mut self, attack: &mut Attack<'_>) -> Option<&mut Queue> {
        let count = self.queues.iter().flatten().count() as u64;
        let nth = if attack.random.one_in(2) { 0 } else { attack.random.below(count) };
        self.queues.iter_mut().flatten().nth(nth as usize)
    }
}

/// See the module.
pub(super) fn round(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(mut live) = Live::start(attack)? else { return Ok(()) };
    if attack.random.one_in(4) {
        // Neither where the rings are, which could become the probe's own memory, nor MSI-X, which could stop a processor.
        let device = &live.device;
        let (window, mask) = match attack.random.below(3) {
            0 => (device.common, 0x1f),
            1 => (device.notify, 0xff),
            _ => (device.config.unwrap_or(device.isr), 0x3f),
        };
        processors::aim(Some((window.base(), mask)));
    }
    for _ in 0..8 + attack.random.below(56) {
        act(attack, &mut live);
        attack.actions += 1;
    }
    processors::aim(None);
    let function = live.device.function;
    check!(live.device.reset(), "{}: does not reset", function.bdf);
    drop(live);
    still_works(attack, function)
}

/// Rounds of nothing but tables and indices that change while the device reads them.
pub(super) fn races(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(mut live) = Live::start(attack)? else { return Ok(()) };
    for _ in 0..24 {
        let Some(queue) = live.queue(attack) else { break };
        race(attack, queue);
        attack.actions += 400;
    }
    let function = live.device.function;
    check!(live.device.reset(), "{}: does not reset", function.bdf);
    drop(live);
    still_works(attack, function)
}

fn act(attack: &mut Attack<'_>, live: &mut Live) {
    let kind = live.kind;
    let dice = attack.random.below(32);
    let Some(queue) = live.queue(attack) else { return };
    match dice {
        0..=9 => request(attack, kind, queue),
        10..=13 => scramble(attack, queue.descriptors, u64::from(queue.size)),
        14 => queue.available.write16(2, attack.random.value() as u16),
        15 => {
            let jump = attack.random.below(u64::from(queue.size) * 2 + 2) as u16;
            queue.available.write16(2, queue.used.read16(2).wrapping_add(jump));
        }
        16 | 17 => {
            let head = if attack.random.one_in(3) { attack.random.value() as u16 } else { 0 };
            (0..1 + attack.random.below(4)).for_each(|_| queue.publish(head));
        }
        18 => {
            queue.available.write16(0, attack.random.value() as u16);
            queue.available.write16(4 + u64::from(queue.size) * 2, attack.random.value() as u16);
        }
        19 => {
            let at = attack.random.below(queue.used.len() - 2);
            queue.used.write16(at, attack.random.value() as u16);
        }
        20 => {
            for _ in 0..queue.size {
                let at = 4 + 2 * attack.random.below(u64::from(queue.size));
                queue.available.write16(at, attack.random.value() as u16);
            }
        }
        21 | 22 => race(attack, queue),
        23 => {
            let spins = attack.random.below(20_000);
            (0..spins).for_each(|_| core::hint::spin_loop());
        }
        _ => queue.ring(),
    }
    match dice {
        24 => {
            // A doorbell of any queue, with any number.
            let notify = live.device.notify;
            let at = attack.random.below(notify.len() - 8);
            notify.write(at, attack.random.width(), attack.random.value());
        }
        25 => {
            let offset = attack.random.below(common::LEN);
            // The status is left alone here: most of what follows would be lost.
            if !(common::STATUS - 7..=common::STATUS).contains(&offset) {
                bus::write_common(attack, live.device.common, offset);
            }
        }
        26 if attack.random.one_in(4) => live.device.add_status(attack.random.value() as u8),
        27 => bus::poke(attack, live.device.function),
        _ => {}
    }
}

/// A chain that looks like a request of the device's kind and may be wrong anywhere.
fn request(attack: &mut Attack<'_>, kind: u16, queue: &mut Queue) {
    let at = attack.in_play();
    let header = attack.part_at(at, HEADER);
    fill(attack, kind, header);
    let links = 1 + attack.random.below(6);
    let indirect = attack.random.one_in(4);
    let table = if indirect { attack.table(links) } else { queue.descriptors };
    let room = table.len() / DESCRIPTOR;
    let first = if indirect { 0 } else { attack.random.below(room) };
    for link in 0..links {
        let slot = (first + link) % room;
        let last = link + 1 == links;
        let (address, len, flags) = match link {
            0 => (header.base(), header_len(attack, kind), 0),
            _ if last && kind == kind::BLOCK => (attack.in_play(), 1, D_WRITE),
            _ => buffer(attack),
        };
        let mut flags = flags | if last { 0 } else { D_NEXT };
        let mut next = ((slot + 1) % room) as u16;
        if attack.random.one_in(24) {
            flags ^= 1 << attack.random.below(3);
        }
        if attack.random.one_in(24) {
            next = attack.random.value() as u16;
        }
        let address = match flags & D_WRITE != 0 && address < attack.play.base() {
            true => attack.in_play(),
            false => address,
        };
        describe(attack, table, slot, (address, len, flags), next);
    }
    let mut head = first as u16;
    if indirect {
        head = attack.random.below(u64::from(queue.size)) as u16;
        let len = if attack.random.one_in(8) { attack.random.length() } else { table.len() as u32 };
        let flags = D_INDIRECT | if attack.random.one_in(16) { D_NEXT } else { 0 };
        Queue::write_descriptor(queue.descriptors, u64::from(head), table.base(), len, flags, head);
    }
    queue.publish(head);
    if !attack.random.one_in(3) {
        queue.ring();
    }
}

/// Address, length and direction of a buffer.
fn buffer(attack: &mut Attack<'_>) -> (u64, u32, u16) {
    let len = attack.random.length();
    match attack.random.one_in(2) {
        true => (attack.address(), len, D_WRITE),
        false => (attack.readable_address(), len, 0),
    }
}

/// How long the header says it is; mostly right.
fn header_len(attack: &mut Attack<'_>, kind: u16) -> u32 {
    if attack.random.one_in(8) {
        return attack.random.length();
    }
    match kind {
        kind::BLOCK => 16,
        kind::NET => 12,
        kind::VSOCK => 44,
        kind::PMEM => 4,
        _ => HEADER as u32,
    }
}

/// Writes what a request of this kind begins with.
fn fill(attack: &mut Attack<'_>, kind: u16, header: Region) {
    let random = &mut attack.random;
    (0..HEADER / 8).for_each(|i| header.write64(i * 8, random.value()));
    match kind {
        kind::BLOCK => {
            let what = [0, 1, 4, 8, 11, 13, random.value() as u32][random.below(7) as usize];
            header.write32(0, what);
            if !random.one_in(4) {
                header.write64(8, random.below(9000));
            }
        }
        kind::NET => {
            header.write16(0, random.below(0x400) as u16);
            (1..5).for_each(|i| header.write16(i * 2, random.value() as u16));
        }
        kind::VSOCK => {
            header.write64(0, if random.one_in(8) { random.value() } else { 3 });
            header.write64(8, if random.one_in(8) { random.value() } else { 2 });
            header.write32(16, random.below(4) as u32);
            header.write32(20, random.below(4) as u32);
            header.write32(24, random.length());
            header.write16(28, if random.one_in(8) { random.value() as u16 } else { 1 });
            header.write16(30, random.below(9) as u16);
        }
        kind::PMEM => header.write32(0, random.below(2) as u32),
        _ => {}
    }
}

/// Descriptors that say anything.
fn scramble(attack: &mut Attack<'_>, table: Region, count: u64) {
    for _ in 0..1 + attack.random.below(8) {
        let slot = attack.random.below(count);
        let mut flags = attack.random.below(8) as u16;
        if attack.random.one_in(16) {
            flags = attack.random.value() as u16;
        }
        let address = if flags & D_WRITE != 0 { attack.address() } else { attack.readable_address() };
        let next = if attack.random.one_in(4) { attack.random.value() } else { attack.random.below(count) };
        let len = attack.random.length();
        describe(attack, table, slot, (address, len, flags), next as u16);
    }
}

/// Writes a descriptor. One that leads to a table leads to one of ours or to none: what else lies about could be taken for a descriptor of the
/// probe's own memory.
fn describe(attack: &mut Attack<'_>, table: Region, slot: u64, what: (u64, u32, u16), next: u16) {
    let (address, len, flags) = what;
    let address = if flags & D_INDIRECT != 0 { attack.table_address() } else { address };
    Queue::write_descriptor(table, slot, address, len, flags, next);
}

/// Rings, and changes what the device reads meanwhile, again and again: whatever it reads twice it finds changed.
fn race(attack: &mut Attack<'_>, queue: &mut Queue) {
    let slot = attack.random.below(u64::from(queue.size));
    let at = attack.in_play();
    let (header, good, bad) = (attack.part_at(at, 16), attack.in_play(), attack.address());
    let (short, long) = (attack.random.below(4096) as u32, attack.random.length());
    let next = attack.random.below(u64::from(queue.size)) as u16;
    queue.publish(slot as u16);
    queue.ring();
    for turn in 0..400u32 {
        let even = turn.is_multiple_of(2);
        let (address, len) = if even { (good, short) } else { (bad, long) };
        let flags = if even { D_WRITE } else { D_WRITE | D_NEXT };
        Queue::write_descriptor(queue.descriptors, slot, address, len, flags, next);
        header.write64(0, u64::from(turn));
        queue.available.write16(4, slot as u16 ^ (turn & 1) as u16);
    }
}

/// One request on some queue.
pub(super) fn some_request(attack: &mut Attack<'_>, live: &mut Live) {
    let kind = live.kind;
    if let Some(queue) = live.queue(attack) {
        request(attack, kind, queue);
    }
}
