//! The common configuration structure (virtio 1.3 §4.1.4.3): its fields, and what a driver has set up so far.
//!
//! Reads may have any width and alignment. Writes are served when they hit one field exactly (or half of a 64-bit one, which is
//! what the specification asks of drivers); everything else is dropped. Once the driver is ready, nothing that a running queue
//! depends on can be changed.

use device::virtio::feature;
use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use device::ram::RamMap;

use super::link::status;

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDesc,
    QueueDriver,
    QueueDevice,
}

/// Fields with offset and width in bytes, in order and without gaps.
pub(super) const FIELDS: [(Field, usize, usize); 16] = [
    (Field::DeviceFeatureSelect, 0, 4),
    (Field::DeviceFeature, 4, 4),
    (Field::DriverFeatureSelect, 8, 4),
    (Field::DriverFeature, 12, 4),
    (Field::ConfigMsixVector, 16, 2),
    (Field::NumQueues, 18, 2),
    (Field::DeviceStatus, 20, 1),
    (Field::ConfigGeneration, 21, 1),
    (Field::QueueSelect, 22, 2),
    (Field::QueueSize, 24, 2),
    (Field::QueueMsixVector, 26, 2),
    (Field::QueueEnable, 28, 2),
    (Field::QueueNotifyOff, 30, 2),
    (Field::QueueDesc, 32, 8),
    (Field::QueueDriver, 40, 8),
    (Field::QueueDevice, 48, 8),
];

/// Which bits of a field a write sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Low,
    High,
}

/// The field at a byte, and the byte's number within it.
pub(super) fn field_at(offset: usize) -> Option<(Field, usize)> {
    let (field, at, _) = FIELDS.iter().find(|(_, at, width)| (*at..at + width).contains(&offset))?;
    Some((*field, offset - at))
}

/// The field that a write hits exactly, with its value.
pub(super) fn field_written(offset: usize, data: &[u8]) -> Option<(Field, Part, u64)> {
    let (field, at, width) = *FIELDS.iter().find(|(_, at, width)| (*at..at + width).contains(&offset))?;
    let part = match (offset - at, data.len(), width) {
        (0, length, width) if length == width => Part::Whole,
        (0, 4, 8) => Part::Low,
        (4, 4, 8) => Part::High,
        _ => return None,
    };
    let mut value = [0; 8];
    value[..data.len()].copy_from_slice(data);
    Some((field, part, u64::from_le_bytes(value)))
}

/// A queue as the driver describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        QueueSetup { max_size, size: max_size, enabled: false, desc: 0, driver: 0, device: 0 }
    }

    /// Whether the rings are aligned and wholly in memory (virtio 1.3 §2.7).
    fn is_sound(&self, map: &RamMap) -> bool {
        let size = u64::from(self.size);
        let rings =
            [(self.desc, 16, 16 * size), (self.driver, 2, 6 + 2 * size), (self.device, 4, 6 + 8 * size)];
        rings.iter().all(|(base, alignment, length)| {
            base % alignment == 0
                && base.checked_add(*length).is_some()
                && GuestMemoryBackend::check_range(map, GuestAddress(*base), *length as usize)
        })
    }

    /// The queue before its first request; `None` while it is not enabled.
    fn state(&self, event_idx: bool) -> Option<QueueState> {
        self.enabled.then_some(QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.driver,
            used_ring: self.device,
        })
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was taken, or had nothing to say.
    Done,
    /// It came at the wrong time or with a wrong value and was dropped.
    Dropped,
    /// The rings of the queue being enabled cannot be.
    BadRings,
}

