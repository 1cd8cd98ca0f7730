//! Transport registers of every virtio device: every width, every offset, every state, doorbells of queues that are not there, and rings where
//! none can be. Afterwards the device must still start.

use super::Machine;
use crate::io::{Region, WIDTHS};
use crate::pci::{CAP_VENDOR, Function};
use crate::verdict::{Outcome, Stop};
use crate::virtio::queue::Queue;
use crate::virtio::{self, Device, NO_VECTOR, S_ACKNOWLEDGE, S_DRIVER, S_FEATURES_OK, S_NEEDS_RESET, common};

/// How far to take a device before its registers are written at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reset,
    Acknowledged,
    Driver,
    Negotiated,
    Live,
    NeedsReset,
    Failed,
}

const STATES: [State; 7] = [
    State::Reset,
    State::Acknowledged,
    State::Driver,
    State::Negotiated,
    State::Live,
    State::NeedsReset,
    State::Failed,
];

/// Brings `device` into `state`, with queue 0 laid out where it gets that far.
fn bring(machine: &mut Machine, device: &mut Device, state: State) -> Result<Option<Queue>, Stop> {
    if !device.reset() {
        return Err(Stop::Fail(text!("{}: does not reset", device.function.bdf)));
    }
    match state {
        State::Reset => {}
        State::Acknowledged => device.add_status(S_ACKNOWLEDGE),
        State::Driver => device.add_status(S_ACKNOWLEDGE | S_DRIVER),
        State::Negotiated => {
            device.add_status(S_ACKNOWLEDGE | S_DRIVER);
            device.add_status(S_FEATURES_OK);
        }
        State::Failed => device.add_status(S_ACKNOWLEDGE | S_DRIVER | virtio::S_FAILED),
        State::NeedsReset => {
            device.negotiate(0).map_err(Stop::Fail)?;
            device.select(0);
            for register in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
                device.common.write32(register, 0xffff_f000);
                device.common.write32(register + 4, 0x7fff_ffff);
            }
            device.common.write16(common::QUEUE_ENABLE, 1);
            device.add_status(virtio::S_DRIVER_OK);
            let status = device.status();
            if status & S_NEEDS_RESET == 0 {
                let bdf = device.function.bdf;
                return Err(Stop::Fail(text!("{bdf}: status {status:#x} with rings out of memory")));
            }
        }
        State::Live => {
            device.negotiate(0).map_err(Stop::Fail)?;
            let mut first = None;
            for index in 0..device.queue_count() {
                let queue = device.queue(&mut machine.arena, index, 64, NO_VECTOR).map_err(Stop::Fail)?;
                first = first.or(Some(queue));
            }
            device.start().map_err(Stop::Fail)?;
            return Ok(first);
        }
    }
    Ok(None)
}

/// Values that are wrong for most registers. None of them is the address of memory that somebody uses.
const VALUES: [u64; 3] = [u64::MAX, 0, 0xffff_ffff_0000_0001];

/// Writes and reads `len` bytes from `from` of `window` in every width at every offset.
fn sweep(window: Region, from: u64, len: u64) -> u32 {
    let mut accesses = 0;
    for width in WIDTHS {
        for offset in from..(from + len).min(window.len()) {
            if offset + width > window.len() {
                break;
            }
            for value in VALUES {
                window.write(offset, width, value);
                window.read(offset, width);
                accesses += 2;
            }
        }
    }
    accesses
}

/// Writes and reads the common configuration, interrupt status, device configuration and doorbells through the window in configuration space
/// (virtio 1.3, 4.1.4.9), with lengths and BARs that are none as well.
fn sweep_by_window(function: Function) -> u32 {
    let found = function.capabilities().find(|(id, at)| *id == CAP_VENDOR && function.read8(at + 3) == 5);
    let Some((_, at)) = found else { return 0 };
    let mut accesses = 0;
    for bar in [0, 1, 5, 0xff] {
        function.write8(at + 4, bar);
        for offset in
            (0..64).step_by(3).chain([0x2000, 0x4000, 0x5ffe, 0x6000, 0x6ffe, 0x7_ffff, 0x8_0000, u32::MAX])
        {
            for length in [1, 2, 4, 0, 3, 8, u32::MAX] {
                function.write32(at + 8, offset);
                function.write32(at + 12, length);
                function.write32(at + 16, 0xffff_ffff);
                function.read32(at + 16);
                accesses += 2;
            }
            if bar != 0 && offset > 4 {
                break;
            }
        }
    }
    function.write8(at + 4, 0);
    function.write32(at + 12, 0);
    accesses
}

/// Every transport register of every virtio device, every width and offset, in every state of the device; then the device
/// must still start, and a live queue's registers must not have moved under it.
pub(super) fn registers(machine: &mut Machine) -> Outcome {
    let functions = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).count();
    if functions == 0 {
        skip!("no virtio device");
    }
    let mut accesses = 0;
    for nth in 0..functions {
        let Some(function) = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).nth(nth) else {
            break;
        };
        for state in STATES {
            machine.arena.reset();
            let mut device = Device::open(function).map_err(Stop::Fail)?;
            bring(machine, &mut device, state)?;
            accesses += sweep(device.common, 0, device.common.len().min(64));
            // After the above the status may be anything; the rest is swept in the state asked for, too.
            bring(machine, &mut device, state)?;
            accesses += sweep(device.isr, 0, 4);
            accesses += sweep(device.notify, 0, 12);
            accesses += sweep(device.notify, device.notify.len().saturating_sub(9), 9);
            if let Some(config) = device.config {
                accesses += sweep(config, 0, config.len().min(64));
                accesses += sweep(config, config.len().saturating_sub(9), 9);
            }
            bring(machine, &mut device, state)?;
            accesses += sweep_by_window(function);
        }
        machine.arena.reset();
        let mut device = Device::open(function).map_err(Stop::Fail)?;
        bring(machine, &mut device, State::Live)?;
    }
    Ok(text!("devices={functions} accesses={accesses}"))
}

