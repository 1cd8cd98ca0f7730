//! Disks served over vhost-user, without a machine: a front end in this process drives the daemon's queues, and polls for what comes back.
//!
//! Ours and `qemu-storage-daemon`, the same image, by turns. Besides requests a second: the daemon's CPU time for each, and how long they take.

use std::fs::File;
use std::io::{Error, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::vhost::VhostBackend;
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, MEMORY, Memory, Queue};

use crate::load::{Image, Setting};
use crate::rows::{Better, Rows};
use crate::served::unique;

/// How long a daemon may take to listen, and a request to come back.
const LIMIT: Duration = Duration::from_secs(20);
const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_FLUSH: without it a write is not done before it is on the disk (virtio 1.3 §5.2.6.2).
const FLUSH: u64 = 1 << 9;
const IN: u32 = 0;
const OUT: u32 = 1;
/// Header, data, status.
const PARTS: u16 = 3;
const QUEUE_SIZE: u16 = 512;

/// A program that serves a disk.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// Whether it takes `qemu-storage-daemon`'s options, and not ours.
    pub(crate) qemu: bool,
}

/// What is asked of the disk.
#[derive(Clone, Copy, Debug)]
struct Case {
    write: bool,
    random: bool,
    bytes: u32,
    depth: u16,
    queues: usize,
}

/// The image and how it is opened.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    path: &'a Path,
    format: &'static str,
    direct: bool,
}

/// Block size, depth and queues of the rows; all of them for reads and writes, random and, where `true`, one after the other.
const CASES: [(u32, u16, usize, bool); 8] = [
    (4 << 10, 1, 1, false),
    (4 << 10, 32, 1, true),
    (4 << 10, 128, 1, false),
    (4 << 10, 32, 2, false),
    (64 << 10, 1, 1, false),
    (64 << 10, 32, 1, true),
    (1 << 20, 1, 1, true),
    // As many as guest memory holds.
    (1 << 20, 16, 1, true),
];

/// Of what is not raw, those that show what the format costs.
fn cases(format: &str) -> impl Iterator<Item = Case> {
    let raw = format == "raw";
    CASES.iter().filter(move |(bytes, depth, _, _)| raw || (*bytes < 1 << 20 && *depth == 32)).flat_map(
        |&(bytes, depth, queues, ordered)| {
            [(false, true), (true, true), (false, false), (true, false)]
                .into_iter()
                .filter(move |&(_, random)| random || ordered)
                .map(move |(write, random)| Case { write, random, bytes, depth, queues })
        },
    )
}

impl Case {
    fn name(&self, place: &Place<'_>) -> String {
        let size = if self.bytes < 1 << 20 {
            format!("{} KiB", self.bytes >> 10)
        } else {
            format!("{} MiB", self.bytes >> 20)
        };
        format!(
            "vhost {} {}, {} {size} {}, depth {}{}",
            place.format,
            if place.direct { "direct" } else { "page cache" },
            if self.random { "random" } else { "sequential" },
            if self.write { "write" } else { "read" },
            self.depth,
            if self.queues > 1 { format!(", {} queues", self.queues) } else { String::new() },
        )
    }
}

/// What one turn gave.
#[derive(Debug)]
struct Figures {
    per_second: f64,
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

/// A daemon at work; killed on drop.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(storage: &Storage, place: &Place<'_>, queues: usize, scratch: &Path) -> Result<Daemon, Error> {
        let socket = scratch.join(format!("bench-{}-{}.vhost", std::process::id(), unique()));
        let (path, format) = (place.path.display(), place.format);
        let direct = if place.direct { "on" } else { "off" };
        let mut command = Command::new(&storage.program);
        if storage.qemu {
            let file =
                format!("driver=file,node-name=file,filename={path},aio=io_uring,cache.direct={direct}");
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
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut daemon = Daemon { child, socket };
        let begun = Instant::now();
        while UnixStream::connect(&daemon.socket).is_err() {
            if daemon.child.try_wait()?.is_some() || begun.elapsed() > LIMIT {
                return Err(Error::other(format!("it does not listen: {}", daemon.said())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    /// What it said; ends it, if it has not ended.
    fn said(&mut self) -> String {
        // It fails only if it has ended.
        let _ = self.child.kill();
        let mut text = String::new();
        if let Some(mut pipe) = self.child.stderr.take()
            && let Err(e) = pipe.read_to_string(&mut text)
        {
            text = e.to_string();
        }
        text
    }

    /// CPU time of all its threads so far, the kernel's on their behalf included.
    fn cpu(&self) -> Result<Duration, Error> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // Threads come and go.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is to let go of the image before the next one comes for it, which one that is killed with requests under way does later.
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let begun = Instant::now();
        while begun.elapsed() < LIMIT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Both fail only if it has ended; the socket may be gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
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
    if latencies.is_empty() {
        return Err(Error::other("no request was done"));
    }
    latencies.sort_unstable();
    let quantile = |percent: usize| f64::from(latencies[(latencies.len() - 1) * percent / 100]) / 1e3;
    Ok(Figures {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
        p50_us: quantile(50),
        p99_us: quantile(99),
    })
}

/// All rows; `qemu_img` makes the image that is not raw.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, storages: &[Storage]) -> Result<(), Error> {
    let raw = Image::new(setting.scratch)?;
    let qcow2 = raw.converted("qcow2");
    if let Err(e) = &qcow2 {
        rows.skip(format!("vhost: no qcow2 image: {e}"));
    }
    let yardstick = storages.iter().find(|s| s.qemu).or(storages.first()).map_or("", |s| &s.name);
    let images = [(Some(&raw), "raw"), (qcow2.as_ref().ok(), "qcow2")];
    for round in 0..setting.runs {
        for (image, format) in images.iter().filter_map(|(image, format)| Some((image.as_ref()?, *format))) {
            for direct in [false, true] {
                let place = Place { path: &image.path, format, direct };
                for case in cases(format) {
                    for storage in storages {
                        let name = case.name(&place);
                        let time = Duration::from_millis(setting.millis);
                        let turn = Daemon::start(storage, &place, case.queues, setting.scratch)
                            .and_then(|daemon| load(&daemon, &case, round as u64 + 1, time));
                        match turn {
                            Ok(figures) => note(rows, &name, yardstick, &storage.name, round, &figures),
                            Err(e) => rows.fail(format!("{}: {name}: {e}", storage.name)),
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn note(rows: &mut Rows, name: &str, yardstick: &str, program: &str, round: usize, figures: &Figures) {
    let all = [
        ("", "/s", Better::More, figures.per_second),
        (": CPU time each", "us", Better::Less, figures.cpu_us),
        (": p50", "us", Better::Less, figures.p50_us),
        (": p99", "us", Better::Less, figures.p99_us),
    ];
    for (what, unit, better, value) in all {
        rows.note((&format!("{name}{what}"), unit, better), yardstick, program, round, value);
    }
}

impl Image {
    /// The same disk in another format, by `qemu-img`.
    fn converted(&self, format: &str) -> Result<Image, Error> {
        let path = self.path.with_extension(format);
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", format]).arg(&self.path).arg(&path);
        let image = Image { path };
        let output = command.output()?;
        if !output.status.success() {
            return Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        File::open(&image.path)?.sync_all()?;
        // In the page cache.
        std::io::copy(&mut File::open(&image.path)?, &mut std::io::sink())?;
        Ok(image)
    }
}
