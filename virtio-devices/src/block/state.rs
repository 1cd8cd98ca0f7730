//! What is saved of a disk: what its driver knows of it and cannot be told anew, and what the host enforces.
//!
//! The image may be at another place when the state is loaded, and be another file; it must have the same size.

use ::block::{SECTOR, Topology};
use device::state::{Node, State, StateError};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

use super::wire::SERIAL_LENGTH;
use super::{Disk, Known};

/// The largest block that is believed, in bytes.
const MAX_BLOCK: u32 = 1 << 20;

/// A disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskState {
    /// Size in units of 512 bytes.
    sectors: u64,
    readonly: bool,
    /// The first sector may not be written, because the type of the image was not stated when the machine was first made. That is
    /// so for ever: what was found out is no statement of the user's, and what a guest could write may never be taken for another
    /// format.
    protect_sector0: bool,
    /// As of the configuration space.
    writeback: bool,
    /// What the driver was told, up to the zeros.
    serial: Vec<u8>,
    logical_block: u32,
    physical_block: u32,
    min_io: u32,
    opt_io: u32,
}

impl State for DiskState {
    const KIND: &'static str = "virtio-blk";
}

impl Disk {
    pub(super) fn save_state(&self) -> Result<Node, StateError> {
        let shared = &self.shared;
        let Known { serial, topology } = shared.known();
        let length = serial.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Node::of(&DiskState {
            sectors: shared.image.size() / SECTOR,
            readonly: shared.image.readonly(),
            protect_sector0: shared.image.protects_sector0(),
            writeback: shared.writeback.load(Ordering::Relaxed),
            serial: serial[..length].to_vec(),
            logical_block: topology.logical_block,
            physical_block: topology.physical_block,
            min_io: topology.min_io,
            opt_io: topology.opt_io,
        })
    }

    pub(super) fn load_state(&self, node: Node) -> Result<(), StateError> {
        let saved: DiskState = node.read()?;
        let (id, image) = (&self.shared.id, &self.shared.image);
        let refuse = |what: String| Err(StateError::value::<DiskState>(what));
        let sectors = image.size() / SECTOR;
        if saved.sectors != sectors {
            return refuse(format!(
                "disk {id:?} had {} sectors of {SECTOR} bytes, and image {} has {sectors}",
                saved.sectors,
                image.path().display()
            ));
        }
        if saved.readonly != image.readonly() {
            let now = image.readonly();
            return refuse(format!(
                "readonly of disk {id:?} is {}, and the image's is {now}",
                saved.readonly
            ));
        }
        let known = saved.known().map_err(StateError::value::<DiskState>)?;
        // In smaller blocks than the driver uses anything can be done.
        let (then, now) = (saved.logical_block, image.topology().logical_block);
        if then < now {
            return refuse(format!(
                "disk {id:?} had blocks of {then} bytes, and image {} has blocks of {now}",
                image.path().display()
            ));
        }
        if self.shared.loaded.set(known).is_err() {
            return refuse(format!("disk {id:?} was loaded before"));
        }
        if saved.protect_sector0 {
            image.protect_sector0();
        }
        self.shared.writeback.store(saved.writeback, Ordering::Relaxed);
        Ok(())
    }
}

impl DiskState {
    /// What the driver knows, if that can be.
    fn known(&self) -> Result<Known, String> {
        let DiskState { logical_block, physical_block, min_io, opt_io, .. } = *self;
        let block = |size: u32| size.is_power_of_two() && (SECTOR as u32..=MAX_BLOCK).contains(&size);
        if !block(logical_block) {
            return Err(format!("logical_block is {logical_block}"));
        }
        if !block(physical_block) || physical_block < logical_block {
            return Err(format!("physical_block is {physical_block}, and logical_block {logical_block}"));
        }
        let mut serial = [0; SERIAL_LENGTH];
        match serial.get_mut(..self.serial.len()) {
            Some(place) => place.copy_from_slice(&self.serial),
            None => return Err(format!("serial has {} bytes", self.serial.len())),
        }
        Ok(Known { serial, topology: Topology { logical_block, physical_block, min_io, opt_io } })
    }
}
