//! The probe: a guest of our own that tests a VMM from inside and loads it for benchmarks.
//!
//! It enters by PVH, drops to ring 3 with every port and all memory open to it (so that it runs at full speed even where
//! `/dev/kvm` emulates kernel mode), runs the tests named on its command line, and powers off:
//!
//! ```text
//! probe.run=hello,pci-list,blk-read    tests to run, in order; `all` for every one that needs no partner
//! probe.end=off                        off, reset, i8042, cmos, triple, halt, spin
//! probe.list                           name the tests instead
//! probe.bars=0xc0000000                place virtio BARs that firmware left at 0 from here on
//! ```
//!
//! One line a test on COM1 (`PASS name facts`, `FAIL name: why`, `SKIP name: why`), then `DONE pass=n fail=n skip=n`. Lines that
//! begin with `# ` are facts that a test lists. See `tests` for the other options.
#![no_std]
#![no_main]

#[macro_use]
mod text;
#[macro_use]
mod console;
#[macro_use]
mod verdict;
mod acpi;
mod apic;
mod arena;
mod boot;
mod clock;
mod histogram;
mod io;
mod memory;
mod msix;
mod paging;
mod pci;
mod power;
mod processors;
mod random;
mod start;
mod tests;
mod trap;
mod virtio;

use start::Start;
use tests::Machine;

/// Entered by `boot` in ring 3 with PVH's start_info, on the probe's own stack.
#[unsafe(no_mangle)]
extern "C" fn probe_main(start_info: u64) -> ! {
    trap::init();
    let Some(start) = Start::read(start_info) else {
        println!("FAIL start: no PVH start_info at {start_info:#x}");
        power::end("off", None);
    };
    let Some(mut machine) = Machine::new(start) else {
        println!("FAIL start: the memory map shows no RAM behind the image");
        power::end("off", None);
    };
    tests::run(&mut machine);
    power::end(start.option("end").unwrap_or("off"), machine.acpi.as_ref());
}

/// Where `trap` sends a fault that nobody expected.
#[unsafe(no_mangle)]
extern "C" fn unexpected_fault() -> ! {
    let fault = trap::last_fault();
    println!(
        "FAIL fault: vector {} error {:#x} at {:#x}, address {:#x}",
        fault.vector, fault.error, fault.rip, fault.cr2
    );
    tests::give_up();
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    println!("FAIL panic: {} ({file}:{line})", info.message());
    tests::give_up();
}
