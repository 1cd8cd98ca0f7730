//! Persistent memory on the fake board, on real files.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use ::block::{Access, Granularity, Storage};
use ::spec::{Facts, Kind, Refusal, Spec};
use device::fake::aperture::APERTURES;
use device::fake::state::{golden, tamper};
use device::fake::{Bench, Desc, END, FREE, flag};
use device::{Host, Kept, StateError};
use vmm_sys_util::tempdir::TempDir;

use super::flusher::{FAILED, FLUSH, MAX_DESCRIPTORS, OK};
use super::*;

const SIZE: usize = 2 * ALIGN as usize;
const REQUEST: u64 = FREE;
const ANSWER: u64 = FREE + 0x100;
/// What is in the room for an answer before.
const NONE: u32 = 0xeeee_eeee;

/// A directory with a file of fours.
struct Files {
    dir: TempDir,
    path: PathBuf,
}

impl Files {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("memory");
        fs::write(&path, vec![4; SIZE]).unwrap();
        Files { dir, path }
    }

    fn spec(&self, keys: &str) -> PmemSpec {
        PmemSpec::parse(&format!("file={}{keys}", self.path.display())).unwrap()
    }

    fn bench(&self, keys: &str) -> Bench<Pmem> {
        Bench::new(make(&self.spec(keys)).unwrap(), u64::MAX)
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// Runs `work` as somebody whom permissions forbid to write the file.
    fn read_only<R>(&self, work: impl FnOnce() -> R) -> R {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(self.dir.as_path(), fs::Permissions::from_mode(0o755)).unwrap();
        // SAFETY: concerns this thread's access to files only; root loses its privileges there, others have none.
        let own = unsafe { libc::setfsuid(65534) };
        let result = work();
        // SAFETY: as above.
        unsafe { libc::setfsuid(own as libc::uid_t) };
        result
    }
}

fn make(spec: &PmemSpec) -> Result<Pmem, Refusal> {
    spec.make(&Host { id: "_pmem0", facts: &Facts::default(), kept: &Kept::default() })
}

/// Writes as the guest would, through what the aperture holds.
fn write(b: &Bench<Pmem>, offset: usize, bytes: &[u8]) {
    let (at, mapping) = b.apertures[0].mappings().remove(0);
    assert!(at == 0 && offset + bytes.len() <= mapping.length() as usize);
    // SAFETY: within the mapping, which may be written and is held meanwhile.
    unsafe { mapping.address().cast_mut().add(offset).copy_from(bytes.as_ptr(), bytes.len()) };
}

fn read(b: &Bench<Pmem>, offset: usize) -> u8 {
    let (_, mapping) = b.apertures[0].mappings().remove(0);
    assert!(offset < mapping.length() as usize);
    // SAFETY: within the mapping, which is held meanwhile.
    unsafe { mapping.address().add(offset).read_volatile() }
}

fn answer(b: &Bench<Pmem>) -> u32 {
    u32::from_le_bytes(b.get(ANSWER, 4).try_into().unwrap())
}

/// Asks with these buffers; returns what is in the room for the answer, and the length used.
fn ask(b: &mut Bench<Pmem>, kind: u32, buffers: &[(u64, u32, bool)]) -> (u32, u32) {
    b.put(REQUEST, &kind.to_le_bytes());
    b.put(ANSWER, &NONE.to_le_bytes());
    b.chain(0, 0, buffers);
    b.kick(0);
    let (head, length) = b.used(0);
    assert_eq!(head, 0);
    (answer(b), length)
}

fn flush(b: &mut Bench<Pmem>) -> u32 {
    let (answer, length) = ask(b, FLUSH, &[(REQUEST, 4, false), (ANSWER, 4, true)]);
    assert_eq!(length, 4);
    answer
}

fn config(b: &Bench<Pmem>) -> [u64; 2] {
    [0, 8].map(|at| {
        let mut bytes = [0; 8];
        b.device.read_config(at, &mut bytes);
        u64::from_le_bytes(bytes)
    })
}

