//! The disk on the fake board, on real image files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::spec::Facts;
use device::fake::{Bench, Desc, END, FREE, flag};
use device::{Host, Kept};
use vmm_sys_util::tempdir::TempDir;

use super::wire::{HEADER_LENGTH, Status, kind};
use super::*;

const ALL: u64 = u64::MAX;
const SECTORS: usize = 256;
const HEADER: u64 = FREE;
const STATUS: u64 = FREE + 0x100;
const DATA: u64 = FREE + 0x1000;
const OK: u8 = Status::Ok as u8;
const ERROR: u8 = Status::Error as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;

/// A directory with an image, in memory if possible: what is tested here is not the disk under it.
struct Files {
    _dir: TempDir,
    path: PathBuf,
}

impl Files {
    fn new(content: &[u8]) -> Self {
        let dir = TempDir::new_in(Path::new("/dev/shm")).or_else(|_| TempDir::new()).unwrap();
        let path = dir.as_path().join("image");
        fs::write(&path, content).unwrap();
        Files { _dir: dir, path }
    }

    fn zeros() -> Self {
        Files::new(&vec![0; SECTORS * 512])
    }

    fn spec(&self) -> DiskSpec {
        let image_type = DiskType::stated(ImageType::Raw);
        DiskSpec { path: Some(self.path.clone()), image_type, ..DiskSpec::default() }
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

fn make(mut spec: DiskSpec) -> Disk {
    let kept = Kept::default();
    spec.make(&Host { id: "_disk0", facts: &Facts::default(), kept: &kept }).unwrap()
}

fn bench(spec: DiskSpec, accept: u64) -> Bench<Disk> {
    Bench::new(make(spec), accept)
}

/// All engines.
fn engines(files: &Files) -> [DiskSpec; 3] {
    let aio = DiskSpec { disable_io_uring: true, ..files.spec() };
    [files.spec(), DiskSpec { disable_aio: true, ..aio.clone() }, aio]
}

fn header(kind: u32, sector: u64) -> [u8; HEADER_LENGTH] {
    let mut bytes = [0; HEADER_LENGTH];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// Header, `data` buffers and a status, one request at a time; returns the status and the length used.
fn request(bench: &mut Bench<Disk>, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
    bench.put(HEADER, &header(kind, sector));
    bench.put(STATUS, &[0xee]);
    let mut buffers = vec![(HEADER, HEADER_LENGTH as u32, false)];
    buffers.extend(data);
    buffers.push((STATUS, 1, true));
    bench.chain(0, 0, &buffers);
    bench.kick(0);
    let (head, used) = bench.used(0);
    assert_eq!(head, 0);
    (bench.get(STATUS, 1)[0], used)
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn on_range(bench: &mut Bench<Disk>, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
    bench.put(DATA, &range(sector, sectors, flags));
    request(bench, kind, 0, &[(DATA, 16, false)]).0
}

#[test]
fn what_is_written_is_read_again_and_is_in_the_file() {
    for accept in [ALL, !ring::RING_EVENT_IDX, 0] {
        let files = Files::zeros();
        for spec in engines(&files) {
            let mut bench = bench(spec, accept);
            let pattern: Vec<u8> = (0..2048u32).map(|n| (n * 7 + 1) as u8).collect();
            bench.put(DATA, &pattern);
            assert_eq!(request(&mut bench, kind::OUT, 3, &[(DATA, 2048, false)]), (OK, 1));
            assert_eq!(request(&mut bench, kind::FLUSH, 0, &[]), (OK, 1));
            let back = DATA + 0x1_0000;
            assert_eq!(
                request(&mut bench, kind::IN, 3, &[(back, 512, true), (back + 512, 1536, true)]),
                (OK, 2049)
            );
            assert_eq!(bench.get(back, 2048), pattern);
            assert_eq!(files.content()[1536..3584], pattern);
            // With event indexes this driver, which never moves its own, hears of the first only.
            let least = if accept & ring::RING_EVENT_IDX == 0 { 3 } else { 1 };
            assert!(bench.link.used() >= least);
            assert!(!bench.link.broken());
            bench.device.stop_queue(0).unwrap();
        }
    }
}

#[test]
fn the_configuration_space_describes_the_disk() {
    let files = Files::zeros();
    let disk = make(DiskSpec { num_queues: 3, queue_size: 64, ..files.spec() });
    let mut config = [0; CONFIG_LENGTH];
    disk.read_config(0, &mut config);
    let u32_at = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), SECTORS as u64);
    assert_eq!(u32_at(12), 62, "seg_max");
    assert_eq!(u32_at(20), 512, "blk_size");
    assert_eq!(config[32], 1, "writeback");
    assert_eq!(u16::from_le_bytes([config[34], config[35]]), 3, "num_queues");
    assert_eq!((u32_at(36), u32_at(40)), (u32::MAX, 1), "discard");
    assert_eq!((u32_at(48), u32_at(52), config[56]), (u32::MAX, 1, 1), "write zeroes");
    assert_eq!(disk.queue_sizes(), [64; 3]);
    let mut byte = [0; 2];
    disk.read_config(32, &mut byte);
    assert_eq!(byte, [1, 0]);
}

#[test]
fn features_follow_image_and_options() {
    let files = Files::zeros();
    let always = ring::VERSION_1
        | ring::RING_EVENT_IDX
        | ring::RING_INDIRECT_DESC
        | feature::FLUSH
        | feature::CONFIG_WCE
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::SEG_MAX;
    let features = |spec| make(spec).features();
    assert_eq!(features(files.spec()), always | feature::WRITE_ZEROES | feature::DISCARD);
    assert_eq!(features(DiskSpec { sparse: false, ..files.spec() }), always | feature::WRITE_ZEROES);
    assert_eq!(features(DiskSpec { readonly: true, ..files.spec() }), always | feature::RO);
    assert_ne!(features(DiskSpec { num_queues: 2, ..files.spec() }) & feature::MQ, 0);
}

#[test]
fn the_serial_number_is_given_or_made_and_padded() {
    let files = Files::zeros();
    let mut named = bench(DiskSpec { serial: Some("abc".into()), ..files.spec() }, ALL);
    named.put(DATA, &[0xff; 32]);
    assert_eq!(request(&mut named, kind::GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(named.get(DATA, 21)[..], *b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    // Too small or too large a buffer is the driver's affair.
    assert_eq!(request(&mut named, kind::GET_ID, 0, &[(DATA, 2, true)]), (OK, 3));
    assert_eq!(request(&mut named, kind::GET_ID, 0, &[(DATA, 32, true)]), (OK, 20));
    named.device.stop_queue(0);
    drop(named);

    let mut made = bench(files.spec(), ALL);
    request(&mut made, kind::GET_ID, 0, &[(DATA, 20, true)]);
    let id = made.get(DATA, 20);
    assert!(id[0].is_ascii_digit() && id.iter().all(|byte| byte.is_ascii_digit() || *byte == 0));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let files = Files::new(&vec![0xaa; SECTORS * 512]);
    for spec in engines(&files) {
        fs::write(&files.path, vec![0xaa; SECTORS * 512]).unwrap();
        let mut bench = bench(spec, ALL);
        assert_eq!(on_range(&mut bench, kind::DISCARD, 8, 8, 0), OK);
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 32, 3, 0), OK);
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 40, 3, 1), OK);
        let content = files.content();
        for sector in 0..SECTORS {
            let zero = matches!(sector, 8..16 | 32..35 | 40..43);
            let want = if zero { 0 } else { 0xaa };
            assert!(content[sector * 512..][..512].iter().all(|byte| *byte == want), "sector {sector}");
        }
        // Flags (§5.2.6.2), ranges and lengths that are wrong.
        assert_eq!(on_range(&mut bench, kind::DISCARD, 0, 8, 1), UNSUPPORTED);
        assert_eq!(on_range(&mut bench, kind::DISCARD, 0, 8, 2), UNSUPPORTED);
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 0, 8, 2), UNSUPPORTED);
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, SECTORS as u64, 1, 0), ERROR);
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, u64::MAX, u32::MAX, 0), ERROR);
        assert_eq!(on_range(&mut bench, kind::DISCARD, 0, u32::MAX, 0), ERROR);
        assert_eq!(request(&mut bench, kind::DISCARD, 0, &[(DATA, 32, false)]).0, ERROR, "two ranges");
        assert_eq!(request(&mut bench, kind::DISCARD, 0, &[(DATA, 15, false)]).0, ERROR);
        assert_eq!(request(&mut bench, kind::DISCARD, 0, &[]).0, ERROR);
        assert_eq!(files.content(), content);
        assert!(!bench.link.broken());
        bench.device.stop_queue(0).unwrap();
    }
}

