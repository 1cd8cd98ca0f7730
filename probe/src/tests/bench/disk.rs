//! A disk under load: `probe.op` (`read`, `write`), `probe.order` (`random`, `seq`), `probe.size` bytes (4096) a request, `probe.depth`
//! (32) requests in flight on each of `probe.queues` (1) queues, all driven and polled by one CPU.
//!
//! The first tenth of the time warms up. `requests` counts that as well: it is all that the host did between the lines
//! `# loading` and `# loaded`; rate and times are of the rest.

use super::{begin, end, millis};
use crate::clock::ticks;
use crate::histogram::Histogram;
use crate::io::Region;
use crate::random::Random;
use crate::tests::Machine;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, SECTOR};
use crate::virtio::queue::{Buffer, Queue};
use crate::virtio::{Device, NO_VECTOR, kind};

const MOST_QUEUES: u64 = 4;
/// Entries of a queue, if it has as many.
const ENTRIES: u16 = 512;
/// Header, data, status.
const PARTS: u64 = 3;
/// Milliseconds without a completion after which something is wrong.
const PATIENCE: u64 = 5000;

/// What is asked of the disk.
#[derive(Debug, Clone, Copy)]
struct Load {
    writes: bool,
    sequential: bool,
    size: u64,
    /// Requests of this size that fit on the disk.
    blocks: u64,
}

/// A queue and its requests, each of which has a place.
struct Lane {
    queue: Queue,
    headers: Region,
    states: Region,
    data: Region,
    /// When each place's request was made.
    made: Region,
    random: Random,
    next: u64,
}

impl Lane {
    fn submit(&mut self, load: &Load, place: u64) -> Result<(), Stop> {
        let block = if load.sequential {
            self.next += 1;
            self.next % load.blocks
        } else {
            self.random.below(load.blocks)
        };
        self.headers.write32(place * 16, if load.writes { blk::T_OUT } else { blk::T_IN });
        self.headers.write64(place * 16 + 8, block * (load.size / SECTOR));
        self.states.write8(place, blk::UNANSWERED);
        let buffer = self.data.part(place * load.size, load.size);
        self.made.write64(place * 8, ticks());
        let head = self.queue.add(&[
            Buffer::readable(self.headers.part(place * 16, 16)),
            if load.writes { Buffer::readable(buffer) } else { Buffer::writable(buffer) },
            Buffer::writable(self.states.part(place, 1)),
        ]);
        check!(head.is_some(), "the queue is full");
        Ok(())
    }

    /// The place of a request that is done, if there is one.
    fn pop(&mut self) -> Option<u64> {
        let (head, _) = self.queue.pop()?;
        // Its descriptors are not used again before the next request.
        let header = self.queue.descriptors.read64(u64::from(head) * 16);
        Some((header - self.headers.base()) / 16)
    }
}

fn open(machine: &mut Machine, queues: u64) -> Result<Device, Stop> {
    let nth = machine.start.number("blk").unwrap_or(0);
    let Some(device) = Device::find(&machine.bus, kind::BLOCK, nth) else { skip!("there is no disk {nth}") };
    let mut device = device.map_err(Stop::Fail)?;
    device.negotiate(Disk::USUAL | blk::F_READ_ONLY | blk::F_MQ).map_err(Stop::Fail)?;
    let count = u64::from(device.queue_count());
    check!(queues <= count.min(MOST_QUEUES), "{queues} queues of {count}");
    Ok(device)
}

/// See the module.
pub(in crate::tests) fn disk(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let number = |name, default| machine.start.number(name).unwrap_or(default);
    let size = number("size", 4096).clamp(SECTOR, 1 << 20) / SECTOR * SECTOR;
    let (depth, queues, seed) = (number("depth", 32), number("queues", 1).max(1), number("seed", 1));
    let writes = machine.start.option("op") == Some("write");
    let sequential = machine.start.option("order") == Some("seq");
    let (clock, limit) = (machine.clock, millis(machine) * machine.clock.khz);
    let device = open(machine, queues)?;
    if writes && device.features & blk::F_READ_ONLY != 0 {
        skip!("the disk is read-only");
    }
    let Some(config) = device.config else { fail!("there is no device configuration") };
    let blocks = config.read64(0) / (size / SECTOR);
    check!(blocks > 0, "the disk is smaller than a request");
    let load = Load { writes, sequential, size, blocks };
    let arena = &mut machine.arena;
    let mut times = Histogram::new(arena);
    let mut lanes = [const { None }; MOST_QUEUES as usize];
    for (index, lane) in lanes.iter_mut().enumerate().take(queues as usize) {
        let queue = device.queue(arena, index as u16, ENTRIES, NO_VECTOR).map_err(Stop::Fail)?;
        let room = u64::from(queue.size) / PARTS;
        check!((1..=room).contains(&depth), "depth {depth} in a queue of {}", queue.size);
        *lane = Some(Lane {
            queue,
            headers: arena.take(depth * 16, 16),
            states: arena.take(depth, 1),
            data: arena.take(depth * size, 4096),
            made: arena.take(depth * 8, 8),
            random: Random::new(seed + index as u64),
            // Each queue reads another part of the disk.
            next: blocks / queues * index as u64,
        });
    }
    device.start().map_err(Stop::Fail)?;
    begin(clock);
    let start = ticks();
    for lane in lanes.iter_mut().flatten() {
        for place in 0..depth {
            lane.submit(&load, place)?;
        }
        lane.queue.kick();
    }
    let (mut done, mut last, mut measured) = (0u64, start, None);
    let counted = loop {
        let now = ticks();
        match measured {
            None if now - start > limit / 10 => measured = Some(now),
            Some(since) if now - since > limit => break now - since,
            _ => {}
        }
        check!(now - last < PATIENCE * clock.khz, "no completion for {PATIENCE} ms after {done}");
        for lane in lanes.iter_mut().flatten() {
            let mut any = false;
            while let Some(place) = lane.pop() {
                let status = lane.states.read8(place);
                check!(status == blk::OK, "a request ended with status {status:#x} after {done}");
                if measured.is_some() {
                    times.add(ticks() - lane.made.read64(place * 8));
                }
                done += 1;
                lane.submit(&load, place)?;
                any = true;
            }
            if any {
                last = now;
                lane.queue.kick();
            }
        }
        core::hint::spin_loop();
    };
    // What is in flight is the host's work as well.
    check!(device.reset(), "the disk does not reset");
    end(clock);
    let iops = (u128::from(times.total() * clock.khz) * 1000 / u128::from(counted.max(1))) as u64;
    Ok(text!(
        "op={} order={} size={size} depth={depth} queues={queues} requests={} iops={iops} mib/s={} p50-ns={} p99-ns={}",
        if writes { "write" } else { "read" },
        if sequential { "seq" } else { "random" },
        done + depth * queues,
        (iops * size) >> 20,
        times.nanos(50, clock),
        times.nanos(99, clock),
    ))
}
