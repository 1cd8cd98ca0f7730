//! Port 0x402, where OVMF and its like write their debug output: it appears on standard output.
//!
//! Standard output is taken when the machine is built, because whoever runs the guest may not open anything; it is served from the first
//! byte on.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use device::{Device, DeviceError, Effect, Grant, Needs, Region, Registers, Space, WindowNeed, Workers};
use terminal::{Session, Terminal};

use crate::debug_console::{Deaf, PRESENT};

const PORT: u64 = 0x402;

/// The port.
#[derive(Default)]
pub struct FirmwareDebug {
    output: Mutex<Output>,
}

#[derive(Default)]
enum Output {
    #[default]
    Unavailable,
    Unused {
        terminal: Terminal,
        workers: Workers,
    },
    Open {
        terminal: Terminal,
        // Serves a standard output that is slow.
        _session: Session,
    },
}

impl FirmwareDebug {
    /// A port that nobody has written to.
    pub fn new() -> Self {
        FirmwareDebug::default()
    }
}

impl Output {
    /// Begins to serve what was taken.
    fn open(self) -> Output {
        let Output::Unused { terminal, workers } = self else { return self };
        match terminal.serve(&workers, Arc::new(Deaf)) {
            Ok(_session) => Output::Open { terminal, _session },
            Err(e) => unavailable(&e),
        }
    }
}

/// Tells once that there is no output; it is not tried again.
fn unavailable(why: &dyn Error) -> Output {
    log::warn!("firmware debug output is dropped: {why}");
    Output::Unavailable
}

impl Registers for FirmwareDebug {
    fn read(&self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        if let (0, [byte]) = (offset, data) {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*output, Output::Unused { .. }) {
                *output = std::mem::take(&mut *output).open();
            }
            if let Output::Open { terminal, .. } = &*output {
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
        let output = match Terminal::standard_output() {
            Ok(terminal) => Output::Unused { terminal, workers: grant.workers },
            Err(e) => unavailable(&e),
        };
        self.output = Mutex::new(output);
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
        assert!(matches!(*device.output.lock().unwrap(), Output::Unused { .. }));
        assert_eq!(outb(&device, 0, 0, b'\n'), Effect::None);
        assert!(matches!(*device.output.lock().unwrap(), Output::Open { .. }));
        sweep(&FirmwareDebug::new(), 1);
    }
}
