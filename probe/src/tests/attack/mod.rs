//! A guest that does all the harm it can think of, drawn from a seeded generator, for as long as it is told.
//!
//! A run is made of rounds. What a round does follows from `probe.seed` (1), its number, and the devices that are there then. It ends after
//! `probe.millis` (2000) or `probe.rounds`; `probe.first` (0) is the number of the first round, so that one can be had alone. `probe.only` names
//! the one kind of rounds there is. With `probe.second=1` another processor writes and reads the registers of the device that is under attack.
//!
//! What must hold after each round: a driver that behaves can reset the device and use it, and memory that no device was ever given is as
//! it was. The rest is for the host to see.
//!
//! Never here: what ends the machine or a processor (power, reset, INIT, NMI), since that would only end the run.

mod bus;
mod pick;
mod platform;
mod rings;

use super::Machine;
use crate::apic::LocalApic;
use crate::clock::ticks;
use crate::io::Region;
use crate::pci::Function;
use crate::processors;
use crate::random::Random;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, pattern};
use crate::virtio::queue::Buffer;
use crate::virtio::{self, Device, NO_VECTOR, kind};

/// Bytes that no device is given.
const FENCE: u64 = 256 << 10;
const UNTOUCHED: u64 = 0xf5f5_f5f5_f5f5_f5f5;

type Kind = fn(&mut Attack<'_>) -> Result<(), Stop>;

/// Kinds of rounds, and how many in a hundred there are of each.
static KINDS: &[(&str, u64, Kind)] = &[
    ("rings", 30, rings::round),
    ("races", 4, rings::races),
    ("registers", 14, bus::registers),
    ("window", 6, bus::window),
    ("config", 14, bus::config),
    ("msix", 8, bus::msix),
    ("ports", 8, platform::ports),
    ("memory", 4, platform::memory),
    ("flood", 4, platform::flood),
    ("slots", 8, platform::slots),
];

/// A round.
struct Attack<'a> {
    machine: &'a mut Machine,
    random: Random,
    /// Where indirect tables are, which no device is given to write to.
    tables: Region,
    /// Where chains may point to.
    play: Region,
    /// Physical address right behind the last RAM.
    beyond: u64,
    /// Accesses and chains so far.
    actions: u64,
}

impl Attack<'_> {
    /// A virtio function that is there and can be reached, or nothing.
    fn function(&mut self) -> Option<Function> {
        let bits = self.random.next();
        let here = |f: &Function| f.exists() && virtio::type_of(f).is_some() && !self.is_covered(*f);
        let count = self.machine.bus.iter().filter(here).count() as u64;
        let nth = bits.checked_rem(count)?;
        self.machine.bus.iter().filter(here).nth(nth as usize)
    }

    /// Whether another function has its BAR where this one has it: whoever moves a BAR away may find that something else was plugged in there.
    fn is_covered(&self, function: Function) -> bool {
        let base = |f: &Function| [f.read32(0x10) & !0xf, f.read32(0x14)];
        let others =
            self.machine.bus.iter().filter(|f| f.bdf != function.bdf && virtio::type_of(f).is_some());
        others.filter(|f| f.exists()).any(|f| base(&f) == base(&function))
    }
}

