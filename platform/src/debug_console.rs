//! A console of one port, for output only: what a guest writes to it appears, without a driver.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{
    Build, Built, Calls, Device, DeviceError, Effect, Grant, Host, Naming, Needs, Region, Registers, Space,
    WindowNeed, Workers,
};
use sandbox::HostPath;
use serde::{Deserialize, Serialize};
use spec::{Facts, Key, Options, ParseError, Part, Refusal, Spec, Value};
use terminal::{ConsoleMode, Input, Mode, Session, Terminal, calls};

/// What the port reads as, here and on the emulators that had it first.
pub(crate) const PRESENT: u8 = 0xe9;

/// The port, written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IoBase(pub u16);

impl Default for IoBase {
    fn default() -> Self {
        IoBase(0xe9)
    }
}

impl Value for IoBase {
    const SYNTAX: &'static str = "0x<port>";

    fn convert(text: &str) -> Result<Self, String> {
        text.strip_prefix("0x")
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
            .map(IoBase)
            .ok_or_else(|| "expected a port from 0x0 to 0xffff".to_owned())
    }

    fn show(&self) -> String {
        format!("{:#x}", self.0)
    }
}

/// The modes of a console that is for output only: all but a socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutputMode(pub ConsoleMode);

impl Default for OutputMode {
    fn default() -> Self {
        OutputMode(Mode::Off.into())
    }
}

impl Part for OutputMode {
    fn keys() -> Vec<Key> {
        ConsoleMode::keys().into_iter().filter(|key| key.name != "socket").collect()
    }

    fn take(options: &mut Options) -> Result<Self, ParseError> {
        ConsoleMode::take(options).map(OutputMode)
    }
}

spec::spec! {
    /// The debug console: what a guest writes to one port.
    pub struct DebugConsoleSpec: "debug-console" {
        flatten {
            /// Where it leads to.
            console: OutputMode,
        }
        fields {
            /// The port.
            "iobase" => iobase: Option<IoBase> = Some(IoBase::default()),
        }
        unsupported {}
    }
}

impl Spec for DebugConsoleSpec {
    const FLAG: &'static str = DebugConsoleSpec::FLAG;
    const ABOUT: &'static str = DebugConsoleSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        if self.console.0.mode == Mode::Socket {
            return Err(Refusal::invalid("No socket option support for debug console device"));
        }
        self.console.0.check()
    }
}

impl Build for DebugConsoleSpec {
    const NAMING: Naming = Naming::Single("__debug_console");
    const CALLS: Calls = calls::CONSOLE;
    // All that an option text of the mode sets, although no socket is taken.
    const REPLACEABLE: &'static [&'static str] = &["mode", "file", "socket"];

    fn paths(&self) -> Vec<HostPath> {
        self.console.0.paths()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        let port = self.iobase.unwrap_or_default().0;
        let terminal = crate::serial::open(host, &mut self.console.0, "debug console")?;
        Ok(terminal.map_or(Built::Nothing, |t| Built::Device(Box::new(DebugConsole::new(port, t)))))
    }
}

/// The debug console.
pub struct DebugConsole {
    port: u16,
    terminal: Terminal,
    workers: Option<Workers>,
    session: Mutex<Option<Session>>,
}

impl DebugConsole {
    /// A console at this port that leads to this terminal.
    pub fn new(port: u16, terminal: Terminal) -> Self {
        DebugConsole { port, terminal, workers: None, session: Mutex::new(None) }
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes no input.
pub(crate) struct Deaf;

impl Input for Deaf {
    fn room(&self) -> usize {
        0
    }

    fn put(&self, _bytes: &[u8]) {}
}

impl Registers for DebugConsole {
    fn read(&self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        if offset == 0 {
            self.terminal.write(&data[..data.len().min(1)]);
        }
        Effect::None
    }
}

impl Device for DebugConsole {
    fn needs(&self) -> Needs {
        let window = WindowNeed { space: Space::Port, base: Some(self.port.into()), length: 1 };
        Needs { windows: vec![window], ..Needs::default() }
    }

    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError> {
        self.workers = Some(grant.workers);
        Ok(())
    }

    fn start(&self) -> Result<(), DeviceError> {
        let mut session = self.session();
        if session.is_none()
            && let Some(workers) = &self.workers
        {
            *session = Some(self.terminal.begin(workers, Arc::new(Deaf))?);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{grant, inb, outb, sweep};
    use device::Kept;

    #[test]
    fn the_flag_takes_a_mode_and_a_hexadecimal_port() {
        let spec = DebugConsoleSpec::parse("file=/x,iobase=0x402").unwrap();
        assert_eq!((spec.console.0.mode, spec.iobase), (Mode::File, Some(IoBase(0x402))));
        assert_eq!(DebugConsoleSpec::default().console.0.mode, Mode::Off);
        let refused = |text| DebugConsoleSpec::parse(text).unwrap_err().chain().join(": ");
        assert_eq!(refused("iobase=0xe9"), "Error parsing --debug-console: invalid console mode given");
        for text in ["tty,iobase=233", "tty,iobase=0x10000", "tty,iobase=0x", "tty,iobase=0x+1"] {
            assert!(refused(text).contains("Unable to convert"), "{text}");
        }
        assert!(refused("socket=/x").ends_with("Unknown option: socket"));
        let json: DebugConsoleSpec = serde_json::from_str(r#"{"mode":"Null","iobase":1026}"#).unwrap();
        assert_eq!(json.iobase, Some(IoBase(0x402)));
        let json: DebugConsoleSpec = serde_json::from_str(r#"{"mode":"Socket","socket":"/x"}"#).unwrap();
        assert!(json.check(&Facts::default()).is_err());
    }

    #[test]
    fn bytes_written_reach_a_file() {
        let path = std::env::temp_dir().join(format!("virga-e9-{}", std::process::id()));
        std::fs::write(&path, "old").unwrap();
        let (facts, kept) = (Facts::default(), Kept::default());
        let host = Host { id: "__debug_console", facts: &facts, kept: &kept };
        let mut spec = DebugConsoleSpec::parse(&format!("file={}", path.display())).unwrap();
        let Built::Device(mut device) = spec.build(&host).unwrap() else { panic!("a device") };
        device.wire(grant(Vec::new()).0).unwrap();
        device.start().unwrap();
        for byte in b"hello" {
            assert_eq!(outb(&*device, 0, 0, *byte), Effect::None);
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        assert_eq!((inb(&*device, 0, 0), device.needs().windows[0].base), (0xe9, Some(0xe9)));
        device.stop().unwrap();
        std::fs::remove_file(&path).unwrap();

        let mut off = DebugConsoleSpec::default();
        let host = Host { id: "off", facts: &facts, kept: &kept };
        assert!(matches!(off.build(&host), Ok(Built::Nothing)));
        let null = DebugConsole::new(0xe9, Terminal::open(&Mode::Null.into()).unwrap().unwrap());
        sweep(&null, 1);
    }
}
