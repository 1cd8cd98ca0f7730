//! The registers of a 16550A UART (National PC16550D), without time: what is written is transmitted at once.
//!
//! An own model rather than vm-superio's, which has no FIFO resets, no 16450 mode and no falling interrupt line. Bounded: at most
//! [`RX_CAPACITY`] received bytes are held, and the sender is asked to wait before that ([`Uart::room`]).

use std::collections::VecDeque;

use device::{State, StateError};
use serde::{Deserialize, Serialize};

/// Received bytes held at most. The chip has 16; more is invisible to a driver and spares wake-ups.
pub(crate) const RX_CAPACITY: usize = 256;

/// Interrupt enable register bits.
mod ier {
    pub(super) const RECEIVED: u8 = 1 << 0;
    pub(super) const EMPTY: u8 = 1 << 1;
    pub(super) const LINE: u8 = 1 << 2;
    pub(super) const MODEM: u8 = 1 << 3;
    pub(super) const ALL: u8 = 0x0f;
}

/// Interrupt identities, highest priority first.
mod iir {
    pub(super) const LINE: u8 = 0x06;
    pub(super) const RECEIVED: u8 = 0x04;
    pub(super) const TIMEOUT: u8 = 0x0c;
    pub(super) const EMPTY: u8 = 0x02;
    pub(super) const MODEM: u8 = 0x00;
    pub(super) const NONE: u8 = 0x01;
    pub(super) const FIFO: u8 = 0xc0;
}

/// FIFO control register bits.
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RX: u8 = 1 << 1;
    pub(super) const TRIGGER: u8 = 0xc0;
    /// What stays set.
    pub(super) const KEPT: u8 = ENABLE | TRIGGER;
}

/// Line status register bits.
mod lsr {
    pub(super) const READY: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    /// Transmitter holding register and shift register empty: always.
    pub(super) const EMPTY: u8 = 0x60;
}

/// Modem control register bits.
mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOP: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1f;
}

/// Modem status register bits; the low four tell which of them changed.
mod msr {
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
    /// Somebody is always listening.
    pub(super) const DEFAULT: u8 = CTS | DSR | DCD;
    /// Ring is noticed only when it ends.
    pub(super) const RI_ENDED: u8 = 1 << 2;
}

const DLAB: u8 = 1 << 7;

/// The chip.
#[derive(Debug)]
pub(crate) struct Uart {
    rx: VecDeque<u8>,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter became empty, and the driver has not looked.
    emptied: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Uart {
            rx: VecDeque::new(),
            ier: 0,
            fcr: 0,
            lcr: 0x03,
            mcr: 0,
            msr: msr::DEFAULT,
            scratch: 0,
            // 9600 baud.
            divisor: 12,
            overrun: false,
            emptied: false,
        }
    }
}

/// What is saved of the chip, and of a serial port: what was sent is gone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UartState {
    /// Received, and not read.
    received: Vec<u8>,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    emptied: bool,
}

impl State for UartState {
    const KIND: &'static str = "serial";
}

/// What a register write led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing outside the chip, but the interrupt may have changed.
    Nothing,
    /// This byte goes out. The interrupt fell before it was sent and may rise again after.
    Sent(u8),
}

impl Uart {
    pub(crate) fn save(&self) -> UartState {
        let Uart { ier, fcr, lcr, mcr, msr, scratch, divisor, overrun, emptied, .. } = *self;
        let received = self.rx.iter().copied().collect();
        UartState { received, ier, fcr, lcr, mcr, msr, scratch, divisor, overrun, emptied }
    }

    /// The chip in a state that was saved.
    ///
    /// # Errors
    /// A driver cannot have brought it there.
    pub(crate) fn load(saved: UartState) -> Result<Self, StateError> {
        let UartState { received, ier, fcr, lcr, mcr, msr, scratch, divisor, overrun, emptied } = saved;
        let refuse = |what: String| Err(StateError::value::<UartState>(what));
        if received.len() > RX_CAPACITY {
            return refuse(format!(
                "received has {} bytes, and at most {RX_CAPACITY} can be",
                received.len()
            ));
        }
        let fifo = if fcr & fcr::ENABLE != 0 { fcr::KEPT } else { 0 };
        for (name, value, mask) in [
            ("ier", ier, ier::ALL),
            ("fcr", fcr, fifo),
            ("mcr", mcr, mcr::ALL),
            ("msr", msr, lines(mcr) | 0x0f),
        ] {
            if value & !mask != 0 {
                return refuse(format!("{name} is {value:#x}, of which {mask:#x} can be"));
            }
        }
        let rx = received.into();
        Ok(Uart { rx, ier, fcr, lcr, mcr, msr: msr | lines(mcr), scratch, divisor, overrun, emptied })
    }