#[test]
fn what_is_written_is_in_the_file_when_it_was_flushed() {
    let files = Files::new();
    let mut b = files.bench("");
    assert_eq!(config(&b), [APERTURES, SIZE as u64]);
    let mut odd = [9; 6];
    b.device.read_config(13, &mut odd[..3]);
    assert_eq!(odd, [0, 0, 0, 9, 9, 9]);
    assert_eq!(read(&b, SIZE - 1), 4);
    write(&b, 5, b"persistent");
    write(&b, SIZE - 1, b"!");
    assert_eq!(flush(&mut b), OK);
    let content = files.content();
    assert_eq!((&content[4..16], content[SIZE - 1]), (&b"\x04persistent\x04"[..], b'!'));
    assert!(!b.link.broken());
    // And again after a stop, as for a pause.
    let state = b.stop();
    assert_eq!((state[0].next_avail, state[0].next_used), (1, 1));
    b.start(0, 1);
    assert_eq!(flush(&mut b), OK);
    b.stop();
}

#[test]
fn mappings_are_aligned_and_a_part_of_a_file_can_be_used() {
    let files = Files::new();
    let b = files.bench(",size=2M");
    assert_eq!(config(&b)[1], ALIGN);
    let (_, mapping) = b.apertures[0].mappings().remove(0);
    assert_eq!((mapping.length(), mapping.span().base % device::mapping::MAPPING_ALIGN), (ALIGN, 0));
    b.stop();
}

#[test]
fn writes_that_are_discarded_reach_nothing() {
    let files = Files::new();
    let mut b = files.bench(",discard_writes=on");
    // What was never written is in the file, which a snapshot may rely on; reading changes nothing in that.
    assert_eq!(read(&b, 4096), 4);
    assert!(b.device.save().is_ok());
    write(&b, 4096, b"mine");
    assert_eq!(read(&b, 4096), b'm');
    assert_eq!(flush(&mut b), OK);
    assert!(files.content() == vec![4; SIZE], "the file has changed");
    let refusal = b.device.save().unwrap_err().to_string();
    let wanted = format!("the guest has written to its copy of {}", files.path.display());
    assert!(refusal.starts_with(&wanted), "{refusal}");
    b.stop();
}

#[test]
fn a_file_that_cannot_be_written_is_mapped_for_reading_only() {
    let files = Files::new();
    let pmem = files.read_only(|| make(&files.spec("")).unwrap());
    let mut b = Bench::new(pmem, u64::MAX);
    let (_, mapping) = b.apertures[0].mappings().remove(0);
    assert_eq!((mapping.mode(), read(&b, 0)), (MapMode::ReadOnly, 4));
    // Whatever wrote to it here would be killed: the kernel itself must say so.
    let probe = OpenOptions::new().read(true).open("/dev/zero").unwrap();
    let iovec = libc::iovec { iov_base: mapping.address().cast_mut().cast(), iov_len: 1 };
    // SAFETY: the kernel writes to the place, or refuses; nobody here refers to it.
    let count = unsafe { libc::readv(std::os::fd::AsRawFd::as_raw_fd(&probe), &raw const iovec, 1) };
    assert_eq!(
        (count, std::io::Error::last_os_error().raw_os_error()),
        (-1, Some(libc::EFAULT)),
        "it can be written"
    );
    // A driver that flushes has written, and must not believe that it lasts.
    assert_eq!(flush(&mut b), FAILED);
    let other = Files::new();
    let e = b.move_to(|| make(&other.spec("")).unwrap()).err().unwrap();
    assert!(e.to_string().contains("readonly of"), "{e}");
}

