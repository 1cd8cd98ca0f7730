//! COM1: a 16550A at port 0x3f8, interrupt 4.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use acpi_tables::aml;
use device::state::{self, Node, StateError};
use device::{
    Build, Built, Calls, Device, DeviceError, Effect, Grant, Host, Line, LineNeed, Naming, Needs, Placed,
    Region, Registers, Space, TableSink, WindowNeed, Workers,
};
use sandbox::HostPath;
use spec::{Facts, Refusal, Spec};
use terminal::{ConsoleMode, Input, Mode, Session, Terminal, calls};

use crate::addresses;
use crate::uart::{Uart, Written};

/// First port.
const BASE: u16 = 0x3f8;
/// Number of ports.
const LENGTH: u8 = 8;
/// Interrupt controller input.
const PIN: u8 = 4;
/// Input is not asked for in smaller pieces.
const SMALLEST: usize = 16;

spec::spec! {
    /// The serial port: a 16550A UART at port 0x3f8.
    pub struct SerialSpec: "serial" {
        flatten {
            /// Where it leads to.
            console: ConsoleMode = Mode::Null.into(),
        }
        fields {}
        unsupported {}
    }
}

impl Spec for SerialSpec {
    const FLAG: &'static str = SerialSpec::FLAG;
    const ABOUT: &'static str = SerialSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        self.console.check()
    }
}

impl Build for SerialSpec {
    const NAMING: Naming = Naming::Single("__serial");
    const CALLS: Calls = calls::CONSOLE;
    const REPLACEABLE: &'static [&'static str] = &["mode", "file", "socket"];

    fn paths(&self) -> Vec<HostPath> {
        self.console.paths()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        let terminal = open(host, &mut self.console, "serial port")?;
        Ok(terminal.map_or(Built::Nothing, |terminal| Built::Device(Box::new(Serial::new(terminal)))))
    }
}

/// Opens a console once for the life of the machine, and writes back where it is found.
pub(crate) fn open(
    host: &Host<'_>,
    console: &mut ConsoleMode,
    what: &str,
) -> Result<Option<Terminal>, Refusal> {
    let terminal = host
        .kept
        .keep(host.id, || Terminal::open(console))
        .map_err(|e| Refusal::host(format!("cannot open the console of the {what}"), e))?;
    if let Some(path) = terminal.as_ref().and_then(Terminal::path) {
        console.file = Some(path.to_owned());
    }
    Ok(terminal)
}

/// The serial port.
pub struct Serial {
    core: Arc<Core>,
    workers: Option<Workers>,
    session: Mutex<Option<Session>>,
}

struct Core {
    uart: Mutex<Uart>,
    line: OnceLock<Arc<dyn Line>>,
    terminal: Terminal,
    // Used by the terminal's thread alone: the room last offered, and whether all of it was taken.
    offered: AtomicUsize,
    goes_on: AtomicBool,
    // The registers come from a saved state, and the device was not started since.
    loaded: AtomicBool,
}

impl Serial {
    /// A serial port that leads to this terminal.
    pub fn new(terminal: Terminal) -> Self {
        let core = Core {
            uart: Mutex::new(Uart::default()),
            line: OnceLock::new(),
            terminal,
            offered: AtomicUsize::new(0),
            goes_on: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
        };
        Serial { core: Arc::new(core), workers: None, session: Mutex::new(None) }
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the interrupt line to the level that the chip has. Called with the lock held, so that levels are not reordered.
    fn update_line(&self, uart: &Uart) {
        if let Some(line) = self.line.get() {
            line.set(uart.interrupt());
        }
    }

    fn read(&self, register: u8) -> u8 {
        let (value, hungry) = {
            let mut uart = self.uart();
            let value = uart.read(register);
            self.update_line(&uart);
            (value, uart.hungry())
        };
        if hungry {
            self.terminal.resume();
        }
        value
    }

    fn write(&self, register: u8, value: u8) {
        let written = {
            let mut uart = self.uart();
            uart.begin_write(register);
            self.update_line(&uart);
            let written = uart.write(register, value);
            self.update_line(&uart);
            written
        };
        match written {
            Written::Sent(byte) => self.terminal.write(&[byte]),
            // A FIFO reset makes room.
            Written::Nothing => self.terminal.resume(),
        }
    }
}

impl Input for Core {
    fn room(&self) -> usize {
        let room = self.uart().room();
        // Small pieces would tear what arrives as one, and a torn-off newline could not be told from a typed one.
        let room = if room < SMALLEST { 0 } else { room };
        self.offered.store(room, Ordering::Relaxed);
        room
    }

    fn put(&self, bytes: &[u8]) {
        // Whoever fills the room has more to say.
        let goes_on =
            self.goes_on.swap(bytes.len() == self.offered.load(Ordering::Relaxed), Ordering::Relaxed);
        let mut uart = self.uart();
        // Whoever presses Enter, or sends an empty line by hand, means carriage return.
        uart.receive(if bytes == b"\n" && !goes_on { b"\r" } else { bytes });
        self.update_line(&uart);
    }
}

impl Registers for Serial {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        // The chip is 8 bits wide; the bus makes single accesses of wide ones.
        for (register, slot) in addresses(offset).zip(data) {
            *slot = self.core.read(register as u8);
        }
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        for (register, value) in addresses(offset).zip(data) {
            self.core.write(register as u8, *value);
        }
        Effect::None
    }
}

impl Device for Serial {
    fn needs(&self) -> Needs {
        Needs {
            windows: vec![WindowNeed {
                space: Space::Port,
                base: Some(u64::from(BASE)),
                length: u64::from(LENGTH),
            }],
            lines: vec![LineNeed { pin: PIN }],
            ..Needs::default()
        }
    }

    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError> {
        if let Some(line) = grant.lines.into_iter().next() {
            // Wired once; a second line would change nothing.
            let _ = self.core.line.set(line);
        }
        self.workers = Some(grant.workers);
        Ok(())
    }

    fn start(&self) -> Result<(), DeviceError> {
        if self.core.loaded.swap(false, Ordering::AcqRel) {
            let uart = self.core.uart();
            // An interrupt may have been on its way when the state was taken: the line, which is held already, falls and rises.
            if let Some(line) = self.core.line.get() {
                line.set(false);
            }
            self.core.update_line(&uart);
        }
        let mut session = self.session();
        if session.is_none()
            && let Some(workers) = &self.workers
        {
            *session = Some(self.core.terminal.begin(workers, self.core.clone())?);
        }
        Ok(())
    }

    fn settle(&self) -> Result<(), DeviceError> {
        Session::settle(&mut self.session())
    }

    fn stop(&self) -> Result<(), DeviceError> {
        *self.session() = None;
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        crate::save(&self.core.uart().save())
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        *self.core.uart() = Uart::load(state::some(node)?.read()?)?;
        self.core.loaded.store(true, Ordering::Release);
        Ok(())
    }

    fn describe(&self, placed: &Placed, sink: &mut dyn TableSink) {
        let pin = placed.lines.first().copied().unwrap_or(u32::from(PIN));
        sink.system_bus(&aml::Device::new(
            "COM1".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new("_DDN".into(), &"COM1"),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Interrupt::new(true, true, false, false, pin),
                        &aml::IO::new(BASE, BASE, 1, LENGTH),
                    ]),
                ),
            ],
        ));
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
