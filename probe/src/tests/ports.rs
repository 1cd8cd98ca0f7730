//! The small devices on ports: UART, CMOS clock, PM timer, debug ports, and what answers where nothing is.

use super::Machine;
use crate::apic::{IoApic, LocalApic};
use crate::clock::{PATIENCE, ticks};
use crate::console::COM1;
use crate::io::{self, Region};
use crate::trap;
use crate::verdict::Outcome;

const IER: u16 = COM1 + 1;
const IIR: u16 = COM1 + 2;
const FCR: u16 = IIR;
const LCR: u16 = COM1 + 3;
const MCR: u16 = COM1 + 4;
const LSR: u16 = COM1 + 5;
const MSR: u16 = COM1 + 6;
const SCRATCH: u16 = COM1 + 7;
const LSR_DATA_READY: u8 = 1;
const MCR_LOOP: u8 = 1 << 4;

fn has_uart() -> bool {
    io::out8(SCRATCH, 0x5a);
    io::in8(SCRATCH) == 0x5a
}

/// Scratch register, divisor latch, line status, and bytes that come back in loopback without leaving the machine.
pub(super) fn serial_loopback(_machine: &mut Machine) -> Outcome {
    if !has_uart() {
        skip!("no 16550 at {COM1:#x}");
    }
    io::out8(SCRATCH, 0xa5);
    check!(io::in8(SCRATCH) == 0xa5, "the scratch register does not hold");
    let lcr = io::in8(LCR);
    io::out8(LCR, lcr | 0x80);
    let divisor = [io::in8(COM1), io::in8(IER)];
    io::out8(COM1, 0x0c);
    io::out8(IER, 0x34);
    let latched = [io::in8(COM1), io::in8(IER)];
    io::out8(COM1, divisor[0]);
    io::out8(IER, divisor[1]);
    io::out8(LCR, lcr);
    check!(latched == [0x0c, 0x34], "the divisor latch reads {latched:x?}");
    check!(io::in8(LSR) & 0x60 == 0x60, "the transmitter is not empty: LSR {:#x}", io::in8(LSR));
    let mcr = io::in8(MCR);
    io::out8(MCR, mcr & 0xf | MCR_LOOP);
    let mut came = [0; 8];
    for (i, slot) in came.iter_mut().enumerate() {
        io::out8(COM1, 0xc0 + i as u8);
        if io::in8(LSR) & LSR_DATA_READY != 0 {
            *slot = io::in8(COM1);
        }
    }
    // Modem lines in loopback: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
    io::out8(MCR, MCR_LOOP | 0b1010);
    let modem = io::in8(MSR) >> 4;
    io::out8(MCR, mcr & !MCR_LOOP);
    check!(came == [0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7], "what came back is {came:x?}");
    check!(modem == 0b1001, "the modem lines in loopback are {modem:#06b}, not 0b1001");
    Ok(text!("divisor={}", u16::from_le_bytes(divisor)))
}

/// The FIFO is announced when enabled, holds what comes while nobody reads, in order, and can be cleared.
pub(super) fn serial_fifo(_machine: &mut Machine) -> Outcome {
    if !has_uart() {
        skip!("no 16550 at {COM1:#x}");
    }
    io::out8(FCR, 0x07);
    check!(io::in8(IIR) & 0xc0 == 0xc0, "IIR {:#x} does not announce a FIFO", io::in8(IIR));
    let mcr = io::in8(MCR);
    io::out8(MCR, mcr & 0xf | MCR_LOOP);
    for i in 0..16 {
        io::out8(COM1, 0x80 + i);
    }
    let mut wrong = None;
    for i in 0..16 {
        let ready = io::in8(LSR) & LSR_DATA_READY != 0;
        let byte = io::in8(COM1);
        if (!ready || byte != 0x80 + i) && wrong.is_none() {
            wrong = Some((i, ready, byte));
        }
    }
    let empty = io::in8(LSR) & LSR_DATA_READY == 0;
    io::out8(COM1, 0x99);
    io::out8(FCR, 0x03);
    let cleared = io::in8(LSR) & LSR_DATA_READY == 0;
    io::out8(MCR, mcr & !MCR_LOOP);
    if let Some((i, ready, byte)) = wrong {
        fail!("byte {i} of 16: ready {ready}, {byte:#x}");
    }
    check!(empty, "data is ready after all 16 bytes were read");
    check!(cleared, "the receive FIFO is not cleared");
    Ok(text!(""))
}

