//! What the rings tell of the order in which chains came back.

use vm_memory::Bytes as _;

use super::*;
use crate::front::rings::in_order;

const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;

/// Rings of 16 in which `taken` chains were made available and `given` came back, as the functions number them.
fn rings(taken: u16, given: u16, take: fn(u16) -> u16, give: fn(u16) -> u16) -> (RamMap, QueueState) {
    let map = RamMap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    let write = |at: u64, bytes: &[u8]| map.write_slice(bytes, GuestAddress(at)).unwrap();
    for n in taken.saturating_sub(SIZE)..taken {
        write(DRIVER + 4 + 2 * u64::from(n % SIZE), &take(n).to_le_bytes());
    }
    for n in given.saturating_sub(SIZE)..given {
        write(DEVICE + 4 + 8 * u64::from(n % SIZE), &u32::from(give(n)).to_le_bytes());
    }
    write(DRIVER + 2, &taken.to_le_bytes());
    write(DEVICE + 2, &given.to_le_bytes());
    let queue = QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        desc_table: 0,
        avail_ring: DRIVER,
        used_ring: DEVICE,
        next_avail: taken,
        next_used: given,
        event_idx_enabled: false,
    };
    (map, queue)
}

#[test]
fn the_order_is_what_the_rings_show() {
    let ordered = |taken, given, take, give| {
        let (map, queue) = rings(taken, given, take, give);
        in_order(&map, &queue)
    };
    let same = |n: u16| n * 7 % SIZE;
    // New rings, such with few and with many under way, and old ones.
    for (taken, given) in [(0, 0), (3, 3), (3, 0), (20, 17), (40, 24), (1000, 999)] {
        assert!(ordered(taken, given, same, same), "{given} of {taken}");
    }
    // One that overtook another.
    let swapped = |n: u16| (if n < 18 { n ^ 1 } else { n }) * 7 % SIZE;
    assert!(!ordered(20, 18, same, swapped));
    // One that is behind since long ago.
    let late = |n: u16| (n + 1) * 7 % SIZE;
    assert!(!ordered(100, 99, same, late));
    // More than there is room for.
    assert!(!ordered(40, 20, same, same));
    // Rings that are nowhere.
    let (map, queue) = rings(3, 3, same, same);
    assert!(!in_order(&map, &QueueState { used_ring: u64::MAX - 1, ..queue }));
}
