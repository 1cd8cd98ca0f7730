//! A driver's view of the transport: what the specification promises, and what a hostile driver gets.

mod guest;
mod hostile;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use device::grant::Device;
use device::virtio::feature;
use device::{BarKind, VirtioKind};

use super::{TransportError, VirtioPci, bar_kind, layout};
use guest::{CONFIG, Echo, FEATURE, Guest, QUEUES, reg};

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(30);
const NEEDS_RESET: u8 = 0x40;

#[test]
fn the_function_looks_as_the_contract_says() {
    for (kind, device, class) in [
        (VirtioKind::Net, 0x1041, 0x02_0000),
        (VirtioKind::Block, 0x1042, 0x01_8000),
        (VirtioKind::Console, 0x1043, 0xff_ff00),
        (VirtioKind::Rng, 0x1044, 0xff_ff00),
    ] {
        let needs = layout::needs(kind as u16, 3, true, BarKind::Memory32);
        let pci = needs.pci.unwrap();
        let id = pci.identity;
        assert_eq!((id.vendor, id.device, id.revision, id.class), (0x1af4, device, 1, class));
        assert_eq!((id.subsystem_vendor, id.subsystem), (0x1af4, device));
        let msix = pci.msix.unwrap();
        assert_eq!((msix.vectors, msix.bar, msix.table, msix.pending), (4, 0, 0x8000, 0x4_8000));
        let offsets: Vec<_> = needs.doorbells.iter().map(|d| d.offset).collect();
        assert_eq!(offsets, [0x6000, 0x6004, 0x6008]);
        // cap_len, cfg_type, bar, id, padding, offset, length.
        let virtio_cap = |length: u8, kind: u8, offset: u32, size: u32, more: &[u8]| {
            let head = [length, kind, 0, 0, 0, 0];
            [&head[..], &offset.to_le_bytes(), &size.to_le_bytes(), more].concat()
        };
        let bodies: Vec<_> = pci.capabilities.iter().map(|c| c.body.clone()).collect();
        assert_eq!(
            bodies,
            [
                virtio_cap(16, 1, 0, 56, &[]),
                virtio_cap(16, 3, 0x2000, 1, &[]),
                virtio_cap(16, 4, 0x4000, 0x1000, &[]),
                virtio_cap(20, 2, 0x6000, 0x1000, &[4, 0, 0, 0]),
                virtio_cap(20, 5, 0, 0, &[0; 4]),
            ]
        );
        assert!(pci.capabilities.iter().all(|c| c.id == 9));
    }
    let bare = layout::needs(VirtioKind::Rng as u16, 1, false, BarKind::Memory32).pci.unwrap();
    assert_eq!(bare.capabilities.len(), 4);
    assert_eq!(bar_kind(VirtioKind::Block, 0, true), BarKind::Memory32);
    for (kind, segment, boot) in
        [(VirtioKind::Net, 0, true), (VirtioKind::Block, 1, true), (VirtioKind::Block, 0, false)]
    {
        assert_eq!(bar_kind(kind, segment, boot), BarKind::Memory64 { prefetchable: false });
    }
}