/// One `rep outsb` is as many bytes, not one wide value; the host sees the line whole.
pub(super) fn serial_string(_machine: &mut Machine) -> Outcome {
    for text in ["# 2b\n", "# string of bytes in one instruction\n"] {
        io::out_string(COM1, text.as_bytes());
    }
    if !has_uart() {
        return Ok(text!("out"));
    }
    let mcr = io::in8(MCR);
    io::out8(FCR, 0x07);
    io::out8(MCR, mcr & 0xf | MCR_LOOP);
    io::out_string(COM1, b"abcd");
    let mut came = [0; 4];
    io::in_string(COM1, &mut came);
    io::out8(MCR, mcr & !MCR_LOOP);
    check!(&came == b"abcd", "what came back of abcd is {came:x?}");
    Ok(text!("in and out"))
}

/// The transmitter-empty interrupt reaches the CPU through IOAPIC pin 4, and not when masked.
pub(super) fn serial_interrupt(machine: &mut Machine) -> Outcome {
    const VECTOR: u8 = 0x44;
    const PIN: u8 = 4;
    let Some(acpi) = machine.acpi else { skip!("no MADT to find the IOAPIC") };
    let Some(address) = acpi.madt_entries().find(|(kind, _)| *kind == 1).map(|(_, e)| e.read32(4)) else {
        skip!("no IOAPIC");
    };
    if !has_uart() {
        skip!("no 16550 at {COM1:#x}");
    }
    let apic = LocalApic::enable();
    let ioapic = IoApic::at(u64::from(address));
    let mcr = io::in8(MCR);
    io::out8(MCR, mcr | 1 << 3); // OUT2 lets the line through on a PC
    trap::interrupts_on();
    let mut counts = [false; 3];
    for (round, came) in counts.iter_mut().enumerate() {
        io::out8(IER, 0);
        io::in8(IIR);
        let masked = round == 1;
        ioapic.route(PIN, &apic, VECTOR);
        if masked {
            ioapic.mask(PIN);
        }
        let before = trap::hits(VECTOR);
        io::out8(IER, 2);
        *came = machine.clock.wait(if masked { 30 } else { PATIENCE }, || trap::hits(VECTOR) > before);
        io::in8(IIR);
    }
    io::out8(IER, 0);
    io::in8(IIR);
    ioapic.mask(PIN);
    trap::interrupts_off();
    io::out8(MCR, mcr);
    check!(counts[0], "no interrupt");
    check!(!counts[1], "an interrupt although the pin is masked");
    check!(counts[2], "no interrupt after the pin was masked and unmasked");
    Ok(text!("pins={} hits={}", ioapic.pins(), trap::hits(VECTOR)))
}

fn cmos(index: u8) -> u8 {
    io::out8(0x70, index);
    io::in8(0x71)
}

