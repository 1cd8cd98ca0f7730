//! Load generators. Each runs for `probe.millis` (1000 without one) and prints its figures.

use super::{Machine, blk as disk_tests};
use crate::apic::LocalApic;
use crate::clock::ticks;
use crate::console::COM1;
use crate::io;
use crate::random::Random;
use crate::trap;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, SECTOR};
use crate::virtio::net::{Card, HEADER, ethernet};
use crate::virtio::queue::Buffer;

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

/// Random (`probe.order=seq`: sequential) reads, or writes with `probe.op=write`, of `probe.size` bytes (4096) with `probe.depth` (32) in flight.
pub(super) fn disk(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let mut disk = disk_tests::open_with(machine, Disk::USUAL)?;
    let number = |name, default| machine.start.number(name).unwrap_or(default);
    let size = number("size", 4096).clamp(SECTOR, 1 << 20) / SECTOR * SECTOR;
    let depth = number("depth", 32).clamp(1, u64::from(disk.queue.size / 3));
    let writes = machine.start.option("op") == Some("write");
    let sequential = machine.start.option("order") == Some("seq");
    if writes && disk.read_only() {
        skip!("the disk is read-only");
    }
    let blocks = disk.capacity / (size / SECTOR);
    check!(blocks > 0, "the disk is smaller than a request");
    let headers = machine.arena.take(depth * 16, 16);
    let states = machine.arena.take(depth, 1);
    let data = machine.arena.take(depth * size, 4096);
    // A request's place, found again by its head.
    let mut place_of = [0u16; 1024];
    let mut random = Random::new(number("seed", 1));
    let mut next = 0u64;
    let mut submit = |disk: &mut Disk, place: u64| {
        let block = if sequential {
            next += 1;
            next % blocks
        } else {
            random.below(blocks)
        };
        headers.write32(place * 16, if writes { blk::T_OUT } else { blk::T_IN });
        headers.write64(place * 16 + 8, block * (size / SECTOR));
        states.write8(place, blk::UNANSWERED);
        let buffer = data.part(place * size, size);
        let head = disk.queue.add(&[
            Buffer::readable(headers.part(place * 16, 16)),
            if writes { Buffer::readable(buffer) } else { Buffer::writable(buffer) },
            Buffer::writable(states.part(place, 1)),
        ]);
        if let Some(head) = head {
            place_of[usize::from(head)] = place as u16;
        }
        head.is_some()
    };
    let mut places = [0u16; 1024];
    for place in 0..depth {
        check!(submit(&mut disk, place), "the queue is full at {place}");
    }
    let start = ticks();
    let limit = millis(machine) * machine.clock.khz;
    disk.queue.kick();
    let (mut done, mut last) = (0u64, start);
    loop {
        let now = ticks();
        if now - start > limit {
            break;
        }
        check!(now - last < 5000 * machine.clock.khz, "no completion for five seconds after {done}");
        let mut freed = 0;
        // The head is looked up before it can be used again.
        while let Some((head, _)) = disk.queue.pop() {
            places[freed] = u16::MAX;
            let at = disk.queue.descriptors.read64(u64::from(head) * 16);
            places[freed] = ((at - headers.base()) / 16) as u16;
            freed += 1;
        }
        if freed == 0 {
            core::hint::spin_loop();
            continue;
        }
        last = now;
        for &place in &places[..freed] {
            let status = states.read8(u64::from(place));
            check!(status == blk::OK, "a request ended with status {status:#x} after {done}");
            done += 1;
            check!(submit(&mut disk, u64::from(place)), "the queue is full");
        }
        disk.queue.kick();
    }
    let micros = machine.clock.micros_since(start).max(1);
    let iops = done * 1_000_000 / micros;
    check!(disk.device.reset(), "the disk does not reset");
    Ok(text!(
        "op={} order={} size={size} depth={depth} requests={done} iops={iops} mib/s={}",
        if writes { "write" } else { "read" },
        if sequential { "seq" } else { "random" },
        (iops * size) >> 20
    ))
}

/// Frames of `probe.size` bytes (1514) out as fast as they go, or with `probe.op=receive` counted as they come.
pub(super) fn network(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let nth = machine.start.number("net").unwrap_or(0);
    let card = Card::open(&machine.bus, &mut machine.arena, machine.clock, nth, 0).map_err(Stop::Fail)?;
    let Some(mut card) = card else { skip!("there is no network card {nth}") };
    let size = machine.start.number("size").unwrap_or(1514).clamp(60, 65535);
    let limit = millis(machine);
    let start = ticks();
    let (mut frames, mut bytes) = (0u64, 0u64);
    let op = if machine.start.option("op") == Some("receive") {
        println!("# receiving");
        card.receive(limit, |frame| {
            frames += 1;
            bytes += frame.len();
            None::<()>
        });
        "receive"
    } else {
        let frame = card.frame();
        // To nobody: a unicast address that is not ours, an experimental type.
        ethernet(frame, [2, 0, 0, 0, 0, 1], card.mac, 0x88b5);
        // SAFETY: the card's own frame buffer, with the virtio header in front of it.
        let whole = unsafe { io::Region::new(card.header().base(), HEADER + size) };
        let buffer = Buffer::readable(whole);
        machine.clock.wait(limit, || {
            while card.transmit.add(&[buffer]).is_some() {}
            card.transmit.kick();
            while card.transmit.pop().is_some() {
                frames += 1;
                bytes += size;
            }
            false
        });
        "send"
    };
    let micros = machine.clock.micros_since(start).max(1);
    check!(frames > 0, "no frame");
    Ok(text!(
        "op={op} size={size} frames={frames} frames/s={} mbit/s={}",
        frames * 1_000_000 / micros,
        bytes * 8 / micros
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
