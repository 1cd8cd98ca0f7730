//! A disk that another process serves: what of it is this side's business.

use std::ops::Range;

use ::spec::Refusal;
use device::{Host, Virtio, VirtioKind};
use vhost_user::front::{ConfigWish, Remote, Told, Way, Wish};

use super::DiskSpec;
use super::wire::{BLOCK, CAPACITY, CONFIG_LENGTH, QUEUES, SEGMENTS, WRITEBACK, feature, segments};

/// Features that a back end may have: those of disks as far as they mean nothing to this side.
const FEATURES: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::GEOMETRY
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::CONFIG_WCE
    | feature::DISCARD
    | feature::WRITE_ZEROES;

impl DiskSpec {
    /// Finds the process that serves the disk.
    pub(super) fn find(&self, host: &Host<'_>) -> Result<Remote, Refusal> {
        let queues = u16::try_from(self.num_queues)
            .map_err(|_| Refusal::invalid(format!("Number of queues ({}) of a disk", self.num_queues)))?;
        let size = self.queue_size;
        let way = Way::Connect(self.vhost_socket.clone().unwrap_or_default());
        let wish = Wish {
            features: FEATURES,
            required: if queues > 1 { feature::MQ } else { 0 },
            names: feature::NAMES,
            few_queues: 1,
            binding: feature::RO,
            empties: true,
            config: ConfigWish {
                bytes: vec![0; CONFIG_LENGTH],
                told: Told::ByBackEnd,
                adjust: Box::new(move |bytes| adjust(bytes, queues, size)),
                changes: CAPACITY,
                fits,
                writable: WRITEBACK..WRITEBACK + 1,
                writable_with: feature::CONFIG_WCE,
            },
            ..Wish::new(host.id, way, VirtioKind::Block as u16, vec![size; self.num_queues])
        };
        let what = || format!("cannot add disk \"{}\"", host.id);
        let disk = crate::remote::find(wish, host).map_err(|e| e.within(what()))?;
        if self.readonly && disk.features() & feature::RO == 0 {
            let refusal =
                Refusal::invalid("readonly=on, and the vhost-user back end serves the disk for writing");
            return Err(refusal.within(what()));
        }
        Ok(disk)
    }
}

fn number(bytes: &[u8], at: Range<usize>) -> u64 {
    let bytes = bytes.get(at).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The queues are ours: their number, and how long a chain can be.
fn adjust(bytes: &mut [u8], queues: u16, size: u16) {
    let told = number(bytes, SEGMENTS) as u32;
    if let Some(place) = bytes.get_mut(SEGMENTS) {
        place.copy_from_slice(&told.clamp(1, segments(size)).to_le_bytes());
    }
    if let Some(place) = bytes.get_mut(QUEUES) {
        place.copy_from_slice(&queues.to_le_bytes());
    }
}

/// A driver goes on with a disk of the same size. In smaller blocks than it uses anything can be done.
fn fits(then: &[u8], now: &[u8]) -> Result<(), String> {
    let (was, is) = (number(then, CAPACITY), number(now, CAPACITY));
    if was != is {
        return Err(format!("the disk had {was} sectors of 512 bytes, and has {is}"));
    }
    let (was, is) = (number(then, BLOCK), number(now, BLOCK));
    if was < is {
        return Err(format!("the disk had blocks of {was} bytes, and has blocks of {is}"));
    }
    Ok(())
}
