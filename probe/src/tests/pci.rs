//! PCI: what is there, how BARs are sized and moved, both ways to configuration space, MSI-X registers.

use super::Machine;
use crate::io::{self, Region, WIDTHS};
use crate::msix::Msix;
use crate::pci::{Bar, COMMAND, COMMAND_MEMORY, Function};
use crate::start::RAM;
use crate::verdict::{Outcome, Stop};
use crate::virtio::queue::Buffer;
use crate::virtio::{self, Device, common};

/// Lists every function with class, BARs and capabilities.
pub(super) fn list(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for function in machine.bus.iter() {
        println!(
            "# pci {} {:04x}:{:04x} class {:06x}",
            function.bdf,
            function.vendor(),
            function.device(),
            function.class()
        );
        for bar in function.bars() {
            println!(
                "# pci {} bar{} {} {:#x}+{:#x}{}",
                function.bdf,
                bar.index,
                if bar.is_port {
                    "port"
                } else if bar.is_64 {
                    "mem64"
                } else {
                    "mem32"
                },
                bar.address,
                bar.len,
                if bar.prefetchable { " prefetchable" } else { "" }
            );
        }
        for (id, at) in function.capabilities() {
            println!("# pci {} cap {id:#04x} at {at:#x}", function.bdf);
            check!(at + 4 <= 0x100, "{}: capability at {at:#x}", function.bdf);
        }
        check!(function.read8(0x0e) & 0x7f == 0, "{}: header type {:#x}", function.bdf, function.read8(0x0e));
        count += 1;
    }
    if count == 0 {
        skip!("no PCI function");
    }
    Ok(text!("functions={count}"))
}

fn memory_bars(machine: &Machine) -> impl Iterator<Item = (Function, Bar)> + '_ {
    machine.bus.iter().flat_map(|f| f.bars().filter(|b| !b.is_port).map(move |b| (f, b)))
}

/// BARs have sizes of powers of two, are aligned to them, and overlap neither each other nor RAM.
pub(super) fn bars(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for (i, (function, bar)) in memory_bars(machine).enumerate() {
        let Bar { index, address, len, .. } = bar;
        let bdf = function.bdf;
        check!(len.is_power_of_two() && len >= 16, "{bdf} BAR {index}: {len:#x} bytes");
        check!(address % len == 0, "{bdf} BAR {index}: {len:#x} bytes at {address:#x}");
        check!(address != 0, "{bdf} BAR {index} has no address");
        for e in machine.start.map().filter(|e| e.kind == RAM) {
            check!(address + len <= e.base || e.base + e.len <= address, "{bdf} BAR {index} lies in RAM");
        }
        for (other, b) in memory_bars(machine).skip(i + 1) {
            let apart = address + len <= b.address || b.address + b.len <= address;
            check!(apart, "{bdf} BAR {index} and {} BAR {} overlap", other.bdf, b.index);
        }
        count += 1;
    }
    if count == 0 {
        skip!("no memory BAR");
    }
    Ok(text!("bars={count}"))
}

/// A place for `bar` that nothing uses, near the lowest BAR of its kind, so within the bridge's window.
fn free_place(machine: &Machine, bar: Bar) -> Option<u64> {
    let lowest = memory_bars(machine).filter(|(_, b)| b.is_64 == bar.is_64).map(|(_, b)| b.address).min()?;
    let place = lowest.checked_sub(bar.len * 4)? & !(bar.len - 1);
    let free = machine.start.map().all(|e| place + bar.len <= e.base || e.base + e.len <= place)
        && memory_bars(machine).all(|(_, b)| place + bar.len <= b.address || b.address + b.len <= place);
    free.then_some(place)
}