#[test]
fn a_driver_negotiates_and_requests_flow_and_interrupt() {
    let g = Guest::new(Echo::default());
    assert_eq!(g.r16(reg::NUM_QUEUES), 2);
    g.w32(reg::DEVICE_SELECT, 1);
    assert_eq!(g.r32(reg::DEVICE_FEATURE), 1);
    g.w32(reg::DEVICE_SELECT, 0);
    assert_eq!(u64::from(g.r32(reg::DEVICE_FEATURE)), feature::RING_EVENT_IDX | FEATURE);
    g.w32(reg::DEVICE_SELECT, 2);
    assert_eq!(g.r32(reg::DEVICE_FEATURE), 0);
    for (index, size) in (0..).zip(QUEUES) {
        g.w16(reg::QUEUE_SELECT, index);
        assert_eq!((g.r16(reg::QUEUE_SIZE), g.r16(reg::QUEUE_NOTIFY_OFF)), (size, index));
        assert_eq!(g.r16(reg::QUEUE_ENABLE), 0);
    }
    g.w16(reg::QUEUE_SELECT, 2);
    assert_eq!((g.r16(reg::QUEUE_SIZE), g.r16(reg::QUEUE_VECTOR)), (0, 0xffff));
    assert_eq!(g.msi.made(), 0);

    let mut drivers = g.bring_up();
    for round in 0..200 {
        for (d, data) in drivers.iter_mut().zip([0x41, 0x42]) {
            assert_eq!(d.ask(round), round + 1);
            g.await_interrupt(data);
        }
    }
    assert_eq!(g.bells.addresses(), [g.base + 0x6000, g.base + 0x6004]);
    assert_eq!(g.events.records(), ["virtio-device/activated"]);
    g.w8(reg::STATUS, 0);
    assert_eq!((g.status(), g.r16(reg::CONFIG_VECTOR), g.r16(reg::QUEUE_VECTOR)), (0, 0xffff, 0xffff));
    assert_eq!(g.events.records(), ["virtio-device/activated", "virtio-device/reset"]);
    g.w8(reg::STATUS, 0);
    assert_eq!(g.events.records().len(), 2, "an idle device is not reset again");
    assert_eq!(g.bring_up()[1].ask(7), 8);
}

#[test]
fn status_bits_come_in_order_and_never_go_back() {
    let g = Guest::new(Echo::default());
    for early in [2, 4, 8, 0xc, 0x40] {
        g.w8(reg::STATUS, early);
        assert_eq!(g.status(), 0, "{early:#x}");
    }
    assert_eq!(g.advance(&[1, 2]), 3);
    g.w8(reg::STATUS, 1);
    assert_eq!(g.status(), 3);
    g.w8(reg::STATUS, 3 | 4 | 0x30);
    assert_eq!(g.status(), 3);
    assert_eq!(g.advance(&[0x80]), 0x83);
    // A driver that gave up has to begin anew.
    assert_eq!(g.negotiate(feature::VERSION_1), 0x8b);
    assert_eq!(g.advance(&[4]), 0x8b);
    g.w8(reg::STATUS, 0);
    // Several at once, as some firmware does.
    g.w8(reg::STATUS, 3);
    assert_eq!(g.status(), 3);
}

#[test]
fn features_that_were_not_offered_are_refused_and_fixed_ones_stay() {
    let g = Guest::new(Echo::default());
    assert_eq!(g.negotiate(feature::VERSION_1 | 1 << 40), 3);
    assert_eq!(g.negotiate(FEATURE), 3, "virtio 1.x is required");
    assert_eq!(g.negotiate(feature::VERSION_1 | FEATURE), 0xb);
    g.w32(reg::DRIVER_SELECT, 0);
    g.w32(reg::DRIVER_FEATURE, 0xffff_ffff);
    assert_eq!(u64::from(g.r32(reg::DRIVER_FEATURE)), FEATURE);
}

