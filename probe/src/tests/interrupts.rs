//! MSI-X delivery to a real handler.

use super::Machine;
use crate::apic::LocalApic;
use crate::trap;
use crate::verdict::{Outcome, Stop};
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
            let came = request(VECTOR, 500)?;
            check!(came == 1, "request {round}: {came} interrupts");
        }
        msix.mask(1, true);
        let masked = request(VECTOR, 20)?;
        check!(masked == 0, "{masked} interrupts while the vector is masked");
        check!(msix.pending(1), "the pending bit is clear after an interrupt that was masked");
        let before = trap::hits(VECTOR);
        msix.mask(1, false);
        check!(clock.wait(500, || trap::hits(VECTOR) > before), "no interrupt on unmasking");
        check!(!msix.pending(1), "the pending bit stays after delivery");
        msix.control(true, true);
        let masked = request(VECTOR, 20)?;
        check!(masked == 0, "{masked} interrupts while the function is masked");
        let before = trap::hits(VECTOR);
        msix.control(true, false);
        check!(clock.wait(500, || trap::hits(VECTOR) > before), "no interrupt on unmasking the function");
        msix.set(1, apic.message(OTHER_VECTOR), false);
        let came = request(OTHER_VECTOR, 500)?;
        check!(came == 1, "{came} interrupts on the new vector");
        Ok(text!("vectors={} interrupts={}", msix.vectors, trap::hits(VECTOR) + trap::hits(OTHER_VECTOR)))
    })();
    trap::interrupts_off();
    msix.control(false, false);
    result
}
