//! Port 0x80, where firmware and kernels leave progress codes: each becomes a line in the log, with the time since the start.
//!
//! Linux also writes to it to pass time, so lines are limited to a few a second.

use std::time::Instant;

use device::limit::LogLimit;
use device::{Device, DeviceError, Effect, Grant, Needs, Region, Registers, Space, WindowNeed, guest_warn};

const PORT: u64 = 0x80;

/// The port.
#[derive(Debug)]
pub struct DebugPort {
    started: Instant,
    limit: LogLimit,
}

impl Default for DebugPort {
    fn default() -> Self {
        DebugPort::new()
    }
}

impl DebugPort {
    /// A port whose time begins now.
    pub fn new() -> Self {
        DebugPort { started: Instant::now(), limit: LogLimit::new() }
    }
}

/// Who writes which codes, by agreement.
fn writer(code: u8) -> &'static str {
    match code {
        0x00..=0x1f => "Firmware",
        0x20..=0x3f => "Bootloader",
        0x40..=0x5f => "Kernel",
        0x60..=0x7f => "Userspace",
        0x80..=0xff => "Custom",
    }
}

impl Registers for DebugPort {
    fn read(&self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        if let (0, [code, ..]) = (offset, data) {
            let time = self.started.elapsed().as_secs_f64();
            guest_warn!(
                self.limit,
                "[Debug I/O port: {} code 0x{code:02x}] {time:.6} seconds",
                writer(*code)
            );
        }
        Effect::None
    }
}

impl Device for DebugPort {
    fn needs(&self) -> Needs {
        let window = WindowNeed { space: Space::Port, base: Some(PORT), length: 1 };
        Needs { windows: vec![window], ..Needs::default() }
    }

    fn wire(&mut self, _grant: Grant) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sweep;

    #[test]
    fn codes_are_told_apart_and_no_access_is_too_odd() {
        let seen = [0x00, 0x1f, 0x20, 0x41, 0x60, 0x80, 0xff].map(writer);
        let names = ["Firmware", "Firmware", "Bootloader", "Kernel", "Userspace", "Custom", "Custom"];
        assert_eq!(seen, names);
        sweep(&DebugPort::new(), 1);
    }
}
