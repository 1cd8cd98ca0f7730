//! What driver and block device exchange, byte by byte (virtio 1.3 §5.2).

use std::ops::Range;

use block::{SECTOR, Topology};

/// Feature bits of this device type (§5.2.3).
pub(super) mod feature {
    pub(crate) const SIZE_MAX: u64 = 1 << 1;
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const GEOMETRY: u64 = 1 << 4;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;

    /// Their names.
    pub(crate) const NAMES: &[(u64, &str)] = &[
        (SIZE_MAX, "VIRTIO_BLK_F_SIZE_MAX"),
        (SEG_MAX, "VIRTIO_BLK_F_SEG_MAX"),
        (GEOMETRY, "VIRTIO_BLK_F_GEOMETRY"),
        (RO, "VIRTIO_BLK_F_RO"),
        (BLK_SIZE, "VIRTIO_BLK_F_BLK_SIZE"),
        (FLUSH, "VIRTIO_BLK_F_FLUSH"),
        (TOPOLOGY, "VIRTIO_BLK_F_TOPOLOGY"),
        (CONFIG_WCE, "VIRTIO_BLK_F_CONFIG_WCE"),
        (MQ, "VIRTIO_BLK_F_MQ"),
        (DISCARD, "VIRTIO_BLK_F_DISCARD"),
        (WRITE_ZEROES, "VIRTIO_BLK_F_WRITE_ZEROES"),
    ];
}

/// Request types (§5.2.6).
pub(super) mod kind {
    pub(crate) const IN: u32 = 0;
    pub(crate) const OUT: u32 = 1;
    pub(crate) const FLUSH: u32 = 4;
    pub(crate) const GET_ID: u32 = 8;
    pub(crate) const DISCARD: u32 = 11;
    pub(crate) const WRITE_ZEROES: u32 = 13;
}

/// What the last byte of a request says (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

/// Bytes before the data of a request: type, reserved, sector.
pub(super) const HEADER_LENGTH: usize = 16;

/// Bytes of one range to discard or zero: sector, number of sectors, flags.
pub(super) const RANGE_LENGTH: usize = 16;

/// Ranges in one request to discard or zero.
pub(super) const MAX_RANGES: u32 = 1;

/// Flag of a range: its space may be given back (only for zeroing).
pub(super) const RANGE_UNMAP: u32 = 1;

/// Bytes of the identification (§5.2.6); shorter ones are padded with zeros.
pub const SERIAL_LENGTH: usize = 20;

/// Most buffers of one request, as far as the driver is told; header and status are two more.
pub const MAX_SEGMENTS: u16 = 1022;

/// Length of the configuration space: up to and with `unused1` (§5.2.4).
pub(super) const CONFIG_LENGTH: usize = 60;

/// Where `capacity` is in it, in sectors,
pub(super) const CAPACITY: Range<usize> = 0..8;
/// `seg_max`,
pub(super) const SEGMENTS: Range<usize> = 12..16;
/// `blk_size`,
pub(super) const BLOCK: Range<usize> = 20..24;
/// `writeback`,
pub(super) const WRITEBACK: usize = 32;
/// and `num_queues`.
pub(super) const QUEUES: Range<usize> = 34..36;

/// Buffers of a request in a queue of this size, as far as the driver is told: a chain is no longer than its queue.
pub(super) fn segments(queue_size: u16) -> u32 {
    queue_size.saturating_sub(2).clamp(1, MAX_SEGMENTS).into()
}

/// What the configuration space tells.
pub(super) struct Config {
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) topology: Topology,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) writeback: bool,
    /// Ranges can be zeroed.
    pub(super) zeroes: bool,
    /// Ranges can be given back.
    pub(super) discard: bool,
    /// Most bytes of a range that is zeroed or given back, if that is bounded.
    pub(super) most_zeroed: Option<u64>,
}

impl Config {
    /// The bytes.
    pub(super) fn bytes(&self) -> [u8; CONFIG_LENGTH] {
        let Topology { logical_block, physical_block, min_io, opt_io } = self.topology;
        let mut out = [0; CONFIG_LENGTH];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(CAPACITY.start, &(self.size / SECTOR).to_le_bytes());
        put(SEGMENTS.start, &segments(self.queue_size).to_le_bytes());
        put(BLOCK.start, &logical_block.to_le_bytes());
        // Both are powers of two, and the physical block is not the smaller one.
        let exponent = physical_block.trailing_zeros() - logical_block.trailing_zeros();
        put(24, &[exponent as u8, 0]);
        put(26, &u16::try_from(min_io / logical_block).unwrap_or(u16::MAX).to_le_bytes());
        put(28, &(opt_io / logical_block).to_le_bytes());
        put(WRITEBACK, &[u8::from(self.writeback)]);
        put(QUEUES.start, &self.queues.to_le_bytes());
        let most = self.most_zeroed.and_then(|bytes| u32::try_from(bytes / SECTOR).ok()).unwrap_or(u32::MAX);
        if self.discard {
            put(36, &most.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &(u64::from(physical_block) / SECTOR).to_le_bytes()[..4]);
        }
        if self.zeroes {
            put(48, &most.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[u8::from(self.discard)]);
        }
        out
    }
}
