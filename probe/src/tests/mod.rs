//! The named tests: their list, and the loop that runs them.
//!
//! A test is a function from the machine to a line of facts, or to why it failed or could not be run. It leaves devices reset;
//! memory it took is taken back afterwards.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::acpi::Acpi;
use crate::arena::Arena;
use crate::clock::Clock;
use crate::pci::Bus;
use crate::power;
use crate::start::Start;
use crate::verdict::{Outcome, Stop};

mod cpu;
mod platform;

/// All that a test may want of the machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) start: Start,
    pub(crate) acpi: Option<Acpi>,
    pub(crate) bus: Bus,
    pub(crate) clock: Clock,
    pub(crate) arena: Arena,
}

impl Machine {
    /// Finds everything; `None` without usable RAM.
    pub(crate) fn new(start: Start) -> Option<Machine> {
        let arena = Arena::new(&start)?;
        let acpi = Acpi::find(start.rsdp);
        Some(Machine { start, acpi, bus: Bus::scan(acpi.as_ref()), clock: Clock::find(), arena })
    }
}

type Test = fn(&mut Machine) -> Outcome;

/// A named test, and whether `all` includes it. Those outside need a partner on the host, or end the machine, or take long.
struct Entry {
    name: &'static str,
    in_all: bool,
    run: Test,
}

const fn test(name: &'static str, run: Test) -> Entry {
    Entry { name, in_all: true, run }
}

const fn on_demand(name: &'static str, run: Test) -> Entry {
    Entry { name, in_all: false, run }
}

static TESTS: &[Entry] = &[
    test("hello", platform::hello),
    test("command-line", platform::command_line),
    test("memory-map", platform::memory_map),
    test("memory-touch", platform::memory_touch),
    test("cpuid", cpu::cpuid),
    test("fault", cpu::fault),
    test("apic", cpu::apic),
    on_demand("hang", platform::hang),
];

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Runs what the command line asks for and prints the sum.
pub(crate) fn run(machine: &mut Machine) {
    if machine.start.command_line().split_ascii_whitespace().any(|word| word == "probe.list") {
        for entry in TESTS {
            println!("# {}{}", entry.name, if entry.in_all { "" } else { " (on demand)" });
        }
    }
    for name in machine.start.option("run").unwrap_or("hello").split(',') {
        let mut known = false;
        for entry in TESTS.iter().filter(|t| t.name == name || name == "all" && t.in_all) {
            known = true;
            report(entry, machine);
        }
        if !known {
            println!("FAIL {name}: there is no such test");
            FAILED.fetch_add(1, Relaxed);
        }
    }
    done();
}

fn report(entry: &Entry, machine: &mut Machine) {
    let name = entry.name;
    let counter = match (entry.run)(machine) {
        Ok(facts) if facts.as_str().is_empty() => {
            println!("PASS {name}");
            &PASSED
        }
        Ok(facts) => {
            println!("PASS {name} {facts}");
            &PASSED
        }
        Err(Stop::Fail(why)) => {
            println!("FAIL {name}: {why}");
            &FAILED
        }
        Err(Stop::Skip(why)) => {
            println!("SKIP {name}: {why}");
            &SKIPPED
        }
    };
    counter.fetch_add(1, Relaxed);
    machine.arena.reset();
}

fn done() {
    println!("DONE pass={} fail={} skip={}", PASSED.load(Relaxed), FAILED.load(Relaxed), SKIPPED.load(Relaxed));
}

/// After a panic or a fault: counts it, prints the sum, and powers off without asking anything of the tables.
pub(crate) fn give_up() -> ! {
    FAILED.fetch_add(1, Relaxed);
    done();
    power::end("off", None);
}
