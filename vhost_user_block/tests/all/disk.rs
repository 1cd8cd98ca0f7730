//! The program with a disk, and what a driver asks of one.

use std::path::Path;

use vhost_user::testing::front::{EVENT_IDX, Front, Memory, Queue};
use vhost_user::testing::peer::Subject;
use vhost_user::testing::{Daemon, Program, Scratch};

pub(crate) const PROGRAM: Program =
    Program { path: env!("CARGO_BIN_EXE_vhost_user_block"), flag: "--block-backend" };

/// The program, for tests that suit any.
pub(crate) const SUBJECT: Subject = Subject {
    start: |scratch, socket| {
        let image = scratch.zeros("image", 1 << 20);
        start(scratch, &image, socket, ",num_queues=2")
    },
    serve,
    writable: 32,
    protocol: 0xb229,
};

/// Starts it with one disk and waits until it listens.
pub(crate) fn start(scratch: &Scratch, image: &Path, socket: &Path, keys: &str) -> Daemon {
    PROGRAM.serve(scratch, socket, &format!("path={}{keys}", image.display()))
}

/// A front end that behaves is served.
#[track_caller]
pub(crate) fn serve(socket: &Path) {
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(socket, EVENT_IDX);
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, FLUSH, 0, (0, 0)), 0);
}

pub(crate) const SECTOR: u64 = 512;

/// Kinds of requests.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;

/// The driver's half of a disk's queue.
pub(crate) trait Requests {
    /// Requests that fit at once.
    fn depth(&self) -> u16;

    /// Makes a request available: the `slot`-th, with data at `data` in memory.
    fn offer(&mut self, memory: &Memory, slot: u16, kind: u32, sector: u64, data: (u64, u32));

    /// The next slot that came back, with its status, if one did.
    fn poll(&mut self, memory: &Memory) -> Option<(u16, u8)>;

    /// Waits for the next one.
    fn wait(&mut self, memory: &Memory) -> (u16, u8);

    /// One request and its status.
    fn ask(&mut self, memory: &Memory, kind: u32, sector: u64, data: (u64, u32)) -> u8;
}

/// Where the header of a slot is; its status comes behind it.
fn header(queue: &Queue, slot: u16) -> u64 {
    queue.room() + 32 * u64::from(slot)
}

fn answer(queue: &Queue, memory: &Memory, head: u16) -> (u16, u8) {
    assert_eq!(head % 3, 0, "a head that was never offered");
    let slot = head / 3;
    (slot, memory.get(header(queue, slot) + 16, 1)[0])
}

impl Requests for Queue {
    fn depth(&self) -> u16 {
        self.size / 3
    }

    fn offer(&mut self, memory: &Memory, slot: u16, kind: u32, sector: u64, data: (u64, u32)) {
        let header = header(self, slot);
        memory.put(header, &kind.to_le_bytes());
        memory.put(header + 8, &sector.to_le_bytes());
        memory.put(header + 16, &[0xff]);
        let (at, length) = data;
        let mut buffers = vec![(header, 16, false), (at, length, kind != OUT), (header + 16, 1, true)];
        if length == 0 {
            buffers.remove(1);
        }
        self.chain(memory, slot * 3, &buffers);
    }

    fn poll(&mut self, memory: &Memory) -> Option<(u16, u8)> {
        let (head, _) = self.used(memory)?;
        Some(answer(self, memory, head))
    }

    #[track_caller]
    fn wait(&mut self, memory: &Memory) -> (u16, u8) {
        let (head, _) = self.wait_used(memory);
        answer(self, memory, head)
    }

    #[track_caller]
    fn ask(&mut self, memory: &Memory, kind: u32, sector: u64, data: (u64, u32)) -> u8 {
        self.offer(memory, 0, kind, sector, data);
        self.kick();
        let (slot, status) = self.wait(memory);
        assert_eq!(slot, 0);
        status
    }
}

/// Bytes of the disk, as the configuration space tells.
pub(crate) fn capacity(front: &mut Front) -> u64 {
    let bytes = front.config(0, 8);
    u64::from_le_bytes(bytes.try_into().unwrap()) * SECTOR
}

/// Bytes that tell sector, byte and round.
pub(crate) fn pattern(sector: u64, round: u64, length: usize) -> Vec<u8> {
    let mut x = (sector << 20) ^ (round << 8) ^ 0x9e37_79b9_7f4a_7c15;
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}
