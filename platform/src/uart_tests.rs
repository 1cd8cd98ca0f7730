//! Register-level stories.

use super::*;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

fn write(uart: &mut Uart, register: u8, value: u8) -> Written {
    uart.begin_write(register);
    uart.write(register, value)
}

#[test]
fn a_driver_that_probes_finds_a_16550a() {
    let mut uart = Uart::default();
    write(&mut uart, SCR, 0x5a);
    assert_eq!(uart.read(SCR), 0x5a);
    assert_eq!(uart.read(IIR), 0x01);
    write(&mut uart, FCR, 0x01);
    assert_eq!(uart.read(IIR), 0xc1);
    // Interrupt enable bits 4 to 7 do not exist, which tells it from bigger chips.
    write(&mut uart, IER, 0xff);
    assert_eq!(uart.read(IER), 0x0f);
    // Loopback: RTS and OUT2 come back as CTS and DCD.
    write(&mut uart, MCR, 0x1a);
    assert_eq!(uart.read(MSR) & 0xf0, 0x90);
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let mut uart = Uart::default();
    write(&mut uart, IER, 0x01);
    write(&mut uart, LCR, 0x83);
    write(&mut uart, DATA, 0x01);
    write(&mut uart, IER, 0x02);
    assert_eq!((uart.read(DATA), uart.read(IER)), (0x01, 0x02));
    write(&mut uart, LCR, 0x03);
    assert_eq!(uart.read(IER), 0x01);
    assert_eq!(write(&mut uart, DATA, b'x'), Written::Sent(b'x'));
}

#[test]
fn transmitting_interrupts_once_per_look() {
    let mut uart = Uart::default();
    assert_eq!(uart.read(LSR), 0x60);
    write(&mut uart, IER, 0x02);
    assert!(uart.interrupt());
    assert_eq!(uart.read(IIR), 0x02);
    assert!(!uart.interrupt());
    assert_eq!(uart.read(IIR), 0x01);
    // Setting the bit again is no news, clearing and setting it is.
    write(&mut uart, IER, 0x02);
    assert!(!uart.interrupt());
    write(&mut uart, IER, 0x00);
    write(&mut uart, IER, 0x02);
    assert!(uart.interrupt());
    // The line falls while a byte is sent, so that an edge follows.
    uart.begin_write(DATA);
    assert!(!uart.interrupt());
    assert_eq!(uart.write(DATA, b'a'), Written::Sent(b'a'));
    assert!(uart.interrupt());
}

#[test]
fn receiving_has_priority_and_lasts_until_all_is_read() {
    let mut uart = Uart::default();
    write(&mut uart, FCR, 0xc1);
    write(&mut uart, IER, 0x03);
    uart.receive(b"ab");
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(uart.read(IIR), 0xcc, "two bytes below the trigger level of 14");
    uart.receive(&[b'c'; 12]);
    assert_eq!(uart.read(IIR), 0xc4);
    for _ in 0..14 {
        assert!(uart.interrupt());
        uart.read(DATA);
    }
    assert_eq!(uart.read(IIR), 0xc2, "the transmitter's turn");
    assert!(!uart.interrupt());
    assert_eq!(uart.read(DATA), 0);
}

#[test]
fn what_is_received_beyond_the_capacity_is_lost_and_reported() {
    let mut uart = Uart::default();
    write(&mut uart, IER, 0x04);
    uart.receive(&[1; RX_CAPACITY]);
    assert_eq!((uart.room(), uart.interrupt(), uart.hungry()), (0, false, false));
    for _ in 0..1_000_000 {
        uart.receive(&[2; 16]);
    }
    assert_eq!(uart.rx.len(), RX_CAPACITY);
    assert_eq!(uart.read(IIR), 0x06);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61);
    assert!(!uart.interrupt());
    for _ in 0..RX_CAPACITY / 2 {
        assert_eq!(uart.read(DATA), 1);
    }
    assert!(uart.hungry());
}

#[test]
fn the_fifo_control_register_clears_what_was_received() {
    let mut uart = Uart::default();
    uart.receive(b"stale");
    write(&mut uart, FCR, 0x01);
    assert_eq!(uart.read(LSR), 0x60);
    uart.receive(b"kept");
    write(&mut uart, FCR, 0x05);
    assert_eq!(uart.read(LSR), 0x61);
    write(&mut uart, FCR, 0x03);
    assert_eq!(uart.read(LSR), 0x60);
    uart.receive(b"x");
    write(&mut uart, FCR, 0x00);
    assert_eq!((uart.read(LSR), uart.read(IIR)), (0x60, 0x01));
}

#[test]
fn loopback_returns_bytes_and_modem_lines_and_sends_nothing() {
    let mut uart = Uart::default();
    assert_eq!(uart.read(MSR), 0xb0);
    write(&mut uart, IER, 0x08);
    write(&mut uart, MCR, 0x10);
    assert_eq!(uart.read(IIR), 0x00);
    assert_eq!(uart.read(MSR), 0x0b, "all lines fell");
    assert!(!uart.interrupt());
    assert_eq!(write(&mut uart, DATA, b'z'), Written::Nothing);
    assert_eq!(uart.read(DATA), b'z');
    write(&mut uart, MCR, 0x14);
    assert_eq!(uart.read(MSR), 0x40, "ring begins unnoticed");
    write(&mut uart, MCR, 0x10);
    assert_eq!(uart.read(MSR), 0x04, "and its end is noticed");
}
