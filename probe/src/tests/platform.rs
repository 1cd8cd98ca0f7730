//! What the machine is at entry: start-up structures and RAM.

use super::Machine;
use crate::io::Region;
use crate::start::{MapEntry, RAM};
use crate::verdict::Outcome;

/// The probe runs at all, and says how much it can see.
pub(super) fn hello(machine: &mut Machine) -> Outcome {
    let ram: u64 = machine.start.map().filter(|e| e.kind == RAM).map(|e| e.len).sum();
    Ok(text!("ram={}M functions={} acpi={}", ram >> 20, machine.bus.iter().count(), machine.acpi.is_some()))
}

/// The command line arrives whole; `probe.check=LENGTH` compares its length.
pub(super) fn command_line(machine: &mut Machine) -> Outcome {
    let line = machine.start.command_line();
    if let Some(wanted) = machine.start.number("check") {
        check!(line.len() as u64 == wanted, "{} bytes, not {wanted}", line.len());
    }
    Ok(text!("bytes={}", line.len()))
}

/// Lists the memory map and checks that it is sane: ordered or not, entries do not overlap and do not wrap.
pub(super) fn memory_map(machine: &mut Machine) -> Outcome {
    if machine.start.version == 0 {
        skip!("start_info version 0 has no memory map");
    }
    let mut count = 0;
    for (i, e) in machine.start.map().enumerate() {
        println!("# map {:#x}-{:#x} type {}", e.base, e.base.wrapping_add(e.len).wrapping_sub(1), e.kind);
        check!(e.len != 0 && e.base.checked_add(e.len).is_some(), "entry {i} is empty or wraps");
        for other in machine.start.map().skip(i + 1) {
            let apart = other.base.saturating_add(other.len) <= e.base || e.base + e.len <= other.base;
            check!(apart, "{:#x} and {:#x} overlap", e.base, other.base);
        }
        count += 1;
    }
    check!(count > 0, "the map is empty");
    Ok(text!("entries={count}"))
}

/// Base and length, in whole pages, of every piece of RAM behind the image and before the modules: the arena and what is beyond.
pub(super) fn spare_memory(machine: &Machine) -> impl Iterator<Item = (u64, u64)> + use<> {
    let floor = machine.arena.whole().base();
    let modules_start = machine.start.modules().map(|(address, _)| address).min().unwrap_or(u64::MAX);
    machine.start.map().filter_map(move |e: MapEntry| {
        let base = e.base.max(floor).next_multiple_of(4096);
        let end = (e.base + e.len) & !4095;
        // From the first module on, keep out: it is the VMM's to place, usually at the very end.
        let end = if e.base <= modules_start && modules_start < end { modules_start & !4095 } else { end };
        (e.kind == RAM && end > base).then(|| (base, end - base))
    })
}

/// Every piece of RAM behind the image holds what is written to its first, last and evenly spaced pages (each page's own
/// address), so nothing is missing, read-only, or there twice.
pub(super) fn memory_touch(machine: &mut Machine) -> Outcome {
    let step = machine.start.number("step").unwrap_or(1 << 20).max(4096) & !4095;
    let mut pages = 0u64;
    for check_pass in [false, true] {
        for (base, len) in spare_memory(machine) {
            // SAFETY: RAM behind the image and outside the modules; the arena is unused between tests.
            let ram = unsafe { Region::new(base, len) };
            let last = len - 4096;
            for offset in (0..last).step_by(step as usize).chain([last]) {
                let at = ram.base() + offset;
                if check_pass {
                    let (head, tail) = (ram.read64(offset), ram.read64(offset + 4088));
                    check!(head == at && tail == !at, "page {at:#x} holds {head:#x} and {tail:#x}");
                    ram.write64(offset, 0);
                    ram.write64(offset + 4088, 0);
                    pages += 1;
                } else {
                    ram.write64(offset, at);
                    ram.write64(offset + 4088, !at);
                }
            }
        }
    }
    check!(pages > 0, "no page to touch");
    Ok(text!("pages={pages}"))
}

/// Never returns: for tests of what the host does with a busy guest.
pub(super) fn hang(_machine: &mut Machine) -> Outcome {
    println!("# hanging");
    loop {
        core::hint::spin_loop();
    }
}
