use std::io::Write;
use std::time::{Duration, Instant};

use device::Kept;
use device::fake::{Bench, END, FREE};

use super::*;

const SHORT: Duration = Duration::from_millis(100);

fn bench(path: &Path) -> Bench<Rng> {
    Bench::new(Rng::new("__rng", open(path).unwrap()), u64::MAX)
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("virga-rng-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn requests_are_filled_with_bytes_that_differ() {
    let mut b = bench(Path::new("/dev/urandom"));
    b.chain(0, 0, &[(FREE, 32, true), (FREE + 0x1000, 32, true)]);
    b.chain(0, 5, &[(FREE + 0x2000, 64, true)]);
    b.kick(0);
    assert_eq!(b.used(0), (0, 64));
    assert_eq!(b.used(0), (5, 64));
    let first = [b.get(FREE, 32), b.get(FREE + 0x1000, 32)].concat();
    assert_ne!(first, b.get(FREE + 0x2000, 64));
    assert_ne!(first, [0; 64]);
    let state = b.device.stop_queue(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (2, 2));
    assert!(b.device.stop_queue(0).is_none());
    b.start(0, 2);
    b.chain(0, 9, &[(FREE, 1, true)]);
    b.kick(0);
    assert_eq!(b.used(0), (9, 1));
    b.device.stop_queue(0);
}

#[test]
fn a_request_is_bounded_and_many_are_answered_in_turns() {
    let mut b = bench(Path::new("/dev/zero"));
    b.put(FREE, &vec![7; MAX_REQUEST + 1]);
    for head in 0..3 * BUDGET as u16 {
        b.chain(0, head, &[(FREE, (END - FREE) as u32, true)]);
    }
    b.kick(0);
    for head in 0..3 * BUDGET as u16 {
        assert_eq!(b.used(0), (head, MAX_REQUEST as u32));
    }
    assert_eq!(b.get(FREE + MAX_REQUEST as u64 - 1, 2), [0, 7], "nothing beyond the bound was touched");
    b.device.stop_queue(0);
}

#[test]
fn requests_that_are_none_are_given_back_empty() {
    let mut b = bench(Path::new("/dev/urandom"));
    let bad: [&[(u64, u32, bool)]; 4] =
        [&[(FREE, 64, false)], &[(END - 1, 2, true)], &[(1 << 50, 2, true)], &[(FREE, 0, true)]];
    for (head, chain) in bad.iter().enumerate() {
        b.chain(0, head as u16, chain);
        b.kick(0);
        assert_eq!(b.used(0), (head as u16, 0));
    }
    assert!(!b.link.broken());
    b.device.stop_queue(0);
}

#[test]
fn a_fifo_is_waited_for_without_holding_up_a_stop() {
    let dir = Scratch::new("fifo");
    let path = dir.0.join("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut b = bench(&path);
    b.chain(0, 3, &[(FREE, 16, true)]);
    b.kick(0);
    assert!(b.try_used(0, SHORT).is_none());
    let begin = Instant::now();
    let state = b.device.stop_queue(0).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(
        (state.next_avail, state.next_used),
        (0, 0),
        "the request is still the driver's to have answered"
    );
    b.start(0, 0);
    assert!(b.try_used(0, SHORT).is_none());
    // A writer comes and goes; the end of one is not the end of the source.
    for text in [b"entropy!", b"more ent"] {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(text).unwrap();
        assert_eq!(b.used(0), (3, 8));
        assert_eq!(b.get(FREE, 8), text);
        b.chain(0, 3, &[(FREE, 16, true)]);
        b.kick(0);
    }
    assert!(b.try_used(0, SHORT).is_none());
    b.device.stop_queue(0);
}

#[test]
fn a_file_that_ends_is_not_read_again() {
    let dir = Scratch::new("file");
    let path = dir.0.join("seed");
    std::fs::write(&path, b"abc").unwrap();
    let mut b = bench(&path);
    b.chain(0, 0, &[(FREE, 2, true)]);
    b.chain(0, 1, &[(FREE, 2, true)]);
    b.chain(0, 2, &[(FREE, 2, true)]);
    b.kick(0);
    assert_eq!((b.used(0), b.used(0)), ((0, 2), (1, 1)));
    assert!(b.try_used(0, SHORT).is_none(), "numbers must not be given twice");
    b.device.stop_queue(0);
}

#[test]
fn a_source_that_cannot_be_opened_is_named() {
    for (src, cause) in [("/nonexistent/x", "No such file"), ("/tmp", "Is a directory")] {
        let mut spec = RngSpec { src: src.into(), ..RngSpec::default() };
        let host = Host { id: "__rng", facts: &Facts::default(), kept: &Kept::default() };
        let chain = spec.build(&host).err().unwrap().chain();
        assert_eq!(chain[0], format!("cannot open {src} for random numbers"));
        assert!(chain[1].starts_with(cause), "{chain:?}");
    }
}

#[test]
fn flag_and_json_are_as_in_the_contract() {
    assert_eq!(RngSpec::parse("").unwrap().src, Path::new("/dev/urandom"));
    let spec = RngSpec::parse("src=/dev/random,pci_device_id=5").unwrap();
    assert_eq!((spec.src.as_path(), spec.pci.pci_device_id), (Path::new("/dev/random"), Some(5)));
    assert!(spec.check(&Facts::default()).is_ok());
    let json = r#"{"pci_segment":0,"pci_device_id":5,"src":"/dev/random"}"#;
    assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    assert_eq!(serde_json::from_str::<RngSpec>(json).unwrap(), spec);
    assert!(RngSpec::parse("source=/x").is_err());
    let behind: RngSpec = serde_json::from_str(r#"{"src":"/dev/urandom","iommu":true}"#).unwrap();
    assert_eq!(behind.check(&Facts::default()).unwrap_err().kind(), spec::Kind::Unsupported);
}
