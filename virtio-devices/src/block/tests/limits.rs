//! Limits of bandwidth and operations, in real time.

use std::time::Instant;

use ::spec::{RateLimitGroupSpec, Spec};

use super::*;

/// Requests of the driver under way at once.
const DEPTH: u16 = 16;

/// Reads as fast as the disk lets it, and counts.
struct Reader {
    bench: Bench<Disk>,
}

impl Reader {
    fn new(disk: Disk, bytes: u32) -> Self {
        let mut bench = Bench::new(disk, ALL);
        bench.put(HEADER, &header(kind::IN, 0));
        for slot in 0..DEPTH {
            bench.chain(0, slot * 3, &[(HEADER, 16, false), (DATA, bytes, true), (STATUS, 1, true)]);
        }
        bench.kick(0);
        Reader { bench }
    }

    fn run(&mut self, time: Duration) -> u64 {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < time {
            let Some((head, _)) = self.bench.try_used(0, Duration::from_millis(2)) else { continue };
            self.bench.offer(0, head);
            self.bench.kick(0);
            count += 1;
        }
        count
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.bench.device.stop_queue(0).unwrap();
    }
}

fn limited(files: &Files, limits: &str) -> Disk {
    let limits = DiskSpec::parse(limits).unwrap().limits;
    make(DiskSpec { limits, ..files.spec() })
}

/// A disk never moves more than its limit. That it moves as much takes a machine with time to spare: some attempts may fail.
fn near(count: u64, want: u64, what: &str) -> bool {
    assert!(count <= want + want / 20, "{what}: {count} instead of {want}");
    count >= want - want / 20
}

const ATTEMPTS: u32 = 5;

#[test]
fn a_limited_disk_keeps_its_limit_and_slows_no_other() {
    let (warm_up, time) = (Duration::from_millis(200), Duration::from_millis(1500));
    let attempt = || {
        let files = [Files::zeros(), Files::zeros(), Files::zeros()];
        // 2000 operations a second; 8 MB a second, in pieces of 8 KiB; as fast as can be.
        let disks = [
            (limited(&files[0], "ops_size=200,ops_refill_time=100"), 512),
            (limited(&files[1], "bw_size=819200,bw_refill_time=100"), 8192),
            (make(files[2].spec()), 512),
        ];
        let [operations, bytes, free] = std::thread::scope(|scope| {
            let run = |(disk, bytes)| {
                scope.spawn(move || {
                    let mut reader = Reader::new(disk, bytes);
                    reader.run(warm_up);
                    reader.run(time)
                })
            };
            disks.map(run).map(|thread| thread.join().unwrap())
        });
        near(operations, 3000, "operations") && near(bytes, 1500, "bytes") && free > 2 * operations
    };
    assert!((0..ATTEMPTS).any(|_| attempt()));
}

#[test]
fn disks_of_a_group_share_its_limit_and_none_of_them_starves() {
    let group = RateLimitGroupSpec::parse("id=g,ops_size=200,ops_refill_time=100").unwrap();
    let facts = Facts { rate_limit_groups: vec![group], ..Facts::default() };
    let attempt = || {
        let files = [Files::zeros(), Files::zeros()];
        let kept = Kept::default();
        let disks = files.each_ref().map(|files| {
            let mut spec = DiskSpec { rate_limit_group: Some("g".into()), ..files.spec() };
            spec.make(&Host { id: "_disk0", facts: &facts, kept: &kept }).unwrap()
        });
        let counts = std::thread::scope(|scope| {
            let run = |disk| {
                scope.spawn(move || {
                    let mut reader = Reader::new(disk, 512);
                    reader.run(Duration::from_millis(200));
                    reader.run(Duration::from_millis(1500))
                })
            };
            disks.map(run).map(|thread| thread.join().unwrap())
        });
        near(counts[0] + counts[1], 3000, "together") && counts.iter().all(|count| *count > 3000 / 10)
    };
    assert!((0..ATTEMPTS).any(|_| attempt()));
}

/// A queue that waits for its limit stops at once, and what was not served is served when it goes on.
#[test]
fn a_queue_that_waits_for_its_limit_can_stop_and_go_on() {
    let files = Files::zeros();
    let disk = limited(&files, "ops_size=1,ops_refill_time=3600000");
    let mut reader = Reader::new(disk, 512);
    assert!(reader.bench.try_used(0, Duration::from_secs(10)).is_some());
    assert!(reader.bench.try_used(0, Duration::from_millis(20)).is_none());
    let begin = Instant::now();
    let state = reader.bench.device.stop_queue(0).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(60));
    reader.bench.device.limiter = None;
    reader.bench.start(0, state.next_avail);
    for _ in 1..DEPTH {
        reader.bench.used(0);
    }
}
