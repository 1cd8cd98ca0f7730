//! Disks served over vhost-user, without a machine: a front end in this process drives the daemon's queues, and polls for what comes back.
//!
//! Ours and `qemu-storage-daemon`, the same image, by turns. Besides requests a second: the daemon's CPU time for each, and how long they take.

use std::io::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ::vhost::VhostBackend;
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, MEMORY, Memory, Queue};

use crate::daemon::{self, Daemon};
use crate::grid::{self, Case, Figures, Place};
use crate::image::Image;
use crate::load::Setting;
use crate::rows::{Rows, turns};

/// How long a request may take to come back.
const LIMIT: Duration = Duration::from_secs(20);
const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_FLUSH: without it a write is not done before it is on the disk (virtio 1.3 §5.2.6.2).
const FLUSH: u64 = 1 << 9;
const IN: u32 = 0;
const OUT: u32 = 1;
/// Header, data, status.
const PARTS: u16 = 3;
pub(crate) const QUEUE_SIZE: u16 = 512;

/// A program that serves a disk.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// Whether it takes `qemu-storage-daemon`'s options, and not ours.
    pub(crate) qemu: bool,
}

/// Starts the program on an image; also for machines that take it as a disk.
pub(crate) fn serve(
    storage: &Storage,
    place: &Place<'_>,
    queues: usize,
    scratch: &Path,
) -> Result<Daemon, Error> {
    let socket = daemon::socket(scratch);
    let (path, format) = (place.path.display(), place.format);
    let direct = if place.direct { "on" } else { "off" };
    let mut command = Command::new(&storage.program);
    if storage.qemu {
        let file = format!("driver=file,node-name=file,filename={path},aio=io_uring,cache.direct={direct}");
        let disk = format!("driver={format},node-name=disk,file=file,cache.direct={direct}");
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues={queues},iothread=io",
            socket.display()
        );
        command.args(["--object", "iothread,id=io", "--blockdev", &file, "--blockdev", &disk]);
        command.args(["--export", &export]);
    } else {
        let line = format!(
            "path={path},socket={},image_type={format},direct={direct},num_queues={queues},queue_size={QUEUE_SIZE}",
            socket.display()
        );
        command.args(["--block-backend", &line]);
    }
    Daemon::start(command, socket, true)
}

/// One queue with its requests.
struct Ring {
    queue: Queue,
    /// Where the data of slot 0 is in memory.
    data: u64,
    /// When each slot's request was made.
    made: Vec<Instant>,
    next: u64,
}

impl Ring {
    /// Makes a request of a slot.
    fn ask(&mut self, memory: &Memory, case: &Case, slot: u16, sector: u64) {
        let header = self.queue.room() + 32 * u64::from(slot);
        let kind = if case.write { OUT } else { IN };
        memory.put(header, &kind.to_le_bytes());
        memory.put(header + 8, &sector.to_le_bytes());
        let data = self.data + u64::from(slot) * u64::from(case.bytes);
        let parts = [(header, 16, false), (data, case.bytes, !case.write), (header + 16, 1, true)];
        self.made[usize::from(slot)] = Instant::now();
        self.queue.chain(memory, slot * PARTS, &parts);
        self.queue.call_never(memory);
    }

    /// The sector of the next request: `span` requests fit on the disk. Random numbers by a multiplicative generator are as good as any here.
    fn sector(&mut self, case: &Case, span: u64) -> u64 {
        self.next = if case.random {
            self.next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
        } else {
            self.next + 1
        };
        let number = if case.random { (self.next >> 33) % span } else { self.next % span };
        number * u64::from(case.bytes) / SECTOR
    }
}

/// Loads the disk for that long.
fn load(daemon: &Daemon, case: &Case, seed: u64, time: Duration) -> Result<Figures, Error> {
    let memory = Memory::new();
    let mut rings: Vec<Ring> = (0..case.queues)
        .map(|i| Ring {
            queue: Queue::new(i, QUEUE_SIZE),
            data: DATA + i as u64 * u64::from(case.depth) * u64::from(case.bytes),
            made: vec![Instant::now(); usize::from(case.depth)],
            next: seed + i as u64 * 7919,
        })
        .collect();
    if DATA + case.queues as u64 * u64::from(case.depth) * u64::from(case.bytes) > MEMORY {
        return Err(Error::other("guest memory is too small for this depth"));
    }
    let mut front = Front::connect(&daemon.socket, EVENT_IDX | FLUSH);
    let capacity = front.config(0, 8).try_into().map(u64::from_le_bytes);
    let capacity = capacity.map_err(|_| Error::other("no capacity"))? * SECTOR;
    let span = capacity / u64::from(case.bytes);
    front.start(&memory, rings.iter().map(|ring| &ring.queue));

    // The first tenth warms up.
    let warm = time / 10;
    let mut latencies: Vec<u32> = Vec::with_capacity(1 << 20);
    let mut measured: Option<(Instant, Duration)> = None;
    let begun = Instant::now();
    let mut last = begun;
    for ring in &mut rings {
        for slot in 0..case.depth {
            let sector = ring.sector(case, span);
            ring.ask(&memory, case, slot, sector);
        }
        ring.queue.kick();
    }
    let (began, spent) = loop {
        let mut any = false;
        for ring in &mut rings {
            let before = ring.queue.offered;
            while let Some((head, _)) = ring.queue.used(&memory) {
                let slot = head / PARTS;
                let status = memory.get(ring.queue.room() + 32 * u64::from(slot) + 16, 1)[0];
                if status != 0 {
                    return Err(Error::other(format!("a request ended with status {status}")));
                }
                if measured.is_some() {
                    latencies.push(ring.made[usize::from(slot)].elapsed().as_nanos() as u32);
                }
                let sector = ring.sector(case, span);
                ring.ask(&memory, case, slot, sector);
            }
            if ring.queue.offered != before {
                any = true;
                ring.queue.kick_if_wanted(&memory, before);
            }
        }
        let now = Instant::now();
        if any {
            last = now;
        } else if now - last > LIMIT {
            return Err(Error::other("nothing comes back"));
        }
        match measured {
            None if now - begun >= warm => measured = Some((now, daemon.cpu()?)),
            Some(done) if now - done.0 >= time => break done,
            _ => {}
        }
    };
    let (elapsed, cpu) = (began.elapsed(), daemon.cpu()?.saturating_sub(spent));
    for i in 0..case.queues {
        front.socket.get_vring_base(i).map_err(|e| Error::other(format!("cannot stop a queue: {e}")))?;
    }
    Figures::of(latencies, elapsed, cpu).map(|figures| Figures { bytes: f64::from(case.bytes), ..figures })
}

/// All rows.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, storages: &[Storage]) -> Result<(), Error> {
    let images = Image::of_formats(setting, rows, "vhost")?;
    let yardstick = storages.iter().find(|s| s.qemu).or(storages.first()).map_or("", |s| &s.name);
    for round in 0..setting.runs {
        for place in images.iter().map(Image::place) {
            for (case, name) in grid::cases(setting, "vhost", &place, (MEMORY - DATA, false)) {
                for storage in turns(storages, round) {
                    let time = Duration::from_millis(setting.millis);
                    let turn = Image::wait_unlocked(place.path)
                        .and_then(|()| serve(storage, &place, case.queues, setting.scratch))
                        .and_then(|daemon| load(&daemon, &case, round as u64 + 1, time));
                    match turn {
                        Ok(figures) => figures.note(rows, &name, yardstick, &storage.name, round),
                        Err(e) => rows.fail(format!("{}: {name}: {e}", storage.name)),
                    }
                }
            }
        }
    }
    Ok(())
}
