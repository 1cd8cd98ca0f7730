//! A card: numbered frames to a partner on the host, which sends each back as it is, addresses exchanged.
//!
//! A frame, behind its Ethernet header (type 0x88b5), little-endian: what it is (16 bits: 1 to be sent back, 2 "start anew"), its epoch (32 bits at
//! 16), the load that sent it (32 bits at 20), its number (64 bits at 24), and from 32 on the pattern of the number, from which its length follows too.
//!
//! What is on its way when a machine is saved does not come back where it is restored: the partner there says "start anew" with a higher
//! epoch, over and over until it sees a frame of that epoch. What was out is given up then, and counted as such. No frame may be lost in any other way:
//! fewer are out than any queue on the way can hold.

use super::Trouble;
use crate::clock::ticks;
use crate::io::Region;
use crate::random::Random;
use crate::tests::Machine;
use crate::verdict::Stop;
use crate::virtio::blk::pattern;
use crate::virtio::net::{Card, HEADER, ethernet};
use crate::virtio::queue::{Buffer, Queue};
use crate::virtio::{Device, kind};

const TYPE: u16 = 0x88b5;
const ECHO: u16 = 1;
const ANEW: u16 = 2;
const PARTNER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SLOT: u64 = 2048;
const LARGEST_WINDOW: u64 = 128;
/// No slot, in the table from heads to slots.
const NONE: u16 = u16::MAX;

/// A card under load.
#[derive(Debug)]
pub(super) struct NetworkLoad {
    nth: u64,
    card: Card,
    window: u64,
    /// Frame `n` lies in slot `n % window`.
    slots: Region,
    /// Whether the device still has the slot, a byte each.
    sending: Region,
    /// The slot behind each head of the transmit queue, 16 bits each.
    slot_of: Region,
    epoch: u32,
    /// Tells our frames from those of the machine that was here before a reboot, which may come back only now.
    run: u32,
    /// The next frame's number.
    next: u64,
    /// The first that has not come back.
    oldest: u64,
    done: u64,
    abandoned: u64,
}

/// How long frame `number` is, Ethernet header included.
fn len_of(number: u64) -> u64 {
    64 + Random::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed).below(1451)
}

fn fill(frame: Region, number: u64) {
    let words = (frame.len() - 32) / 8;
    (0..words).for_each(|i| frame.write64(32 + i * 8, pattern(number, 0, i)));
    (32 + words * 8..frame.len()).for_each(|i| frame.write8(i, number as u8));
}

fn is_filled(frame: Region, number: u64) -> bool {
    let words = (frame.len() - 32) / 8;
    (0..words).all(|i| frame.read64(32 + i * 8) == pattern(number, 0, i))
        && (32 + words * 8..frame.len()).all(|i| frame.read8(i) == number as u8)
}

impl NetworkLoad {
    /// The `nth` card; `None` if there is none.
    pub(super) fn open(machine: &mut Machine, nth: u64, vector: u16) -> Result<Option<NetworkLoad>, Stop> {
        let Some(device) = Device::find(&machine.bus, kind::NET, nth) else { return Ok(None) };
        let device = device.map_err(Stop::Fail)?;
        let card = Card::on(device, &mut machine.arena, machine.clock, 0, vector).map_err(Stop::Fail)?;
        let limit = LARGEST_WINDOW.min(u64::from(card.transmit.size)).min(u64::from(card.receive.size) / 2);
        let window = machine.start.number("window").unwrap_or(32).clamp(1, limit);
        let arena = &mut machine.arena;
        let load = NetworkLoad {
            nth,
            window,
            slots: arena.take(window * SLOT, 4096),
            sending: arena.take(window, 64),
            slot_of: arena.take(u64::from(card.transmit.size) * 2, 64),
            card,
            epoch: 0,
            run: ticks() as u32,
            next: 0,
            oldest: 0,
            done: 0,
            abandoned: 0,
        };
        load.slot_of.fill(0xff);
        Ok(Some(load))
    }

    /// The queue that interrupts.
    pub(super) fn queue(&self) -> &Queue {
        &self.card.receive
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Frames given up when the partner said so.
    pub(super) fn abandoned(&self) -> u64 {
        self.abandoned
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.next == self.oldest && (0..self.window).all(|slot| self.sending.read8(slot) == 0)
    }

    /// Takes what came and, if `more`, sends until the window is full. How many frames came back.
    pub(super) fn step(&mut self, more: bool, trouble: &mut Trouble) -> u64 {
        let before = self.done;
        while let Some((head, _)) = self.card.transmit.pop_raw() {
            let known = u64::from(head) < self.slot_of.len() / 2;
            let slot = if known { self.slot_of.read16(u64::from(head) * 2) } else { NONE };
            if slot == NONE {
                trouble
                    .note(text!("card {}: head {head} was sent, which was not asked or is done", self.nth));
                continue;
            }
            self.slot_of.write16(u64::from(head) * 2, NONE);
            self.card.transmit.release(head as u16);
            self.sending.write8(u64::from(slot), 0);
        }
        let NetworkLoad { nth, card, epoch, run, next, oldest, done, abandoned, .. } = self;
        let mac = card.mac;
        card.drain(|frame| {
            let mut to = [0; 6];
            frame.load(0, &mut to);
            if frame.len() < 32 || frame.read16(12) != TYPE.to_be() || to != mac {
                return; // the host's own chatter
            }
            let (kind, came, number) = (frame.read16(14), frame.read32(16), frame.read64(24));
            if kind == ANEW {
                if came > *epoch {
                    *epoch = came;
                    *abandoned += *next - *oldest;
                    *oldest = *next;
                }
                return;
            }
            if frame.read32(20) != *run {
                return;
            }
            if kind != ECHO || came != *epoch || !(*oldest..*next).contains(&number) {
                trouble.note(text!(
                    "card {nth}: frame {number} of epoch {came} came, {oldest} to {next} of epoch {epoch} are out"
                ));
                return;
            }
            if number != *oldest {
                trouble.note(text!("card {nth}: {} frames from {oldest} on are lost", number - *oldest));
            }
            if frame.len() != len_of(number) || !is_filled(frame, number) {
                trouble.note(text!("card {nth}: frame {number} came back changed"));
            }
            *oldest = number + 1;
            *done += 1;
        });
        if more {
            self.send(trouble);
        }
        self.done - before
    }

    fn send(&mut self, trouble: &mut Trouble) {
        let mut sent = false;
        while self.next - self.oldest < self.window {
            let number = self.next;
            let slot = number % self.window;
            if self.sending.read8(slot) != 0 {
                break; // back already, but the device has not said that it is done with it
            }
            let buffer = self.slots.part(slot * SLOT, HEADER + len_of(number));
            buffer.part(0, HEADER).fill(0);
            let frame = buffer.part(HEADER, len_of(number));
            ethernet(frame, PARTNER, self.card.mac, TYPE);
            frame.write16(14, ECHO);
            frame.write32(16, self.epoch);
            frame.write32(20, self.run);
            frame.write64(24, number);
            fill(frame, number);
            let Some(head) = self.card.transmit.add(&[Buffer::readable(buffer)]) else {
                trouble.note(text!("card {}: the transmit queue is full", self.nth));
                break;
            };
            self.slot_of.write16(u64::from(head) * 2, slot as u16);
            self.sending.write8(slot, 1);
            self.next += 1;
            sent = true;
        }
        if sent {
            self.card.transmit.kick();
        }
    }
}
