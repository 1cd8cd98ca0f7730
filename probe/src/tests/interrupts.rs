//! MSI-X delivery to a real handler.

use super::Machine;
use crate::apic::LocalApic;
use crate::clock::PATIENCE;
use crate::trap;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, SECTOR};
use crate::virtio::queue::Buffer;
use crate::virtio::{Device, NO_VECTOR, common, kind};

const VECTOR: u8 = 0x51;
const OTHER_VECTOR: u8 = 0x52;

/// A completion interrupts through MSI-X; not while masked, when it becomes pending; on unmasking it is delivered; a changed
/// vector counts from then on. On the rng, else on the first disk (an id request).
pub(super) fn msix(machine: &mut Machine) -> Outcome {
    let found = Device::find(&machine.bus, kind::RNG, 0).map(|d| (d, false));
    let found = found.or_else(|| Device::find(&machine.bus, kind::BLOCK, 0).map(|d| (d, true)));
    let Some((device, is_disk)) = found else { skip!("neither rng nor disk") };
    let mut device = device.map_err(Stop::Fail)?;
    device.negotiate(0).map_err(Stop::Fail)?;
    let Some(msix) = device.msix() else { fail!("{}: no MSI-X", device.function.bdf) };
    let apic = LocalApic::enable();
    check!(msix.vectors >= 2, "{} vectors", msix.vectors);
    for vector in 0..msix.vectors {
        msix.set(vector, (0, 0), true);
    }
    // A vector that the table does not have is answered by "none" (4.1.4.3).
    device.common.write16(common::CONFIG_VECTOR, msix.vectors);
    let none = device.common.read16(common::CONFIG_VECTOR);
    check!(none == NO_VECTOR, "vector {} of {} is taken: {none:#x}", msix.vectors, msix.vectors);
    device.common.write16(common::CONFIG_VECTOR, 0);
    check!(device.common.read16(common::CONFIG_VECTOR) == 0, "the configuration takes no vector");
    msix.set(1, apic.message(VECTOR), false);
    msix.control(true, false);
    let mut queue = device.queue(&mut machine.arena, 0, 16, 1).map_err(Stop::Fail)?;
    device.start().map_err(Stop::Fail)?;
    queue.want_interrupt(true);
    let header = machine.arena.take(16, 16);
    let data = machine.arena.take(20, 16);
    let status = machine.arena.take(1, 1);
    header.write32(0, crate::virtio::blk::T_GET_ID);
    let disk_chain = [Buffer::readable(header), Buffer::writable(data), Buffer::writable(status)];
    let chain = if is_disk { &disk_chain[..] } else { &disk_chain[1..2] };
    let clock = machine.clock;

    // One request; how often `vector` came while it was done, waiting `millis` at most for the first.
    let mut request = |vector: u8, millis: u64| -> Result<u64, Stop> {
        let before = trap::hits(vector);
        queue.add(chain).ok_or_else(|| Stop::Fail(text!("the queue is full")))?;
        queue.kick();
        device.complete(&mut queue, &clock).map_err(Stop::Fail)?;
        clock.wait(millis, || trap::hits(vector) > before);
        Ok(trap::hits(vector) - before)
    };
    trap::interrupts_on();
    let result = (|| {
        for round in 0..10 {
            let came = request(VECTOR, PATIENCE)?;
            check!(came == 1, "request {round}: {came} interrupts");
        }
        msix.mask(1, true);
        let masked = request(VECTOR, 20)?;
        check!(masked == 0, "{masked} interrupts while the vector is masked");
        check!(msix.pending(1), "the pending bit is clear after an interrupt that was masked");
        let before = trap::hits(VECTOR);
        msix.mask(1, false);
        check!(clock.wait(PATIENCE, || trap::hits(VECTOR) > before), "no interrupt on unmasking");
        check!(!msix.pending(1), "the pending bit stays after delivery");
        msix.control(true, true);
        let masked = request(VECTOR, 20)?;
        check!(masked == 0, "{masked} interrupts while the function is masked");
        let before = trap::hits(VECTOR);
        msix.control(true, false);
        check!(
            clock.wait(PATIENCE, || trap::hits(VECTOR) > before),
            "no interrupt on unmasking the function"
        );
        msix.set(1, apic.message(OTHER_VECTOR), false);
        let came = request(OTHER_VECTOR, PATIENCE)?;
        check!(came == 1, "{came} interrupts on the new vector");
        Ok(text!("vectors={} interrupts={}", msix.vectors, trap::hits(VECTOR) + trap::hits(OTHER_VECTOR)))
    })();
    trap::interrupts_off();
    msix.control(false, false);
    result
}

