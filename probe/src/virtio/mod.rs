//! Virtio over PCI as a driver sees it (virtio 1.3, 4.1): finding the register windows by the capabilities, the
//! initialisation dance, and queues.
//!
//! A [`Device`] that goes out of scope is reset, so no test leaves one writing to memory.

pub(crate) mod blk;
pub(crate) mod ip;
pub(crate) mod net;
pub(crate) mod pmem;
pub(crate) mod queue;
pub(crate) mod vsock;

use crate::arena::Arena;
use crate::clock::{Clock, PATIENCE};
use crate::io::Region;
use crate::msix::Msix;
use crate::pci::{Bus, CAP_VENDOR, Function};
use crate::text::Text;
use queue::Queue;

pub(crate) const VENDOR: u16 = 0x1af4;
pub(crate) const F_INDIRECT: u64 = 1 << 28;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
pub(crate) const F_VERSION_1: u64 = 1 << 32;

pub(crate) const S_ACKNOWLEDGE: u8 = 1;
pub(crate) const S_DRIVER: u8 = 2;
pub(crate) const S_DRIVER_OK: u8 = 4;
pub(crate) const S_FEATURES_OK: u8 = 8;
pub(crate) const S_NEEDS_RESET: u8 = 64;
pub(crate) const S_FAILED: u8 = 128;

/// Value of a vector register for "none".
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Device types (virtio 1.3, chapter 5).
pub(crate) mod kind {
    pub(crate) const NET: u16 = 1;
    pub(crate) const BLOCK: u16 = 2;
    pub(crate) const CONSOLE: u16 = 3;
    pub(crate) const RNG: u16 = 4;
    pub(crate) const VSOCK: u16 = 19;
    pub(crate) const FS: u16 = 26;
    pub(crate) const PMEM: u16 = 27;
}

/// Offsets in the common configuration (4.1.4.3).
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(crate) const DEVICE_FEATURE: u64 = 4;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(crate) const DRIVER_FEATURE: u64 = 12;
    pub(crate) const CONFIG_VECTOR: u64 = 16;
    pub(crate) const NUM_QUEUES: u64 = 18;
    pub(crate) const STATUS: u64 = 20;
    pub(crate) const QUEUE_SELECT: u64 = 22;
    pub(crate) const QUEUE_SIZE: u64 = 24;
    pub(crate) const QUEUE_VECTOR: u64 = 26;
    pub(crate) const QUEUE_ENABLE: u64 = 28;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(crate) const QUEUE_DESC: u64 = 32;
    pub(crate) const QUEUE_DRIVER: u64 = 40;
    pub(crate) const QUEUE_DEVICE: u64 = 48;
    pub(crate) const LEN: u64 = 56;
}

/// A virtio function with its windows.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) function: Function,
    pub(crate) common: Region,
    pub(crate) isr: Region,
    pub(crate) notify: Region,
    pub(crate) notify_multiplier: u64,
    pub(crate) config: Option<Region>,
    /// Features accepted at `start`.
    pub(crate) features: u64,
}

/// The type of a virtio function, `None` for anything else.
pub(crate) fn type_of(function: &Function) -> Option<u16> {
    (function.vendor() == VENDOR).then(|| function.device().checked_sub(0x1040)).flatten()
}

impl Device {
    /// The device's windows, by its capabilities. What is missing or outside its BAR is an error.
    pub(crate) fn open(function: Function) -> Result<Device, Text> {
        let [mut common, mut notify, mut isr, mut config] = [None; 4];
        // To size a BAR is slow: decoding is off meanwhile, which takes the host some doing.
        let mut sized: Option<(u8, Option<Region>)> = None;
        let mut multiplier = 0;
        for (_, at) in function.capabilities().filter(|(id, _)| *id == CAP_VENDOR) {
            let (cfg, bar) = (function.read8(at + 3), function.read8(at + 4));
            let (offset, len) = (u64::from(function.read32(at + 8)), u64::from(function.read32(at + 12)));
            // The first capability of a type counts (4.1.4).
            let place = match cfg {
                1 => &mut common,
                2 => &mut notify,
                3 => &mut isr,
                4 => &mut config,
                _ => continue,
            };
            if place.is_some() {
                continue;
            }
            let window = match sized {
                Some((same, window)) if same == bar => window,
                _ => function.window(bar),
            };
            sized = Some((bar, window));
            let Some(window) = window else {
                return Err(text!("{}: capability {cfg} names BAR {bar}, which is not there", function.bdf));
            };
            if offset.saturating_add(len) > window.len() {
                return Err(text!(
                    "{}: capability {cfg} leaves BAR {bar}: {offset:#x}+{len:#x}",
                    function.bdf
                ));
            }
            *place = Some(window.part(offset, len));
            if cfg == 2 {
                multiplier = u64::from(function.read32(at + 16));
            }
        }
        let (Some(common), Some(notify), Some(isr)) = (common, notify, isr) else {
            return Err(text!("{}: a virtio capability is missing", function.bdf));
        };
        if common.len() < common::LEN {
            return Err(text!("{}: the common window has {} bytes", function.bdf, common.len()));
        }
        Ok(Device { function, common, isr, notify, notify_multiplier: multiplier, config, features: 0 })
    }

    /// The `nth` device of `kind`, `None` if there are fewer.
    pub(crate) fn find(bus: &Bus, kind: u16, nth: u64) -> Option<Result<Device, Text>> {
        bus.iter().filter(|f| type_of(f) == Some(kind)).nth(nth as usize).map(Device::open)
    }