/// Each virtio device's registers follow its BAR to a new address and back, and leave the old one.
pub(super) fn bar_move(machine: &mut Machine) -> Outcome {
    let mut moved = 0;
    for function in machine.bus.iter().filter(|f| virtio::type_of(f).is_some()) {
        let bdf = function.bdf;
        let device = Device::open(function).map_err(Stop::Fail)?;
        let queues = device.queue_count();
        let Some(bar) = function.bars().find(|b| {
            !b.is_port && b.address <= device.common.base() && device.common.base() < b.address + b.len
        }) else {
            fail!("{bdf}: no BAR holds the common window");
        };
        let Some(place) = free_place(machine, bar) else { skip!("no free place below the BARs") };
        // SAFETY: device registers, or nothing, but no RAM, as `free_place` checked.
        let new = unsafe { Region::new(place + (device.common.base() - bar.address), device.common.len()) };
        let was_empty = new.read16(common::NUM_QUEUES);
        function.move_bar(bar, place);
        let at_new = new.read16(common::NUM_QUEUES);
        let at_old = device.common.read16(common::NUM_QUEUES);
        let readback = function.bar(bar.index).map(|b| b.address);
        function.move_bar(bar, bar.address);
        let back = device.common.read16(common::NUM_QUEUES);
        check!(was_empty == 0xffff, "{bdf}: {place:#x} read {was_empty:#x} before the move");
        check!(readback == Some(place), "{bdf}: the BAR reads {readback:x?} after moving to {place:#x}");
        check!(at_new == queues, "{bdf}: {at_new:#x} queues at the new address, not {queues}");
        check!(at_old == 0xffff, "{bdf}: the old address still answers {at_old:#x}");
        check!(back == queues, "{bdf}: {back:#x} queues after moving back, not {queues}");
        moved += 1;
    }
    if moved == 0 {
        skip!("no virtio device");
    }
    Ok(text!("moved={moved}"))
}

/// A live queue's doorbell follows the BAR too. On the rng.
pub(super) fn doorbell_move(machine: &mut Machine) -> Outcome {
    let Some(device) = Device::find(&machine.bus, virtio::kind::RNG, 0) else { skip!("there is no rng") };
    let mut device = device.map_err(Stop::Fail)?;
    device.negotiate(0).map_err(Stop::Fail)?;
    let mut queue = device.queue(&mut machine.arena, 0, 16, virtio::NO_VECTOR).map_err(Stop::Fail)?;
    device.start().map_err(Stop::Fail)?;
    let buffer = machine.arena.take(64, 64);
    let function = device.function;
    let in_bar =
        |b: &Bar| !b.is_port && b.address <= device.notify.base() && device.notify.base() < b.address + b.len;
    let Some(bar) = function.bars().find(in_bar) else { fail!("no BAR holds the doorbells") };
    let Some(place) = free_place(machine, bar) else { skip!("no free place below the BARs") };
    for round in 0..4 {
        let (from, to) = if round % 2 == 0 { (bar.address, place) } else { (place, bar.address) };
        function.move_bar(bar, to);
        // SAFETY: device registers now, and no RAM before, as `free_place` checked.
        unsafe {
            device.follow(from, to);
            queue.follow(from, to);
        }
        check!(queue.add(&[Buffer::writable(buffer)]).is_some(), "the queue is full");
        queue.kick();
        if let Err(why) = device.complete(&mut queue, &machine.clock) {
            function.move_bar(bar, bar.address);
            fail!("after move {round}, to {to:#x}: {why}");
        }
    }
    Ok(text!("moves=4"))
}

/// With memory decoding off a device answers nothing; with it on, again.
pub(super) fn decode(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for function in machine.bus.iter().filter(|f| virtio::type_of(f).is_some()) {
        let device = Device::open(function).map_err(Stop::Fail)?;
        let queues = device.queue_count();
        let command = function.read16(COMMAND);
        function.write16(COMMAND, command & !COMMAND_MEMORY);
        let off = device.queue_count();
        function.write16(COMMAND, command | COMMAND_MEMORY);
        let on = device.queue_count();
        check!(on == queues, "{}: {on:#x} queues with decoding on again, not {queues}", function.bdf);
        check!(off == 0xffff, "{}: answers {off:#x} with decoding off", function.bdf);
        count += 1;
    }
    if count == 0 {
        skip!("no virtio device");
    }
    Ok(text!("devices={count}"))
}

