//! Disks that are saved and go on elsewhere, and pauses under load.

use std::collections::BTreeMap;

use device::StateError;
use device::fake::again::Again;
use device::fake::state::{golden, tamper};

use super::*;

impl Files {
    /// The same content in another file.
    fn copy(&self) -> Files {
        Files::new(&self.content())
    }
}

fn identify(bench: &mut Bench<Disk>) -> Vec<u8> {
    assert_eq!(request(bench, kind::GET_ID, 0, &[(DATA, 20, true)]).0, OK);
    bench.get(DATA, 20)
}

fn config(bench: &Bench<Disk>) -> [u8; CONFIG_LENGTH] {
    let mut bytes = [0; CONFIG_LENGTH];
    bench.device.read_config(0, &mut bytes);
    bytes
}

#[test]
fn a_disk_goes_on_with_another_file_and_is_the_same_disk() {
    let files = Files::zeros();
    for accept in [ALL, !ring::RING_EVENT_IDX] {
        let mut b = bench(files.spec(), accept);
        b.put(DATA, &[7; 512]);
        for _ in 0..300 {
            assert_eq!(request(&mut b, kind::OUT, 9, &[(DATA, 512, false)]).0, OK);
        }
        let serial = identify(&mut b);
        b.device.write_config(WRITEBACK, &[0]);
        let before = config(&b);
        // Offered while nobody serves the queue.
        let state = b.stop();
        b.put(HEADER, &header(kind::IN, 9));
        b.chain(0, 3, &[(HEADER, 16, false), (DATA + 0x1000, 512, true), (STATUS, 1, true)]);
        b.kick(0);
        b.start(0, state[0].next_avail);
        let copy = files.copy();
        let own = make(copy.spec()).shared.serial;
        assert_ne!(own[..], serial, "the file has another identity");
        let mut b = b.move_to(|| make(copy.spec())).unwrap();
        assert_eq!(b.used(0), (3, 513));
        assert_eq!(b.get(DATA + 0x1000, 512), [7; 512]);
        assert_eq!(config(&b), before, "write-through among it");
        assert_eq!(identify(&mut b), serial);
        assert!(b.device.shared.writes_through());
        b.put(DATA, &[8; 512]);
        assert_eq!(request(&mut b, kind::OUT, 1, &[(DATA, 512, false)]).0, OK);
        assert_eq!(
            (copy.content()[512..1024].to_vec(), &files.content()[512..1024]),
            (vec![8; 512], &[0; 512][..])
        );
        // And once more, from what was itself loaded.
        let mut b = b.move_to(|| make(files.spec())).unwrap();
        assert_eq!((identify(&mut b), config(&b)), (serial, before));
        // A new driver begins as with any disk.
        b.stop();
        b.device.reset();
        assert!(b.device.shared.writeback.load(Ordering::Relaxed));
    }
}

#[test]
fn a_guessed_image_keeps_its_first_sector_for_ever() {
    let files = Files::zeros();
    let guessed = DiskSpec { image_type: DiskType::default(), ..files.spec() };
    let mut b = bench(guessed, ALL);
    b.put(DATA, b"QFI\xfb");
    assert_eq!(request(&mut b, kind::OUT, 0, &[(DATA, 512, false)]).0, ERROR);
    // What was found out is written as if it had been stated.
    let mut b = b.move_to(|| make(files.spec())).unwrap();
    assert_eq!(request(&mut b, kind::OUT, 0, &[(DATA, 512, false)]).0, ERROR);
    assert_eq!(request(&mut b, kind::OUT, 1, &[(DATA, 512, false)]).0, OK);
    let mut b = b.move_to(|| make(files.spec())).unwrap();
    assert_eq!(request(&mut b, kind::OUT, 0, &[(DATA, 512, false)]).0, ERROR);
    assert_eq!(files.content()[..512], [0; 512]);
}

#[test]
fn a_disk_that_is_another_is_refused_by_name() {
    let files = Files::zeros();
    let refused = |make: &dyn Fn() -> Disk| match bench(files.spec(), ALL).move_to(make) {
        Err(StateError::Value { what, .. }) => what,
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("was taken"),
    };
    let larger = Files::new(&vec![0; 257 * 512]);
    assert_eq!(
        refused(&|| make(larger.spec())),
        format!("disk \"_disk0\" had 256 sectors of 512 bytes, and image {} has 257", larger.path.display())
    );
    let copy = files.copy();
    assert_eq!(
        refused(&|| make(DiskSpec { readonly: true, ..copy.spec() })),
        "readonly of disk \"_disk0\" is false, and the image's is true"
    );
    let node = make(files.spec()).save().unwrap().unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut node = node.clone();
        node.change(|body| body[key] = value);
        make(files.spec()).load(Some(node)).unwrap_err().to_string()
    };
    assert!(with("serial", vec![1; 21].into()).ends_with("serial has 21 bytes"));
    assert!(with("logical_block", 0.into()).ends_with("logical_block is 0"));
    assert!(with("logical_block", 256.into()).ends_with("logical_block is 256"));
    assert!(with("physical_block", 0x8000_0000u32.into()).contains("physical_block is 2147483648"));
    let disk = make(files.spec());
    disk.load(Some(node.clone())).unwrap();
    assert!(disk.load(Some(node)).is_err(), "once is enough");
    assert!(make(files.copy().spec()).load(None).is_err());
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    let files = Files::zeros();
    let node = make(files.spec()).save().unwrap().unwrap();
    for tampered in tamper(&node) {
        let Some(node) = tampered.node() else { continue };
        let disk = make(files.spec());
        if disk.load(Some(node)).is_ok() {
            assert!(!tampered.impossible, "{} was taken", tampered.what);
            let mut b = Bench::new(disk, ALL);
            config(&b);
            identify(&mut b);
            b.stop();
            b.device.save().unwrap();
        }
    }
}

