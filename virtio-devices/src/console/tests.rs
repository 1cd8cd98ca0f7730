use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use device::Kept;
use device::fake::{Bench, END, FREE};

use super::*;

const SHORT: Duration = Duration::from_millis(100);

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("virga-console-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn make(spec: &mut ConsoleSpec, kept: &Kept) -> Option<Console> {
    spec.make(&Host { id: "__console", facts: &Facts::default(), kept }).unwrap()
}

fn bench(text: &str) -> Bench<Console> {
    Bench::new(make(&mut ConsoleSpec::parse(text).unwrap(), &Kept::default()).unwrap(), u64::MAX)
}

fn stop(b: &mut Bench<Console>) {
    for queue in [TO_GUEST, FROM_GUEST] {
        b.device.stop_queue(queue).unwrap();
    }
    b.device.reset();
}

fn print(b: &mut Bench<Console>, text: &[u8]) {
    b.put(FREE, text);
    b.chain(FROM_GUEST, 0, &[(FREE, text.len() as u32, false)]);
    b.kick(FROM_GUEST);
    assert_eq!(b.used(FROM_GUEST), (0, 0));
}

fn config(b: &Bench<Console>) -> Vec<u8> {
    let mut bytes = [0xee; CONFIG_LENGTH];
    b.device.read_config(0, &mut bytes);
    bytes.to_vec()
}

fn within(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[test]
fn output_goes_to_a_file_in_order_and_without_loss() {
    let dir = Scratch::new("file");
    let path = dir.0.join("log");
    let mut b = bench(&format!("file={}", path.display()));
    print(&mut b, b"hello ");
    b.put(FREE, b"world\nand more");
    b.chain(FROM_GUEST, 3, &[(FREE, 3, false), (FREE + 3, 3, false)]);
    let long = vec![b'x'; 10_000];
    b.put(FREE + 0x1000, &long);
    b.chain(FROM_GUEST, 8, &[(FREE + 0x1000, 10_000, false)]);
    b.kick(FROM_GUEST);
    assert_eq!((b.used(FROM_GUEST), b.used(FROM_GUEST)), ((3, 0), (8, 0)));
    for _ in 0..100 {
        print(&mut b, b"abc");
    }
    stop(&mut b);
    let expected = [b"hello world\n".to_vec(), long, b"abc".repeat(100)].concat();
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

#[test]
fn a_socket_gets_what_was_printed_before_and_can_type() {
    let dir = Scratch::new("socket");
    let path = dir.0.join("s");
    let mut b = bench(&format!("socket={}", path.display()));
    print(&mut b, b"before ");
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = [0; 7];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"before ");
    print(&mut b, b"after");
    let mut text = [0; 5];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"after");

    client.write_all(b"typed").unwrap();
    assert!(b.try_used(TO_GUEST, SHORT).is_none(), "no buffers yet");
    b.chain(TO_GUEST, 0, &[(FREE, 2, true), (FREE + 0x100, 1, true)]);
    b.chain(TO_GUEST, 4, &[(FREE + 0x200, 100, true)]);
    b.kick(TO_GUEST);
    assert_eq!((b.used(TO_GUEST), b.used(TO_GUEST)), ((0, 3), (4, 2)));
    assert_eq!([b.get(FREE, 2), b.get(FREE + 0x100, 1), b.get(FREE + 0x200, 2)].concat(), b"typed");
    stop(&mut b);
    drop(b);
    assert!(!path.exists(), "the socket goes with the device");
}

