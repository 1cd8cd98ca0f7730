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

mod acpi;
mod attack;
mod bench;
mod blk;
mod cpu;
mod fs;
mod hostile;
mod hotplug;
mod interrupts;
mod load;
mod net;
mod pci;
mod platform;
mod pmem;
mod ports;
mod promise;
mod registers;
mod steps;
mod streams;
mod talk;
mod user_net;
mod web;

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
        let clock = Clock::find(start.number("khz"), acpi.as_ref());
        let bus = Bus::scan(acpi.as_ref());
        if let Some(base) = start.number("bars") {
            bus.place(base);
        }
        Some(Machine { start, acpi, bus, clock, arena })
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
    test("acpi", acpi::tables),
    test("madt", acpi::madt),
    test("mcfg", acpi::mcfg),
    test("smbios", acpi::smbios),
    test("pci-list", pci::list),
    test("pci-bars", pci::bars),
    test("pci-move", pci::bar_move),
    test("pci-move-doorbell", pci::doorbell_move),
    test("pci-decode", pci::decode),
    test("pci-ports", pci::ports),
    test("msix-registers", pci::msix_registers),
    test("msix-interrupt", interrupts::msix),
    test("event-idx", interrupts::event_idx),
    test("blk-queues", interrupts::queues),
    test("serial-loopback", ports::serial_loopback),
    test("serial-fifo", ports::serial_fifo),
    test("serial-string", ports::serial_string),
    test("serial-interrupt", ports::serial_interrupt),
    test("rtc", ports::rtc),
    test("cmos-memory", ports::cmos_memory),
    test("pm-timer", ports::pm_timer),
    test("debug-ports", ports::debug_ports),
    test("i8042", ports::i8042),
    test("unclaimed", ports::unclaimed),
    test("blk-info", blk::info),
    test("blk-read", blk::read),
    test("blk-flush", blk::flush),
    test("blk-id", blk::id),
    test("blk-segments", blk::segments),
    test("blk-full-ring", blk::full_ring),
    test("blk-hostile", hostile::disk_chains),
    test("blk-reset", hostile::reset_in_flight),
    // These write to the disk.
    on_demand("blk-write", blk::write),
    on_demand("blk-range", blk::out_of_range),
    on_demand("blk-zeroes", blk::zeroes),
    on_demand("blk-first-sector", blk::first_sector),
    test("blk-readonly", blk::read_only),
    test("net-info", net::info),
    test("net-arp", net::arp),
    test("net-ping", net::ping),
    test("net-checksum", net::checksum),
    test("net-control", net::control),
    test("net-hostile", net::hostile),
    on_demand("net-dhcp", user_net::dhcp),
    on_demand("net-dns", user_net::dns),
    on_demand("net-reach", user_net::reach),
    on_demand("net-serve", user_net::serve),
    test("pmem-read", pmem::read),
    test("pmem-hostile", pmem::hostile),
    // These write to the memory.
    on_demand("pmem-write", pmem::write),
    on_demand("pmem-readonly", pmem::read_only),
    on_demand("pmem-live", pmem::live),
    test("rng", streams::rng),
    test("rng-hostile", streams::rng_hostile),
    test("console-out", streams::console_out),
    on_demand("console-echo", streams::console_echo),
    test("virtio-registers", registers::registers),
    test("virtio-bar", registers::whole_bar),
    test("virtio-queue-setup", registers::queue_setup),
    test("virtio-doorbells", registers::doorbells),
    on_demand("attack", attack::attack),
    on_demand("fs", fs::file),
    on_demand("hotplug", hotplug::rounds),
    on_demand("resize", hotplug::resize),
    on_demand("exits", bench::exits),
    on_demand("bench-blk", bench::disk),
    on_demand("bench-net", bench::network),
    on_demand("pulse", bench::pulse),
    on_demand("load", load::load),
    on_demand("promise", promise::promise),
    on_demand("steps", steps::steps),
    on_demand("talk", talk::talk),
    on_demand("web", web::web),
    on_demand("x2apic", cpu::x2apic),
    on_demand("processors", cpu::processors),
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
    println!(
        "DONE pass={} fail={} skip={}",
        PASSED.load(Relaxed),
        FAILED.load(Relaxed),
        SKIPPED.load(Relaxed)
    );
}

/// After a panic or a fault: counts it, prints the sum, and powers off without asking anything of the tables.
pub(crate) fn give_up() -> ! {
    FAILED.fetch_add(1, Relaxed);
    done();
    power::end("off", None);
}
