//! What back ends know of drivers: said, heard, and everything that can go wrong with it.

use super::*;
use crate::front::handover::MOST;

/// A back end of a machine's, and what it knows.
struct Side {
    dir: TempDir,
    known: Arc<Mutex<Vec<u8>>>,
    machine: Machine,
}

fn side(at: u32, deed: Deed, lacks: u64, known: &[u8]) -> Side {
    let dir = TempDir::new().unwrap();
    let known = Arc::new(Mutex::new(known.to_vec()));
    let socket = peer_that_knows(&dir, at, deed, 1, lacks, known.clone());
    let machine = Machine::of(Wish { knows: Knows::Vital, ..wish(socket) }).unwrap();
    Side { dir, known, machine }
}

fn good(known: &[u8]) -> Side {
    side(0, Deed::Nothing, 0, known)
}

impl Side {
    fn begin(&self) -> Result<(), DeviceError> {
        self.machine.device.activate(self.machine.device.features())
    }

    fn save(&self) -> Result<Node, String> {
        self.machine.device.save().map(Option::unwrap).map_err(|e| e.to_string())
    }

    fn load(&self, node: &Node) -> Result<(), String> {
        self.machine.device.load(Some(node.clone())).map_err(|e| e.to_string())
    }

    fn is_there(&self) -> bool {
        self.machine.device.shared.talk().client.is_some()
    }
}

/// More than a pipe holds.
fn much() -> Vec<u8> {
    (0..200_000u32).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn what_one_knows_the_next_is_told() {
    for known in [&[][..], &[1, 2, 3], &much()] {
        let (first, second) = (good(known), good(&[]));
        first.begin().unwrap();
        let node = first.save().unwrap();
        assert!(first.save().unwrap() == node && first.is_there(), "it knows it still");
        second.load(&node).unwrap();
        assert!(*second.known.lock().unwrap() == known, "{} bytes", known.len());
        second.begin().unwrap();
        assert!(!first.machine.link.broken() && !second.machine.link.broken());
    }
    // Of no driver there is nothing to know.
    let node = good(&[9]).save().unwrap();
    assert!(!node.body().to_string().contains("known"), "{node:?}");
}

#[test]
fn one_that_cannot_say_or_hear_it_is_refused_by_name() {
    let (able, unable) = (good(&[1]), side(0, Deed::Nothing, protocol::DEVICE_STATE, &[]));
    for one in [&able, &unable] {
        one.begin().unwrap();
    }
    let node = able.save().unwrap();
    let said = unable.save().unwrap_err();
    for part in ["knows of its driver cannot be saved", "\"far\"", "VHOST_USER_PROTOCOL_F_DEVICE_STATE"] {
        assert!(said.contains(part), "{said}");
    }
    unable.machine.device.reset();
    let said = unable.load(&node).unwrap_err();
    assert!(said.contains("it does not offer VHOST_USER_PROTOCOL_F_DEVICE_STATE"), "{said}");
    assert!(unable.is_there());
}

#[test]
fn what_goes_wrong_on_the_way_is_an_error() {
    let node = {
        let able = good(&much());
        able.begin().unwrap();
        able.save().unwrap()
    };
    for at in [request::SET_DEVICE_STATE_FD, request::CHECK_DEVICE_STATE] {
        for deed in DEEDS {
            let saved = side(at, deed, 0, &[5; 100]);
            saved.begin().unwrap();
            assert!(saved.save().is_err(), "{} {deed:?}", name(at));
            if deed == Deed::No {
                // It would not say it; that is all.
                assert!(saved.is_there() && !saved.machine.link.broken());
                saved.save().unwrap();
            } else {
                assert!(saved.machine.link.broken(), "{} {deed:?}: nobody hears of it", name(at));
            }
            let loaded = side(at, deed, 0, &[]);
            assert!(loaded.load(&node).is_err(), "{} {deed:?}", name(at));
        }
    }
}

#[test]
fn no_more_is_taken_than_there_is_room_for() {
    let full = good(&vec![1; MOST]);
    full.begin().unwrap();
    let node = full.save().unwrap();
    let over = good(&vec![1; MOST + 1]);
    over.begin().unwrap();
    let said = over.save().unwrap_err();
    assert!(said.contains("it knows more than 16777216 bytes of its driver"), "{said}");
    assert!(over.is_there() && !over.machine.link.broken());
    // Nor is it told to anybody, whoever wrote that.
    let mut text = node.body()["known"].as_str().unwrap().to_owned();
    text.push_str("00");
    let mut longer = node;
    longer.change(|body| body["known"] = text.into());
    let said = over.load(&longer).unwrap_err();
    assert!(said.contains("16777217 bytes"), "{said}");
}

#[test]
fn a_driver_does_not_go_on_with_one_that_knows_nothing_of_it() {
    let (first, second) = (good(&[1, 2, 3]), good(&[]));
    first.begin().unwrap();
    second.load(&first.save().unwrap()).unwrap();
    second.machine.device.shared.talk().client.as_ref().unwrap().hang_up();
    until("the loss", || !second.is_there() || second.machine.device.shared.talk().forgot);
    until("the next one", || second.is_there());
    let said = second.begin().unwrap_err().to_string();
    assert!(said.contains("is away"), "{said}");
    // One that begins anew does.
    second.machine.device.reset();
    second.begin().unwrap();
    assert!(second.dir.as_path().join("socket").exists());
}
