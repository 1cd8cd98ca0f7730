//! The corner of the keyboard controller that is used to reset a PC.

use device::{Device, DeviceError, Effect, Grant, Needs, Region, Registers, Space, WindowNeed};

use crate::addresses;

/// Port 0x61, system control port B; 0x64 is the controller's command and status port.
const BASE: u64 = 0x61;
const LENGTH: u64 = 4;
const COMMAND: u64 = 3;

/// System control port B: the output of timer 2, which is always high.
const TIMER_2_OUTPUT: u8 = 0x20;
/// Pulse output line 0, which is wired to the processor's reset.
const RESET: u8 = 0xfe;

/// The controller: no keyboard, no mouse, no buffered byte.
#[derive(Debug, Default)]
pub struct I8042;

impl Registers for I8042 {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        for (at, slot) in addresses(offset).zip(data) {
            *slot = if at == 0 { TIMER_2_OUTPUT } else { 0 };
        }
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        let reset = addresses(offset).zip(data).any(|(at, value)| at == COMMAND && *value == RESET);
        if reset { Effect::Reset } else { Effect::None }
    }
}

impl Device for I8042 {
    fn needs(&self) -> Needs {
        let window = WindowNeed { space: Space::Port, base: Some(BASE), length: LENGTH };
        Needs { windows: vec![window], ..Needs::default() }
    }

    fn wire(&mut self, _grant: Grant) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{inb, outb, sweep};

    #[test]
    fn pulsing_the_reset_line_resets_and_nothing_else_does() {
        let device = I8042;
        assert_eq!((inb(&device, 0, 0), inb(&device, 0, 3)), (0x20, 0));
        assert_eq!(outb(&device, 0, 3, 0xfe), Effect::Reset);
        for (offset, value) in [(0, 0xfe), (1, 0xfe), (2, 0xfe), (3, 0xff), (3, 0xd1)] {
            assert_eq!(outb(&device, 0, offset, value), Effect::None);
        }
        assert_eq!(device.write(Region::Window(0), 2, &[0, 0xfe]), Effect::Reset);
        sweep(&device, LENGTH);
    }
}
