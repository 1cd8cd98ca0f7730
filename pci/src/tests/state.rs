//! Functions that are saved in one machine and go on in another.

use device::fake::state::{golden, tamper};
use device::{Node, StateError};

use super::*;

const TOP: u64 = LOW.base + LOW.length;

/// What text makes of a node.
fn through_text(node: &Node) -> Node {
    serde_json::from_str(&serde_json::to_string(node).unwrap()).unwrap()
}

impl Machine {
    /// Takes a function in, as `Machine::plug` does, that was saved with this place.
    fn load(&self, placed: &PlacedPci, node: Node) -> Result<(Plugged, Vec<Arc<dyn Vector>>), PciError> {
        let toy = Toy { wide: matches!(placed.bars[0].1, BarKind::Memory64 { .. }), ..Toy::default() };
        let place = Reservation::load(&self.segment, &toy.needs(), placed, node)?;
        let vectors = place.vectors();
        Ok((place.plug(Arc::new(toy))?, vectors))
    }
}

/// A machine with a function that has one live vector, one that is masked and pending, and registers of its driver's choice.
fn busy() -> (Machine, Plugged, Vec<Arc<dyn Vector>>) {
    let m = Machine::new(0);
    let (a, vectors) = m.plug(false);
    let base = TOP - SIZE;
    m.write(msix_control(&m), &0x8000u16.to_le_bytes());
    set_vector(&m, base, 0, 0x40, false);
    set_vector(&m, base, 1, 0x41, true);
    vectors[1].signal();
    m.set(config(1, regs::COMMAND), 0x406);
    m.write(config(1, regs::CACHE_LINE_SIZE), &[16]);
    m.write(config(1, regs::INTERRUPT_LINE), &[11]);
    (m, a, vectors)
}

#[test]
fn registers_and_vectors_go_on() {
    let (m, a, _vectors) = busy();
    let (placed, node) = (a.placed().clone(), a.save().unwrap());
    assert_eq!(m.get(TOP - SIZE + PENDING), 0b10, "saving changes nothing");
    drop((a, m));

    let m = Machine::new(0);
    let (a, vectors) = m.load(&placed, through_text(&node)).unwrap();
    let base = TOP - SIZE;
    assert!(m.answers(base));
    assert_eq!(m.get(config(1, regs::COMMAND)) & 0xffff, 0x406);
    assert_eq!(m.get(config(1, regs::CACHE_LINE_SIZE)) & 0xff, 16);
    assert_eq!(m.get(config(1, regs::INTERRUPT_LINE)) & 0xff, 11);
    assert_eq!(m.get(msix_control(&m) & !3) >> 16, 0x8002);
    assert_eq!(m.get(base + PENDING), 0b10);
    // Live without another write of the guest's.
    vectors[0].signal();
    let message = |data| MsiMessage { address: 0xfee0_0000, data };
    assert_eq!(m.msi.take(), [message(0x40)]);
    m.set(base + TABLE + 16 + 12, 0);
    assert_eq!((m.msi.take(), m.get(base + PENDING)), (vec![message(0x41)], 0));
    // Saved again it is the same, but for what has happened since.
    let mut again = a.save().unwrap();
    m.set(base + TABLE + 16 + 12, 1);
    vectors[1].signal();
    assert_ne!(again, node);
    again = a.save().unwrap();
    assert_eq!(again, node);
}

#[test]
fn bars_are_where_the_guest_moved_them_and_doorbells_follow() {
    let m = Machine::new(0);
    let (a, _) = m.plug(false);
    let (b, _) = m.plug(false);
    let (first, second, third) = (TOP - SIZE, TOP - 2 * SIZE, LOW.base);
    // The second moves away and the first to where it was; then the second is being sized.
    m.set(config(2, regs::BAR0), third as u32);
    m.set(config(1, regs::BAR0), second as u32);
    m.set(config(2, regs::BAR0), u32::MAX);
    assert!(m.answers(second) && !m.answers(first) && !m.answers(third));
    m.set(second + BELL, 0);
    assert_eq!(m.bells.addresses(), [second + BELL]);
    let saved = [&a, &b].map(|f| (f.placed().clone(), f.save().unwrap()));

    for order in [[0, 1], [1, 0]] {
        let m = Machine::new(0);
        let mut functions: Vec<_> =
            order.iter().map(|n| m.load(&saved[*n].0, through_text(&saved[*n].1)).unwrap()).collect();
        assert!(m.answers(second) && !m.answers(first) && !m.answers(third), "{order:?}");
        assert_eq!(m.get(config(2, regs::BAR0)), (SIZE as u32).wrapping_neg());
        assert!(m.bells.addresses().is_empty(), "a doorbell comes with its first ring");
        m.set(second + BELL, 0);
        assert!(m.bells.ring(second + BELL));
        // The room of the one that is being sized is kept for it.
        m.set(config(2, regs::BAR0), third as u32);
        assert!(m.answers(third));
        assert_eq!(m.plug(false).0.placed().bars[0].2.base, first, "what is free is free");
        functions.clear();
        assert!(!m.answers(second) && m.bells.addresses().is_empty());
    }
}

#[test]
fn a_function_that_does_not_decode_stays_off_and_keeps_its_room() {
    let m = Machine::new(0);
    let (a, _) = m.plug(true);
    let base = HIGH.base + HIGH.length - SIZE;
    m.set(config(1, regs::COMMAND), 0);
    let (placed, node) = (a.placed().clone(), a.save().unwrap());
    let m = Machine::new(0);
    let (_a, _) = m.load(&placed, node).unwrap();
    assert!(!m.answers(base));
    assert_ne!(m.plug(true).0.placed().bars[0].2.base, base);
    m.set(config(1, regs::COMMAND), 2);
    assert!(m.answers(base));
}

