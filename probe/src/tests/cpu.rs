//! The vCPU: what CPUID says, faults, its own APIC.

use super::Machine;
use crate::apic::LocalApic;
use crate::clock::PATIENCE;
use crate::processors;
use crate::text::Text;
use crate::trap;
use crate::verdict::Outcome;

/// CPUID facts that the contract fixes: hypervisor bit, x2APIC, physical address width.
pub(super) fn cpuid(machine: &mut Machine) -> Outcome {
    let [max, b, c, d] = trap::cpuid(0, 0);
    let mut vendor = [0; 12];
    for (chunk, register) in vendor.chunks_exact_mut(4).zip([b, d, c]) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    let [_, b1, c1, _] = trap::cpuid(1, 0);
    let phys = trap::cpuid(0x8000_0008, 0)[0] & 0xff;
    let [hypervisor_max, hb, hc, hd] = trap::cpuid(0x4000_0000, 0);
    let mut signature = [0; 12];
    for (chunk, register) in signature.chunks_exact_mut(4).zip([hb, hc, hd]) {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    let printable = |bytes: &[u8]| -> Text {
        text!("{}", core::str::from_utf8(bytes).unwrap_or("?").trim_end_matches('\0'))
    };
    println!(
        "# cpuid vendor={} max={max:#x} apic={} logical={} hypervisor-max={hypervisor_max:#x} signature={} tsc={}kHz by {}",
        printable(&vendor),
        b1 >> 24,
        b1 >> 16 & 0xff,
        printable(&signature),
        machine.clock.khz,
        machine.clock.source
    );
    check!(c1 & 1 << 31 != 0, "the hypervisor bit (1.ECX.31) is clear");
    check!((32..=52).contains(&phys), "{phys} physical address bits");
    if let Some(wanted) = machine.start.number("phys") {
        check!(u64::from(phys) == wanted, "{phys} physical address bits, not {wanted}");
    }
    Ok(text!("phys-bits={phys} x2apic={} deadline={}", c1 >> 21 & 1, c1 >> 24 & 1))
}

extern "C" fn read_at(address: u64) -> u64 {
    let value: u64;
    // SAFETY: meant to fault; `catch` takes it.
    unsafe { core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) address) };
    value
}

/// A page fault is delivered with its address, and the probe goes on.
pub(super) fn fault(_machine: &mut Machine) -> Outcome {
    let nowhere = 0x7fff_0000_1000;
    match trap::catch(read_at, nowhere) {
        Ok(value) => fail!("reading {nowhere:#x} gave {value:#x} instead of a page fault"),
        Err(fault) => {
            check!(fault.vector == 14, "vector {} instead of 14", fault.vector);
            check!(fault.cr2 == nowhere, "CR2 {:#x} instead of {nowhere:#x}", fault.cr2);
            check!(fault.error & 4 != 0, "the error code {:#x} does not say user mode", fault.error);
        }
    }
    Ok(text!(""))
}

/// The local APIC takes a self-IPI, a second one after the EOI, and wakes a halted CPU by its timer.
pub(super) fn apic(machine: &mut Machine) -> Outcome {
    const VECTOR: u8 = 0x41;
    let apic = LocalApic::enable();
    for round in 1..=3 {
        let before = trap::hits(VECTOR);
        apic.send_self(VECTOR);
        trap::interrupts_on();
        let came = machine.clock.wait(PATIENCE, || trap::hits(VECTOR) > before);
        trap::interrupts_off();
        check!(came, "self-IPI {round} was not delivered");
    }
    let before = trap::hits(VECTOR);
    apic.start_timer(VECTOR, 10_000);
    let came = machine.clock.wait(PATIENCE, || {
        trap::halt();
        trap::hits(VECTOR) > before
    });
    apic.stop_timer();
    check!(came, "the timer did not wake a halted CPU");
    Ok(text!("id={} x2apic={}", apic.id(), apic.is_x2apic()))
}

/// The same in x2APIC mode. There is no way back but a reset, so it is not among the tests that always run.
pub(super) fn x2apic(machine: &mut Machine) -> Outcome {
    if LocalApic::enable_x2apic().is_none() {
        skip!("CPUID knows no x2APIC");
    }
    apic(machine)
}

/// Every processor that the MADT enables comes up on INIT and SIPI, with the APIC id that the table gives it.
pub(super) fn processors(machine: &mut Machine) -> Outcome {
    let Some(acpi) = machine.acpi else { skip!("no MADT to find processors") };
    let own = LocalApic::enable();
    let apic = LocalApic::enable_x2apic().unwrap_or(own);
    let (mut started, mut listed) = (1, 0);
    for (kind, entry) in acpi.madt_entries() {
        let (id, flags) = match kind {
            0 => (u32::from(entry.read8(3)), entry.read32(4)),
            9 => (entry.read32(4), entry.read32(8)),
            _ => continue,
        };
        if flags & 1 == 0 {
            continue;
        }
        listed += 1;
        if id == apic.id() {
            continue;
        }
        match processors::start(&apic, &machine.clock, id) {
            None => fail!("processor {id} does not start"),
            Some(said) => check!(said == u64::from(id & 0xff), "processor {id} calls itself {said}"),
        }
        started += 1;
    }
    check!(started == listed, "{started} processors run, {listed} are enabled");
    Ok(text!("started={started}"))
}
