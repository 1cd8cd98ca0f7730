//! Load generators. Each runs for `probe.millis` (1000 without one) and prints its figures.

mod disk;
mod folder;
mod network;
mod sockets;

use super::Machine;
use crate::apic::LocalApic;
use crate::clock::{Clock, ticks};
use crate::console::COM1;
use crate::io;
use crate::trap;
use crate::verdict::Outcome;
pub(super) use disk::disk;
pub(super) use folder::folder;
pub(super) use network::network;
pub(super) use sockets::sockets;

/// Milliseconds that the host may take to look what its own side has used so far: before a load, and after it, when what was not seen
/// in time is gone with the machine.
const LOOK: [u64; 2] = [5, 100];

/// Tells the host that the load begins.
fn begin(clock: Clock) {
    println!("# loading");
    clock.sleep(LOOK[0]);
}

/// Tells the host that it has ended.
fn end(clock: Clock) {
    println!("# loaded");
    clock.sleep(LOOK[1]);
}

fn millis(machine: &Machine) -> u64 {
    machine.start.number("millis").unwrap_or(1000).clamp(1, 600_000)
}

/// How often `work` runs in the time, and how many nanoseconds one takes.
fn rate(machine: &Machine, mut work: impl FnMut()) -> (u64, u64) {
    let start = ticks();
    let limit = millis(machine) * machine.clock.khz;
    let mut count = 0u64;
    while ticks() - start < limit {
        (0..16).for_each(|_| work());
        count += 16;
    }
    let nanos = machine.clock.micros_since(start) * 1000;
    (count * 1_000_000_000 / nanos.max(1), nanos / count)
}

/// Exits a second: port reads, port writes, MMIO reads, each for the given time.
pub(super) fn exits(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let (reads, read_ns) = rate(machine, || {
        io::in8(COM1 + 5);
    });
    let (writes, write_ns) = rate(machine, || io::out8(COM1 + 7, 0));
    let ecam = machine.bus.iter().find_map(|f| f.ecam);
    let (mmio, mmio_ns) = ecam.map_or((0, 0), |e| {
        rate(machine, || {
            e.read32(0);
        })
    });
    Ok(text!(
        "port-reads/s={reads} ns={read_ns} port-writes/s={writes} ns={write_ns} mmio-reads/s={mmio} ns={mmio_ns}"
    ))
}

/// Writes to `probe.touch` (0) MiB of memory, a word a page, then one byte after the other to COM1, for ever: without a break, or with
/// `probe.period` microseconds of sleep in between. Any of them says that the machine runs.
pub(super) fn pulse(machine: &mut Machine) -> Outcome {
    let wanted = machine.start.number("touch").unwrap_or(0) << 20;
    let mut touched = 0;
    for (base, len) in super::platform::spare_memory(machine) {
        // SAFETY: RAM that nothing lies in; the arena is unused between tests.
        let ram = unsafe { io::Region::new(base, len) };
        for offset in (0..len.min(wanted - touched)).step_by(4096) {
            ram.write64(offset, base + offset);
        }
        touched += len.min(wanted - touched);
    }
    check!(touched == wanted, "there are only {touched} bytes to touch");
    let period = machine.start.number("period");
    let apic = period.map(|_| LocalApic::enable());
    println!("# pulse");
    loop {
        io::out8(COM1, b'.');
        if let (Some(apic), Some(micros)) = (&apic, period) {
            // KVM's APIC timer counts nanoseconds.
            apic.start_timer(0x50, (micros * 1000).min(u64::from(u32::MAX)) as u32);
            trap::halt();
        }
    }
}
