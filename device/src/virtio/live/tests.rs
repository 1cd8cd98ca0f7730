//! What a driver sees of chains that are given back, and when it is told.

use std::sync::Mutex;

use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::fake::FakeLink;

const SIZE: u16 = 4;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

struct Ring {
    live: LiveQueue,
    map: Arc<RamMap>,
    link: Arc<FakeLink>,
}

/// A queue whose used ring stands at `index`.
fn ring(event_idx_enabled: bool, index: u16) -> Ring {
    let state = QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        desc_table: 0,
        avail_ring: AVAILABLE,
        used_ring: USED,
        next_avail: index,
        next_used: index,
        event_idx_enabled,
    };
    let ram = Ram::new(RamMap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
    let (map, link) = (ram.map(), Arc::new(FakeLink::default()));
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let live = LiveQueue::new(Queue::try_from(state).unwrap(), ram, kick, link.clone(), 0);
    map.write_obj(index, GuestAddress(USED + 2)).unwrap();
    Ring { live, map, link }
}

impl Ring {
    fn put(&mut self, heads: std::ops::Range<u16>) {
        heads.for_each(|head| self.live.put(&self.map, head % SIZE, 100 + u32::from(head)));
    }

    fn index(&self) -> u16 {
        self.map.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Head and length at a place of the used ring.
    fn element(&self, place: u16) -> (u32, u32) {
        let at = USED + 4 + 8 * u64::from(place % SIZE);
        let read = |at| self.map.read_obj(GuestAddress(at)).unwrap();
        (read(at), read(at + 4))
    }

    /// Signals; how many interrupts that makes.
    fn signal(&mut self) -> u32 {
        let before = self.link.used();
        self.live.signal(&self.map);
        self.link.used() - before
    }

    fn want(&self, event: u16) {
        self.map.write_obj(event, GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE))).unwrap();
    }
}

#[test]
fn what_is_put_is_seen_together_and_in_its_order() {
    // Across the end of the numbers, and of the ring.
    let mut r = ring(false, u16::MAX - 1);
    r.put(0..3);
    assert_eq!((r.index(), r.live.unseen()), (u16::MAX - 1, 3));
    r.live.show(&r.map);
    assert_eq!((r.index(), r.live.unseen(), r.live.state().next_used), (1, 0, 1));
    assert_eq!([2, 3, 0].map(|place| r.element(place)), [(0, 100), (1, 101), (2, 102)]);
    // What is given back at once has the others seen, too.
    r.put(1..2);
    r.live.push(&r.map, 3, 7);
    assert_eq!((r.index(), r.element(1), r.element(2)), (3, (1, 101), (3, 7)));
    r.put(0..1);
    r.live.signal(&r.map);
    assert_eq!((r.index(), r.live.unseen()), (4, 0));
    assert!(!r.link.broken());
}

#[test]
fn more_than_the_ring_holds_is_shown_before_it_is_overwritten() {
    let mut r = ring(false, 0);
    r.put(0..SIZE + 1);
    assert_eq!((r.index(), r.live.unseen()), (SIZE, 1));
    // One that there is not could not be taken either.
    r.live.put(&r.map, SIZE, 0);
    assert!(r.link.broken());
    r.live.show(&r.map);
    assert_eq!(r.index(), SIZE + 1);
}

#[test]
fn a_driver_is_told_once_of_what_passes_the_event_that_it_chose() {
    for base in [0, 9, u16::MAX - 3, u16::MAX] {
        let mut r = ring(true, base);
        r.want(base.wrapping_add(2));
        r.put(0..2);
        assert_eq!(r.signal(), 0, "{base}: the third has not come");
        r.put(2..4);
        r.live.show(&r.map);
        r.put(0..1);
        assert_eq!(r.signal(), 1, "{base}: it has, with others after it");
        r.put(1..3);
        assert_eq!(r.signal(), 0, "{base}: it was told");
        assert_eq!(r.signal(), 0, "{base}: nothing is new");
        r.want(base.wrapping_add(7));
        r.live.push(&r.map, 0, 0);
        assert_eq!(r.signal(), 1, "{base}: the eighth, by itself");
    }
}

#[test]
fn without_events_a_flag_says_whether_a_driver_is_told() {
    let mut r = ring(false, 0);
    r.put(0..1);
    assert_eq!(r.signal(), 1);
    r.map.write_obj(1u16, GuestAddress(AVAILABLE)).unwrap();
    r.put(0..1);
    assert_eq!((r.signal(), r.index()), (0, 2));
}

/// Notes what it is told: heads, and indices where there are any.
struct Noting(Arc<Mutex<Notes>>);

type Notes = Vec<(u16, Option<u16>)>;

impl Ledger for Noting {
    fn taken(&mut self, _head: u16) {}

    fn giving_back(&mut self, head: u16) {
        self.0.lock().unwrap().push((head, None));
    }

    fn given_back(&mut self, head: u16, index: u16) {
        self.0.lock().unwrap().push((head, Some(index)));
    }
}

#[test]
fn with_a_ledger_each_chain_is_seen_by_itself() {
    let mut r = ring(false, 5);
    let notes = Arc::<Mutex<Notes>>::default();
    r.live.ledger = Some(Box::new(Noting(Arc::clone(&notes))));
    r.put(1..3);
    assert_eq!((r.index(), r.live.unseen()), (7, 0));
    assert_eq!(*notes.lock().unwrap(), [(1, None), (1, Some(6)), (2, None), (2, Some(7))]);
}
