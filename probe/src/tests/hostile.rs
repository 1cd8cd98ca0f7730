//! Drivers that lie. The device may refuse, ignore, or ask for a reset, but the machine lives on, memory that was not
//! offered stays as it was, and after a reset the device works again.

use super::{Machine, blk as well_behaved};
use crate::io::Region;
use crate::verdict::Outcome;
use crate::virtio::blk::{self, Disk};
use crate::virtio::queue::{Buffer, D_INDIRECT, D_NEXT, D_WRITE, Queue};

/// What a chain may be made of.
struct Parts {
    header: Region,
    status: Region,
    data: Region,
    table: Region,
    /// Physical address right behind the last RAM.
    beyond: u64,
    /// The same for the first piece of RAM, and how far it is to the next or to nowhere.
    hole: (u64, u64),
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
    ("data that leaves the first piece of RAM", |q, p| {
        good(q, p);
        put(q, 1, p.hole.0 - 256, 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("data that spans the hole between two pieces of RAM", |q, p| {
        good(q, p);
        put(q, 1, p.hole.0 - 256, (p.hole.1 + 512) as u32, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("data on its own header", |q, p| {
        good(q, p);
        put(q, 1, p.header.base(), 512, D_NEXT | D_WRITE, 2);
        q.publish(0);
    }),
    ("two chains with one buffer", |q, p| {
        good(q, p);
        put(q, 3, p.header.base(), 16, D_NEXT, 1);
        q.publish(0);
        q.publish(3);
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
    let ram = || machine.start.map().filter(|e| e.kind == 1 && e.base >= 1 << 20);
    let beyond = ram().map(|e| e.base + e.len).max().unwrap_or(0);
    let low = ram().map(|e| e.base + e.len).min().unwrap_or(0);
    let next = ram().map(|e| e.base).filter(|base| *base >= low).min().unwrap_or(low + (1 << 20));
    let hole = (low, next - low);
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
            let parts = Parts { header, status, data, table, beyond, hole };
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
    Ok(text!("lies={} answered={answered} hole={:#x}+{:#x}", LIES.len() * 2, hole.0, hole.1))
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