#[test]
fn bars_put_onto_each_other_stay_so_until_moved() {
    let m = Machine::new(0);
    let (a, _) = m.plug(false);
    let (b, _) = m.plug(false);
    let (first, second) = (TOP - SIZE, TOP - 2 * SIZE);
    m.set(config(2, regs::BAR0), first as u32);
    assert!(!m.answers(second));
    let saved = [&a, &b].map(|f| (f.placed().clone(), f.save().unwrap()));
    // Whichever comes first.
    for order in [[0, 1], [1, 0]] {
        let m = Machine::new(0);
        m.segment.gather();
        let again = |n: usize| m.load(&saved[n].0, through_text(&saved[n].1)).unwrap();
        let _functions = order.map(again);
        assert!(!m.answers(first) && !m.answers(second), "{order:?}: not all are there");
        m.segment.gathered();
        assert!(m.answers(first) && !m.answers(second), "{order:?}");
        m.set(config(2, regs::BAR0), second as u32);
        assert!(m.answers(first) && m.answers(second), "{order:?}");
    }
}

#[test]
fn the_state_of_another_function_is_refused_by_name() {
    let (_m, a, _) = busy();
    let (placed, node) = (a.placed().clone(), a.save().unwrap());
    let refused = |change: &dyn Fn(&mut Node)| {
        let mut node = node.clone();
        change(&mut node);
        let m = Machine::new(0);
        let e = m.load(&placed, node).err().expect("a refusal");
        // All was given back.
        assert_eq!((m.plug(false).0.placed(), m.msi.take().len()), (&placed, 0));
        match e {
            PciError::State { slot: 1, source } => source.to_string(),
            other => other.to_string(),
        }
    };
    let text = refused(&|n| n.change(|body| body["identity"]["device"] = 0x1041.into()));
    assert!(
        text.contains("identity") && text.contains("device: 1041") && text.contains("device: 1042"),
        "{text}"
    );
    assert_eq!(
        refused(&|n| n.change(|body| body["command"] = 0xffff.into())),
        "state \"pci-function\": command is 0xffff, of which 0x77f can be"
    );
    assert!(
        refused(&|n| n.change(|body| body["bars"][0]["base"] = 0xc000_0001u32.into()))
            .contains("BAR 0 is 0xc0000001")
    );
    assert!(
        refused(&|n| n.change(|body| body["bars"][0]["room"] = 0xc000_0010u32.into()))
            .contains("cannot be at 0xc0000010")
    );
    assert!(refused(&|n| n.change(|body| body["bars"][0]["room"] = 0.into())).contains("cannot be at 0x0"));
    assert!(refused(&|n| drop(n.parts.remove("msix"))).contains("part \"msix\""));
    let msix = |key: &'static str, value: serde_json::Value| {
        refused(&move |n| n.parts.get_mut("msix").unwrap().change(|body| body[key] = value.clone()))
    };
    assert!(msix("pending", [0, 3].into()).contains("vector 3"));
    assert!(msix("pending", [1, 1].into()).contains("vector 1 after 1"));
    assert!(msix("entries", Vec::<u8>::new().into()).contains("0 vectors, and there are 3"));
    // Without MSI-X in the device its state is left over.
    let bridge = Machine::new(0).segment.save().unwrap().unwrap();
    let with = bridge.with("msix", node.parts["msix"].clone());
    let e = Machine::new(0).segment.load(Some(with)).unwrap_err();
    assert!(matches!(e, StateError::LeftOver(_)), "{e}");
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    let (_m, a, _) = busy();
    let placed = a.placed().clone();
    let mut taken = 0;
    for tampered in tamper(&a.save().unwrap()) {
        let Some(node) = tampered.node() else { continue };
        let m = Machine::new(0);
        let Ok((a, vectors)) = m.load(&placed, node) else { continue };
        assert!(!tampered.impossible, "{} was taken", tampered.what);
        taken += 1;
        vectors.iter().for_each(|v| v.signal());
        m.segment.sync();
        a.save().unwrap();
    }
    assert!(taken > 20, "{taken}");
}

#[test]
fn what_is_always_there_goes_on_too() {
    let m = Machine::new(0);
    m.set(config(0, regs::INTERRUPT_LINE), 9);
    let _effect = m.ports.write(Region::Window(0), 0, &0x8000_083cu32.to_le_bytes());
    let (bridge, ports) = (m.segment.save().unwrap(), m.ports.save().unwrap());
    let m = Machine::new(0);
    m.segment.load(bridge.clone()).unwrap();
    m.ports.load(ports.clone()).unwrap();
    assert_eq!(m.get(config(0, regs::INTERRUPT_LINE)) & 0xff, 9);
    let mut data = [0; 4];
    m.ports.read(Region::Window(0), 0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_083c);
    assert!(matches!(m.segment.load(None), Err(StateError::Missing(_))));
    let other = Machine::new(1).segment;
    assert!(other.save().unwrap().is_none() && other.load(None).is_ok() && other.load(bridge).is_err());
    for tampered in tamper(&ports) {
        let loaded = tampered.node().is_some_and(|node| m.ports.load(node).is_ok());
        assert!(!(loaded && tampered.impossible), "{} was taken", tampered.what);
    }
}

#[test]
fn states_of_all_versions_load() {
    let (m, a, _) = busy();
    for node in golden(env!("CARGO_MANIFEST_DIR"), "pci-function", &a.save().unwrap()) {
        Machine::new(0).load(a.placed(), node).unwrap();
    }
    for node in golden(env!("CARGO_MANIFEST_DIR"), "pci-config-ports", &m.ports.save().unwrap()) {
        m.ports.load(node).unwrap();
    }
}
