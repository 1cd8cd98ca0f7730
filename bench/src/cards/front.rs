//! The front end's half of a card: one pair of queues, whose frames are made and looked at here.

use std::collections::VecDeque;
use std::io::Error;
use std::time::{Duration, Instant};

use ::tests::tap::{self, Tap};
use ::vhost::VhostBackend;
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, Memory, Queue};

use super::{GUEST, HOST};
use crate::daemon::Daemon;
use crate::grid::{Figures, NetCase, QUESTION};

pub(super) const ENTRIES: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes of a receive buffer, which takes a whole frame.
const SLOT: u64 = 2048;
/// Where what is sent is, behind the receive buffers.
const OUT: u64 = DATA + ENTRIES as u64 * SLOT;
/// Bytes of `virtio_net_hdr`, and features of a card (virtio 1.3 §5.1.3).
const HEADER: usize = 12;
const CSUM: u64 = 1;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;
/// The asker's, but for the last byte.
const MAC: [u8; 5] = [0x52, 0x54, 0, 0xbe, 0x5c];
/// Bytes of an answer that are looked at.
const ANSWER: usize = 42;
/// How long an answer may take before the questions under way count as lost: of a tap that comes up, and later.
const COMES_UP: Duration = Duration::from_millis(50);
const LOST: Duration = Duration::from_secs(2);
/// How long nothing at all may happen.
const LIMIT: Duration = Duration::from_secs(20);

/// A card in use, served by a program.
pub(super) struct Card<'a> {
    daemon: &'a Daemon,
    memory: Memory,
    queues: [Queue; 2],
    front: Front,
    /// Transmit descriptors that are not with the back end.
    free: Vec<u16>,
    /// When each question under way was asked; answers come in the order of their questions.
    asked: VecDeque<Instant>,
    /// How often those were given up: the last byte of the asker's address, so that late answers are known.
    epoch: u8,
}

/// What a time of load came to.
struct Sums {
    done: u64,
    time: Duration,
    cpu: Duration,
}

impl Sums {
    fn figures(&self) -> Figures {
        Figures {
            per_second: self.done as f64 / self.time.as_secs_f64(),
            cpu_us: self.cpu.as_secs_f64() * 1e6 / self.done as f64,
            ..Figures::default()
        }
    }
}