#[test]
fn a_queue_takes_only_sizes_and_rings_that_work() {
    let g = Guest::new(Echo::default());
    g.negotiate(feature::VERSION_1);
    g.w16(reg::QUEUE_SELECT, 0);
    for size in [0, 3, 63, 128, 0x8000, 0xffff] {
        g.w16(reg::QUEUE_SIZE, size);
        assert_eq!(g.r16(reg::QUEUE_SIZE), 64, "{size}");
    }
    g.w16(reg::QUEUE_SIZE, 16);
    assert_eq!(g.r16(reg::QUEUE_SIZE), 16);
    for vector in [0u16, 2, 3, 0xffff] {
        g.w16(reg::QUEUE_VECTOR, vector);
        g.w16(reg::CONFIG_VECTOR, vector);
        let expected = if vector < 3 { vector } else { 0xffff };
        assert_eq!((g.r16(reg::QUEUE_VECTOR), g.r16(reg::CONFIG_VECTOR)), (expected, expected));
    }
    let good = [0x1_0000u64, 0x1_1000, 0x1_2000];
    for (ring, bad) in [(0, 0x1_0008), (1, 0x1_1001), (2, 0x1_2002)]
        .into_iter()
        .chain((0..3).flat_map(|r| [guest::RAM, guest::RAM - 16, u64::MAX - 15, 1 << 63].map(|a| (r, a))))
    {
        g.w8(reg::STATUS, 0);
        g.negotiate(feature::VERSION_1);
        let mut rings = good;
        rings[ring] = bad;
        g.w16(reg::QUEUE_SELECT, 0);
        for (n, address) in (0..).zip(rings) {
            g.write(reg::QUEUE_DESC + 8 * n, &address.to_le_bytes());
        }
        g.w16(reg::QUEUE_ENABLE, 1);
        assert_eq!(g.r16(reg::QUEUE_ENABLE), 0);
        assert_eq!(g.status(), 0xb | NEEDS_RESET, "ring {ring} at {bad:#x}");
        // Broken before it began: it stays off.
        assert_eq!(g.advance(&[4]), 0xb | NEEDS_RESET);
    }
    assert!(g.events.records().is_empty());
    assert_eq!(g.bring_up()[0].ask(1), 2);
}

#[test]
fn what_a_running_queue_depends_on_cannot_be_changed() {
    let g = Guest::new(Echo::default());
    let mut drivers = g.bring_up();
    for select in 0..3 {
        g.w16(reg::QUEUE_SELECT, select);
        let before: [u8; 56] = g.read(0);
        g.w16(reg::QUEUE_SIZE, 2);
        g.w16(reg::QUEUE_ENABLE, 0);
        g.w16(reg::QUEUE_ENABLE, 1);
        for half in (reg::QUEUE_DESC..56).step_by(4) {
            g.w32(half, 0x10);
        }
        g.write(reg::QUEUE_DRIVER, &[0x20; 8]);
        g.w32(reg::DRIVER_FEATURE, 0);
        assert_eq!(g.read::<56>(0), before);
    }
    assert_eq!((drivers[0].ask(5), drivers[1].ask(6)), (6, 7));
}

#[test]
fn a_kick_before_the_queue_runs_is_not_lost() {
    let g = Guest::new(Echo::default());
    g.negotiate(feature::VERSION_1);
    let mut d = g.enable(0, 64);
    d.offer(1);
    d.kick();
    assert_eq!(d.answer(NEVER), None);
    g.advance(&[4]);
    assert_eq!(d.answer(SOON), Some(2));
    // Without a vector the interrupt status tells, and reading it clears it.
    g.w16(reg::QUEUE_SELECT, 0);
    g.w16(reg::QUEUE_VECTOR, 0xffff);
    assert_eq!(d.ask(2), 3);
    while g.r8(0x2000) != 1 {
        std::thread::yield_now();
    }
    assert_eq!(g.r8(0x2000), 0);
}

#[test]
fn a_queue_that_is_not_enabled_does_not_run() {
    let starts = Arc::new(AtomicU64::new(0));
    let g = Guest::new(Echo { starts: starts.clone(), ..Echo::default() });
    g.negotiate(feature::VERSION_1);
    let mut d = g.enable(1, 8);
    g.advance(&[4]);
    assert_eq!((d.ask(1), starts.load(Ordering::SeqCst)), (2, 1));
    g.device.stop().unwrap();
    g.device.start().unwrap();
    assert_eq!((d.ask(2), starts.load(Ordering::SeqCst)), (3, 2));
}

#[test]
fn configuration_is_cut_to_its_length_and_changes_are_told() {
    let g = Guest::new(Echo::default());
    let generation = g.r8(reg::GENERATION);
    g.write(0x4000 + CONFIG as u64 - 2, &[1, 2, 3, 4]);
    assert_eq!(g.read::<8>(0x4000 + CONFIG as u64 - 4), [0, 0, 1, 2, 0, 0, 0, 0]);
    assert_eq!(g.r32(0x4ffc), 0);
    g.w32(0x4ffc, 1);
    assert_ne!(g.r8(reg::GENERATION), generation);
    assert!(g.msi.take().is_empty());
    g.bring_up();
    g.w8(0x4000, 9);
    assert_eq!(g.msi.take().iter().map(|m| m.data).collect::<Vec<_>>(), [0x40]);
}