#[test]
fn input_that_the_guest_does_not_take_stays_with_its_sender_and_none_is_lost() {
    let dir = Scratch::new("flood");
    let path = dir.0.join("s");
    let mut b = bench(&format!("socket={}", path.display()));
    let mut client = UnixStream::connect(&path).unwrap();
    let total = 1 << 20;
    let sender = std::thread::Builder::new().name("sender".into()).spawn(move || {
        let bytes: Vec<u8> = (0..total).map(|i: u32| (i % 251) as u8).collect();
        client.write_all(&bytes).unwrap();
        client
    });
    std::thread::sleep(SHORT);
    assert!(!sender.as_ref().unwrap().is_finished(), "more was taken than fits anywhere");
    let mut got = Vec::new();
    while got.len() < total as usize {
        for head in 0..32u16 {
            b.chain(TO_GUEST, head, &[(FREE + 0x1000 * u64::from(head), 1000, true)]);
        }
        b.kick(TO_GUEST);
        for _ in 0..32 {
            let Some((head, length)) = b.try_used(TO_GUEST, Duration::from_secs(5)) else { break };
            got.extend(b.get(FREE + 0x1000 * u64::from(head), length as usize));
            if got.len() == total as usize {
                break;
            }
        }
    }
    assert!(got.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
    drop(sender.unwrap().join().unwrap());
    stop(&mut b);
}

#[test]
fn a_pseudo_terminal_is_named_typed_at_and_followed_in_size() {
    let (kept, mut spec) = (Kept::default(), ConsoleSpec::parse("pty").unwrap());
    let mut b = Bench::new(make(&mut spec, &kept).unwrap(), u64::MAX);
    assert_eq!(config(&b), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let path = spec.mode.file.clone().unwrap();
    let mut user =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
    print(&mut b, b"login: ");
    let mut text = [0; 7];
    user.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"login: ");

    resize(&user, 132, 50);
    b.device.resized();
    assert_eq!((&config(&b)[..4], b.link.config()), (&[132, 0, 50, 0][..], 1));
    b.device.resized();
    assert_eq!(b.link.config(), 1, "nothing new");
    // Without a signal it is noticed when somebody types.
    resize(&user, 80, 25);
    b.chain(TO_GUEST, 0, &[(FREE, 64, true)]);
    b.kick(TO_GUEST);
    user.write_all(b"r").unwrap();
    assert_eq!(b.used(TO_GUEST), (0, 1));
    assert!(within(Duration::from_secs(5), || b.link.config() == 2));
    assert_eq!(config(&b)[..4], [80, 0, 25, 0]);
    stop(&mut b);
    drop(b);

    // The same terminal serves the next boot.
    let again = make(&mut spec, &kept).unwrap();
    assert_eq!(spec.mode.file, Some(path));
    let mut b = Bench::new(again, u64::MAX);
    assert_eq!(b.link.config(), 1, "a new driver is told of the size");
    print(&mut b, b"again");
    let mut text = [0; 5];
    user.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"again");
    stop(&mut b);
}

