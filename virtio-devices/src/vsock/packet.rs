//! What goes through the queues (virtio 1.3 §5.10.6): a header of 44 bytes, followed by data if it is a packet of data.

use device::guest_warn;
use device::limit::LogLimit;

use crate::buffers::Gathered;

/// Bytes of a header.
pub const HEADER: usize = 44;
/// Most bytes of data in one packet to the guest.
pub const MAX_DATA: usize = 64 * 1024;
/// The host's context ID (§5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only type of socket offered (§5.10.6).
pub(super) const STREAM: u16 = 1;

/// What a packet is for.
pub(super) mod op {
    /// A connection is wanted.
    pub(in crate::vsock) const REQUEST: u16 = 1;
    /// It is accepted.
    pub(in crate::vsock) const RESPONSE: u16 = 2;
    /// There is no such connection, or no longer.
    pub(in crate::vsock) const RST: u16 = 3;
    /// One direction of it, or both, has come to its end.
    pub(in crate::vsock) const SHUTDOWN: u16 = 4;
    /// Data.
    pub(in crate::vsock) const RW: u16 = 5;
    /// News of the receiver's room.
    pub(in crate::vsock) const CREDIT_UPDATE: u16 = 6;
    /// Such news is wanted.
    pub(in crate::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: what its sender will not do any more.
pub(super) mod shutdown {
    /// Receive.
    pub(in crate::vsock) const RECEIVE: u32 = 1;
    /// Send.
    pub(in crate::vsock) const SEND: u32 = 2;
    /// Either.
    pub(in crate::vsock) const BOTH: u32 = RECEIVE | SEND;
}

/// The one event (§5.10.6.7): all connections are gone, and the context ID may be another.
pub(super) const TRANSPORT_RESET: u32 = 0;

/// The header of a packet (§5.10.6), in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data that follow.
    pub(super) len: u32,
    /// Type of socket.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Room that the sender has for the connection in all.
    pub(super) buf_alloc: u32,
    /// Bytes that left that room so far.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a packet's header, once.
    pub(super) fn read(packet: &Gathered<'_>) -> Option<Header> {
        let mut bytes = [0; HEADER];
        (packet.read(0, &mut bytes) == HEADER).then(|| Header::parse(&bytes))
    }

    /// What these bytes say.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Header {
        let mut rest = bytes.as_slice();
        Header {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> [u8; HEADER] {
        let parts: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The answer to a packet that belongs to no connection.
    pub(super) fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Header::default()
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, others) = rest.split_first_chunk().map_or(([0; N], &[][..]), |(f, o)| (*f, o));
    *rest = others;
    first
}

static MALFORMED: LogLimit = LogLimit::new();

/// Tells of a packet that no driver would send, at a limited rate.
pub(super) fn malformed(id: &str, what: std::fmt::Arguments<'_>) {
    guest_warn!(MALFORMED, "{id}: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_44_bytes_in_the_order_of_the_specification() {
        let bytes: [u8; HEADER] = std::array::from_fn(|i| i as u8 + 1);
        let header = Header::parse(&bytes);
        assert_eq!((header.src_cid, header.dst_cid), (0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09));
        assert_eq!((header.src_port, header.dst_port), (0x1413_1211, 0x1817_1615));
        assert_eq!((header.len, header.kind, header.op), (0x1c1b_1a19, 0x1e1d, 0x201f));
        assert_eq!((header.flags, header.buf_alloc, header.fwd_cnt), (0x2423_2221, 0x2827_2625, 0x2c2b_2a29));
        assert_eq!(header.bytes(), bytes);
    }
}
