//! The states of the small devices; those of the interrupt controller and the serial port are tested with them.

use std::time::{Duration, Instant};

use device::fake::state::{golden, tamper};
use device::grant::Slots;
use device::{Device, Effect, Node, Region, Registers, StateError};

use crate::bench::{grant, inb, line, outb, sweep};
use crate::{AcpiPm, Cmos, Frame, Ged, PciHotplug};

fn save(device: &dyn Device) -> Node {
    let text = serde_json::to_string(&device.save().unwrap()).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn timer(device: &AcpiPm) -> u32 {
    let mut data = [0; 4];
    device.read(Region::Window(1), 0, &mut data);
    u32::from_le_bytes(data)
}

fn cmos() -> Cmos {
    let device = Cmos::new(1 << 30, 0);
    assert_eq!(device.write(Region::Window(0), 0, &[0x40, 0x99]), Effect::None);
    let _effect = outb(&device, 0, 0, 0x8f);
    device
}

#[test]
fn the_clocks_memory_and_index_go_on_and_the_time_is_the_hosts() {
    let device = Cmos::new(2 << 30, 0);
    device.load(Some(save(&cmos()))).unwrap();
    assert_eq!(inb(&device, 0, 0), 0x8f);
    assert_eq!(outb(&device, 0, 1, 0), Effect::Reset, "the index selects what it did");
    let read = |index| {
        let _effect = outb(&device, 0, 0, index);
        inb(&device, 0, 1)
    };
    assert_eq!(read(0x40), 0x99);
    assert!(read(0x09) >= 0x26, "the year");
}

#[test]
fn the_timer_goes_on_from_its_ticks_when_it_is_started() {
    let device = AcpiPm::new();
    device.start().unwrap();
    std::thread::sleep(Duration::from_millis(10));
    device.stop().unwrap();
    let (node, stood) = (save(&device), timer(&device));
    std::thread::sleep(Duration::from_millis(10));
    let device = AcpiPm::new();
    device.load(Some(node.clone())).unwrap();
    assert_eq!((timer(&device), save(&device)), (stood, node.clone()));
    let began = Instant::now();
    device.start().unwrap();
    let now = timer(&device);
    assert!(u128::from(now - stood) <= began.elapsed().as_micros() * 4, "{now} after {stood}");
    // It wraps as before.
    let mut late = node;
    late.change(|body| body["ticks"] = u32::MAX.into());
    device.load(Some(late)).unwrap();
    device.start().unwrap();
    std::thread::sleep(Duration::from_millis(1));
    assert!(timer(&device) < 1 << 31);
}

fn ged() -> Ged {
    let mut device = Ged::new();
    device.wire(grant(line().1).0).unwrap();
    device.power_button().unwrap().press();
    device
}

#[test]
fn an_event_that_was_not_read_is_told_again_once() {
    let node = save(&ged());
    let mut device = Ged::new();
    let (irq, lines) = line();
    device.wire(grant(lines).0).unwrap();
    device.load(Some(node)).unwrap();
    assert_eq!(irq.count(), 0);
    device.start().unwrap();
    device.start().unwrap();
    assert_eq!((irq.count(), inb(&device, 0, 0), inb(&device, 0, 0)), (1, 8, 0));
    device.load(Some(save(&device))).unwrap();
    device.start().unwrap();
    assert_eq!(irq.count(), 1, "nothing happened");
}

fn hotplug() -> PciHotplug {
    let device = PciHotplug::new(2);
    device.came(1, 5);
    device.ask_back(0, 3);
    let _effect = device.write(Region::Window(0), 0xc, &1u32.to_le_bytes());
    device
}

#[test]
fn what_came_and_is_to_go_is_told_by_the_next_controller() {
    let device = PciHotplug::new(2);
    device.load(Some(save(&hotplug()))).unwrap();
    let read = |offset| {
        let mut data = [0; 4];
        device.read(Region::Window(0), offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(0xc), read(0), read(0)), (1, 1 << 5, 0));
    let _effect = device.write(Region::Window(0), 0xc, &[0; 4]);
    assert_eq!(read(4), 1 << 3);
    let e = PciHotplug::new(1).load(Some(save(&hotplug()))).unwrap_err();
    assert!(e.to_string().contains("2 PCI segments, and there are 1"), "{e}");
}

/// A name, a device with a state worth saving, and how to make one that takes it.
type Case = (&'static str, Box<dyn Device>, fn() -> Box<dyn Device>);

fn cases() -> Vec<Case> {
    let pm = AcpiPm::new();
    pm.start().unwrap();
    vec![
        ("cmos", Box::new(cmos()), || Box::new(Cmos::new(0, 0))),
        ("acpi-pm", Box::new(pm), || Box::new(AcpiPm::new())),
        ("ged", Box::new(ged()), || Box::new(Ged::new())),
        ("pci-hotplug", Box::new(hotplug()), || Box::new(PciHotplug::new(2))),
    ]
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    for (name, old, new) in cases() {
        assert!(matches!(new().load(None), Err(StateError::Missing(_))));
        for tampered in tamper(&save(&*old)) {
            let Some(node) = tampered.node() else { continue };
            let device = new();
            if device.load(Some(node)).is_ok() {
                assert!(!tampered.impossible, "{name}: {} was taken", tampered.what);
                device.start().unwrap();
                sweep(&*device, 8);
                device.stop().unwrap();
                device.save().unwrap();
            }
        }
    }
}

#[test]
fn states_of_all_versions_load() {
    for (name, old, new) in cases() {
        for node in golden(env!("CARGO_MANIFEST_DIR"), name, &save(&*old)) {
            new().load(Some(node)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn what_has_no_state_takes_none() {
    let frame = Frame { memory: 1 << 30, segments: 1, generation: 0 };
    for (name, device) in crate::standard(frame) {
        let node = device.save().unwrap();
        let expected = ["__cmos", "__acpi_pm", "__ged", "__pci_hotplug"].contains(&name);
        assert_eq!(node.is_some(), expected, "{name}");
        if !expected {
            assert!(device.load(None).is_ok());
            assert!(matches!(device.load(Some(save(&ged()))), Err(StateError::LeftOver(_))), "{name}");
        }
    }
}
