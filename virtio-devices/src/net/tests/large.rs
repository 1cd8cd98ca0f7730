//! Large segments: whole where the driver takes them so, and in pieces where not, switched while frames come.

use net_util::wire::{HEADER, Large, Wire, macvtap};

use super::*;

const MSS: u16 = 1400;

fn payload(length: usize) -> Vec<u8> {
    device::fake::random::Random(length as u64).bytes(length)
}

/// The next of ours that the driver gets.
fn next(b: &mut Bench<Net>, kind: Large) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let (head, length) = b.used(RX);
        let frame = b.get(buffer(RX, head), length as usize);
        offer(b, RX, head..head + 1, 0x1_8000);
        if kind.is(&frame[VNET_HDR_LEN..]) {
            return frame;
        }
        assert!(Instant::now() < end, "nothing of ours comes");
    }
}

/// How one comes in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Whole,
    /// In pieces, with their checksums undone.
    Undone,
    /// In pieces that are complete.
    Pieces,
}
use As::{Pieces, Undone, Whole};

fn comes(b: &mut Bench<Net>, wire: &Wire, kind: Large, length: usize, how: As) {
    let sent = payload(length);
    let frame = kind.frame(&sent, MSS);
    wire.send(&frame).unwrap();
    if how == Whole {
        let got = next(b, kind);
        assert_eq!(
            (got[0], got[1]),
            (frame[0], frame[1]),
            "the checksum is undone, and what is large is said"
        );
        assert!(got[VNET_HDR_LEN..] == frame[HEADER..], "{kind:?} of {length} bytes is something else");
        return;
    }
    let mut got = Vec::new();
    while got.len() < length {
        let piece = next(b, kind);
        assert_eq!((piece[0], piece[1]), (u8::from(how == Undone), 0), "a piece of {kind:?}");
        let bytes = &piece[VNET_HDR_LEN..];
        got.extend_from_slice(if how == Undone { kind.bytes(bytes) } else { kind.payload(bytes) });
    }
    assert!(got == sent, "{kind:?} of {length} bytes in pieces is something else");
}

fn goes(b: &mut Bench<Net>, wire: &Wire, kind: Large, length: usize) {
    let frame = kind.frame(&payload(length), MSS);
    b.put(FREE, &frame[..HEADER]);
    b.put(FREE + HEADER as u64, &[0, 0]);
    b.put(FREE + VNET_HDR_LEN as u64, &frame[HEADER..]);
    b.chain(TX, 0, &[(FREE, (frame.len() + 2) as u32, false)]);
    b.kick(TX);
    assert_eq!(b.used(TX), (0, 0));
    let got = wire.expect(|frame| kind.is(frame));
    assert_eq!((got[0], got[1]), (frame[0], frame[1]));
    assert!(got[HEADER..] == frame[HEADER..], "{kind:?} of {length} bytes went out as something else");
}

fn command_of(bits: u64) -> Vec<u8> {
    [&[5u8, 0][..], &bits.to_le_bytes()].concat()
}

netns_test! {
    fn large_segments_come_as_the_driver_takes_them_at_the_moment() {
        let mut b = bench(1, ALL & !feature::MRG_RXBUF);
        let wire = Wire::new("vmtap0").unwrap();
        offer(&mut b, RX, 0..40, 0x1_8000);
        let packs = b.device.shared.pairs.packs_datagrams;
        let kinds: &[Large] = if packs { &[Large::Tcp, Large::Udp] } else { &[Large::Tcp] };
        for kind in kinds {
            for length in [3000, 60_000] {
                goes(&mut b, &wire, *kind, length);
                comes(&mut b, &wire, *kind, length, Whole);
            }
        }
        let tcp = feature::GUEST_CSUM | feature::GUEST_TSO4;
        let udp = feature::GUEST_CSUM | feature::GUEST_USO4 | feature::GUEST_USO6;
        for (bits, how) in [(0, [Pieces; 2]), (feature::GUEST_CSUM, [Undone; 2]), (tcp, [Whole, Undone]), (udp, [Undone, Whole]), (tcp | udp, [Whole; 2])] {
            assert_eq!(command(&mut b, 2, &command_of(bits)), 0);
            for (kind, how) in kinds.iter().zip(how) {
                comes(&mut b, &wire, *kind, 20_000, how);
            }
        }
        // What the driver sends is as large as before: that is another direction.
        goes(&mut b, &wire, Large::Tcp, 60_000);
        stop(&mut b);
    }

    fn a_card_without_offloads_gets_pieces() {
        let mut spec = NetSpec { offload_csum: false, offload_tso: false, offload_ufo: false, ..super::spec(1) };
        let mut b = Bench::new(make(&mut spec, &Kept::default()), ALL);
        let wire = Wire::new("vmtap0").unwrap();
        offer(&mut b, RX, 0..40, 0x1_8000);
        for kind in [Large::Tcp, Large::Udp] {
            comes(&mut b, &wire, kind, 20_000, Pieces);
        }
        stop(&mut b);
    }

    fn without_large_datagrams_only_those_are_cut() {
        let mut spec = NetSpec { offload_ufo: false, ..super::spec(1) };
        let mut b = Bench::new(make(&mut spec, &Kept::default()), ALL);
        let wire = Wire::new("vmtap0").unwrap();
        offer(&mut b, RX, 0..40, 0x1_8000);
        comes(&mut b, &wire, Large::Udp, 20_000, Undone);
        comes(&mut b, &wire, Large::Tcp, 20_000, Whole);
        stop(&mut b);
    }

    fn a_macvtap_gives_the_guest_its_address() {
        if macvtap("2e:00:00:00:00:07").is_none() {
            return;
        }
        let mut spec = NetSpec { tap: Some("above".into()), mac: None, ip: None, mask: None, ..super::spec(1) };
        let mut b = Bench::new(make(&mut spec, &Kept::default()), ALL);
        assert_eq!(spec.mac, Some(Mac("2e:00:00:00:00:07".parse().unwrap())));
        let wire = Wire::new("far").unwrap();
        offer(&mut b, RX, 0..8, 0x1_8000);
        let mut frame = Large::Tcp.frame(&payload(30_000), MSS);
        frame[HEADER..][..6].copy_from_slice(&[0x2e, 0, 0, 0, 0, 7]);
        wire.send(&frame).unwrap();
        assert!(next(&mut b, Large::Tcp)[VNET_HDR_LEN..] == frame[HEADER..]);
        greet(&mut b);
        let out = wire.expect(|frame| frame[12..14] == [8, 6]);
        assert!(out[HEADER..] == arp_request()[VNET_HDR_LEN..]);
        stop(&mut b);
    }
}
