//! A device that is saved in one machine and goes on in another, and what a tampered state can do to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use device::fake::state::{golden, tamper};
use device::grant::Device;
use device::virtio::feature;
use device::{Node, Request, StateError, Virtio};

use super::guest::{BINDING, BREAK, Driver, Echo, Guest, reg};
use super::{NEVER, SOON};

/// Both nodes of a stopped guest's device, the device's own first.
fn save(g: &Guest) -> (Node, Node) {
    (g.device.save().unwrap().unwrap(), g.plugged.save().unwrap())
}

fn through_text(node: &Node) -> Node {
    serde_json::from_str(&serde_json::to_string(node).unwrap()).unwrap()
}

/// A guest with requests answered, some offered and not yet seen, and registers in the middle of something. Stopped.
fn busy() -> (Guest, Vec<Driver>) {
    let g = Guest::new(Echo::default());
    let mut drivers = g.bring_up();
    for value in 0..70 {
        assert_eq!(drivers[0].ask(value), value + 1);
    }
    assert_eq!(drivers[1].ask(5), 6);
    g.w32(reg::DEVICE_SELECT, 1);
    g.w32(reg::DRIVER_SELECT, 1);
    g.w16(reg::QUEUE_SELECT, 1);
    g.write(0x4000, &[7, 8]);
    g.device.stop().unwrap();
    (g, drivers)
}

#[test]
fn a_driver_that_looks_again_finds_the_features_that_it_knows() {
    let (g, _drivers) = busy();
    let (node, function) = save(&g);
    let known = Echo::default().features();
    let echo = Echo { features: Some(known | feature::RING_INDIRECT_DESC), ..Echo::default() };
    let h = g.again(echo, Some(node), function).unwrap();
    let offered = || {
        [0, 1].map(|half| {
            h.w32(reg::DEVICE_SELECT, half);
            h.r32(reg::DEVICE_FEATURE)
        })
    };
    let halves = [known as u32, (known >> 32) as u32];
    assert_eq!(offered(), halves);
    h.w8(reg::STATUS, 0);
    assert_eq!(offered(), halves);
}

#[test]
fn a_driver_goes_on_where_it_was() {
    let (g, mut drivers) = busy();
    // Offered and kicked while nobody looks: the kick is spent on the machine that goes.
    drivers[0].offer(100);
    drivers[0].kick();
    assert_eq!(drivers[0].answer(NEVER), None);
    let (node, function) = save(&g);
    let generation = g.r8(reg::GENERATION);

    let h = g.again(Echo::default(), Some(through_text(&node)), through_text(&function)).unwrap();
    drivers.iter_mut().for_each(|d| d.move_to(&h));
    assert!(h.events.records().is_empty(), "it was activated before, not now");
    assert_eq!((h.status(), h.r32(reg::DEVICE_SELECT), h.r16(reg::QUEUE_SELECT)), (0xf, 1, 1));
    assert_eq!((h.r16(reg::CONFIG_VECTOR), h.r16(reg::QUEUE_VECTOR)), (0, 2));
    assert_eq!(h.read(0x4000), [7, 8], "the device's own");
    assert_ne!(h.r8(reg::GENERATION), generation, "the configuration is to be read again");
    assert_eq!((drivers[0].answer(NEVER), h.msi.take().len()), (None, 0), "nothing moves before the start");
    h.device.start().unwrap();
    assert_eq!(drivers[0].answer(SOON), Some(101));
    for value in 0..200 {
        assert_eq!(drivers[0].ask(value), value + 1);
        assert_eq!(drivers[1].ask(value), value + 1);
    }
    h.device.stop().unwrap();
    h.msi.take();
    h.device.start().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(h.msi.take().is_empty(), "only the first start signals");
    h.w8(reg::STATUS, 0);
    assert_eq!(h.bring_up()[0].ask(1), 2);
}

#[test]
fn the_first_start_signals_every_queue_and_the_configuration() {
    let (g, _drivers) = busy();
    let (node, function) = save(&g);
    let h = g.again(Echo::default(), Some(node), function).unwrap();
    h.device.start().unwrap();
    let mut seen: Vec<_> = h.msi.take().iter().map(|m| m.data).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0x40, 0x41, 0x42]);
}

#[test]
fn a_driver_that_is_not_ready_yet_goes_on_negotiating() {
    let g = Guest::new(Echo::default());
    assert_eq!(g.negotiate(feature::VERSION_1), 0xb);
    g.enable(1, 4);
    g.device.stop().unwrap();
    let (node, function) = save(&g);
    let h = g.again(Echo::default(), Some(node), function).unwrap();
    h.device.start().unwrap();
    assert_eq!((h.status(), h.r16(reg::QUEUE_ENABLE), h.r16(reg::QUEUE_SIZE)), (0xb, 1, 4));
    h.w32(reg::DRIVER_FEATURE, 0);
    h.w32(reg::DRIVER_SELECT, 1);
    assert_eq!(h.r32(reg::DRIVER_FEATURE), 1, "what was accepted stays fixed");
    assert_eq!(h.advance(&[4]), 0xf);
    let mut d = Driver::new(h.clone(), 1, 4);
    assert_eq!(d.ask(1), 2);
}