#[test]
fn a_device_that_was_reset_asks_for_nothing_and_its_driver_begins_anew() {
    let g = Guest::new(Echo::default());
    let breaks = || g.write(0x4000 + guest::BREAK as u64, &[1]);
    breaks();
    assert_eq!(g.status(), 0, "its driver would wait for ever");
    g.bring_up();
    breaks();
    assert_eq!(g.status(), 0x4f);
    g.w8(reg::STATUS, 0);
    breaks();
    assert_eq!(g.status(), 0);
    let mut drivers = g.bring_up();
    assert_eq!(drivers[0].ask(1), 2);
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    let starts = Arc::new(AtomicU64::new(0));
    let g = Guest::new(Echo { refuse: true, starts: starts.clone(), ..Echo::default() });
    g.negotiate(feature::VERSION_1);
    g.enable(0, 64);
    g.w16(reg::CONFIG_VECTOR, 0);
    g.vector(0, 0x40);
    assert_eq!(g.advance(&[4]), 0xf | NEEDS_RESET);
    assert_eq!(g.msi.take().len(), 1);
    g.device.stop().unwrap();
    g.device.start().unwrap();
    assert_eq!(starts.load(Ordering::SeqCst), 0);
    g.w8(reg::STATUS, 0);
    assert_eq!(g.status(), 0);
}