impl Card<'_> {
    /// Starts the queues, and waits until the host answers.
    pub(super) fn plug<'a>(daemon: &'a Daemon, case: &NetCase) -> Result<Card<'a>, Error> {
        let memory = Memory::new();
        let mut queues = [RECEIVE, TRANSMIT].map(|i| Queue::new(i, ENTRIES));
        (0..ENTRIES).for_each(|slot| offer(&memory, &mut queues[RECEIVE], slot));
        let cut = if case.is_cut() { CSUM | HOST_TSO4 } else { 0 };
        let mut front = Front::connect(&daemon.socket, EVENT_IDX | MRG_RXBUF | cut);
        if front.features & cut != cut {
            return Err(Error::other(format!("it has features {:#x} only", front.features)));
        }
        front.start_by_pairs(&memory, &queues);
        queues[RECEIVE].kick();
        let free = (0..ENTRIES).collect();
        let mut card = Card { daemon, memory, queues, front, free, asked: VecDeque::new(), epoch: 0 };
        let begun = Instant::now();
        while card.answers(|_| {}) == 0 {
            if begun.elapsed() > LIMIT {
                return Err(Error::other("the first question is not answered"));
            }
            card.ask_up_to(1, COMES_UP);
        }
        card.give_up();
        Ok(card)
    }

    /// Stops the queues.
    pub(super) fn unplug(self) -> Result<(), Error> {
        for i in [RECEIVE, TRANSMIT] {
            let stopped = self.front.socket.get_vring_base(i);
            stopped.map_err(|e| Error::other(format!("cannot stop a queue: {e}")))?;
        }
        Ok(())
    }

    /// Tells the back end of what was offered since `before` buffers were.
    fn wake(&self, queue: usize, before: u16) {
        let queue = &self.queues[queue];
        if self.front.features & EVENT_IDX != 0 {
            queue.kick_if_wanted(&self.memory, before);
        } else if queue.offered != before {
            queue.kick();
        }
    }

    /// Sends so many frames, or less if there is no room. `place` tells where a descriptor's frame is, and how long.
    fn send_up_to(&mut self, most: usize, place: impl Fn(&Memory, u16) -> (u64, u32)) -> usize {
        let queue = &mut self.queues[TRANSMIT];
        let before = queue.offered;
        let mut sent = 0;
        for head in self.free.drain(self.free.len() - most.min(self.free.len())..) {
            let (at, length) = place(&self.memory, head);
            queue.chain(&self.memory, head, &[(at, length, false)]);
            queue.call_never(&self.memory);
            sent += 1;
        }
        self.wake(TRANSMIT, before);
        sent
    }

    /// Takes back the buffers of what was sent.
    fn reclaim(&mut self) -> u64 {
        let before = self.free.len();
        while let Some((head, _)) = self.queues[TRANSMIT].used(&self.memory) {
            self.free.push(head);
        }
        (self.free.len() - before) as u64
    }

    /// Takes what has come. `then` is given its first bytes, where it has so many.
    fn drain(&mut self, bytes: usize, mut then: impl FnMut(&[u8])) -> u64 {
        let queue = &mut self.queues[RECEIVE];
        let (mut frames, before) = (0, queue.offered);
        while let Some((head, length)) = queue.used(&self.memory) {
            if bytes > 0 && length as usize >= HEADER + bytes {
                then(&self.memory.get(buffer(head) + HEADER as u64, bytes));
            }
            frames += 1;
            offer(&self.memory, queue, head);
        }
        self.wake(RECEIVE, before);
        frames
    }

    /// Does without answers to the questions that are under way.
    fn give_up(&mut self) {
        self.asked.clear();
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Has that many questions under way, none of them for longer than that.
    fn ask_up_to(&mut self, depth: u16, patience: Duration) {
        self.reclaim();
        let now = Instant::now();
        if self.asked.front().is_some_and(|first| now - *first > patience) {
            self.give_up();
        }
        let question = question(self.epoch);
        let sent = self.send_up_to(usize::from(depth).saturating_sub(self.asked.len()), |memory, head| {
            // Each time anew: passt makes its answer of it, where it is.
            let at = OUT + u64::from(head) * SLOT;
            memory.put(at, &question);
            (at, question.len() as u32)
        });
        self.asked.extend(std::iter::repeat_n(now, sent));
    }

    /// Answers that have come; `then` is told how long each took.
    fn answers(&mut self, mut then: impl FnMut(Duration)) -> u64 {
        let (mut answers, epoch) = (0, self.epoch);
        // Others may come by here.
        self.drain(ANSWER, |frame| answers += usize::from(is_answer(frame, epoch)));
        let answered = self.asked.drain(..answers.min(self.asked.len()));
        answered.map(|asked| then(asked.elapsed())).count() as u64
    }

    /// Does something again and again, which tells how much was done by it, and is told whether that is measured: not the first tenth,
    /// which warms up.
    fn load(&mut self, time: Duration, mut step: impl FnMut(&mut Self, bool) -> u64) -> Result<Sums, Error> {
        let mut begun = None;
        let mut measured: Option<(Instant, Duration)> = None;
        let (mut done, mut last) = (0, Instant::now());
        loop {
            let some = step(self, measured.is_some());
            let now = Instant::now();
            if some > 0 {
                last = now;
                begun.get_or_insert(now);
            } else if now - last > LIMIT {
                return Err(Error::other("nothing comes back"));
            }
            match measured {
                Some((began, before)) => {
                    done += some;
                    if now - began >= time && done > 0 {
                        let cpu = self.daemon.cpu()?.saturating_sub(before);
                        return Ok(Sums { done, time: began.elapsed(), cpu });
                    }
                }
                None if begun.is_some_and(|begun| now - begun >= time / 10) => {
                    measured = Some((now, self.daemon.cpu()?));
                }
                None => {}
            }
        }
    }

    pub(super) fn ask(&mut self, depth: u16, time: Duration) -> Result<Figures, Error> {
        let mut latencies: Vec<u32> = Vec::with_capacity(1 << 20);
        let sums = self.load(time, |card, measured| {
            card.ask_up_to(depth, LOST);
            card.answers(|took| {
                if measured {
                    latencies.push(took.as_nanos() as u32);
                }
            })
        })?;
        Figures::of(latencies, sums.time, sums.cpu)
    }

    /// Sends the same frame again and again. All that was sent must have come to the tap, if there is one.
    pub(super) fn send(
        &mut self,
        case: &NetCase,
        tap: Option<&Tap>,
        time: Duration,
    ) -> Result<Figures, Error> {
        let frame = frame(case);
        self.memory.put(OUT, &frame);
        let received = || tap.map_or(Ok(0), Tap::received);
        let (before, mut all) = (received()?, 0);
        let sums = self.load(time, |card, _| {
            let sent = card.reclaim();
            card.send_up_to(usize::from(ENTRIES), |_, _| (OUT, frame.len() as u32));
            all += sent;
            sent
        })?;
        let (came, sent) = (received()? - before, all * case.size as u64);
        // Some may be with the back end yet.
        if tap.is_some() && came < sent / 2 {
            return Err(Error::other(format!("of {sent} bytes {came} have come to the tap")));
        }
        Ok(sums.figures())
    }

    pub(super) fn receive(&mut self, time: Duration) -> Result<Figures, Error> {
        Ok(self.load(time, |card, _| card.drain(0, |_| {}))?.figures())
    }
}

/// Where a receive buffer is.
fn buffer(slot: u16) -> u64 {
    DATA + u64::from(slot) * SLOT
}

fn offer(memory: &Memory, queue: &mut Queue, slot: u16) {
    queue.chain(memory, slot, &[(buffer(slot), SLOT as u32, true)]);
    queue.call_never(memory);
}

/// Who has the host's address? Behind an empty header.
fn question(epoch: u8) -> [u8; HEADER + QUESTION] {
    let mut bytes = [0; HEADER + QUESTION];
    let mut put = |at: usize, part: &[u8]| {
        bytes[HEADER + at..HEADER + at + part.len()].copy_from_slice(part);
    };
    put(0, &[0xff; 6]);
    put(6, &MAC);
    put(11, &[epoch]);
    // ARP, Ethernet, IPv4, lengths of their addresses, a question.
    put(12, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    put(22, &MAC);
    put(27, &[epoch]);
    put(28, &GUEST);
    put(38, &HOST);
    bytes
}

/// Whether a frame's beginning, of [`ANSWER`] bytes, answers one of that epoch.
fn is_answer(frame: &[u8], epoch: u8) -> bool {
    frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == HOST && frame[37] == epoch
}

/// A frame for nobody, behind its header: of an experimental type, if it is not to be cut.
fn frame(case: &NetCase) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + case.size];
    let (header, frame) = bytes.split_at_mut(HEADER);
    tap::fill(header, frame);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    if !case.is_cut() {
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    }
    bytes
}
