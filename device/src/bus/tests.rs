//! Who answers, and what lookups see while ranges come, go and move.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

struct Echo(u8);

impl Registers for Echo {
    fn read(&self, _: Region, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.0.wrapping_add(offset as u8).wrapping_add(i as u8);
        }
    }

    fn write(&self, _: Region, _: u64, _: &[u8]) -> Effect {
        Effect::Reset
    }
}

fn echo(n: u8) -> Arc<dyn Registers> {
    Arc::new(Echo(n))
}

#[test]
fn the_owner_of_an_address_answers_and_nobody_elsewhere() {
    let bus = Bus::new(Space::Memory);
    bus.claim(0x1000, 0x10, echo(0), Region::Window(0)).unwrap();
    bus.claim(0x1010, 0x10, echo(0x80), Region::Window(0)).unwrap();
    let mut data = [0; 2];
    assert!(bus.read(0x1002, &mut data));
    assert_eq!(data, [2, 3]);
    assert!(bus.read(0x1010, &mut data));
    assert_eq!(data, [0x80, 0x81]);
    assert!(!bus.read(0xfff, &mut data));
    assert_eq!(data, [0xff; 2]);
    assert_eq!(bus.write(0x101f, &[1, 2, 3, 4]), Some(Effect::Reset));
    assert_eq!(bus.write(0x1020, &[0]), None);
}

#[test]
fn an_access_that_leaves_the_range_is_cut_and_reads_ones_beyond() {
    let bus = Bus::new(Space::Port);
    bus.claim(0x60, 1, echo(7), Region::Window(0)).unwrap();
    let mut data = [0; 4];
    bus.read(0x60, &mut data);
    assert_eq!(data, [7, 0xff, 0xff, 0xff]);
}

#[test]
fn overlapping_empty_and_wrapping_ranges_are_refused() {
    let bus = Bus::new(Space::Memory);
    bus.claim(0x1000, 0x1000, echo(0), Region::Bar(0)).unwrap();
    for (base, length) in [(0x1000, 1), (0x1fff, 1), (0xfff, 2), (0, 0x4000)] {
        assert!(matches!(bus.claim(base, length, echo(0), Region::Bar(0)), Err(BusError::Overlap { .. })));
    }
    for (base, length) in [(0, 0), (u64::MAX, 2)] {
        assert!(matches!(bus.claim(base, length, echo(0), Region::Bar(0)), Err(BusError::Range { .. })));
    }
    assert!(bus.release(0x1000));
    assert!(!bus.release(0x1000));
    bus.claim(0, 0x4000, echo(0), Region::Bar(0)).unwrap();
}

/// Counts those that are still held.
struct Counted {
    number: u8,
    alive: Arc<AtomicU64>,
}

impl Counted {
    fn held(number: u8, alive: &Arc<AtomicU64>) -> Arc<dyn Registers> {
        alive.fetch_add(1, Ordering::Relaxed);
        Arc::new(Counted { number, alive: alive.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registers for Counted {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        // What is told names the range as well, so that a mixture of two is seen.
        let Region::Window(window) = region else { return };
        data.fill(self.number);
        data[0] = window;
        data[1] = offset as u8;
    }

    fn write(&self, _: Region, _: u64, _: &[u8]) -> Effect {
        Effect::None
    }
}

/// Lookups on several threads while ranges come, go and trade places: each sees a range as it was before a change or after it, a range that
/// stays is always there, and what went is let go of. Under Miri the same is looked at for data races and for orders that memory allows.
#[test]
fn lookups_see_each_change_whole_and_hold_up_nobody() {
    const STAYS: u64 = 0x5000;
    const READERS: usize = 2;
    let rounds: u8 = if cfg!(miri) { 12 } else { 200 };
    let (bus, alive) = (Bus::new(Space::Memory), Arc::new(AtomicU64::new(0)));
    bus.claim(STAYS, 0x100, Counted::held(0, &alive), Region::Window(0)).unwrap();
    let (end, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let (bus, end, seen) = (&bus, &end, &seen);
            scope.spawn(move || {
                let mut last = 0;
                while !end.load(Ordering::Relaxed) {
                    let mut data = [0; 4];
                    assert!(bus.read(STAYS + 7, &mut data), "reader {reader}: what stays is gone");
                    assert_eq!(data, [0, 7, 0, 0]);
                    for (base, other) in [(0x1000, 0x2000), (0x2000, 0x1000)] {
                        if !bus.read(base + 3, &mut data) {
                            assert_eq!(data, [0xff; 4]);
                            continue;
                        }
                        let number = data[2];
                        assert_eq!(
                            data,
                            [number, 3, number, number],
                            "{base:#x} or {other:#x} is half of each"
                        );
                        // They come in order, and one that was replaced does not come again.
                        assert!(number >= last, "{number} after {last}");
                        last = number;
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for number in 1..=rounds {
            let base = if number % 2 == 0 { 0x1000 } else { 0x2000 };
            bus.claim(base, 0x1000, Counted::held(number, &alive), Region::Window(number)).unwrap();
            let before = seen.load(Ordering::Relaxed);
            while seen.load(Ordering::Relaxed) < before + 2 {
                std::thread::yield_now();
            }
            assert!(bus.release(base));
        }
        end.store(true, Ordering::Relaxed);
    });
    assert_eq!(alive.load(Ordering::Relaxed), 1, "what was released is still held");
}
