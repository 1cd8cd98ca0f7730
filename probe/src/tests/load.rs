//! A load that goes on until it is told to end, and knows what it is owed: every disk, every card and a piece of memory at once.
//!
//! It is for machines to which things happen meanwhile: a pause, a snapshot, a restore in another process. So it never
//! looks at a clock, which would run on; and it keeps all it knows in its own memory, which comes back with the machine. What it promises:
//!
//! * each request to a disk is answered once; each sector holds what was last written there;
//! * each frame sent comes back once, in order and unchanged, from a partner on the host that sends back all it gets;
//! * memory holds what was written there.
//!
//! Signs of life are lines `LOAD disk=n net=n memory=n errors=n failures=n`, one every `probe.beat` (2000) completions. Whoever waits for them in vain
//! has found a loss of interrupts, doorbells or frames.
//!
//! At an `m` on COM1 it says `# marked`. It ends at a `q`, or after `probe.count` completions; then all that is in flight comes home, and every sector is read again. Also:
//! `probe.interrupts` (on: halt when there is nothing to do, and mask a vector now and then; without it: poll), `probe.depth` (16)
//! requests a disk, `probe.window` (32) frames a card, `probe.sectors` (8192) of each disk, all zeroes at first or written by this load,
//! `probe.touch` (8) MiB of memory, `probe.disks` (4) and `probe.cards` (2) at most, of those that are there. With `probe.failures=on` a disk may answer that a request failed: it is counted, and of a write that failed a
//! sector holds all or nothing; and what comes may turn out not to work. With `probe.hotplug=on` devices that come are used, and let go of when that is asked for, as by `hotplug`.

mod disk;
mod memory;
mod network;

use super::Machine;
use super::hotplug::Slots;
use crate::apic::LocalApic;
use crate::console::typed;
use crate::msix::Msix;
use crate::pci::Function;
use crate::trap;
use crate::verdict::{Outcome, Stop};
use crate::virtio::{self, NO_VECTOR, kind};
use disk::DiskLoad;
use memory::MemoryLoad;
use network::NetworkLoad;

const DISKS: usize = 4;
const CARDS: usize = 2;
/// Vector of the first device's interrupts.
const FIRST_VECTOR: u8 = 0x60;
/// Lines about what went wrong; the rest is counted only.
const COMPLAINTS: u64 = 8;
/// Looks in a row that may find nothing before something counts as lost: minutes, even on a slow host.
const PATIENCE: u64 = 10_000_000_000;

/// What went wrong so far.
#[derive(Debug, Default)]
struct Trouble {
    count: u64,
    /// Requests that a disk said it could not do, if that is no trouble.
    failures: u64,
    failures_expected: bool,
}

impl Trouble {
    fn note(&mut self, what: crate::text::Text) {
        self.count += 1;
        if self.count <= COMPLAINTS {
            println!("# wrong: {what}");
        }
    }
}

/// A device's one interrupt.
#[derive(Debug)]
struct Line {
    msix: Msix,
    vector: u8,
    masked: bool,
}

impl Line {
    /// The table entry in use.
    const ENTRY: u16 = 1;

    fn open(function: Function, apic: &LocalApic, vector: u8) -> Result<Line, Stop> {
        let msix = Msix::of(function).ok_or_else(|| Stop::Fail(text!("{}: no MSI-X", function.bdf)))?;
        for entry in 0..msix.vectors {
            msix.set(entry, apic.message(vector), entry != Line::ENTRY);
        }
        msix.control(true, false);
        Ok(Line { msix, vector, masked: false })
    }

    /// Masks or unmasks. What was pending has to come when it is unmasked.
    fn flip(&mut self, trouble: &mut Trouble) {
        self.masked = !self.masked;
        if self.masked {
            self.msix.mask(Line::ENTRY, true);
            return;
        }
        let before = trap::hits(self.vector);
        let pending = self.msix.pending(Line::ENTRY);
        self.msix.mask(Line::ENTRY, false);
        trap::interrupts_on();
        if pending && !spin(|| trap::hits(self.vector) > before) {
            trouble.note(text!("vector {:#x}: a pending interrupt does not come", self.vector));
        }
        trap::interrupts_off();
    }
}

