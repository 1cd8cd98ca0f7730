//! Numbers and layouts of the network device, as the driver sees them (virtio 1.3 §5.1).

use net_util::{MacAddr, Offloads};

/// Feature bits (§5.1.3).
pub(super) mod feature {
    /// The device completes checksums.
    pub(crate) const CSUM: u64 = 1 << 0;
    /// The driver takes frames with partial checksums.
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    /// What the driver takes can be changed by command.
    pub(crate) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The configuration has the MTU.
    pub(crate) const MTU: u64 = 1 << 3;
    /// The configuration has the address.
    pub(crate) const MAC: u64 = 1 << 5;
    /// The driver takes large TCP segments over IPv4.
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes large TCP segments over IPv6.
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes large TCP segments with ECN.
    pub(crate) const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes large UDP datagrams.
    pub(crate) const GUEST_UFO: u64 = 1 << 10;
    /// The device takes large TCP segments over IPv4.
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    /// The device takes large TCP segments over IPv6.
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    /// The device takes large TCP segments with ECN.
    pub(crate) const HOST_ECN: u64 = 1 << 13;
    /// The device takes large UDP datagrams.
    pub(crate) const HOST_UFO: u64 = 1 << 14;
    /// A frame may be received in several buffers.
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration has the link's status.
    pub(crate) const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub(crate) const CTRL_VQ: u64 = 1 << 17;
    /// The driver can be asked to announce itself.
    pub(crate) const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// There may be several queue pairs.
    pub(crate) const MQ: u64 = 1 << 22;

    /// What [`CTRL_GUEST_OFFLOADS`] can switch; the same bits in its command.
    pub(crate) const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO;

    /// Their names.
    pub(crate) const NAMES: &[(u64, &str)] = &[
        (CSUM, "VIRTIO_NET_F_CSUM"),
        (GUEST_CSUM, "VIRTIO_NET_F_GUEST_CSUM"),
        (CTRL_GUEST_OFFLOADS, "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS"),
        (MTU, "VIRTIO_NET_F_MTU"),
        (MAC, "VIRTIO_NET_F_MAC"),
        (GUEST_TSO4, "VIRTIO_NET_F_GUEST_TSO4"),
        (GUEST_TSO6, "VIRTIO_NET_F_GUEST_TSO6"),
        (GUEST_ECN, "VIRTIO_NET_F_GUEST_ECN"),
        (GUEST_UFO, "VIRTIO_NET_F_GUEST_UFO"),
        (HOST_TSO4, "VIRTIO_NET_F_HOST_TSO4"),
        (HOST_TSO6, "VIRTIO_NET_F_HOST_TSO6"),
        (HOST_ECN, "VIRTIO_NET_F_HOST_ECN"),
        (HOST_UFO, "VIRTIO_NET_F_HOST_UFO"),
        (MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF"),
        (STATUS, "VIRTIO_NET_F_STATUS"),
        (CTRL_VQ, "VIRTIO_NET_F_CTRL_VQ"),
        (GUEST_ANNOUNCE, "VIRTIO_NET_F_GUEST_ANNOUNCE"),
        (MQ, "VIRTIO_NET_F_MQ"),
    ];
}

/// What the tap may leave undone for a driver with these features (or these offloads, which are the same bits).
pub(super) fn offloads(features: u64) -> Offloads {
    let table = [
        (feature::GUEST_CSUM, Offloads::CSUM),
        (feature::GUEST_TSO4, Offloads::TSO4),
        (feature::GUEST_TSO6, Offloads::TSO6),
        (feature::GUEST_ECN, Offloads::TSO_ECN),
        (feature::GUEST_UFO, Offloads::UFO),
    ];
    table.into_iter().filter(|(bit, _)| features & bit != 0).map(|(_, offload)| offload).collect()
}

/// Bytes of the configuration space: address, status, queue pairs, MTU (§5.1.4).
pub(super) const CONFIG_LENGTH: usize = 12;

/// The link is up.
pub(super) const STATUS_LINK_UP: u16 = 1;
/// The driver is asked to announce itself.
pub(super) const STATUS_ANNOUNCE: u16 = 2;

/// The configuration space.
pub(super) fn config(mac: MacAddr, status: u16, pairs: u16, mtu: u16) -> [u8; CONFIG_LENGTH] {
    let mut bytes = [0; CONFIG_LENGTH];
    bytes[..6].copy_from_slice(&mac.bytes());
    bytes[6..8].copy_from_slice(&status.to_le_bytes());
    bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
    bytes[10..].copy_from_slice(&mtu.to_le_bytes());
    bytes
}

/// Where `num_buffers` is in the header of a frame (§5.1.6.1): the kernel does not write it.
pub(super) const NUM_BUFFERS_OFFSET: usize = 10;

/// An Ethernet header without a VLAN tag.
pub(super) const ETHERNET_HEADER: usize = 14;

/// The largest frame with its header, in bytes: 65562 (§5.1.6.3.1) and a VLAN tag.
pub const MAX_FRAME: usize = net_util::VNET_HDR_LEN + ETHERNET_HEADER + 65536 + 4;

/// Most bytes read of a control command; those known are shorter.
pub const MAX_COMMAND: usize = 64;

/// The answers to a command (§5.1.6.5).
pub(super) const ACK_OK: u8 = 0;
/// See [`ACK_OK`].
pub(super) const ACK_ERR: u8 = 1;

/// A command of the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// The driver has announced itself (§5.1.6.5.4).
    AnnounceAck,
    /// So many queue pairs will be used (§5.1.6.5.5).
    SetPairs(u16),
    /// These offloads are to be used from now on (§5.1.6.5.8).
    SetOffloads(u64),
}

impl Command {
    /// Reads a command: class, number, data. `None` if there is no such command or its data is too short.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[class, number], data) = bytes.split_first_chunk()?;
        match (class, number) {
            (3, 0) => Some(Command::AnnounceAck),
            (4, 0) => data.first_chunk().map(|b| Command::SetPairs(u16::from_le_bytes(*b))),
            (5, 0) => data.first_chunk().map(|b| Command::SetOffloads(u64::from_le_bytes(*b))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_others_are_not() {
        assert_eq!(Command::parse(&[3, 0]), Some(Command::AnnounceAck));
        assert_eq!(Command::parse(&[4, 0, 2, 1]), Some(Command::SetPairs(0x102)));
        assert_eq!(Command::parse(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), Some(Command::SetOffloads(2)));
        for bad in
            [&[][..], &[4], &[4, 0], &[4, 0, 1], &[5, 0, 1, 0, 0, 0], &[4, 1, 1, 0], &[0, 0, 1], &[255, 255]]
        {
            assert_eq!(Command::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn features_become_offloads_of_the_tap() {
        assert_eq!(offloads(0), Offloads::empty());
        assert_eq!(offloads(feature::GUEST_OFFLOADS), Offloads::all());
        assert_eq!(offloads(feature::GUEST_CSUM | feature::HOST_TSO4), Offloads::CSUM);
    }
}
