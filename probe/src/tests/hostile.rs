//! Drivers that lie. The device may refuse, ignore, or ask for a reset, but the machine lives on, memory that was not
//! offered stays as it was, and after a reset the device works again.

use super::{Machine, blk as well_behaved};
use crate::io::{Region, WIDTHS};
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk};
use crate::virtio::queue::{Buffer, D_INDIRECT, D_NEXT, D_WRITE, Queue};
use crate::virtio::{self, Device, NO_VECTOR, S_ACKNOWLEDGE, S_DRIVER, S_FEATURES_OK, common};

/// What a chain may be made of.
struct Parts {
    header: Region,
    status: Region,
    data: Region,
    table: Region,
    /// Physical address right behind the last RAM.
    beyond: u64,
}

type Lie = fn(&mut Queue, &Parts);

fn put(queue: &Queue, index: u64, address: u64, len: u32, flags: u16, next: u16) {
    Queue::write_descriptor(queue.descriptors, index, address, len, flags, next);
}

/// A good chain in descriptors 0 to 2, not published.
fn good(queue: &Queue, parts: &Parts) {
    put(queue, 0, parts.header.base(), 16, D_NEXT, 1);
    put(queue, 1, parts.data.base(), 512, D_NEXT | D_WRITE, 2);
    put(queue, 2, parts.status.base(), 1, D_WRITE, 0);
}

fn indirect(queue: &mut Queue, parts: &Parts, len: u32, flags: u16) {
    Queue::write_descriptor(parts.table, 0, parts.header.base(), 16, D_NEXT, 1);
    Queue::write_descriptor(parts.table, 1, parts.data.base(), 512, D_NEXT | D_WRITE, 2);
    Queue::write_descriptor(parts.table, 2, parts.status.base(), 1, D_WRITE, 0);
    put(queue, 0, parts.table.base(), len, flags, 1);
    queue.publish(0);
}

