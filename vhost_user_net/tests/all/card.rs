//! The program with a network card, and a guest's half of one.

use std::path::Path;
use std::time::{Duration, Instant};

use net_util::VNET_HDR_LEN;
use net_util::wire::{EXPERIMENTAL, HEADER, Wire};
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, HALF, MEMORY, Memory, Queue};
use vhost_user::testing::peer::Subject;
use vhost_user::testing::{Daemon, PATIENCE, Program, Scratch};

pub(crate) const PROGRAM: Program =
    Program { path: env!("CARGO_BIN_EXE_vhost_user_net"), flag: "--net-backend" };

/// The program, for tests that suit any.
pub(crate) const SUBJECT: Subject = Subject {
    start: |scratch, socket| start(scratch, socket, ",mac=2e:00:00:00:00:02"),
    serve,
    writable: 0,
    protocol: 0xa229,
};

/// The tap of [`start`].
pub(crate) const TAP: &str = "card";

/// All features that there may be.
pub(crate) const ALL: u64 = u64::MAX;

/// Features of network cards (virtio 1.3 §5.1.3): what a guest takes and what the device does of checksums and segmentation.
pub(crate) const OFFLOADS: u64 = 0x01c0_0000_0000_7f87;

/// Starts it with one card and waits until it listens.
pub(crate) fn start(scratch: &Scratch, socket: &Path, keys: &str) -> Daemon {
    PROGRAM.serve(scratch, socket, &format!("tap={TAP}{keys}"))
}

/// A front end that behaves is served.
#[track_caller]
pub(crate) fn serve(socket: &Path) {
    let wire = Wire::new(TAP).unwrap();
    let mut guest = Guest::new(1);
    guest.plug(Front::connect(socket, EVENT_IDX));
    guest.exchange(&wire, 0, 1);
}

/// Buffers of a queue, and how far they are apart: each takes the largest frame.
const SLOTS: u16 = 32;
const STRIDE: u64 = 0x1_1000;

/// Where a queue's buffers are: those of the first two pairs lie in both regions.
fn buffer(queue: usize, slot: u16) -> u64 {
    let base = [DATA, HALF, HALF + u64::from(SLOTS) * STRIDE, HALF + 2 * u64::from(SLOTS) * STRIDE][queue];
    assert!(HALF + 3 * u64::from(SLOTS) * STRIDE <= MEMORY);
    base + u64::from(slot) * STRIDE
}

/// A guest with a card. Memory and rings outlive a front end's connection.
pub(crate) struct Guest {
    pub(crate) memory: Memory,
    pub(crate) rings: Vec<Queue>,
    pub(crate) front: Option<Front>,
    /// Slots of each transmit queue that are with the guest.
    free: Vec<Vec<u16>>,
}

impl Guest {
    /// With all receive buffers offered.
    pub(crate) fn new(pairs: usize) -> Guest {
        let memory = Memory::new();
        let mut rings: Vec<Queue> = (0..2 * pairs).map(|i| Queue::new(i, 64)).collect();
        for (queue, ring) in rings.iter_mut().enumerate().step_by(2) {
            (0..SLOTS).for_each(|slot| offer(&memory, ring, queue, slot));
        }
        let free = (0..pairs).map(|_| (0..SLOTS).collect()).collect();
        Guest { memory, rings, front: None, free }
    }

    /// Starts the rings where they stand, which is where the one before, if there was one, has come to. Frames that it left go.
    pub(crate) fn plug(&mut self, front: Front) {
        self.plug_with(front, |front, memory, queues| front.start(memory, queues));
    }

    /// The same, in another order.
    pub(crate) fn plug_with(&mut self, mut front: Front, start: fn(&mut Front, &Memory, &[Queue])) {
        for pair in 0..self.free.len() {
            while self.receive(pair).is_some() {}
            self.reclaim(pair);
        }
        start(&mut front, &self.memory, &self.rings);
        self.front = Some(front);
    }

    pub(crate) fn front(&mut self) -> &mut Front {
        self.front.as_mut().unwrap()
    }

