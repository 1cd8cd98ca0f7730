//! Every register, at every width, in every state, with any value, from several vCPUs and with requests in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use device::fake::random::Random;
use device::grant::Device;
use device::virtio::feature;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{Echo, Guest, QUEUE_BASE, QUEUE_ROOM, RAM, reg};

/// A value that is more likely than others to hurt.
fn value(random: &mut Random) -> [u8; 8] {
    let n = random.bits();
    match n % 6 {
        0 => [0; 8],
        1 => [0xff; 8],
        2 => (1u64 << (n >> 8 & 63)).to_le_bytes(),
        3 => (RAM - 1 + (n >> 8 & 3)).to_le_bytes(),
        4 => (n >> 8 & 0xf).to_le_bytes(),
        _ => n.to_le_bytes(),
    }
}

/// Where guest memory must stay as it is, whatever the registers say.
const UNTOUCHED: u64 = QUEUE_BASE + 2 * QUEUE_ROOM;

fn fill(g: &Guest) {
    g.ram.map().write_slice(&vec![0xa5; (RAM - UNTOUCHED) as usize], GuestAddress(UNTOUCHED)).unwrap();
}

fn assert_untouched(g: &Guest) {
    let mut bytes = vec![0; (RAM - UNTOUCHED) as usize];
    g.ram.map().read_slice(&mut bytes, GuestAddress(UNTOUCHED)).unwrap();
    assert!(bytes.iter().all(|b| *b == 0xa5), "memory was written that no queue has");
}

/// The states a driver can leave the device in.
fn enter(g: &Guest, state: u32) {
    g.w8(reg::STATUS, 0);
    match state {
        0 => {}
        1 => drop(g.advance(&[1])),
        2 => drop(g.advance(&[1, 2])),
        3 => drop(g.negotiate(feature::VERSION_1)),
        4 => {
            g.negotiate(feature::VERSION_1);
            g.enable(0, 64);
        }
        5 => drop(g.bring_up()),
        6 => {
            g.bring_up();
            g.device.stop().unwrap();
            g.device.start().unwrap();
        }
        7 => {
            // Rings outside of memory: the device needs a reset.
            g.negotiate(feature::VERSION_1);
            g.write(reg::QUEUE_DESC, &u64::MAX.to_le_bytes());
            g.w16(reg::QUEUE_ENABLE, 1);
            g.advance(&[4]);
        }
        _ => drop(g.advance(&[1, 2, 0x80])),
    }
}

#[test]
fn every_register_at_every_width_in_every_state_is_harmless() {
    let g = Guest::new(Echo::default());
    let mut random = Random(0x1234_5678_9abc_def1);
    fill(&g);
    let offsets: Vec<u64> = (0..0x60)
        .chain(0x1ff8..0x2010)
        .chain(0x3ff8..0x4018)
        .chain(0x4ff8..0x5004)
        .chain(0x5ff8..0x6010)
        .chain(0x6ff8..0x7004)
        .chain(0x7ff8..0x8040)
        .chain(0x4_7ff8..0x4_8010)
        .chain(0x7_fff0..0x8_0000)
        .collect();
    for state in 0..9 {
        enter(&g, state);
        for offset in &offsets {
            for width in [1, 2, 3, 4, 8] {
                // Rings in the untouched part would be a driver's honest wish: they are not written here.
                let ring = *offset + width > reg::QUEUE_DESC && *offset < 56;
                let value = if ring { u64::MAX.to_le_bytes() } else { value(&mut random) };
                g.write(*offset, &value[..width as usize]);
                let mut data = [0; 8];
                g.memory.read(g.base + offset, &mut data[..width as usize]);
            }
            if offset % 8 == 0 {
                enter(&g, state);
            }
        }
        assert_untouched(&g);
    }
    assert!(g.events.requests().is_empty());
    assert_eq!(g.bring_up()[0].ask(1), 2);
}

#[test]
fn a_live_queue_outlasts_register_writes_of_all_kinds() {
    let g = Guest::new(Echo::default());
    let mut random = Random(0xfeed_beef_cafe_0001);
    fill(&g);
    let mut drivers = g.bring_up();
    for round in 0..3000u32 {
        // Everything but status and vectors, which may rightly end the service.
        let offset = random.bits() % 0x5000;
        let width = 1 << (random.bits() % 4);
        let status = (offset..offset + width).contains(&reg::STATUS);
        if !status {
            g.write(offset, &value(&mut random)[..width as usize]);
        }
        if round % 10 == 0 {
            let d = &mut drivers[round as usize / 10 % 2];
            assert_eq!(d.ask(round), round + 1);
        }
    }
    assert_eq!(g.status(), 0xf);
    assert_untouched(&g);
}

#[test]
fn a_reset_with_requests_in_flight_leaves_memory_alone() {
    let resets = Arc::new(AtomicU64::new(0));
    let g = Guest::new(Echo { resets: resets.clone(), ..Echo::default() });
    for round in 0..150 {
        let mut drivers = g.bring_up();
        for d in &mut drivers {
            for n in 0..if round % 2 == 0 { 4 } else { 1 } {
                d.offer(n);
            }
            d.kick();
        }
        g.w8(reg::STATUS, 0);
        assert_eq!(g.status(), 0);
        // The driver gives the memory to somebody else.
        let used: Vec<u16> = drivers.iter().map(|d| d.used_index()).collect();
        for d in &mut drivers {
            d.offer(9);
            d.kick();
        }
        if round % 30 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(drivers.iter().map(|d| d.used_index()).collect::<Vec<_>>(), used);
    }
    assert_eq!(resets.load(Ordering::SeqCst), 150);
    assert!(g.events.requests().is_empty());
}

#[test]
fn several_vcpus_and_the_board_at_once_do_not_upset_the_device() {
    let g = Guest::new(Echo::default());
    fill(&g);
    let done = Arc::new(AtomicBool::new(false));
    let vcpus: Vec<_> = (1..=3)
        .map(|seed| {
            let (g, done) = (g.clone(), done.clone());
            let run = move || {
                let mut random = Random(seed);
                while !done.load(Ordering::SeqCst) {
                    match random.bits() % 8 {
                        0 => g.w8(reg::STATUS, 0),
                        1 => drop(g.advance(&[1, 2, 8, 4])),
                        2 => drop(g.negotiate(feature::VERSION_1)),
                        3 => {
                            let mut d = g.enable((random.bits() % 2) as u16, 8);
                            d.offer(1);
                            d.kick();
                        }
                        4 => g.w16(0x6000 + 4 * (random.bits() % 3), 0),
                        5 => g.vector(random.bits() % 3, 0x40),
                        6 => {
                            let base = if random.bits().is_multiple_of(2) { g.base } else { 0xd000_0000 };
                            g.write_at(super::guest::ECAM + (1 << 15) + 0x10, &(base as u32).to_le_bytes());
                        }
                        _ => {
                            let offset = 56 * (random.bits() % 3);
                            let mut data = [0; 8];
                            g.memory.read(g.base + offset, &mut data);
                        }
                    }
                }
            };
            std::thread::Builder::new().name(format!("vcpu{seed}")).spawn(run).unwrap()
        })
        .collect();
    for _ in 0..100 {
        g.device.stop().unwrap();
        // A resume may find rings that another vCPU is just writing over; it says so and goes on.
        g.device.start().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    done.store(true, Ordering::SeqCst);
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
    g.write_at(super::guest::ECAM + (1 << 15) + 0x10, &(g.base as u32).to_le_bytes());
    assert_untouched(&g);
    assert!(g.events.requests().is_empty());
    assert_eq!(g.bring_up()[0].ask(1), 2);
}