#[test]
fn requests_in_pieces_are_answered_and_those_that_are_none_are_given_back() {
    let files = Files::new();
    let mut b = files.bench("");
    let pieces = [(REQUEST, 1, false), (REQUEST + 1, 3, false), (ANSWER, 3, true), (ANSWER + 3, 9, true)];
    assert_eq!(ask(&mut b, FLUSH, &pieces), (OK, 4));
    // Longer than they need be, as a later version's might be.
    assert_eq!(ask(&mut b, FLUSH, &[(REQUEST, 64, false), (ANSWER, 64, true)]), (OK, 4));
    for kind in [1, 7, u32::MAX] {
        assert_eq!(ask(&mut b, kind, &[(REQUEST, 4, false), (ANSWER, 4, true)]), (FAILED, 4));
    }
    let failed: [&[(u64, u32, bool)]; 5] = [
        &[(REQUEST, 3, false), (ANSWER, 4, true)],
        &[(REQUEST, 0, false), (ANSWER, 4, true)],
        &[(ANSWER, 4, true)],
        &[(END - 2, 4, false), (ANSWER, 4, true)],
        &[(u64::MAX - 1, 4, false), (ANSWER, 4, true)],
    ];
    for buffers in failed {
        assert_eq!(ask(&mut b, FLUSH, buffers), (FAILED, 4), "{buffers:?}");
    }
    let unanswered: [&[(u64, u32, bool)]; 6] = [
        &[(REQUEST, 4, false)],
        &[(REQUEST, 4, false), (ANSWER, 4, false)],
        &[(REQUEST, 4, false), (ANSWER, 3, true)],
        &[(REQUEST, 4, false), (1 << 50, 4, true)],
        &[(REQUEST, 4, false), (u64::MAX - 1, 4, true)],
        // The memory itself is no place for answers.
        &[(REQUEST, 4, false), (APERTURES, 4, true)],
    ];
    for buffers in unanswered {
        assert_eq!(ask(&mut b, FLUSH, buffers), (NONE, 0), "{buffers:?}");
    }
    assert!(files.content() == vec![4; SIZE]);
    // A chain that never ends.
    b.describe(0, 0, Desc { address: REQUEST, length: 0, flags: flag::NEXT, next: 0 });
    b.offer(0, 0);
    b.kick(0);
    assert_eq!(b.used(0), (0, 0));
    let mut long = vec![(REQUEST, 0, false); MAX_DESCRIPTORS];
    long.push((ANSWER, 4, true));
    assert_eq!(ask(&mut b, FLUSH, &long), (NONE, 0), "the answer is further away than is looked");
    assert!(!b.link.broken());
    assert_eq!(flush(&mut b), OK);
    b.stop();
}

#[test]
fn more_requests_than_the_queue_is_long_are_answered() {
    let files = Files::new();
    let mut b = files.bench("");
    b.put(REQUEST, &FLUSH.to_le_bytes());
    for n in 0..128 {
        b.chain(0, 2 * n, &[(REQUEST, 4, false), (ANSWER + 4 * u64::from(n), 4, true)]);
    }
    for round in 0..5 {
        b.kick(0);
        for n in 0..128 {
            assert_eq!(b.used(0), (2 * n, 4), "round {round}");
            if round < 4 {
                b.offer(0, 2 * n);
            }
        }
    }
    assert!(b.try_used(0, Duration::from_millis(20)).is_none());
    b.stop();
}

#[test]
fn memory_goes_on_with_the_same_content_elsewhere_and_with_no_other_size() {
    let files = Files::new();
    let mut b = files.bench("");
    write(&b, 0, b"moved");
    assert_eq!(flush(&mut b), OK);
    let copy = Files::new();
    fs::write(&copy.path, files.content()).unwrap();
    let mut b = b.move_to(|| make(&copy.spec("")).unwrap()).unwrap();
    write(&b, 5, b"!");
    b.put(REQUEST, &FLUSH.to_le_bytes());
    b.chain(0, 4, &[(REQUEST, 4, false), (ANSWER, 4, true)]);
    b.kick(0);
    assert_eq!((b.used(0), answer(&b)), ((4, 4), OK));
    assert_eq!(&copy.content()[..6], b"moved!");
    drop(OpenOptions::new().write(true).open(&files.path).unwrap().set_len(2 * SIZE as u64));
    let other = |keys: &str| -> StateError {
        let node = b.device.save().unwrap();
        make(&files.spec(keys)).unwrap().load(node).unwrap_err()
    };
    let [longer, part] = ["", ",size=4M"].map(|keys| other(keys).to_string());
    assert!(longer.contains("the guest has 4194304 bytes of"), "{longer}");
    assert!(part.contains("the file had 4194304 bytes, and"), "{part}");
    let discarded = {
        let node = b.device.save().unwrap();
        make(&Files::new().spec(",discard_writes=on")).unwrap().load(node).unwrap_err().to_string()
    };
    assert!(discarded.contains("discard_writes of"), "{discarded}");
    b.stop();
}

#[test]
fn memory_without_a_name_has_zeros_and_is_in_no_snapshot() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().display();
    let spec = |keys: &str| PmemSpec::parse(&format!("file={path}{keys}")).unwrap();
    let mut b = Bench::new(make(&spec(",size=6M")).unwrap(), u64::MAX);
    assert_eq!((config(&b)[1], read(&b, 5 << 20)), (6 << 20, 0));
    write(&b, 5 << 20, b"x");
    assert_eq!(flush(&mut b), OK);
    assert_eq!(fs::read_dir(dir.as_path()).unwrap().count(), 0);
    let refusal = b.device.save().unwrap_err().to_string();
    assert!(refusal.starts_with("persistent memory in a file without a name in"), "{refusal}");
    b.stop();
    let chain = make(&spec("")).err().unwrap().chain();
    assert_eq!(chain[1], format!("size is needed, because {path} is a directory"));
}