/// The whole BAR of each virtio device in large steps, and its last bytes: gaps between the windows included.
pub(super) fn whole_bar(machine: &mut Machine) -> Outcome {
    let mut count = 0;
    for function in machine.bus.iter().filter(|f| virtio::type_of(f).is_some()) {
        let device = Device::open(function).map_err(Stop::Fail)?;
        for bar in function.bars().filter(|b| !b.is_port && b.len <= 1 << 20) {
            let Some(window) = function.window(bar.index) else { continue };
            for offset in (0..window.len()).step_by(0x400).chain([window.len() - 8]) {
                for width in WIDTHS {
                    window.read(offset, width);
                    window.write(offset, width, 0);
                }
            }
            count += 1;
        }
        check!(device.reset(), "{}: does not reset", function.bdf);
    }
    if count == 0 {
        skip!("no virtio device");
    }
    Ok(text!("bars={count}"))
}

/// Queue addresses and sizes that cannot be: behind the RAM, misaligned, wrapping, not a power of two, changed while live.
pub(super) fn queue_setup(machine: &mut Machine) -> Outcome {
    let beyond = machine.start.map().filter(|e| e.kind == 1).map(|e| e.base + e.len).max().unwrap_or(0);
    let functions = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).count();
    if functions == 0 {
        skip!("no virtio device");
    }
    for nth in 0..functions {
        let Some(function) = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).nth(nth) else {
            break;
        };
        let bar = function.bar(0).map_or(0xc000_0000, |bar| bar.address);
        for bad in
            [beyond, beyond - 16, !15, 0xfee0_0000, 0xfec0_0000, 0xe800_0000, 0xf800_0000, bar, 1, 1 << 62]
        {
            for register in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
                machine.arena.reset();
                let mut device = Device::open(function).map_err(Stop::Fail)?;
                device.negotiate(0).map_err(Stop::Fail)?;
                let queue = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
                device.common.write32(register, bad as u32);
                device.common.write32(register + 4, (bad >> 32) as u32);
                device.common.write16(common::QUEUE_ENABLE, 1);
                device.add_status(virtio::S_DRIVER_OK);
                queue.available.write16(2, 1);
                queue.ring();
                check!(device.reset(), "{}: {bad:#x} as a queue address: does not reset", function.bdf);
            }
        }
        for size in [0u16, 3, 0x8000, 0xffff, 0x4000] {
            machine.arena.reset();
            let mut device = Device::open(function).map_err(Stop::Fail)?;
            device.negotiate(0).map_err(Stop::Fail)?;
            let queue = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
            device.common.write16(common::QUEUE_ENABLE, 0);
            device.common.write16(common::QUEUE_SIZE, size);
            device.common.write16(common::QUEUE_ENABLE, 1);
            device.add_status(virtio::S_DRIVER_OK);
            queue.ring();
            check!(device.reset(), "{}: size {size:#x}: does not reset", function.bdf);
        }
        // A live queue keeps what it was started with.
        machine.arena.reset();
        let mut device = Device::open(function).map_err(Stop::Fail)?;
        bring(machine, &mut device, State::Live)?;
        device.select(0);
        for (register, value) in [
            (common::QUEUE_DESC, 0xffff_f000u32),
            (common::QUEUE_DRIVER, 0),
            (common::QUEUE_DEVICE, 0xffff_ffff),
        ] {
            device.common.write32(register, value);
        }
        device.common.write16(common::QUEUE_SIZE, 0);
        device.common.write16(common::QUEUE_SIZE, 0xffff);
        for queue in [device.queue_count(), 0x7fff, 0xffff] {
            check!(device.select(queue) == 0, "{}: queue {queue} exists", function.bdf);
            device.common.write16(common::QUEUE_ENABLE, 1);
            device.common.write32(common::QUEUE_DESC, 0x1000);
        }
        check!(device.reset(), "{}: does not reset", function.bdf);
    }
    Ok(text!("devices={functions}"))
}

/// Doorbells of live devices: every place in their window, with the numbers of queues that are there and of those that are not, at any width.
pub(super) fn doorbells(machine: &mut Machine) -> Outcome {
    let functions = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).count();
    if functions == 0 {
        skip!("no virtio device");
    }
    let mut rung = 0;
    for nth in 0..functions {
        let Some(function) = machine.bus.iter().filter(|f| virtio::type_of(f).is_some()).nth(nth) else {
            break;
        };
        for state in [State::Negotiated, State::Live, State::NeedsReset] {
            machine.arena.reset();
            let mut device = Device::open(function).map_err(Stop::Fail)?;
            bring(machine, &mut device, state)?;
            let notify = device.notify;
            let near = u64::from(device.queue_count()) * device.notify_multiplier + 8;
            let places = (0..near.min(notify.len() - 8)).chain([notify.len() / 2, notify.len() - 8]);
            for place in places {
                for width in WIDTHS {
                    for queue in [0, 1, u64::from(device.queue_count()), 0x7fff, 0xffff, u64::MAX] {
                        notify.write(place, width, queue);
                        rung += 1;
                    }
                }
            }
            check!(device.reset(), "{}: does not reset", function.bdf);
        }
        machine.arena.reset();
        let mut device = Device::open(function).map_err(Stop::Fail)?;
        bring(machine, &mut device, State::Live)?;
    }
    Ok(text!("devices={functions} rung={rung}"))
}