fn resize(user: &std::fs::File, columns: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads the value.
    assert_eq!(unsafe { libc::ioctl(user.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
}

#[test]
fn a_size_is_not_announced_to_a_driver_that_did_not_ask() {
    let mut spec = ConsoleSpec::parse("pty").unwrap();
    let mut b = Bench::new(make(&mut spec, &Kept::default()).unwrap(), 0);
    let user =
        OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open(spec.mode.file.unwrap()).unwrap();
    resize(&user, 100, 30);
    b.device.resized();
    assert_eq!(b.link.config(), 0);
    stop(&mut b);
}

#[test]
fn off_is_no_device_and_null_is_one_that_drops() {
    let kept = Kept::default();
    assert!(make(&mut ConsoleSpec::parse("off").unwrap(), &kept).is_none());
    let mut b = bench("null");
    print(&mut b, b"into the void");
    assert_eq!((b.device.kind(), b.device.queue_sizes()), (VirtioKind::Console, vec![256, 256]));
    assert_eq!(b.device.features(), 1 | 1 << 29 | 1 << 32);
    // The last field can be written with EMERG_WRITE only, which is not offered.
    b.device.write_config(8, &[1, 2, 3, 4]);
    assert_eq!(config(&b)[8..], [0; 4]);
    stop(&mut b);
}

#[test]
fn buffers_that_are_none_are_given_back_and_nothing_is_printed() {
    let dir = Scratch::new("hostile");
    let path = dir.0.join("log");
    let mut b = bench(&format!("file={}", path.display()));
    let bad: [&[(u64, u32, bool)]; 4] = [
        &[(FREE, 9, true)],
        &[(END - 4, 9, false)],
        &[(1 << 45, 9, false)],
        &[(FREE, 4, false), (u64::MAX, 2, false)],
    ];
    for (head, chain) in bad.iter().enumerate() {
        b.chain(FROM_GUEST, head as u16, chain);
        b.kick(FROM_GUEST);
        assert_eq!(b.used(FROM_GUEST), (head as u16, 0));
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    // Gigabytes of the same memory are cut to the bound.
    b.chain(FROM_GUEST, 0, &[(FREE, (END - FREE) as u32, false); 200]);
    b.kick(FROM_GUEST);
    assert_eq!(b.used(FROM_GUEST), (0, 0));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), MAX_OUTPUT as u64);
    stop(&mut b);

    let socket = dir.0.join("s");
    let mut b = bench(&format!("socket={}", socket.display()));
    UnixStream::connect(&socket).unwrap().write_all(b"in").unwrap();
    let bad: [&[(u64, u32, bool)]; 3] = [&[(FREE, 9, false)], &[(END - 4, 9, true)], &[(FREE, 0, true)]];
    for (head, chain) in bad.iter().enumerate() {
        b.chain(TO_GUEST, head as u16, chain);
        b.kick(TO_GUEST);
        assert_eq!(b.used(TO_GUEST), (head as u16, 0));
    }
    b.chain(TO_GUEST, 9, &[(FREE, 9, true)]);
    b.kick(TO_GUEST);
    assert_eq!((b.used(TO_GUEST), b.get(FREE, 2)), ((9, 2), b"in".to_vec()));
    stop(&mut b);
}

#[test]
fn a_pause_keeps_what_was_typed() {
    let dir = Scratch::new("pause");
    let path = dir.0.join("s");
    let mut b = bench(&format!("socket={}", path.display()));
    let mut client = UnixStream::connect(&path).unwrap();
    for round in 0..30u8 {
        let next = u16::from(round);
        let state = b.device.stop_queue(TO_GUEST).unwrap();
        assert_eq!((state.next_avail, state.next_used), (next, next));
        client.write_all(&[round]).unwrap();
        b.start(TO_GUEST, next);
        b.chain(TO_GUEST, 0, &[(FREE, 8, true)]);
        b.kick(TO_GUEST);
        assert_eq!((b.used(TO_GUEST), b.get(FREE, 1)), ((0, 1), vec![round]));
    }
    stop(&mut b);
}

#[test]
fn flag_and_json_are_as_in_the_contract() {
    assert_eq!(ConsoleSpec::default().mode, Mode::Tty.into());
    let spec = ConsoleSpec::parse("file=/tmp/c,pci_device_id=3").unwrap();
    assert_eq!((spec.mode.mode, spec.pci.pci_device_id), (Mode::File, Some(3)));
    let text = ConsoleSpec::parse("pci_segment=0").unwrap_err().chain();
    assert_eq!(text, ["Error parsing --console", "invalid console mode given"]);
    let json = r#"{"mode":"Pty","file":"/dev/pts/7","pci_segment":0}"#;
    let spec: ConsoleSpec = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    assert!(spec.check(&Facts::default()).is_ok());
    let spec: ConsoleSpec = serde_json::from_str(r#"{"mode":"File"}"#).unwrap();
    let refused = spec.check(&Facts::default()).unwrap_err();
    assert_eq!(refused.to_string(), "Path missing when using file console mode");
    assert!(serde_json::from_str::<ConsoleSpec>(r#"{"file":"/x"}"#).is_err(), "mode is required");
    let behind = ConsoleSpec::parse("null,iommu=on").unwrap_err();
    assert_eq!(behind.kind(), spec::Kind::Unsupported);
}

mod state;