#[test]
fn states_of_all_versions_load() {
    let files = Files::zeros();
    let spec = DiskSpec { serial: Some("golden".into()), ..files.spec() };
    let present = make(spec).save().unwrap().unwrap();
    for node in golden(env!("CARGO_MANIFEST_DIR"), "virtio-blk", &present) {
        let disk = make(files.spec());
        disk.load(Some(node)).unwrap();
        assert_eq!(identify(&mut Bench::new(disk, ALL))[..8], *b"golden\0\0");
    }
}

/// Three hundred pauses at any moment, with reads and writes that wait, are under way and are done: each is answered once, and does
/// what it should.
#[test]
fn no_request_is_lost_or_done_twice_over_three_hundred_pauses() {
    const SLOTS: u16 = 32;
    let files = Files::zeros();
    for (n, spec) in engines(&files).into_iter().enumerate() {
        let mut b = bench(DiskSpec { queue_size: 256, ..spec }, ALL);
        // Every second time, writes are flushed one by one.
        b.device.write_config(WRITEBACK, &[n as u8]);
        let (mut under_way, mut free) = (BTreeMap::new(), (0..SLOTS).collect::<Vec<_>>());
        let (mut offered, mut answered, mut stamp) = (0u32, 0u32, vec![0u8; usize::from(SLOTS)]);
        let settle = |b: &mut Bench<Disk>, under_way: &mut BTreeMap<u16, (bool, u8)>, patience| {
            let (head, used) = b.try_used(0, patience)?;
            let (write, value) = under_way.remove(&head).expect("an answer to what is under way, once");
            let slot = u64::from(head / 4);
            assert_eq!((b.get(FREE + 0x800 + slot, 1)[0], used), (OK, if write { 1 } else { 513 }));
            if !write {
                assert_eq!(b.get(DATA + slot * 512, 512), [value; 512]);
            }
            Some(slot as u16)
        };
        for round in 0..300u16 {
            for _ in 0..(round % 13 + 3) {
                let Some(slot) = free.pop() else { break };
                let (at, write) = (u64::from(slot), (slot + round) % 3 != 0);
                if write {
                    stamp[usize::from(slot)] = round as u8;
                }
                let value = stamp[usize::from(slot)];
                let code = if write { kind::OUT } else { kind::IN };
                b.put(HEADER + at * 16, &header(code, at));
                b.put(DATA + at * 512, &[if write { value } else { 0xee }; 512]);
                b.put(FREE + 0x800 + at, &[0xee]);
                let (head, data) = (slot * 4, (DATA + at * 512, 512, !write));
                b.chain(0, head, &[(HEADER + at * 16, 16, false), data, (FREE + 0x800 + at, 1, true)]);
                under_way.insert(head, (write, value));
                offered += 1;
            }
            if round % 3 != 0 {
                b.kick(0);
            }
            if round % 4 == 1 {
                std::thread::sleep(Duration::from_micros(u64::from(round) % 7 * 40));
            }
            let state = b.stop()[0];
            assert_eq!(state.next_avail, state.next_used, "nothing is under way");
            b.start(0, state.next_avail);
            // Some are left for the next round.
            let patience = if round % 2 == 0 { Duration::from_secs(10) } else { Duration::ZERO };
            while under_way.len() > usize::from(round % 5) {
                let Some(slot) = settle(&mut b, &mut under_way, patience) else { break };
                free.push(slot);
                answered += 1;
            }
        }
        while !under_way.is_empty() {
            settle(&mut b, &mut under_way, Duration::from_secs(10)).expect("an answer");
            answered += 1;
        }
        assert_eq!((offered, b.try_used(0, Duration::from_millis(20))), (answered, None));
        assert!(offered > 1000 && !b.link.broken());
        b.stop();
        let content = files.content();
        for (slot, value) in stamp.iter().enumerate() {
            assert_eq!(content[slot * 512..][..512], [*value; 512], "slot {slot}");
        }
        fs::write(&files.path, vec![0; SECTORS * 512]).unwrap();
    }
}

#[test]
fn requests_that_are_answered_at_once_do_not_hold_up_whoever_stops_the_queue() {
    let files = Files::zeros();
    for spec in engines(&files) {
        let mut b = bench(spec, ALL & !ring::RING_EVENT_IDX);
        b.put(HEADER, &header(kind::GET_ID, 0));
        let chain = [(HEADER, HEADER_LENGTH as u32, false), (DATA, 20, true), (STATUS, 1, true)];
        b.chain(0, 0, &chain);
        let again = Again::new(&mut b, 0);
        b.kick(0);
        for _ in 0..1000 {
            b.used(0);
        }
        b.device.stop_queue(0).unwrap();
        assert!(again.goes_on(), "the queue stopped when the driver did");
    }
}