#[test]
fn without_sparse_nothing_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let files = Files::new(&vec![0xaa; SECTORS * 512]);
    let mut bench = bench(DiskSpec { sparse: false, ..files.spec() }, ALL);
    assert_eq!(on_range(&mut bench, kind::DISCARD, 8, 8, 0), UNSUPPORTED);
    assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 8, 8, 1), OK);
    assert!(files.content()[8 * 512..16 * 512].iter().all(|byte| *byte == 0));
    assert!(fs::metadata(&files.path).unwrap().blocks() > 0);
}

#[test]
fn requests_that_make_no_sense_fail_alone() {
    let files = Files::zeros();
    for spec in engines(&files) {
        let mut bench = bench(spec, ALL);
        let whole = SECTORS as u64;
        for (what, sector, data, want) in [
            (kind::IN, 0, vec![(DATA, 511, true)], (ERROR, 0)),
            (kind::IN, whole, vec![(DATA, 512, true)], (ERROR, 0)),
            (kind::IN, whole - 1, vec![(DATA, 1024, true)], (ERROR, 0)),
            (kind::IN, u64::MAX, vec![(DATA, 512, true)], (ERROR, 0)),
            (kind::IN, u64::MAX / 512, vec![(DATA, 512, true)], (ERROR, 0)),
            (kind::OUT, 0, vec![(DATA, 100, false)], (ERROR, 0)),
            (kind::OUT, whole, vec![(DATA, 512, false)], (ERROR, 1)),
            (kind::OUT, u64::MAX, vec![(DATA, 512, false)], (ERROR, 0)),
            // Data outside of RAM, and across its end.
            (kind::IN, 0, vec![(END, 512, true)], (ERROR, 0)),
            (kind::IN, 0, vec![(END - 256, 512, true)], (ERROR, 0)),
            (kind::OUT, 0, vec![(END - 256, 512, false)], (ERROR, 0)),
            (kind::IN, 0, vec![(u64::MAX - 1, 512, true)], (ERROR, 0)),
            (2, 0, vec![], (UNSUPPORTED, 0)),
            (u32::MAX, 7, vec![(DATA, 512, false), (DATA, 512, true)], (UNSUPPORTED, 0)),
            // Nothing to move is nothing wrong.
            (kind::IN, 0, vec![], (OK, 1)),
            (kind::OUT, whole, vec![], (OK, 1)),
        ] {
            assert_eq!(request(&mut bench, what, sector, &data), want, "{what} {sector} {data:?}");
        }
        assert!(!bench.link.broken());
        bench.device.stop_queue(0).unwrap();
        assert!(files.content().iter().all(|byte| *byte == 0));
    }
}

