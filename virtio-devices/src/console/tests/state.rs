//! Consoles that are saved and go on elsewhere.

use device::fake::state::{golden, tamper};

use super::*;

#[test]
fn what_was_typed_arrives_after_a_move() {
    let dir = Scratch::new("move");
    let path = dir.0.join("s");
    let flag = format!("socket={}", path.display());
    let mut b = bench(&flag);
    print(&mut b, b"login: ");
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"root\n").unwrap();
    assert!(within(Duration::from_secs(5), || b.device.typed.inbox.contents() == b"root\n"));
    let other = dir.0.join("t");
    let other_flag = format!("socket={}", other.display());
    let make = || super::make(&mut ConsoleSpec::parse(&other_flag).unwrap(), &Kept::default()).unwrap();
    let mut b = b.move_to(make).unwrap();
    b.chain(TO_GUEST, 0, &[(FREE, 64, true)]);
    b.kick(TO_GUEST);
    assert_eq!((b.used(TO_GUEST), b.get(FREE, 5)), ((0, 5), b"root\n".to_vec()));
    let mut client = UnixStream::connect(&other).unwrap();
    client.write_all(b"x").unwrap();
    b.chain(TO_GUEST, 0, &[(FREE, 64, true)]);
    b.kick(TO_GUEST);
    assert_eq!((b.used(TO_GUEST), b.get(FREE, 1)), ((0, 1), b"x".to_vec()));
    stop(&mut b);
}

#[test]
fn the_size_that_the_guest_knows_is_compared_at_the_first_start() {
    let pty = || {
        let (kept, mut spec) = (Kept::default(), ConsoleSpec::parse("pty").unwrap());
        let console = make(&mut spec, &kept).unwrap();
        let path = spec.mode.file.unwrap();
        (console, OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap())
    };
    let (console, user) = pty();
    resize(&user, 132, 50);
    let b = Bench::new(console, u64::MAX);
    let told = b.link.config();
    let (console, user) = pty();
    resize(&user, 80, 25);
    let b = b.move_to(|| console).unwrap();
    assert_eq!((&config(&b)[..4], b.link.config()), (&[80, 0, 25, 0][..], told + 1));
    // To none at all is a change as well.
    let (console, _user) = pty();
    let mut b = b.move_to(|| console).unwrap();
    assert_eq!((&config(&b)[..4], b.link.config()), (&[0; 4][..], told + 2));
    stop(&mut b);
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    let node = state_with_input();
    for tampered in tamper(&node) {
        let Some(node) = tampered.node() else { continue };
        let console = make(&mut ConsoleSpec::parse("null").unwrap(), &Kept::default()).unwrap();
        match console.load(Some(node)) {
            Ok(()) => {
                assert!(!tampered.impossible, "{} was taken", tampered.what);
                let mut b = Bench::new(console, u64::MAX);
                stop(&mut b);
                b.device.save().unwrap();
            }
            Err(e) if tampered.what.ends_with("input made longer") => {
                assert!(e.to_string().contains("at most 4096 can be"), "{e}");
            }
            Err(_) => {}
        }
    }
}

/// The state of a console that was typed at.
fn state_with_input() -> Node {
    let console = make(&mut ConsoleSpec::parse("null").unwrap(), &Kept::default()).unwrap();
    console.typed.inbox.put(b"ls\n");
    console.save().unwrap().unwrap()
}

#[test]
fn states_of_all_versions_load() {
    for node in golden(env!("CARGO_MANIFEST_DIR"), "virtio-console", &state_with_input()) {
        let console = make(&mut ConsoleSpec::parse("null").unwrap(), &Kept::default()).unwrap();
        console.load(Some(node)).unwrap();
        assert_eq!(console.typed.inbox.contents(), b"ls\n");
    }
}