#[test]
fn a_pause_under_load_stops_everything_and_loses_nothing() {
    let g = Guest::new(Echo::default());
    let mut drivers = g.bring_up();
    let done = Arc::new(AtomicBool::new(false));
    let (mut busy, idle) = (drivers.remove(0), drivers.remove(0));
    let finished = done.clone();
    let load = std::thread::Builder::new()
        .name("driver".into())
        .spawn(move || {
            let (mut asked, mut answered) = (0u32, 0u32);
            while !finished.load(Ordering::SeqCst) || answered < asked {
                while asked - answered < 24 && !finished.load(Ordering::SeqCst) {
                    busy.offer(asked);
                    asked += 1;
                }
                busy.kick();
                while let Some(value) = busy.answer(Duration::from_millis(1)) {
                    answered += 1;
                    assert_eq!(value, answered);
                }
            }
            answered
        })
        .unwrap();
    for _ in 0..60 {
        g.device.stop().unwrap();
        g.device.stop().unwrap();
        let before = used(&g, 0);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(used(&g, 0), before, "silent while paused");
        g.device.start().unwrap();
        g.device.start().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    done.store(true, Ordering::SeqCst);
    assert!(load.join().unwrap() > 100);
    assert_eq!(idle.used_index(), 0);
}

fn used(g: &Guest, queue: u64) -> u16 {
    use vm_memory::{Bytes, GuestAddress};
    let ring = guest::QUEUE_BASE + guest::QUEUE_ROOM * queue + 0x4000;
    g.ram.map().load(GuestAddress(ring + 2), Ordering::SeqCst).unwrap()
}

#[test]
fn a_driver_that_is_ready_during_a_pause_starts_on_resume_and_may_reset_in_between() {
    let g = Guest::new(Echo::default());
    g.device.stop().unwrap();
    let mut d = g.bring_up().remove(1);
    d.offer(1);
    d.kick();
    assert_eq!(d.answer(NEVER), None);
    g.device.start().unwrap();
    assert_eq!(d.answer(SOON), Some(2));
    g.device.stop().unwrap();
    g.w8(reg::STATUS, 0);
    g.device.start().unwrap();
    assert_eq!(g.bring_up()[1].ask(3), 4);
}

#[test]
fn registers_are_reached_through_configuration_space_too() {
    let g = Guest::new(Echo::default());
    let function = g.plugged.function();
    // The last capability before MSI-X; its body is 18 bytes.
    let mut at = 0x40;
    let byte = |at: usize| {
        let mut data = [0];
        function.read_config(at, &mut data);
        usize::from(data[0])
    };
    while byte(at + 3) != 5 {
        at = byte(at + 1);
    }
    let window = |offset: u32, length: u32| {
        let _ = function.write_config(at + 4, &[0]);
        let _ = function.write_config(at + 8, &offset.to_le_bytes());
        let _ = function.write_config(at + 12, &length.to_le_bytes());
    };
    let get = || {
        let mut data = [0; 4];
        function.read_config(at + 16, &mut data);
        u32::from_le_bytes(data)
    };
    window(reg::NUM_QUEUES as u32, 2);
    assert_eq!(get(), 2);
    window(reg::STATUS as u32, 1);
    let _ = function.write_config(at + 16, &[3, 0xee, 0xee, 0xee]);
    assert_eq!((g.status(), get() & 0xff), (3, 3));
    // Accesses that cannot be: nothing happens, what was stored is read.
    for (offset, length) in
        [(1, 2), (2, 4), (0, 0), (0, 3), (0, 8), (u32::MAX, 1), (0x8_0000, 4), (0, u32::MAX)]
    {
        window(offset, length);
        let _ = function.write_config(at + 16, &[0; 4]);
        assert_eq!((g.status(), get()), (3, 0));
    }
    let _ = function.write_config(at + 4, &[1]);
    assert_eq!(get(), 0);
    // Identity of the capability is fixed.
    let _ = function.write_config(at, &[0xff; 4]);
    assert_eq!((byte(at), byte(at + 2), byte(at + 3)), (9, 20, 5));
}

#[test]
fn a_moved_bar_takes_its_doorbells_along() {
    let mut g = Guest::new(Echo::default());
    let mut d = g.bring_up().remove(0);
    assert_eq!(d.ask(1), 2);
    g.write_at(guest::ECAM + (1 << 15) + 0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(g.bells.addresses(), [0xd000_6000]);
    g.base = 0xd000_0000;
    assert_eq!(g.status(), 0xf);
    d.offer(5);
    assert!(g.bells.ring(0xd000_6000));
    assert_eq!(d.answer(SOON), Some(6));
}

#[test]
fn devices_that_registers_cannot_express_are_refused() {
    struct Odd(Vec<u16>, usize);
    impl device::Virtio for Odd {
        fn kind(&self) -> VirtioKind {
            VirtioKind::Rng
        }
        fn features(&self) -> u64 {
            feature::VERSION_1
        }
        fn queue_sizes(&self) -> Vec<u16> {
            self.0.clone()
        }
        fn config_length(&self) -> usize {
            self.1
        }
        fn connect(&mut self, _: device::VirtioGrant) {}
        fn activate(&self, _: u64) -> Result<(), device::DeviceError> {
            Ok(())
        }
        fn start_queue(&self, _: usize, _: device::LiveQueue) -> Result<(), device::DeviceError> {
            Ok(())
        }
        fn stop_queue(&self, _: usize) -> Option<virtio_queue::QueueState> {
            None
        }
        fn reset(&self) {}
    }
    let new = |sizes: Vec<u16>, config| {
        VirtioPci::new("odd", Box::new(Odd(sizes, config)), BarKind::Memory32).err()
    };
    assert!(matches!(new(vec![], 0), Some(TransportError::Queues { queues: 0, .. })));
    assert!(matches!(new(vec![2; 1025], 0), Some(TransportError::Queues { .. })));
    assert!(matches!(new(vec![4, 0], 0), Some(TransportError::QueueSize { size: 0, .. })));
    assert!(matches!(new(vec![6], 0), Some(TransportError::QueueSize { size: 6, .. })));
    assert!(matches!(new(vec![4], 0x1001), Some(TransportError::Config { .. })));
    assert_eq!(new(vec![0x8000; 1024], 0x1000), None);
}