/// Chains that cannot be answered: the device asks to be reset, does not touch the disk, and works after a reset.
#[test]
fn broken_chains_ask_for_a_reset() {
    type Lie = fn(&mut Bench<Disk>);
    let lies: [(&str, Lie); 9] = [
        ("no status", |b| b.chain(0, 0, &[(HEADER, 16, false)])),
        ("status outside of RAM", |b| b.chain(0, 0, &[(HEADER, 16, false), (END, 1, true)])),
        ("an empty status", |b| b.chain(0, 0, &[(HEADER, 16, false), (STATUS, 0, true)])),
        ("a readable buffer last", |b| b.chain(0, 0, &[(STATUS, 1, true), (HEADER, 16, false)])),
        ("a loop", |b| {
            b.describe(0, 0, Desc { address: HEADER, length: 16, flags: flag::NEXT, next: 1 });
            b.describe(0, 1, Desc { address: DATA, length: 16, flags: flag::NEXT, next: 0 });
            b.offer(0, 0);
        }),
        ("a descriptor that does not exist", |b| {
            b.describe(0, 0, Desc { address: HEADER, length: 16, flags: flag::NEXT, next: 9999 });
            b.offer(0, 0);
        }),
        ("a head that does not exist", |b| b.offer(0, 60_000)),
        ("indirect in indirect", |b| {
            let table = DATA + 0x8000;
            b.describe_at(table, 0, Desc { address: table, length: 16, flags: flag::INDIRECT, next: 0 });
            b.describe(0, 0, Desc { address: table, length: 16, flags: flag::INDIRECT, next: 0 });
            b.offer(0, 0);
        }),
        ("a ring that runs ahead", |b| {
            for _ in 0..b.queues[0].size {
                b.offer(0, 0);
            }
            b.put(0x1_0000 + 16 * u64::from(b.queues[0].size) + 2, &0x7fffu16.to_le_bytes());
        }),
    ];
    let files = Files::zeros();
    for (what, lie) in lies {
        let mut bench = bench(files.spec(), ALL);
        bench.put(HEADER, &header(kind::OUT, 0));
        lie(&mut bench);
        bench.kick(0);
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !bench.link.broken() {
            assert!(std::time::Instant::now() < end, "{what}: no reset was asked for");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(bench.try_used(0, Duration::from_millis(5)), None, "{what}");
        bench.device.stop_queue(0).unwrap();
        bench.device.reset();
        // A new driver, with fresh rings.
        let used = 0x1_0000 + 0x8000 + 2;
        let seen: u16 = u16::from_le_bytes(bench.get(used, 2).try_into().unwrap());
        let available = 0x1_0000 + 16 * u64::from(bench.queues[0].size) + 2;
        let next = u16::from_le_bytes(bench.get(available, 2).try_into().unwrap());
        assert_eq!(seen, 0, "{what}");
        bench.device.activate(ALL & bench.device.features()).unwrap();
        bench.put(used, &next.to_le_bytes());
        bench.start(0, next);
        assert!(bench.device.stop_queue(0).is_some(), "{what}");
        assert!(files.content().iter().all(|byte| *byte == 0), "{what}");
    }
}

/// One head available many times: each is its own request to us, whatever the driver makes of the answers.
#[test]
fn one_head_many_times_confuses_only_the_driver() {
    let files = Files::new(&vec![0x5a; SECTORS * 512]);
    for spec in engines(&files) {
        let mut bench = bench(spec, ALL);
        bench.put(HEADER, &header(kind::IN, 0));
        bench.chain(0, 0, &[(HEADER, 16, false), (DATA, 4096, true), (STATUS, 1, true)]);
        for _ in 1..128 {
            bench.offer(0, 0);
        }
        bench.kick(0);
        for _ in 0..128 {
            assert_eq!(bench.used(0), (0, 4097));
        }
        assert_eq!(bench.get(DATA, 4096), [0x5a; 4096]);
        bench.device.stop_queue(0).unwrap();
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let files = Files::new(&vec![1; SECTORS * 512]);
    for spec in engines(&files) {
        // The driver ignores that RO was offered.
        let mut bench = bench(DiskSpec { readonly: true, ..spec }, !feature::RO);
        assert_eq!(request(&mut bench, kind::OUT, 0, &[(DATA, 512, false)]), (ERROR, 1));
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 0, 8, 0), UNSUPPORTED);
        assert_eq!(on_range(&mut bench, kind::DISCARD, 0, 8, 0), UNSUPPORTED);
        assert_eq!(request(&mut bench, kind::IN, 0, &[(DATA, 512, true)]), (OK, 513));
        assert_eq!(bench.get(DATA, 512), [1; 512]);
        bench.device.stop_queue(0).unwrap();
        assert!(files.content().iter().all(|byte| *byte == 1));
    }
}