#[test]
fn files_that_cannot_be_memory_are_refused_by_name() {
    let files = Files::new();
    let path = files.path.display();
    let refused = |keys: &str, kind: Kind, what: &str| {
        let refusal = make(&files.spec(keys)).err().unwrap();
        assert_eq!(refusal.kind(), kind, "{keys}");
        let chain = refusal.chain();
        assert_eq!(chain[0], "cannot add persistent memory \"_pmem0\"");
        assert!(chain.iter().any(|line| line.contains(what)), "{keys}: {chain:?}");
    };
    refused(",size=6M", Kind::Invalid, &format!("{path} has 4194304 bytes, and 6291456 are to be used"));
    for size in [0, 4096, SIZE as u64 - 1] {
        OpenOptions::new().write(true).open(&files.path).unwrap().set_len(size).unwrap();
        refused("", Kind::Invalid, &format!("{path} has {size} bytes, no multiple of 2M"));
    }
    OpenOptions::new().write(true).open(&files.path).unwrap().set_len(SIZE as u64).unwrap();
    let access = |readonly| Access {
        path: files.path.clone(),
        readonly,
        direct: false,
        lock: Granularity::Full,
        follow: true,
    };
    let writer = Storage::open(&access(false)).unwrap();
    refused("", Kind::Conflict, "is locked for writing by");
    refused(",discard_writes=on", Kind::Conflict, "is locked for writing by");
    drop(writer);
    let reader = Storage::open(&access(true)).unwrap();
    refused("", Kind::Conflict, "is locked for reading by");
    drop(make(&files.spec(",discard_writes=on")).unwrap());
    drop(reader);
    // It is free as soon as the device is gone.
    drop(make(&files.spec("")).unwrap());
    drop(make(&files.spec("")).unwrap());
    fs::remove_file(&files.path).unwrap();
    refused("", Kind::Invalid, "No such file");
}

#[test]
fn flag_and_json_are_as_in_the_contract() {
    let spec =
        PmemSpec::parse("file=/f,size=1G,discard_writes=on,id=p,pci_segment=0,pci_device_id=5").unwrap();
    assert!(spec.check(&Facts::default()).is_ok());
    let json =
        r#"{"id":"p","pci_segment":0,"pci_device_id":5,"file":"/f","size":1073741824,"discard_writes":true}"#;
    assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    assert_eq!(serde_json::from_str::<PmemSpec>(json).unwrap(), spec);
    let refused = |text: &str| {
        PmemSpec::parse(text).unwrap().check(&Facts::default()).unwrap_err().chain().pop().unwrap()
    };
    assert_eq!(refused("size=2M"), "Error parsing --pmem: file missing");
    for size in ["0", "1", "3M", "2097153"] {
        assert!(refused(&format!("file=/f,size={size}")).contains("is no multiple of 2M"), "{size}");
    }
    assert!(PmemSpec::parse("file=/f,readonly=on").is_err());
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    let files = Files::new();
    let node = make(&files.spec("")).unwrap().save().unwrap().unwrap();
    for tampered in tamper(&node) {
        let Some(node) = tampered.node() else { continue };
        let pmem = make(&files.spec("")).unwrap();
        if pmem.load(Some(node)).is_ok() {
            assert!(!tampered.impossible, "{} was taken", tampered.what);
            let mut b = Bench::new(pmem, u64::MAX);
            assert_eq!((flush(&mut b), config(&b)[1]), (OK, SIZE as u64));
            b.stop();
        }
    }
    assert!(make(&files.spec("")).unwrap().load(None).is_err());
}

#[test]
fn states_of_all_versions_load() {
    let files = Files::new();
    let present = make(&files.spec("")).unwrap().save().unwrap().unwrap();
    for node in golden(env!("CARGO_MANIFEST_DIR"), "virtio-pmem", &present) {
        make(&files.spec("")).unwrap().load(Some(node)).unwrap();
    }
}
