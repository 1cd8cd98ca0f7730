//! Port 0x402, where OVMF and its like write their debug output: it appears on standard output.
//!
//! Costs nothing until it is written to: standard output is only taken then.

use std::sync::{Arc, Mutex, PoisonError};

use device::limit::LogLimit;
use device::{
    Device, DeviceError, Effect, Grant, Needs, Region, Registers, Space, WindowNeed, Workers, guest_warn,
};
use terminal::{Session, Terminal};

use crate::debug_console::{Deaf, PRESENT};

const PORT: u64 = 0x402;

/// The port.
#[derive(Default)]
pub struct FirmwareDebug {
    workers: Option<Workers>,
    output: Mutex<Output>,
    limit: LogLimit,
}

#[derive(Default)]
enum Output {
    #[default]
    Unused,
    // The session serves a standard output that is slow.
    Open(Terminal, #[allow(dead_code)] Session),
    Unavailable,
}

impl FirmwareDebug {
    /// A port that nobody has written to.
    pub fn new() -> Self {
        FirmwareDebug::default()
    }

    fn open(&self) -> Output {
        let Some(workers) = &self.workers else { return Output::Unavailable };
        let opened = Terminal::standard_output().map_err(|e| DeviceError::new("no standard output", e));
        match opened
            .and_then(|terminal| Ok(Output::Open(terminal.clone(), terminal.serve(workers, Arc::new(Deaf))?)))
        {
            Ok(output) => output,
            Err(e) => {
                guest_warn!(self.limit, "firmware debug output is dropped: {e}");
                Output::Unavailable
            }
        }
    }
}

impl Registers for FirmwareDebug {
    fn read(&self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        if let (0, [byte]) = (offset, data) {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*output, Output::Unused) {
                *output = self.open();
            }
            if let Output::Open(terminal, _) = &*output {
                terminal.write(&[*byte]);
            }
        }
        Effect::None
    }
}

impl Device for FirmwareDebug {
    fn needs(&self) -> Needs {
        let window = WindowNeed { space: Space::Port, base: Some(PORT), length: 1 };
        Needs { windows: vec![window], ..Needs::default() }
    }

    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError> {
        self.workers = Some(grant.workers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{grant, inb, outb, sweep};

    #[test]
    fn the_port_tells_that_it_is_there_and_opens_its_output_on_the_first_byte() {
        let mut device = FirmwareDebug::new();
        assert_eq!(inb(&device, 0, 0), 0xe9);
        device.wire(grant(Vec::new()).0).unwrap();
        assert!(matches!(*device.output.lock().unwrap(), Output::Unused));
        assert_eq!(outb(&device, 0, 0, b'\n'), Effect::None);
        assert!(matches!(*device.output.lock().unwrap(), Output::Open(..)));
        sweep(&FirmwareDebug::new(), 1);
    }
}