/// With EVENT_IDX a disk interrupts when the used index passes the event that the driver set, and not before: none without an event,
/// one for the first of several completions.
pub(super) fn event_idx(machine: &mut Machine) -> Outcome {
    const COUNT: u64 = 8;
    let Some(device) = Device::find(&machine.bus, kind::BLOCK, 0) else { skip!("there is no disk") };
    let mut device = device.map_err(Stop::Fail)?;
    device.negotiate(crate::virtio::F_EVENT_IDX).map_err(Stop::Fail)?;
    if device.features & crate::virtio::F_EVENT_IDX == 0 {
        skip!("EVENT_IDX is not offered");
    }
    let Some(msix) = device.msix() else { fail!("{}: no MSI-X", device.function.bdf) };
    let apic = LocalApic::enable();
    msix.set(1, apic.message(VECTOR), false);
    msix.control(true, false);
    let mut queue = device.queue(&mut machine.arena, 0, 64, 1).map_err(Stop::Fail)?;
    device.start().map_err(Stop::Fail)?;
    let header = machine.arena.take(16, 16);
    let data = machine.arena.take(COUNT * SECTOR, 4096);
    let states = machine.arena.take(COUNT, 1);
    header.write32(0, blk::T_IN);
    let clock = machine.clock;
    let mut batch = |wanted: bool, wait: u64| -> Result<u64, Stop> {
        queue.want_interrupt(wanted);
        let before = trap::hits(VECTOR);
        for i in 0..COUNT {
            let parts = [
                Buffer::readable(header),
                Buffer::writable(data.part(i * SECTOR, SECTOR)),
                Buffer::writable(states.part(i, 1)),
            ];
            queue.add(&parts).ok_or_else(|| Stop::Fail(text!("the queue is full")))?;
        }
        queue.kick();
        for _ in 0..COUNT {
            device.complete(&mut queue, &clock).map_err(Stop::Fail)?;
        }
        clock.wait(wait, || trap::hits(VECTOR) > before);
        Ok(trap::hits(VECTOR) - before)
    };
    trap::interrupts_on();
    let result = (|| {
        batch(false, 1)?; // the very first may interrupt in any case
        for round in 0..20 {
            let quiet = batch(false, 3)?;
            check!(quiet == 0, "round {round}: {quiet} interrupts although none was asked for");
            let came = batch(true, PATIENCE)?;
            check!(came == 1, "round {round}: {came} interrupts for {COUNT} completions behind one event");
        }
        Ok(text!("rounds=20"))
    })();
    trap::interrupts_off();
    msix.control(false, false);
    result
}

/// Each queue of a disk works by itself, with a vector of its own.
pub(super) fn queues(machine: &mut Machine) -> Outcome {
    let nth = machine.start.number("blk").unwrap_or(0);
    let Some(device) = Device::find(&machine.bus, kind::BLOCK, nth) else { skip!("there is no disk {nth}") };
    let mut device = device.map_err(Stop::Fail)?;
    device.negotiate(blk::F_MQ).map_err(Stop::Fail)?;
    let Some(msix) = device.msix() else { fail!("{}: no MSI-X", device.function.bdf) };
    let apic = LocalApic::enable();
    let count = device.queue_count().min(16);
    check!(msix.vectors > count, "{} vectors for {count} queues", msix.vectors);
    let mut queues = [const { None }; 16];
    for index in 0..count {
        msix.set(index + 1, apic.message(VECTOR + index as u8), false);
        let queue = device.queue(&mut machine.arena, index, 16, index + 1).map_err(Stop::Fail)?;
        queues[usize::from(index)] = Some(queue);
    }
    msix.control(true, false);
    device.start().map_err(Stop::Fail)?;
    let header = machine.arena.take(16, 16);
    let data = machine.arena.take(SECTOR, 512);
    let status = machine.arena.take(1, 1);
    header.write32(0, blk::T_IN);
    trap::interrupts_on();
    let result = (|| {
        for (index, queue) in queues.iter_mut().flatten().enumerate() {
            let vector = VECTOR + index as u8;
            let before = trap::hits(vector);
            status.write8(0, blk::UNANSWERED);
            queue.want_interrupt(true);
            queue.add(&[Buffer::readable(header), Buffer::writable(data), Buffer::writable(status)]);
            queue.kick();
            device.complete(queue, &machine.clock).map_err(Stop::Fail)?;
            check!(status.read8(0) == blk::OK, "queue {index}: status {:#x}", status.read8(0));
            let came = machine.clock.wait(PATIENCE, || trap::hits(vector) > before);
            check!(came, "queue {index} does not interrupt on its vector");
        }
        Ok(text!("queues={count}"))
    })();
    trap::interrupts_off();
    msix.control(false, false);
    result
}