static LIES: &[(&str, Lie)] = &[
    ("a chain that loops on itself", |q, p| {
        put(q, 0, p.header.base(), 16, D_NEXT, 0);
        q.publish(0);
    }),
    ("a chain of two that loops", |q, p| {
        put(q, 0, p.header.base(), 16, D_NEXT, 1);
        put(q, 1, p.data.base(), 512, D_NEXT | D_WRITE, 0);
        q.publish(0);
    }),
    ("a next index outside the table", |q, p| {
        put(q, 0, p.header.base(), 16, D_NEXT, q.size);
        q.publish(0);
    }),
    ("a next index of 65535", |q, p| {
        put(q, 0, p.header.base(), 16, D_NEXT, 0xffff);
        q.publish(0);
    }),
    ("a head outside the table", |q, p| {
        good(q, p);
        let size = q.size;
        q.publish(size);
    }),
    ("a head of 65535", |q, p| {
        good(q, p);
        q.publish(0xffff);
    }),
    ("data behind the RAM", |q, p| {
        good(q, p);
        put(q, 1, p.beyond, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("data that crosses the end of RAM", |q, p| {
        good(q, p);
        put(q, 1, p.beyond - 256, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("data that wraps around the address space", |q, p| {
        good(q, p);
        put(q, 1, u64::MAX - 255, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("data in the MMIO hole", |q, p| {
        good(q, p);
        put(q, 1, 0xfee0_0000, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("data in the device's own registers", |q, p| {
        good(q, p);
        put(q, 1, 0xe800_0000, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("a length of four gigabytes less one", |q, p| {
        good(q, p);
        put(q, 1, p.data.base(), u32::MAX, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("a header behind the RAM", |q, p| {
        good(q, p);
        put(q, 0, p.beyond, 16, D_NEXT, 1);
        q.publish(0);
    }),
    ("a header of one byte", |q, p| {
        good(q, p);
        put(q, 0, p.header.base(), 1, D_NEXT, 1);
        q.publish(0);
    }),
    ("an empty header", |q, p| {
        good(q, p);
        put(q, 0, p.header.base(), 0, D_NEXT, 1);
        q.publish(0);
    }),
    ("a header that the device should write", |q, p| {
        good(q, p);
        put(q, 0, p.header.base(), 16, D_NEXT | D_WRITE, 1);
        q.publish(0);
    }),
    ("a header and nothing else", |q, p| {
        put(q, 0, p.header.base(), 16, 0, 0);
        q.publish(0);
    }),
    ("a status that the device may not write", |q, p| {
        good(q, p);
        put(q, 2, p.status.base(), 1, 0, 0);
        q.publish(0);
    }),
    ("a status behind the RAM", |q, p| {
        good(q, p);
        put(q, 2, p.beyond, 1, D_WRITE, 0);
        q.publish(0);
    }),
    ("an empty status", |q, p| {
        good(q, p);
        put(q, 2, p.status.base(), 0, D_WRITE, 0);
        q.publish(0);
    }),
    ("data that is no whole sector", |q, p| {
        good(q, p);
        put(q, 1, p.data.base(), 511, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("readable data behind writable", |q, p| {
        put(q, 0, p.header.base(), 16, D_NEXT, 1);
        put(q, 1, p.data.base(), 512, D_NEXT | D_WRITE, 2);
        put(q, 2, p.data.base(), 512, D_NEXT, 3);
        put(q, 3, p.status.base(), 1, D_WRITE, 0);
        q.publish(0);
    }),
    ("an indirect table of no entries", |q, p| indirect(q, p, 0, D_INDIRECT)),
    ("an indirect table of a broken length", |q, p| indirect(q, p, 47, D_INDIRECT)),
    ("an indirect table of four gigabytes", |q, p| indirect(q, p, 0xffff_fff0, D_INDIRECT)),
    ("an indirect table with a next flag", |q, p| indirect(q, p, 48, D_INDIRECT | D_NEXT)),
    ("an indirect table that the device should write", |q, p| indirect(q, p, 48, D_INDIRECT | D_WRITE)),
    ("an indirect table behind the RAM", |q, p| {
        put(q, 0, p.beyond, 48, D_INDIRECT, 0);
        q.publish(0);
    }),
    ("an indirect table in an indirect table", |q, p| {
        Queue::write_descriptor(p.table, 0, p.table.base(), 48, D_INDIRECT, 0);
        put(q, 0, p.table.base(), 48, D_INDIRECT, 0);
        q.publish(0);
    }),
    ("an indirect table that loops", |q, p| {
        Queue::write_descriptor(p.table, 0, p.header.base(), 16, D_NEXT, 1);
        Queue::write_descriptor(p.table, 1, p.data.base(), 512, D_NEXT | D_WRITE, 0);
        put(q, 0, p.table.base(), 32, D_INDIRECT, 0);
        q.publish(0);
    }),
    ("an indirect chain that leaves its table", |q, p| {
        Queue::write_descriptor(p.table, 0, p.header.base(), 16, D_NEXT, 200);
        put(q, 0, p.table.base(), 32, D_INDIRECT, 0);
        q.publish(0);
    }),
    ("an available index that jumps past the ring", |q, p| {
        good(q, p);
        q.available.write16(2, q.size + 7);
    }),
    ("an available index that goes back", |q, p| {
        good(q, p);
        q.available.write16(2, 0xffff);
    }),
    ("the same head over and over", |q, p| {
        good(q, p);
        (0..q.size).for_each(|_| q.publish(0));
    }),
    ("a data buffer on the descriptor table", |q, p| {
        good(q, p);
        put(q, 1, q.descriptors.base(), 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("a data buffer on the used ring", |q, p| {
        good(q, p);
        put(q, 1, q.used.base() & !1, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
];

/// Every lie above on a disk of its own life, with a good request after a reset each time. Read requests only: the disk is
/// not written.
pub(super) fn disk_chains(machine: &mut Machine) -> Outcome {
    let beyond = machine.start.map().filter(|e| e.kind == 1).map(|e| e.base + e.len).max().unwrap_or(0);
    let mut answered = 0;
    for features in [Disk::USUAL, 0] {
        for (what, lie) in LIES {
            machine.arena.reset();
            let mut disk = well_behaved::open_with(machine, features)?;
            let fence = machine.arena.take(4096, 4096);
            let data = machine.arena.take(4096, 4096);
            let fence_behind = machine.arena.take(4096, 4096);
            let table = machine.arena.take(4096, 16);
            fence.fill(0xf5);
            fence_behind.fill(0xf5);
            let (header, status) = disk.fill_header(blk::T_IN, 0);
            let parts = Parts { header, status, data, table, beyond };
            lie(&mut disk.queue, &parts);
            disk.queue.ring();
            machine.clock.wait(3, || disk.queue.has_used());
            answered += u32::from(disk.queue.has_used());
            // The doorbell again, as a driver does that has not understood.
            disk.queue.ring();
            check!(disk.device.reset(), "{what}: the device does not reset");
            let untouched = |r: Region| (0..4096).all(|i| r.read8(i) == 0xf5);
            let four_gigabytes = what.contains("four gigabytes less");
            check!(
                four_gigabytes || untouched(fence) && untouched(fence_behind),
                "{what}: memory around the buffer changed"
            );
            drop(disk);
            machine.arena.reset();
            let mut disk = well_behaved::open_with(machine, features)?;
            let sector = machine.arena.take(512, 512);
            if let Err(why) = disk.transfer(blk::T_IN, 0, sector) {
                fail!("after {what}: {why}");
            }
        }
    }
    Ok(text!("lies={} answered={answered}", LIES.len() * 2))
}

/// How far to take a device before its registers are written at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reset,
    Acknowledged,
    Driver,
    Negotiated,
    Live,
    Failed,
}

const STATES: [State; 6] =
    [State::Reset, State::Acknowledged, State::Driver, State::Negotiated, State::Live, State::Failed];

/// Brings `device` into `state`, with queue 0 laid out where it gets that far.
fn bring(machine: &mut Machine, device: &mut Device, state: State) -> Result<Option<Queue>, Stop> {
    if !device.reset() {
        return Err(Stop::Fail(text!("{}: does not reset", device.function.bdf)));
    }
    match state {
        State::Reset => {}
        State::Acknowledged => device.add_status(S_ACKNOWLEDGE),
        State::Driver => device.add_status(S_ACKNOWLEDGE | S_DRIVER),
        State::Negotiated => {
            device.add_status(S_ACKNOWLEDGE | S_DRIVER);
            device.add_status(S_FEATURES_OK);
        }
        State::Failed => device.add_status(S_ACKNOWLEDGE | S_DRIVER | virtio::S_FAILED),
        State::Live => {
            device.negotiate(0).map_err(Stop::Fail)?;
            let mut first = None;
            for index in 0..device.queue_count() {
                let queue = device.queue(&mut machine.arena, index, 64, NO_VECTOR).map_err(Stop::Fail)?;
                first = first.or(Some(queue));
            }
            device.start().map_err(Stop::Fail)?;
            return Ok(first);
        }
    }
    Ok(None)
}

/// Values that are wrong for most registers. None of them is the address of memory that somebody uses.
const VALUES: [u64; 3] = [u64::MAX, 0, 0xffff_ffff_0000_0001];

/// Writes and reads `len` bytes from `from` of `window` in every width at every offset.
fn sweep(window: Region, from: u64, len: u64) -> u32 {
    let mut accesses = 0;
    for width in WIDTHS {
        for offset in from..(from + len).min(window.len()) {
            if offset + width > window.len() {
                break;
            }
            for value in VALUES {
                window.write(offset, width, value);
                window.read(offset, width);
                accesses += 2;
            }
        }
    }
    accesses
}

/// Every transport register of every virtio device, every width and offset, in every state of the device; then the device
/// must still start, and a live queue's registers must not have moved under it.
pub(super) fn registers(machine: &mut Machine) -> Outcome {
    let functions = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).count();
    if functions == 0 {
        skip!("no virtio device");
    }
    let mut accesses = 0;
    for nth in 0..functions {
        let Some(function) = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).nth(nth) else {
            break;
        };
        for state in STATES {
            machine.arena.reset();
            let mut device = Device::open(function).map_err(Stop::Fail)?;
            bring(machine, &mut device, state)?;
            accesses += sweep(device.common, 0, device.common.len().min(64));
            // After the above the status may be anything; the rest is swept in the state asked for, too.
            bring(machine, &mut device, state)?;
            accesses += sweep(device.isr, 0, 4);
            accesses += sweep(device.notify, 0, 12);
            accesses += sweep(device.notify, device.notify.len().saturating_sub(9), 9);
            if let Some(config) = device.config {
                accesses += sweep(config, 0, config.len().min(64));
                accesses += sweep(config, config.len().saturating_sub(9), 9);
            }
        }
        machine.arena.reset();
        let mut device = Device::open(function).map_err(Stop::Fail)?;
        bring(machine, &mut device, State::Live)?;
    }
    Ok(text!("devices={functions} accesses={accesses}"))
}

/// The whole BAR of each virtio device in large steps, and its last bytes: gaps between the windows included.
pub(super) fn whole_bar(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for function in machine.bus.iter().filter(|f| virtio::type_of(f).is_some()) {
        let device = Device::open(function).map_err(Stop::Fail)?;
        for bar in function.bars().filter(|b| !b.is_port && b.len <= 1 << 20) {
            let Some(window) = function.window(bar.index) else { continue };
            for offset in (0..window.len()).step_by(0x400).chain([window.len() - 8]) {
                for width in WIDTHS {
                    window.read(offset, width);
                    window.write(offset, width, 0);
                }
            }
            count += 1;
        }
        check!(device.reset(), "{}: does not reset", function.bdf);
    }
    if count == 0 {
        skip!("no virtio device");
    }
    Ok(text!("bars={count}"))
}

/// Queue addresses and sizes that cannot be: behind the RAM, misaligned, wrapping, not a power of two, changed while live.
pub(super) fn queue_setup(machine: &mut Machine) -> Outcome {
    let beyond = machine.start.map().filter(|e| e.kind == 1).map(|e| e.base + e.len).max().unwrap_or(0);
    let functions = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).count();
    if functions == 0 {
        skip!("no virtio device");
    }
    for nth in 0..functions {
        let Some(function) = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).nth(nth) else {
            break;
        };
        for bad in [beyond, beyond - 16, !15, 0xfee0_0000, 1, 1 << 62] {
            for register in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
                machine.arena.reset();
                let mut device = Device::open(function).map_err(Stop::Fail)?;
                device.negotiate(0).map_err(Stop::Fail)?;
                let queue = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
                device.common.write32(register, bad as u32);
                device.common.write32(register + 4, (bad >> 32) as u32);
                device.common.write16(common::QUEUE_ENABLE, 1);
                device.add_status(virtio::S_DRIVER_OK);
                queue.available.write16(2, 1);
                queue.ring();
                check!(device.reset(), "{}: {bad:#x} as a queue address: does not reset", function.bdf);
            }
        }
        for size in [0u16, 3, 0x8000, 0xffff, 0x4000] {
            machine.arena.reset();
            let mut device = Device::open(function).map_err(Stop::Fail)?;
            device.negotiate(0).map_err(Stop::Fail)?;
            let queue = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
            device.common.write16(common::QUEUE_ENABLE, 0);
            device.common.write16(common::QUEUE_SIZE, size);
            device.common.write16(common::QUEUE_ENABLE, 1);
            device.add_status(virtio::S_DRIVER_OK);
            queue.ring();
            check!(device.reset(), "{}: size {size:#x}: does not reset", function.bdf);
        }
        // A live queue keeps what it was started with.
        machine.arena.reset();
        let mut device = Device::open(function).map_err(Stop::Fail)?;
        bring(machine, &mut device, State::Live)?;
        device.select(0);
        for (register, value) in [
            (common::QUEUE_DESC, 0xffff_f000u32),
            (common::QUEUE_DRIVER, 0),
            (common::QUEUE_DEVICE, 0xffff_ffff),
        ] {
            device.common.write32(register, value);
        }
        device.common.write16(common::QUEUE_SIZE, 0);
        device.common.write16(common::QUEUE_SIZE, 0xffff);
        for queue in [device.queue_count(), 0x7fff, 0xffff] {
            check!(device.select(queue) == 0, "{}: queue {queue} exists", function.bdf);
            device.common.write16(common::QUEUE_ENABLE, 1);
            device.common.write32(common::QUEUE_DESC, 0x1000);
        }
        check!(device.reset(), "{}: does not reset", function.bdf);
    }
    Ok(text!("devices={functions}"))
}

/// Resets with requests in flight, many rounds: nothing is written to memory afterwards.
pub(super) fn reset_in_flight(machine: &mut Machine) -> Outcome {
    let mut in_flight = 0;
    for round in 0..200u64 {
        machine.arena.reset();
        let mut disk = well_behaved::open_with(machine, crate::virtio::F_INDIRECT)?;
        let depth = u64::from(disk.queue.size / 3).min(32);
        let headers = machine.arena.take(depth * 16, 16);
        let states = machine.arena.take(depth, 1);
        let data = machine.arena.take(depth * 4096, 4096);
        for i in 0..depth {
            headers.write64(i * 16 + 8, (round * 8 + i * 8) % (disk.capacity - 8).max(1));
            disk.queue.add(&[
                Buffer::readable(headers.part(i * 16, 16)),
                Buffer::writable(data.part(i * 4096, 4096)),
                Buffer::writable(states.part(i, 1)),
            ]);
        }
        disk.queue.ring();
        for _ in 0..round * 20 {
            core::hint::spin_loop();
        }
        check!(disk.device.reset(), "round {round}: does not reset");
        let used = disk.queue.used.read16(2);
        in_flight += depth - u64::from(used).min(depth);
        data.fill(0x77);
        states.fill(0x77);
        machine.clock.sleep(1);
        check!(disk.queue.used.read16(2) == used, "round {round}: a completion after the reset");
        if let Some(i) = (0..data.len()).find(|&i| data.read8(i) != 0x77) {
            fail!("round {round}: byte {i} was written after the reset");
        }
        check!(
            (0..depth).all(|i| states.read8(i) == 0x77),
            "round {round}: a status was written after the reset"
        );
    }
    Ok(text!("rounds=200 cut-off={in_flight}"))
}