#[test]
fn the_first_sector_of_a_guessed_image_is_protected() {
    let files = Files::zeros();
    let mut spec = DiskSpec { image_type: DiskType::default(), ..files.spec() };
    for _ in 0..2 {
        // What was found is shown, and does not count as stated the next time.
        let kept = Kept::default();
        let disk = spec.make(&Host { id: "_disk0", facts: &Facts::default(), kept: &kept }).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap()["image_type"], "Raw");
        let mut bench = Bench::new(disk, ALL);
        bench.put(DATA, b"QFI\xfb and so on");
        assert_eq!(request(&mut bench, kind::OUT, 0, &[(DATA, 512, false)]), (ERROR, 1));
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 0, 8, 0), ERROR);
        assert_eq!(request(&mut bench, kind::OUT, 1, &[(DATA, 512, false)]), (OK, 1));
        bench.device.stop_queue(0).unwrap();
        assert!(files.content()[..512].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_driver_can_choose_to_write_through() {
    let files = Files::zeros();
    for spec in engines(&files) {
        let mut bench = bench(spec, ALL);
        assert!(!bench.device.shared.writes_through());
        bench.device.write_config(WRITEBACK, &[0]);
        assert!(bench.device.shared.writes_through());
        for sector in 0..8 {
            assert_eq!(request(&mut bench, kind::OUT, sector, &[(DATA, 512, false)]), (OK, 1));
        }
        assert_eq!(on_range(&mut bench, kind::WRITE_ZEROES, 0, 8, 0), OK);
        bench.device.write_config(WRITEBACK - 1, &[9, 1, 9]);
        assert!(!bench.device.shared.writes_through());
        bench.device.stop_queue(0).unwrap();
        bench.device.reset();
        // A driver that can neither flush nor choose gets durable writes, and cannot change that.
        bench.device.activate(ring::VERSION_1).unwrap();
        assert!(bench.device.shared.writes_through());
        bench.device.write_config(WRITEBACK, &[1]);
        assert!(bench.device.shared.writes_through());
        bench.device.activate(ring::VERSION_1 | feature::FLUSH).unwrap();
        bench.device.write_config(WRITEBACK, &[0]);
        assert!(!bench.device.shared.writes_through(), "writeback is not for a driver without CONFIG_WCE");
    }
}

#[test]
fn counters_count() {
    let files = Files::zeros();
    let mut bench = bench(files.spec(), ALL);
    request(&mut bench, kind::OUT, 0, &[(DATA, 1024, false)]);
    request(&mut bench, kind::IN, 0, &[(DATA, 512, true)]);
    request(&mut bench, kind::IN, 999_999, &[(DATA, 512, true)]);
    request(&mut bench, kind::FLUSH, 0, &[]);
    let counters = bench.device.counters().unwrap();
    assert_eq!((counters["write_bytes"], counters["write_ops"]), (1024, 1));
    assert_eq!((counters["read_bytes"], counters["read_ops"]), (512, 1));
    assert!(counters["read_latency_max"] >= counters["read_latency_min"]);
}

/// Stops and starts the queue under load; every request is answered once, and none is lost.
#[test]
fn a_queue_stops_and_starts_under_load() {
    let files = Files::new(&(0..SECTORS * 512).map(|n| (n / 512) as u8).collect::<Vec<_>>());
    for spec in engines(&files) {
        let mut bench = bench(spec, ALL);
        let (mut offered, mut answered) = (0u32, 0u32);
        for round in 0..200u16 {
            for slot in 0..32u16 {
                let at = u64::from(slot);
                bench.put(HEADER + at * 16, &header(kind::IN, at));
                bench.put(DATA + at * 512, &[0xee; 512]);
                let status = FREE + 0x800 + at;
                bench.chain(
                    0,
                    slot * 4,
                    &[(HEADER + at * 16, 16, false), (DATA + at * 512, 512, true), (status, 1, true)],
                );
                offered += 1;
            }
            if round % 2 == 0 {
                bench.kick(0);
            }
            let state = bench.device.stop_queue(0).unwrap();
            assert_eq!(state.next_used.wrapping_sub(state.next_avail), 0, "nothing is under way");
            bench.start(0, state.next_avail);
            for _ in 0..32 {
                let (head, used) = bench.used(0);
                assert_eq!((head % 4, used), (0, 513));
                answered += 1;
            }
            for slot in 0..32u64 {
                assert_eq!(bench.get(DATA + slot * 512, 512), [slot as u8; 512]);
            }
        }
        assert_eq!(offered, answered);
        assert!(bench.try_used(0, Duration::from_millis(5)).is_none());
        bench.device.stop_queue(0).unwrap();
    }
}

/// Requests may be for far more than the guest has memory. Whoever stops the queue waits for few of them.
#[test]
fn a_stop_does_not_wait_for_all_that_the_driver_asks_for() {
    const BUFFERS: u64 = 128;
    const BUFFER: u32 = 8 << 20;
    let files = Files::zeros();
    fs::File::options().write(true).open(&files.path).unwrap().set_len(BUFFERS * u64::from(BUFFER)).unwrap();
    for spec in engines(&files) {
        let mut bench = bench(spec, ALL);
        bench.put(HEADER, &header(kind::IN, 0));
        let table = FREE + 0x1_0000;
        let one = |address, length, flags, next| Desc { address, length, flags: flags | flag::NEXT, next };
        bench.describe_at(table, 0, one(HEADER, 16, 0, 1));
        for n in 1..=BUFFERS as u16 {
            bench.describe_at(table, n, one(FREE + 0x40_0000, BUFFER, flag::WRITE, n + 1));
        }
        let status = Desc { address: STATUS, length: 1, flags: flag::WRITE, next: 0 };
        bench.describe_at(table, BUFFERS as u16 + 1, status);
        for head in 0..64 {
            let (length, flags) = (16 * (BUFFERS as u32 + 2), flag::INDIRECT);
            bench.describe(0, head, Desc { address: table, length, flags, next: 0 });
            bench.offer(0, head);
        }
        bench.kick(0);
        let state = bench.device.stop_queue(0).unwrap();
        assert_eq!(state.next_used, state.next_avail, "nothing is under way");
        assert!(state.next_used < 32, "{} GiB were read before it stopped", state.next_used);
        assert!(!bench.link.broken());
    }
}

#[test]
fn several_queues_work_side_by_side() {
    let files = Files::zeros();
    let spec = DiskSpec { num_queues: 4, ..files.spec() };
    let mut bench = bench(spec, ALL);
    for queue in 0..4usize {
        let area = FREE + 0x1_0000 * (queue as u64 + 1);
        bench.put(area, &header(kind::OUT, queue as u64));
        bench.put(area + 0x200, &[queue as u8 + 1; 512]);
        bench.chain(queue, 0, &[(area, 16, false), (area + 0x200, 512, false), (area + 0x100, 1, true)]);
        bench.kick(queue);
    }
    for queue in 0..4 {
        assert_eq!(bench.used(queue), (0, 1));
        bench.device.stop_queue(queue).unwrap();
    }
    assert!(bench.device.stop_queue(4).is_none());
    let content = files.content();
    for queue in 0..4usize {
        assert_eq!(content[queue * 512..][..512], [queue as u8 + 1; 512]);
    }
    assert_eq!(bench.device.counters().unwrap()["write_ops"], 4);
}

mod formats;
mod limits;
mod random;
mod state;

#[test]
fn a_request_without_a_kick_is_found_by_who_looks_for_it() {
    const MOST: Duration = Duration::from_secs(2);
    let files = Files::zeros();
    let open = |polling| {
        let kept = Kept::default();
        files.spec().open(&Host { id: "_disk0", facts: &Facts::default(), kept: &kept }, polling).unwrap()
    };
    for polling in [MOST, Duration::ZERO] {
        let mut b = Bench::new(open(polling), ALL);
        // Each finds that looking a little longer would have spared it the kick.
        for _ in 0..25 {
            assert_eq!(request(&mut b, kind::IN, 3, &[(DATA, 512, true)]).0, OK);
        }
        b.put(HEADER, &header(kind::IN, 4));
        b.chain(0, 0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        let found = b.try_used(0, if polling.is_zero() { Duration::from_millis(500) } else { 10 * MOST });
        assert_eq!(found, (!polling.is_zero()).then_some((0, 513)), "{polling:?}");
        if found.is_none() {
            b.kick(0);
            assert_eq!(b.used(0), (0, 513));
        }
        b.stop();
    }
}