/// What a driver has set up.
#[derive(Debug)]
pub(super) struct Setup {
    offered: u64,
    device_select: u32,
    driver_select: u32,
    accepted: u64,
    features_fixed: bool,
    queues_fixed: bool,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl Setup {
    pub(super) fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        Setup {
            offered,
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            features_fixed: false,
            queues_fixed: false,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueSetup::new(*size)).collect(),
        }
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|q| q.max_size).collect();
        *self = Setup::new(self.offered, &sizes);
    }

    /// The queue that queue registers belong to now.
    pub(super) fn selected(&self) -> u16 {
        self.queue_select
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// A field's value, for those that live here.
    pub(super) fn read(&self, field: Field) -> u64 {
        let queue = |f: fn(&QueueSetup) -> u64| self.queue().map_or(0, f);
        match field {
            Field::DeviceFeatureSelect => self.device_select.into(),
            Field::DeviceFeature => half(self.offered, self.device_select).into(),
            Field::DriverFeatureSelect => self.driver_select.into(),
            Field::DriverFeature => half(self.accepted, self.driver_select).into(),
            Field::NumQueues => self.queues.len() as u64,
            Field::QueueSelect => self.queue_select.into(),
            Field::QueueSize => queue(|q| q.size.into()),
            Field::QueueEnable => queue(|q| q.enabled.into()),
            Field::QueueNotifyOff => self.queue().map_or(0, |_| self.queue_select.into()),
            Field::QueueDesc => queue(|q| q.desc),
            Field::QueueDriver => queue(|q| q.driver),
            Field::QueueDevice => queue(|q| q.device),
            Field::ConfigMsixVector
            | Field::DeviceStatus
            | Field::ConfigGeneration
            | Field::QueueMsixVector => 0,
        }
    }

    /// Takes a write to a field that lives here. Values have the width of the field, as [`field_written`] gives them.
    pub(super) fn write(&mut self, field: Field, part: Part, value: u64, map: &RamMap) -> Outcome {
        match field {
            Field::DeviceFeatureSelect => self.device_select = value as u32,
            Field::DriverFeatureSelect => self.driver_select = value as u32,
            Field::DriverFeature if !self.features_fixed => match self.driver_select {
                0 => self.accepted = self.accepted & !0xffff_ffff | value,
                1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
                // Bits above 63 are never offered; a driver that accepts one reads back that it was not taken.
                _ if value == 0 => {}
                _ => return Outcome::Dropped,
            },
            Field::QueueSelect => self.queue_select = value as u16,
            Field::QueueSize
            | Field::QueueEnable
            | Field::QueueDesc
            | Field::QueueDriver
            | Field::QueueDevice => return self.write_queue(field, part, value, map),
            _ => return Outcome::Dropped,
        }
        Outcome::Done
    }

    fn write_queue(&mut self, field: Field, part: Part, value: u64, map: &RamMap) -> Outcome {
        let fixed = self.queues_fixed;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return Outcome::Dropped;
        };
        if fixed || queue.enabled {
            return Outcome::Dropped;
        }
        match field {
            Field::QueueSize => match value as u16 {
                size if size.is_power_of_two() && size <= queue.max_size => queue.size = size,
                _ => return Outcome::Dropped,
            },
            Field::QueueEnable if value != 1 => return Outcome::Dropped,
            Field::QueueEnable if !queue.is_sound(map) => return Outcome::BadRings,
            Field::QueueEnable => queue.enabled = true,
            Field::QueueDesc => set(&mut queue.desc, part, value),
            Field::QueueDriver => set(&mut queue.driver, part, value),
            _ => set(&mut queue.device, part, value),
        }
        Outcome::Done
    }

    /// Fixes the accepted features; `false` if they are none that the device can work with (virtio 1.3 §2.2.2).
    pub(super) fn fix_features(&mut self) -> bool {
        let fit = self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0;
        self.features_fixed |= fit;
        fit
    }

    /// Fixes the queues; returns the accepted features and each queue's state.
    pub(super) fn fix_queues(&mut self) -> (u64, Vec<Option<QueueState>>) {
        self.queues_fixed = true;
        let event_idx = self.accepted & feature::RING_EVENT_IDX != 0;
        (self.accepted, self.queues.iter().map(|q| q.state(event_idx)).collect())
    }
}

/// What is saved of a [`Setup`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetupState {
    pub(super) offered: u64,
    pub(super) accepted: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    pub(super) queues: Vec<QueueRecord>,
}

/// What is saved of a [`QueueSetup`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueRecord {
    max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl QueueRecord {
    fn setup(self) -> QueueSetup {
        let QueueRecord { max_size, size, enabled, desc, driver, device } = self;
        QueueSetup { max_size, size, enabled, desc, driver, device }
    }
}

impl Setup {
    pub(super) fn save(&self) -> SetupState {
        let record = |q: &QueueSetup| {
            let QueueSetup { max_size, size, enabled, desc, driver, device } = *q;
            QueueRecord { max_size, size, enabled, desc, driver, device }
        };
        SetupState {
            offered: self.offered,
            accepted: self.accepted,
            device_select: self.device_select,
            driver_select: self.driver_select,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(record).collect(),
        }
    }

    /// Whether a driver could have set the queues up so; tells what it could not. Addresses of queues that are not enabled may be
    /// anything.
    pub(super) fn check(&self, saved: &SetupState, map: &RamMap) -> Result<(), String> {
        let (found, queues) = (saved.queues.len(), self.queues.len());
        if found != queues {
            return Err(format!("queues has {found} queues, and there are {queues}"));
        }
        for (n, (now, then)) in self.queues.iter().zip(&saved.queues).enumerate() {
            if then.max_size != now.max_size {
                return Err(format!(
                    "max_size of queue {n} is {}, and it is {} now",
                    then.max_size, now.max_size
                ));
            }
            if !then.size.is_power_of_two() || then.size > then.max_size {
                return Err(format!(
                    "size of queue {n} is {}, and at most {} can be",
                    then.size, then.max_size
                ));
            }
            if then.enabled && !then.setup().is_sound(map) {
                return Err(format!(
                    "queue {n} has its rings at {:#x}, {:#x} and {:#x}, which is not in memory",
                    then.desc, then.driver, then.device
                ));
            }
        }
        Ok(())
    }

    /// Goes on from what was checked, for a device with this status.
    pub(super) fn load(&mut self, saved: &SetupState, status: u8) {
        *self = Setup {
            offered: saved.offered,
            device_select: saved.device_select,
            driver_select: saved.driver_select,
            accepted: saved.accepted,
            features_fixed: status & status::FEATURES_OK != 0,
            queues_fixed: status & status::DRIVER_OK != 0,
            queue_select: saved.queue_select,
            queues: saved.queues.iter().map(|q| q.setup()).collect(),
        };
    }
}

fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set(address: &mut u64, part: Part, value: u64) {
    *address = match part {
        Part::Whole => value,
        Part::Low => *address & !0xffff_ffff | value,
        Part::High => *address & 0xffff_ffff | value << 32,
    };
}