/// The date and time are valid BCD, the valid bit is set, and the seconds advance.
pub(super) fn rtc(machine: &mut Machine) -> Outcome {
    if cmos(0x0d) == 0xff && cmos(0x0a) == 0xff {
        skip!("no CMOS clock");
    }
    check!(cmos(0x0d) & 0x80 != 0, "register D says the RAM is not valid");
    let mut stable = [0; 7];
    let registers = [0x32, 9, 8, 7, 4, 2, 0];
    let settled = machine.clock.wait(2000, || {
        let once = registers.map(cmos);
        stable = registers.map(cmos);
        once == stable && cmos(0x0a) & 0x80 == 0
    });
    check!(settled, "no two readings agree");
    let mut decoded = [0u32; 7];
    for (value, &bcd) in decoded.iter_mut().zip(&stable) {
        check!(bcd & 0xf <= 9 && bcd >> 4 <= 9, "{bcd:#x} is no BCD");
        *value = u32::from(bcd >> 4) * 10 + u32::from(bcd & 0xf);
    }
    let [century, year, month, day, hour, minute, second] = decoded;
    check!((1..=12).contains(&month) && (1..=31).contains(&day), "month {month}, day {day}");
    check!(hour < 24 && minute < 60 && second < 61, "{hour}:{minute}:{second}");
    let before = cmos(0);
    check!(machine.clock.wait(2500, || cmos(0) != before), "the seconds stand still");
    Ok(text!("{century:02}{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

/// The memory size in CMOS agrees with the memory map.
pub(super) fn cmos_memory(machine: &mut Machine) -> Outcome {
    let low = u64::from(cmos(0x34)) | u64::from(cmos(0x35)) << 8;
    let high = u64::from(cmos(0x5b)) | u64::from(cmos(0x5c)) << 8 | u64::from(cmos(0x5d)) << 16;
    if low == 0xffff {
        skip!("no CMOS memory size");
    }
    let ram = |from: u64, to: u64| -> u64 {
        machine
            .start
            .map()
            .filter(|e| e.kind == 1)
            .map(|e| (e.base + e.len).min(to).saturating_sub(e.base.max(from)))
            .sum()
    };
    let (low_map, high_map) = (ram(16 << 20, 4 << 30), ram(4 << 30, u64::MAX));
    check!(low == low_map >> 16, "{low:#x} times 64K above 16M, the map has {:#x}", low_map >> 16);
    check!(high == high_map >> 16, "{high:#x} times 64K above 4G, the map has {:#x}", high_map >> 16);
    Ok(text!("low={}M high={}M", low >> 4, high >> 4))
}

/// The PM timer only goes forward, at 3.579545 MHz by the TSC.
pub(super) fn pm_timer(machine: &mut Machine) -> Outcome {
    let Some((register, wide)) = machine.acpi.and_then(|a| a.pm_timer()) else {
        skip!("no PM timer in the FADT")
    };
    check!(register.space == 1, "the timer is not on a port");
    let port = register.address as u16;
    let mask = if wide { u32::MAX } else { 0xff_ffff };
    let mut last = io::in32(port);
    for _ in 0..2000 {
        let now = io::in32(port);
        check!(now.wrapping_sub(last) & mask < mask / 2, "the timer went from {last:#x} back to {now:#x}");
        last = now;
    }
    if !machine.clock.is_known() || machine.clock.source == "the PM timer" {
        return Ok(text!("monotonic; no other clock to compare with"));
    }
    let (tsc, pm) = (ticks(), io::in32(port));
    machine.clock.sleep(200);
    let (tsc, pm) = (ticks() - tsc, u64::from(io::in32(port).wrapping_sub(pm) & mask));
    let hertz = (u128::from(pm) * u128::from(machine.clock.khz) * 1000 / u128::from(tsc)) as u64;
    check!(hertz.abs_diff(3_579_545) < 3_579_545 / 50, "{hertz} Hz");
    Ok(text!("hertz={hertz} bits={}", if wide { 32 } else { 24 }))
}

/// The debug ports: codes for the log on 0x80, text on 0xe9 and 0x402 for whoever listens on the host.
pub(super) fn debug_ports(machine: &mut Machine) -> Outcome {
    for code in [0x00, 0x20, 0x40, 0x60, 0x80, 0xff] {
        io::out8(0x80, code);
    }
    let console = machine.start.number("debugcon").unwrap_or(0xe9) as u16;
    for byte in b"probe: debug console\n" {
        io::out8(console, *byte);
    }
    io::out_string(console, b"probe: debug console, one instruction\n");
    for byte in b"probe: firmware debug port\n" {
        io::out8(0x402, *byte);
    }
    Ok(text!("0x402 reads {:#x}", io::in8(0x402)))
}

/// The keyboard controller stub reads as a kernel expects one without a keyboard.
pub(super) fn i8042(_machine: &mut Machine) -> Outcome {
    let (status, speaker) = (io::in8(0x64), io::in8(0x61));
    if status == 0xff {
        skip!("nothing at port 0x64");
    }
    check!(status == 0, "status {status:#x}");
    check!(speaker == 0x20, "port 0x61 reads {speaker:#x}");
    for value in [0x00, 0x20, 0xaa, 0xd4, 0xff] {
        io::out8(0x64, value);
    }
    Ok(text!(""))
}

/// Where nothing is, reads give all-ones in every width and writes are dropped.
pub(super) fn unclaimed(machine: &mut Machine) -> Outcome {
    for port in [0x40u16, 0x2f8, 0x1f0, 0x9000, 0xfffc] {
        let read = [u32::from(io::in8(port)), u32::from(io::in16(port)), io::in32(port)];
        check!(read == [0xff, 0xffff, u32::MAX], "port {port:#x} reads {read:x?}");
        io::out8(port, 0);
        io::out16(port, 0);
        io::out32(port, 0);
    }
    let low_end = machine.start.map().filter(|e| e.base < 1 << 32).map(|e| e.base + e.len).max().unwrap_or(0);
    for address in [0xfd00_0000u64, 0xfed0_0000, 0xffff_f000] {
        if address < low_end {
            continue;
        }
        // SAFETY: above all RAM.
        let hole = unsafe { Region::new(address, 64) };
        for offset in 0..8 {
            let read =
                [hole.read(offset, 1), hole.read(offset, 2), hole.read(offset, 4), hole.read(offset, 8)];
            check!(read == [0xff, 0xffff, 0xffff_ffff, u64::MAX], "{address:#x}+{offset} reads {read:x?}");
            hole.write64(offset, 0);
        }
    }
    Ok(text!(""))
}