    pub(crate) fn status(&self) -> u8 {
        self.common.read8(common::STATUS)
    }

    pub(crate) fn add_status(&self, bits: u8) {
        self.common.write8(common::STATUS, self.status() | bits);
    }

    /// Resets, and waits until the device says it is (4.1.4.3.1). False if it does not within a second or so.
    pub(crate) fn reset(&self) -> bool {
        self.common.write8(common::STATUS, 0);
        (0..100_000).any(|_| self.status() == 0)
    }

    pub(crate) fn offered(&self) -> u64 {
        self.common.write32(common::DEVICE_FEATURE_SELECT, 0);
        let low = self.common.read32(common::DEVICE_FEATURE);
        self.common.write32(common::DEVICE_FEATURE_SELECT, 1);
        u64::from(self.common.read32(common::DEVICE_FEATURE)) << 32 | u64::from(low)
    }

    fn accept(&self, features: u64) {
        for select in 0..2 {
            self.common.write32(common::DRIVER_FEATURE_SELECT, select);
            self.common.write32(common::DRIVER_FEATURE, (features >> (select * 32)) as u32);
        }
    }

    /// Reset to FEATURES_OK, taking `wanted` as far as offered, and VERSION_1 (3.1.1).
    pub(crate) fn negotiate(&mut self, wanted: u64) -> Result<(), Text> {
        let bdf = self.function.bdf;
        self.function.enable();
        if !self.reset() {
            return Err(text!("{bdf}: the status stays {:#x} after a reset", self.status()));
        }
        self.add_status(S_ACKNOWLEDGE);
        self.add_status(S_DRIVER);
        let offered = self.offered();
        if offered & F_VERSION_1 == 0 {
            return Err(text!("{bdf}: VERSION_1 is not offered ({offered:#x})"));
        }
        self.features = offered & wanted | F_VERSION_1;
        self.accept(self.features);
        self.add_status(S_FEATURES_OK);
        if self.status() & S_FEATURES_OK == 0 {
            return Err(text!("{bdf}: the features {:#x} were refused", self.features));
        }
        Ok(())
    }

    pub(crate) fn queue_count(&self) -> u16 {
        self.common.read16(common::NUM_QUEUES)
    }

    /// Selects queue `index` and returns its largest size, 0 for one that is not there.
    pub(crate) fn select(&self, index: u16) -> u16 {
        self.common.write16(common::QUEUE_SELECT, index);
        self.common.read16(common::QUEUE_SIZE)
    }

    /// Lays out queue `index` in the arena, with at most `size` entries, and enables it. Its interrupt is `vector`.
    pub(crate) fn queue(&self, arena: &mut Arena, index: u16, size: u16, vector: u16) -> Result<Queue, Text> {
        let bdf = self.function.bdf;
        let size = self.select(index).min(size);
        if size == 0 || !size.is_power_of_two() {
            return Err(text!("{bdf}: queue {index} has size {size}"));
        }
        self.common.write16(common::QUEUE_SIZE, size);
        self.common.write16(common::QUEUE_VECTOR, vector);
        if self.common.read16(common::QUEUE_VECTOR) != vector {
            return Err(text!("{bdf}: queue {index} does not take vector {vector:#x}"));
        }
        let doorbell = u64::from(self.common.read16(common::QUEUE_NOTIFY_OFF)) * self.notify_multiplier;
        if doorbell + 2 > self.notify.len() {
            return Err(text!("{bdf}: the doorbell of queue {index} is outside the window: {doorbell:#x}"));
        }
        let queue = Queue::new(arena, index, size, self.notify.part(doorbell, 2), self.features);
        for (register, address) in [
            (common::QUEUE_DESC, queue.descriptors.base()),
            (common::QUEUE_DRIVER, queue.available.base()),
            (common::QUEUE_DEVICE, queue.used.base()),
        ] {
            self.common.write32(register, address as u32);
            self.common.write32(register + 4, (address >> 32) as u32);
        }
        self.common.write16(common::QUEUE_ENABLE, 1);
        Ok(queue)
    }

    pub(crate) fn start(&self) -> Result<(), Text> {
        self.add_status(S_DRIVER_OK);
        let status = self.status();
        if status & (S_NEEDS_RESET | S_FAILED) != 0 || status & S_DRIVER_OK == 0 {
            return Err(text!("{}: the status is {status:#x} after DRIVER_OK", self.function.bdf));
        }
        Ok(())
    }

    pub(crate) fn msix(&self) -> Option<Msix> {
        Msix::of(self.function)
    }

    /// Looks for the registers `to - from` further on, after the BAR that was at `from` went to `to`.
    ///
    /// # Safety
    /// There must be no RAM.
    pub(crate) unsafe fn follow(&mut self, from: u64, to: u64) {
        // SAFETY: by this function's contract.
        let moved = |r: Region| unsafe { Region::new(r.base() - from + to, r.len()) };
        self.common = moved(self.common);
        self.isr = moved(self.isr);
        self.notify = moved(self.notify);
        self.config = self.config.map(moved);
    }

    /// Waits until `queue` has a completion: head and length written.
    pub(crate) fn complete(&self, queue: &mut Queue, clock: &Clock) -> Result<(u16, u32), Text> {
        let mut done = None;
        clock.wait(PATIENCE, || {
            done = queue.pop();
            done.is_some()
        });
        done.ok_or_else(|| {
            text!(
                "{}: no completion on queue {}, status {:#x}",
                self.function.bdf,
                queue.index,
                self.status()
            )
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.reset();
    }
}