#[test]
fn a_device_that_broke_down_stays_off_until_it_is_reset() {
    let (resets, starts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let g = Guest::new(Echo::default());
    let mut drivers = g.bring_up();
    assert_eq!(drivers[0].ask(1), 2);
    g.write(0x4000 + BREAK as u64, &[1]);
    assert_eq!(g.status(), 0x4f);
    g.device.stop().unwrap();
    g.device.start().unwrap();
    drivers[0].offer(2);
    drivers[0].kick();
    assert_eq!(drivers[0].answer(NEVER), None, "a pause mends nothing");
    g.device.stop().unwrap();
    let (node, function) = save(&g);
    let echo = Echo { starts: starts.clone(), resets: resets.clone(), ..Echo::default() };
    let h = g.again(echo, Some(node), function).unwrap();
    h.device.start().unwrap();
    assert_eq!((h.status(), starts.load(Ordering::SeqCst)), (0x4f, 0));
    h.w8(reg::STATUS, 0);
    assert_eq!(resets.load(Ordering::SeqCst), 1);
    assert_eq!(h.bring_up()[1].ask(3), 4);
}

#[test]
fn a_running_device_is_not_saved() {
    let g = Guest::new(Echo::default());
    let e = g.device.save().unwrap_err();
    assert_eq!(e.to_string(), "device echo was not stopped before it was saved");
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_says_why() {
    let (g, _drivers) = busy();
    let (node, function) = save(&g);
    let refused = |echo: Echo, change: &dyn Fn(&mut Node)| {
        let mut node = node.clone();
        change(&mut node);
        match g.again(echo, Some(node), function.clone()) {
            Err(StateError::Value { what, .. }) => what,
            Err(e) => e.to_string(),
            Ok(_) => panic!("was taken"),
        }
    };
    let with = |path: &'static str, value: serde_json::Value| {
        refused(Echo::default(), &move |n| n.change(|body| *body.pointer_mut(path).unwrap() = value.clone()))
    };
    let offers = |features| Echo { features: Some(features), ..Echo::default() };
    assert_eq!(
        refused(offers(feature::VERSION_1), &|_| ()),
        "echo no longer offers feature 5 (VIRTIO_TEST_F_ECHO), feature 29 (VIRTIO_F_EVENT_IDX)"
    );
    let more = Echo::default().features() | feature::RING_INDIRECT_DESC | BINDING;
    assert_eq!(
        refused(offers(more), &|_| ()),
        "echo did not offer feature 50 (VIRTIO_TEST_F_BINDING) when it was saved"
    );
    assert_eq!(
        with("/setup/offered", 0x20.into()),
        "echo did not offer feature 32 (VIRTIO_F_VERSION_1) when it was saved"
    );
    assert_eq!(with("/setup/accepted", 1.into()), "accepted is 0x1, and 0x120000020 were offered");
    assert_eq!(with("/link/status", 0x4.into()), "status is 0x4, which no driver reaches");
    assert_eq!(with("/link/status", 0x1f.into()), "status is 0x1f, which no driver reaches");
    assert_eq!(with("/link/isr", 4.into()), "isr is 0x4, of which 0x3 can be");
    assert_eq!(with("/link/queue_vectors/1", 3.into()), "there is no vector 3");
    assert_eq!(with("/link/config_vector", 0xfffe.into()), "there is no vector 65534");
    assert_eq!(with("/setup/queues/0/max_size", 32.into()), "max_size of queue 0 is 32, and it is 64 now");
    assert_eq!(with("/setup/queues/1/size", 0.into()), "size of queue 1 is 0, and at most 8 can be");
    assert_eq!(with("/setup/queues/1/size", 12.into()), "size of queue 1 is 12, and at most 8 can be");
    assert!(with("/setup/queues/0/desc", 0x3f_fff0.into()).contains("which is not in memory"));
    assert!(with("/setup/queues/0/driver", 1.into()).contains("which is not in memory"));
    assert!(with("/setup/queues/0/device", u64::MAX.into()).contains("which is not in memory"));
    assert!(with("/positions/0/next_used", 0x8000.into()).contains("queue 0 of 64 has taken up to 70"));
    assert!(with("/positions/1", serde_json::Value::Null).contains("position of queue 1 is None"));
    assert!(with("/setup/queues/1/enabled", false.into()).contains("does not run"));
    let e = refused(Echo { refuse: true, ..Echo::default() }, &|_| ());
    assert_eq!(e, "echo cannot be activated: as the test wants");
    assert!(refused(Echo::default(), &|n| n.parts.clear()).contains("missing"));
    assert!(g.again(Echo::default(), None, function.clone()).is_err());
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    let (g, _drivers) = busy();
    let (node, function) = save(&g);
    let mut taken = 0;
    for tampered in tamper(&node) {
        let Some(node) = tampered.node() else { continue };
        let Ok(h) = g.again(Echo::default(), Some(node), function.clone()) else { continue };
        assert!(!tampered.impossible, "{} was taken", tampered.what);
        taken += 1;
        h.device.start().unwrap();
        h.device.stop().unwrap();
        h.device.save().unwrap();
        h.device.start().unwrap();
        h.w8(reg::STATUS, 0);
        assert_eq!(h.events.requests(), [] as [Request; 0], "{}", tampered.what);
    }
    assert!(taken > 50, "{taken}");
}

#[test]
fn states_of_all_versions_load() {
    let (g, _drivers) = busy();
    let (node, function) = save(&g);
    for node in golden(env!("CARGO_MANIFEST_DIR"), "virtio-pci", &node) {
        g.again(Echo::default(), Some(node), function.clone()).unwrap().device.start().unwrap();
    }
}