    /// Bytes that may be received now.
    pub(crate) fn room(&self) -> usize {
        RX_CAPACITY - self.rx.len()
    }

    /// Whether so much was read that more may come.
    pub(crate) fn hungry(&self) -> bool {
        self.rx.len() <= RX_CAPACITY / 2
    }

    /// Receives bytes; those beyond [`Uart::room`] are lost, which the driver can see.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        let room = self.room();
        self.rx.extend(&bytes[..bytes.len().min(room)]);
        self.overrun |= bytes.len() > room;
    }

    fn fifo(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn trigger_level(&self) -> usize {
        match (self.fifo(), self.fcr >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// The pending interrupt of the highest priority.
    fn pending(&self) -> u8 {
        if self.ier & ier::LINE != 0 && self.overrun {
            iir::LINE
        } else if self.ier & ier::RECEIVED != 0 && !self.rx.is_empty() {
            // Time does not pass here, so bytes below the trigger level time out at once.
            if self.rx.len() >= self.trigger_level() { iir::RECEIVED } else { iir::TIMEOUT }
        } else if self.ier & ier::EMPTY != 0 && self.emptied {
            iir::EMPTY
        } else if self.ier & ier::MODEM != 0 && self.msr & 0x0f != 0 {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    /// The level of the interrupt output.
    pub(crate) fn interrupt(&self) -> bool {
        self.pending() != iir::NONE
    }

    /// Reads one of the eight registers.
    pub(crate) fn read(&mut self, register: u8) -> u8 {
        match (register & 7, self.lcr & DLAB != 0) {
            (0, true) => self.divisor as u8,
            (1, true) => (self.divisor >> 8) as u8,
            (0, false) => self.rx.pop_front().unwrap_or(0),
            (1, false) => self.ier,
            (2, _) => {
                let identity = self.pending();
                if identity == iir::EMPTY {
                    self.emptied = false;
                }
                identity | if self.fifo() { iir::FIFO } else { 0 }
            }
            (3, _) => self.lcr,
            (4, _) => self.mcr,
            (5, _) => {
                let ready = if self.rx.is_empty() { 0 } else { lsr::READY };
                let overrun = if std::mem::take(&mut self.overrun) { lsr::OVERRUN } else { 0 };
                lsr::EMPTY | ready | overrun
            }
            (6, _) => {
                let status = self.msr;
                self.msr &= 0xf0;
                status
            }
            _ => self.scratch,
        }
    }

    /// The driver is about to send: the interrupt for an empty transmitter falls.
    pub(crate) fn begin_write(&mut self, register: u8) {
        if register & 7 == 0 && self.lcr & DLAB == 0 {
            self.emptied = false;
        }
    }

    /// Writes one of the eight registers.
    pub(crate) fn write(&mut self, register: u8, value: u8) -> Written {
        match (register & 7, self.lcr & DLAB != 0) {
            (0, true) => self.divisor = self.divisor & 0xff00 | u16::from(value),
            (1, true) => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            (0, false) => {
                self.emptied = true;
                if self.mcr & mcr::LOOP == 0 {
                    return Written::Sent(value);
                }
                self.receive(&[value]);
            }
            (1, false) => {
                // Enabling the interrupt while the transmitter is empty raises it; drivers probe for that.
                self.emptied |= !self.ier & value & ier::EMPTY != 0;
                self.ier = value & ier::ALL;
            }
            (2, _) => {
                let switched = (self.fcr ^ value) & fcr::ENABLE != 0;
                if switched || value & fcr::CLEAR_RX != 0 {
                    self.rx.clear();
                }
                // The other bits cannot be set while the FIFOs are off.
                self.fcr = if value & fcr::ENABLE != 0 { value & fcr::KEPT } else { 0 };
            }
            (3, _) => self.lcr = value,
            (4, _) => {
                self.mcr = value & mcr::ALL;
                self.modem_lines();
            }
            // Line and modem status are written by nobody but a factory test.
            (5 | 6, _) => {}
            _ => self.scratch = value,
        }
        Written::Nothing
    }

    fn modem_lines(&mut self) {
        let lines = lines(self.mcr);
        let before = self.msr & 0xf0;
        let mut changed = (before ^ lines) >> 4;
        if lines & msr::RI != 0 {
            changed &= !msr::RI_ENDED;
        }
        self.msr = lines | self.msr & 0x0f | changed;
    }
}

/// The modem's inputs with these outputs; in loopback mode the four outputs become the four inputs.
fn lines(mcr: u8) -> u8 {
    if mcr & mcr::LOOP == 0 {
        return msr::DEFAULT;
    }
    let wire = |output, input| if mcr & output != 0 { input } else { 0 };
    wire(mcr::RTS, msr::CTS) | wire(mcr::DTR, msr::DSR) | wire(mcr::OUT1, msr::RI) | wire(mcr::OUT2, msr::DCD)
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