    /// Offers a frame, with its header, in two buffers. It is not announced.
    pub(crate) fn offer(&mut self, pair: usize, frame: &[u8]) {
        let begun = Instant::now();
        while self.free[pair].is_empty() {
            self.reclaim(pair);
            assert!(begun.elapsed() < PATIENCE, "no frame goes out");
        }
        let slot = self.free[pair].pop().unwrap();
        let at = buffer(2 * pair + 1, slot);
        self.memory.put(at, frame);
        let rest = frame.len() as u32 - VNET_HDR_LEN as u32;
        let parts = [(at, VNET_HDR_LEN as u32, false), (at + VNET_HDR_LEN as u64, rest, false)];
        self.rings[2 * pair + 1].chain(&self.memory, slot * 2, &parts);
    }

    /// Takes back the buffers of frames that were sent.
    pub(crate) fn reclaim(&mut self, pair: usize) {
        while let Some((head, written)) = self.rings[2 * pair + 1].used(&self.memory) {
            assert_eq!((head % 2, written), (0, 0));
            let slot = head / 2;
            assert!(!self.free[pair].contains(&slot), "buffer {slot} came back twice");
            self.free[pair].push(slot);
        }
    }

    pub(crate) fn send(&mut self, pair: usize, frame: &[u8]) {
        self.offer(pair, frame);
        self.rings[2 * pair + 1].kick();
    }

    /// Sends so many frames at once, which all go out, as they are and in their order.
    #[track_caller]
    pub(crate) fn send_all(&mut self, wire: &Wire, pair: usize, frames: u64) {
        for number in 0..frames {
            self.offer(pair, &[&[0; VNET_HDR_LEN][..], &frame(number, 1500)].concat());
        }
        self.rings[2 * pair + 1].kick();
        for number in 0..frames {
            assert!(wire.expect(ours)[HEADER..] == frame(number, 1500)[..], "frame {number} of pair {pair}");
        }
    }

    /// The next frame that came in, with its header; its buffer is offered again.
    pub(crate) fn receive(&mut self, pair: usize) -> Option<Vec<u8>> {
        let ring = &mut self.rings[2 * pair];
        let (head, length) = ring.used(&self.memory)?;
        let frame = self.memory.get(buffer(2 * pair, head), length as usize);
        offer(&self.memory, ring, 2 * pair, head);
        ring.kick();
        Some(frame)
    }

    /// Waits for a frame that is `wanted`.
    #[track_caller]
    pub(crate) fn expect(&mut self, pair: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let begun = Instant::now();
        loop {
            match self.receive(pair) {
                Some(frame) if wanted(&frame[VNET_HDR_LEN..]) => return frame,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_micros(50)),
            }
            assert!(begun.elapsed() < PATIENCE, "no such frame comes in");
        }
    }

    /// Frames of many lengths go both ways, and arrive as they were sent.
    #[track_caller]
    pub(crate) fn exchange(&mut self, wire: &Wire, pair: usize, frames: u64) {
        // What others sent.
        while wire.next().is_some() {}
        for number in 0..frames {
            let length = 14 + (number as usize * 373) % 1486;
            let out = frame(number, length);
            self.send(pair, &[&[0; VNET_HDR_LEN][..], &out].concat());
            let got = wire.expect(ours);
            assert!(got[HEADER..] == out[..], "frame {number} went out as something else");
            let back = frame(number ^ 1 << 40, length);
            wire.send(&[&[0; HEADER][..], &back].concat()).unwrap();
            let got = self.expect(pair, ours);
            assert_eq!(got[..VNET_HDR_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "header of frame {number}");
            assert!(got[VNET_HDR_LEN..] == back[..], "frame {number} came in as something else");
        }
    }
}

fn offer(memory: &Memory, ring: &mut Queue, queue: usize, slot: u16) {
    // Another chain of the slot's would need another descriptor: heads are slots.
    ring.chain(memory, slot, &[(buffer(queue, slot), STRIDE as u32, true)]);
}

/// Whether a frame is one of the tests'.
pub(crate) fn ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&EXPERIMENTAL[..])
}

/// A frame that nobody answers, with its number in it if there is room.
pub(crate) fn frame(number: u64, length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(EXPERIMENTAL);
    frame.extend(number.to_le_bytes());
    frame.extend(device::fake::random::Random(number).bytes(length.saturating_sub(22)));
    frame.truncate(length.max(14));
    frame
}

/// The number in a frame.
pub(crate) fn number(frame: &[u8]) -> u64 {
    u64::from_le_bytes(frame[14..22].try_into().unwrap())
}