/// See the module.
pub(super) fn attack(machine: &mut Machine) -> Outcome {
    let number = |name, default| machine.start.number(name).unwrap_or(default);
    let (seed, millis) = (number("seed", 1), number("millis", 2000));
    let (first, rounds) = (number("first", 0), number("rounds", u64::MAX));
    let only = machine.start.option("only");
    if let Some(name) = only.filter(|name| KINDS.iter().all(|(known, ..)| known != name)) {
        fail!("there are no rounds of the kind {name}");
    }
    let clock = machine.clock;
    let second = machine.start.number("second").unwrap_or(0) != 0;
    if second && processors::set_to_work(&LocalApic::enable(), &clock, 1).is_none() {
        fail!("the second processor does not come");
    }
    machine.arena.reset();
    let fence = machine.arena.take(FENCE, 4096);
    (0..FENCE / 8).for_each(|i| fence.write64(i * 8, UNTOUCHED));
    let mark = machine.arena.mark();
    let beyond = machine.start.map().filter(|e| e.kind == 1).map(|e| e.base + e.len).max().unwrap_or(0);
    println!("# attacking seed={seed} first={first} second={}", u8::from(second));
    let mut done = [0u64; 16];
    let (begun, mut beat, mut actions, mut round) = (ticks(), ticks(), 0, first);
    while round - first < rounds && clock.micros_since(begun) < millis.saturating_mul(1000) {
        let mut random = Random::new(pattern(seed, round, 0));
        let nth = kind_of(&mut random, only);
        let (name, _, run) = KINDS[nth];
        machine.arena.rewind(mark);
        let tables = machine.arena.take(64 << 10, 4096);
        // Behind it lie the rings, and what a device may write that was given too much.
        let play = machine.arena.take(1 << 20, 4096);
        let mut attack = Attack { machine, random, tables, play, beyond, actions: 0 };
        if let Err(Stop::Fail(why)) = run(&mut attack) {
            fail!("round {round} of seed {seed}, {name}: {why}");
        }
        actions += attack.actions;
        done[nth] += 1;
        if let Some(i) = (0..FENCE / 8).find(|&i| fence.read64(i * 8) != UNTOUCHED) {
            fail!("round {round} of seed {seed}, {name}: memory at {:#x} has changed", fence.base() + i * 8);
        }
        round += 1;
        if clock.micros_since(beat) > 500_000 {
            beat = ticks();
            println!("\nROUND {round} {name} actions={actions}");
        }
    }
    println!("");
    for ((name, ..), count) in KINDS.iter().zip(done) {
        println!("# attacked {name}={count}");
    }
    let turns = processors::turns();
    check!(!second || turns > 1000, "the second processor has made {turns} turns");
    Ok(text!("seed={seed} rounds={} actions={actions} turns={turns}", round - first))
}

/// Which of the [`KINDS`], or of those with this name.
fn kind_of(random: &mut Random, only: Option<&str>) -> usize {
    let kinds = || KINDS.iter().enumerate().filter(|(_, (name, ..))| only.is_none_or(|only| only == *name));
    let total: u64 = kinds().map(|(_, (_, weight, _))| weight).sum();
    let mut at = random.below(total);
    for (nth, (_, weight, _)) in kinds() {
        if at < *weight {
            return nth;
        }
        at -= weight;
    }
    0
}

/// Starts a device as a driver that behaves does, and uses it where that needs no partner.
fn still_works(attack: &mut Attack<'_>, function: Function) -> Result<(), Stop> {
    let Attack { machine, .. } = attack;
    let (arena, clock) = (&mut machine.arena, machine.clock);
    let mut device = Device::open(function).map_err(Stop::Fail)?;
    if virtio::type_of(&function) == Some(kind::BLOCK) {
        let mut disk = Disk::on(device, arena, clock, Disk::USUAL, NO_VECTOR).map_err(Stop::Fail)?;
        let sector = arena.take(512, 512);
        if disk.capacity > 0 {
            disk.transfer(blk::T_IN, 0, sector).map_err(Stop::Fail)?;
        }
        return Ok(());
    }
    device.negotiate(0).map_err(Stop::Fail)?;
    let mut first = None;
    for index in 0..device.queue_count() {
        let queue = device.queue(arena, index, 16, NO_VECTOR).map_err(Stop::Fail)?;
        first = first.or(Some(queue));
    }
    device.start().map_err(Stop::Fail)?;
    if let (Some(kind::RNG), Some(mut queue)) = (virtio::type_of(&function), first) {
        queue.add(&[Buffer::writable(arena.take(64, 64))]);
        queue.kick();
        device.complete(&mut queue, &clock).map_err(Stop::Fail)?;
    }
    Ok(())
}