/// Looks until `done`, and gives up only after very many times. No clock: a machine may stand still as long as it likes.
fn spin(mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..PATIENCE {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// Whether somebody typed a `q`.
pub(super) fn told_to_end() -> bool {
    typed() == Some(b'q')
}

/// All of it.
#[derive(Debug)]
struct Load {
    disks: [Option<DiskLoad>; DISKS],
    cards: [Option<NetworkLoad>; CARDS],
    memory: MemoryLoad,
    lines: [Option<Line>; DISKS + CARDS],
    trouble: Trouble,
}

impl Load {
    fn open(machine: &mut Machine) -> Result<Load, Stop> {
        let apic = machine.start.option("interrupts").is_some_and(|o| o == "on").then(LocalApic::enable);
        let mut lines = [const { None }; DISKS + CARDS];
        let mut line = |machine: &Machine, kind: u16, nth: usize, place: usize| -> Result<u16, Stop> {
            let function = machine.bus.iter().filter(|f| virtio::type_of(f) == Some(kind)).nth(nth);
            let (Some(apic), Some(function)) = (&apic, function) else { return Ok(NO_VECTOR) };
            lines[place] = Some(Line::open(function, apic, FIRST_VECTOR + place as u8)?);
            Ok(Line::ENTRY)
        };
        let mut disks = [const { None }; DISKS];
        let most = |name, all: usize| machine.start.number(name).map_or(all, |most| all.min(most as usize));
        let (most_disks, most_cards) = (most("disks", DISKS), most("cards", CARDS));
        for (nth, disk) in disks.iter_mut().enumerate().take(most_disks) {
            let vector = line(machine, kind::BLOCK, nth, nth)?;
            *disk = DiskLoad::open(machine, nth as u64, vector)?;
        }
        let mut cards = [const { None }; CARDS];
        for (nth, card) in cards.iter_mut().enumerate().take(most_cards) {
            let vector = line(machine, kind::NET, nth, DISKS + nth)?;
            *card = NetworkLoad::open(machine, nth as u64, vector)?;
        }
        let memory = MemoryLoad::new(machine)?;
        let failures_expected = machine.start.option("failures").is_some_and(|o| o == "on");
        let trouble = Trouble { failures_expected, ..Trouble::default() };
        Ok(Load { disks, cards, memory, lines, trouble })
    }

    /// Everything once: takes what is done, asks for more if `more`. How much was done.
    fn step(&mut self, more: bool) -> u64 {
        let trouble = &mut self.trouble;
        let disks: u64 = self.disks.iter_mut().flatten().map(|d| d.step(more, trouble)).sum();
        let cards: u64 = self.cards.iter_mut().flatten().map(|c| c.step(more, trouble)).sum();
        self.memory.step(trouble);
        disks + cards
    }

    /// Waits for an interrupt, unless a device has something or its interrupt is masked.
    fn idle(&self) {
        if self.lines.iter().all(Option::is_none) || self.lines.iter().flatten().any(|line| line.masked) {
            core::hint::spin_loop();
            return;
        }
        let disks = self.disks.iter().flatten().map(DiskLoad::queue);
        let cards = self.cards.iter().flatten().map(NetworkLoad::queue);
        let mut nothing = true;
        for queue in disks.chain(cards) {
            queue.want_interrupt(true);
            nothing &= !queue.has_used();
        }
        if nothing {
            trap::halt();
        }
    }

    fn is_quiet(&self) -> bool {
        self.disks.iter().flatten().all(DiskLoad::is_quiet)
            && self.cards.iter().flatten().all(NetworkLoad::is_quiet)
    }

    fn totals(&self) -> (u64, u64) {
        (
            self.disks.iter().flatten().map(DiskLoad::done).sum(),
            self.cards.iter().flatten().map(NetworkLoad::done).sum(),
        )
    }

    fn beat(&self) {
        let (disk, net) = self.totals();
        let Trouble { count, failures, .. } = self.trouble;
        println!(
            "LOAD disk={disk} net={net} memory={} errors={count} failures={failures}",
            self.memory.done()
        );
    }
}

/// The test.
pub(super) fn load(machine: &mut Machine) -> Outcome {
    let mut load = Load::open(machine)?;
    for disk in load.disks.iter_mut().flatten() {
        disk.sweep(true, &mut load.trouble)?;
    }
    let number = |name, default: u64| machine.start.number(name).unwrap_or(default).max(1);
    let (beat, limit) = (number("beat", 2000), number("count", u64::MAX));
    let (mut done, mut next_beat, mut next_look, mut next_flip) = (0, beat, 0, 0);
    let hotplug = machine.start.option("hotplug").is_some_and(|o| o == "on");
    let mut slots = if hotplug { Some(Slots::open(machine)?) } else { None };
    println!(
        "# loading disks={} cards={}",
        load.disks.iter().flatten().count(),
        load.cards.iter().flatten().count()
    );
    loop {
        let progress = load.step(true);
        done += progress;
        if done >= next_beat {
            load.beat();
            next_beat = done + beat;
        }
        if done >= limit {
            break;
        }
        if done >= next_look {
            let pressed = slots.as_mut().map_or(Ok(false), |slots| slots.look(machine))?;
            match typed() {
                Some(b'q') => break,
                Some(b'm') => println!("# marked"),
                _ if pressed => break,
                _ => (),
            }
            next_look = done + 200;
        }
        if done >= next_flip {
            for line in load.lines.iter_mut().flatten() {
                line.flip(&mut load.trouble);
            }
            next_flip = done + 500;
        }
        if progress == 0 {
            load.idle();
        }
    }
    // What is in flight is fetched by looking, interrupts or not.
    if !spin(|| {
        load.step(false);
        load.is_quiet()
    }) {
        load.trouble.note(text!("requests or frames are still out"));
    }
    for line in load.lines.iter().flatten() {
        line.msix.control(false, false);
    }
    let (disk, net) = load.totals();
    let mut sectors = 0;
    for load_disk in load.disks.iter_mut().flatten() {
        sectors += load_disk.sweep(false, &mut load.trouble)?;
    }
    load.memory.check_all(&mut load.trouble);
    let abandoned: u64 = load.cards.iter().flatten().map(NetworkLoad::abandoned).sum();
    let Trouble { count: errors, failures, .. } = load.trouble;
    let facts = text!(
        "disk={disk} net={net} memory={} sectors={sectors} abandoned={abandoned} errors={errors} failures={failures}",
        load.memory.done()
    );
    if errors == 0 { Ok(facts) } else { Err(Stop::Fail(facts)) }
}
