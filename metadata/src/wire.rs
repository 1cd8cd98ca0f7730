//! The card as smoltcp sees it: one packet comes in at a time, and what goes out waits in a bounded queue, as Ethernet frames.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::frame::{ETHERNET, header_of, is_ipv6};

/// Frames that wait for the guest to take them; what is more is lost, as on a busy network, and sent again by TCP.
pub(crate) const MAX_WAITING: usize = 64;
/// Stations that are remembered; behind one card there may be several.
const MAX_STATIONS: usize = 32;

/// See the module.
pub(crate) struct Wire {
    /// The packet that comes in.
    pub(crate) incoming: Vec<u8>,
    /// Frames that go out.
    pub(crate) outgoing: VecDeque<Vec<u8>>,
    /// Who has which address, the latest last.
    stations: VecDeque<(IpAddr, [u8; 6])>,
    mtu: usize,
}

impl Wire {
    pub(crate) fn new(mtu: usize) -> Self {
        Wire { incoming: Vec::new(), outgoing: VecDeque::new(), stations: VecDeque::new(), mtu }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.outgoing.len() >= MAX_WAITING
    }

    /// Forgets what comes and goes, and the stations.
    pub(crate) fn clear(&mut self) {
        self.incoming.clear();
        self.outgoing.clear();
        self.stations.clear();
    }

    /// Sends a frame, if there is room.
    pub(crate) fn send(&mut self, frame: Vec<u8>) {
        if !self.is_full() {
            self.outgoing.push_back(frame);
        }
    }

    /// Remembers who has an address.
    pub(crate) fn note(&mut self, address: IpAddr, mac: [u8; 6]) {
        if self.stations.back() == Some(&(address, mac)) {
            return;
        }
        self.stations.retain(|(other, _)| *other != address);
        if self.stations.len() == MAX_STATIONS {
            self.stations.pop_front();
        }
        self.stations.push_back((address, mac));
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if self.incoming.is_empty() || self.is_full() {
            self.incoming.clear();
            return None;
        }
        let packet = Incoming(std::mem::take(&mut self.incoming));
        Some((packet, Outgoing(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (!self.is_full()).then_some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // A guest may leave checksums to its card, and nothing happens to bytes between it and us.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A packet that comes in.
pub(crate) struct Incoming(Vec<u8>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for one that goes out.
pub(crate) struct Outgoing<'a>(&'a mut Wire);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; ETHERNET + length];
        let result = f(&mut frame[ETHERNET..]);
        let packet = &frame[ETHERNET..];
        let to = receiver(packet);
        let station = self.0.stations.iter().find(|(address, _)| Some(*address) == to);
        if let Some((_, mac)) = station {
            let header = header_of(packet, *mac);
            frame[..ETHERNET].copy_from_slice(&header);
            self.0.send(frame);
        }
        result
    }
}

/// Who an IP packet is to: at 16 in a header of IPv4, at 24 in one of IPv6.
fn receiver(packet: &[u8]) -> Option<IpAddr> {
    match is_ipv6(packet) {
        true => packet.get(24..)?.first_chunk().map(|to: &[u8; 16]| Ipv6Addr::from(*to).into()),
        false => packet.get(16..)?.first_chunk().map(|to: &[u8; 4]| Ipv4Addr::from(*to).into()),
    }
}