/// Mechanism #1 and ECAM show the same registers; read-only ones stay; a cleared enable bit closes the ports.
pub(super) fn ports(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for function in machine.bus.iter().filter(|f| f.bdf.segment == 0 && f.ecam.is_some()) {
        let by_ports = function.by_ports();
        for at in (0..256).step_by(4) {
            let (a, b) = (function.read32(at), by_ports.read32(at));
            check!(a == b, "{} register {at:#x}: {a:#x} by ECAM, {b:#x} by ports", function.bdf);
        }
        let id = function.read32(0);
        by_ports.write32(0, !id);
        function.write32(0, !id);
        check!(function.read32(0) == id, "{}: the ids can be written", function.bdf);
        by_ports.write8(0x3c, 0x5a);
        check!(
            function.read8(0x3c) == 0x5a,
            "{}: the interrupt line does not hold what is written",
            function.bdf
        );
        by_ports.write8(0x3c, 0);
        // Narrow reads through the data port.
        by_ports.read32(0);
        let bytes = [0xcfc, 0xcfd, 0xcfe, 0xcff].map(io::in8);
        check!(bytes == id.to_le_bytes(), "{}: bytes {bytes:x?} of {id:#x}", function.bdf);
        let words = [0xcfc, 0xcfe].map(io::in16);
        check!(u32::from(words[1]) << 16 | u32::from(words[0]) == id, "{}: words {words:x?}", function.bdf);
        count += 1;
    }
    if count == 0 {
        skip!("no ECAM on segment 0");
    }
    io::out32(0xcf8, 0);
    let closed = io::in32(0xcfc);
    check!(closed == u32::MAX, "0xcfc reads {closed:#x} with the enable bit clear");
    // Slots that are empty read all-ones in every width, and take writes.
    io::out32(0xcf8, 1 << 31 | 0xff << 16);
    check!(io::in32(0xcfc) == u32::MAX, "bus 255 answers");
    io::out32(0xcfc, 0);
    Ok(text!("functions={count}"))
}

/// MSI-X tables and pending bits under every width and offset, then still the registers that they should be.
pub(super) fn msix_registers(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for function in machine.bus.iter() {
        let Some(msix) = Msix::of(function) else { continue };
        let bdf = function.bdf;
        msix.control(false, true);
        for vector in 0..msix.vectors.min(8) {
            for width in WIDTHS {
                for value in [u64::MAX, 0, 0x5a5a_5a5a_5a5a_5a5a] {
                    let entry = u64::from(vector) * 16;
                    for offset in entry..(entry + 16).min(msix.table.len() - width + 1) {
                        msix.table.write(offset, width, value);
                        msix.table.read(offset, width);
                    }
                }
            }
        }
        let pending = msix.pba.read64(0);
        for width in WIDTHS {
            for offset in 0..=msix.pba.len().min(64) - width {
                msix.pba.write(offset, width, u64::MAX);
                msix.pba.read(offset, width);
            }
        }
        check!(msix.pba.read64(0) == pending, "{bdf}: the pending bits can be written");
        for vector in 0..msix.vectors {
            let at = u64::from(vector) * 16;
            let (address, data) = (0xfee0_1000 | u64::from(vector) << 4, 0x30 + u32::from(vector & 0x7f));
            msix.set(vector, (address, data), true);
            let entry = [0, 4, 8, 12].map(|i| msix.table.read32(at + i));
            check!(entry == [address as u32, 0, data, 1], "{bdf} vector {vector} reads {entry:x?}");
            let wide = [msix.table.read64(at), msix.table.read64(at + 8)];
            check!(
                wide == [address, 1 << 32 | u64::from(data)],
                "{bdf} vector {vector} reads {wide:x?} in 64 bits"
            );
        }
        for vector in 0..msix.vectors {
            msix.set(vector, (0, 0), true);
        }
        msix.control(false, false);
        count += 1;
    }
    if count == 0 {
        skip!("no MSI-X");
    }
    Ok(text!("functions={count}"))
}
