//! Real taps, each test in a network namespace of its own.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::Control;
use crate::tap::{Offloads, VNET_HDR_LEN};
use crate::wire::persistent;
use crate::{MacAddr, netns_test};

fn exists(name: &str) -> bool {
    Control::v4().unwrap().flags(&IfName::new(name).unwrap()).is_ok()
}

fn open(name: &str) -> Result<TapSet, Error> {
    TapSet::open(Some(name), 1, &LinkConfig::default())
}

fn write(tap: &Tap, frame: &[u8]) -> io::Result<usize> {
    let iov = [libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() }];
    // SAFETY: the one buffer is `frame`, which is only read.
    unsafe { tap.writev(&iov) }
}

fn read(tap: &Tap, buffer: &mut [u8]) -> io::Result<usize> {
    let iov = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }];
    // SAFETY: the one buffer is `buffer`.
    unsafe { tap.readv(&iov) }
}

/// Reads frames until one satisfies `wanted`.
fn read_until(tap: &Tap, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut buffer = vec![0u8; 70_000];
    loop {
        match read(tap, &mut buffer) {
            Ok(n) if wanted(&buffer[VNET_HDR_LEN..n]) => return buffer[..n].to_vec(),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
            Err(e) => panic!("{e}"),
        }
        assert!(Instant::now() < deadline, "no such frame");
    }
}

/// An ARP request for 192.168.249.1 from 192.168.249.2, behind an empty header.
fn arp_request(from: MacAddr) -> Vec<u8> {
    let mut frame = vec![0u8; VNET_HDR_LEN];
    frame.extend([0xff; 6]);
    frame.extend(from.bytes());
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(from.bytes());
    frame.extend([192, 168, 249, 2]);
    frame.extend([0; 6]);
    frame.extend([192, 168, 249, 1]);
    frame
}

fn link_config() -> LinkConfig {
    let ip: IpAddr = "192.168.249.1".parse().unwrap();
    LinkConfig {
        ip: Some((ip, "255.255.255.0".parse().unwrap())),
        mac: Some("2e:00:00:00:00:01".parse().unwrap()),
        mtu: Some(1400),
    }
}

netns_test! {
    fn a_created_tap_carries_frames_and_disappears() {
        let set = TapSet::open(None, 1, &link_config()).unwrap();
        assert_eq!((set.name(), set.origin()), ("vmtap0", Origin::Created));
        let name = set.name.clone();
        let control = Control::v4().unwrap();
        assert_eq!(control.mtu(&name).unwrap(), 1400);
        assert_eq!(control.mac(&name).unwrap(), link_config().mac.unwrap());
        assert_ne!(control.flags(&name).unwrap() & libc::IFF_UP, 0);

        let guest: MacAddr = "2e:00:00:00:00:02".parse().unwrap();
        let tap = &set.taps()[0];
        let request = arp_request(guest);
        assert_eq!(write(tap, &request).unwrap(), request.len());
        let reply = read_until(tap, |f| f.starts_with(&guest.bytes()) && f[12..14] == [8, 6]);
        assert_eq!(&reply[VNET_HDR_LEN + 20..][..2], [0, 2], "an ARP reply");
        assert_eq!(&reply[VNET_HDR_LEN + 22..][..6], link_config().mac.unwrap().bytes());

        let second = TapSet::open(None, 1, &LinkConfig::default()).unwrap();
        assert_eq!(second.name(), "vmtap1");
        drop((set, second));
        assert!(!exists("vmtap0") && !exists("vmtap1"));
    }

    fn a_new_name_is_created_and_a_held_one_is_in_use() {
        let set = open("mine").unwrap();
        assert_eq!((set.name(), set.origin()), ("mine", Origin::Created));
        let error = open("mine").unwrap_err();
        assert!(matches!(&error, Error::InUse(n) if n == "mine"), "{error:?}");
        assert!(error.to_string().contains("tap \"mine\" is in use"), "{error}");
        drop(set);
        assert!(!exists("mine"));
    }

    fn an_existing_tap_is_attached_to_and_stays() {
        persistent("old", false);
        let set = TapSet::open(Some("old"), 1, &link_config()).unwrap();
        assert_eq!(set.origin(), Origin::Existing);
        drop(set);
        let old = IfName::new("old").unwrap();
        let control = Control::v4().unwrap();
        assert_eq!(control.mtu(&old).unwrap(), 1400);
        let address = ("192.168.249.1".parse().unwrap(), "255.255.255.0".parse().unwrap());
        assert_eq!(control.address_v4(&old).unwrap(), Some(address));
        // A second time nothing is left to change.
        TapSet::open(Some("old"), 1, &link_config()).unwrap();
    }

    fn an_existing_tap_of_several_queues_serves_one_pair() {
        persistent("many", true);
        let set = open("many").unwrap();
        assert_eq!((set.origin(), set.taps().len()), (Origin::Existing, 1));
    }

    fn an_existing_tap_of_one_queue_refuses_several_pairs() {
        persistent("one", false);
        let error = TapSet::open(Some("one"), 2, &LinkConfig::default()).unwrap_err();
        assert!(error.to_string().contains("ip tuntap add dev one mode tap multi_queue"), "{error}");
    }

    fn what_exists_and_is_no_tap_is_refused() {
        assert!(matches!(open("lo"), Err(Error::NotATap(n)) if n == "lo"));
        assert!(matches!(open("name-longer-than-15"), Err(Error::NameTooLong(_))));
    }

    fn an_existing_tap_is_left_as_found_on_failure() {
        persistent("kept", false);
        let kept = IfName::new("kept").unwrap();
        let control = Control::v4().unwrap();
        let before = (control.flags(&kept).unwrap(), control.mtu(&kept).unwrap(), control.mac(&kept).unwrap());
        let bad = LinkConfig { ip: Some(("10.0.0.1".parse().unwrap(), "ffff::".parse().unwrap())), ..link_config() };
        let error = TapSet::open(Some("kept"), 1, &bad).unwrap_err();
        assert!(matches!(error, Error::Mask { .. }), "{error}");
        let after = (control.flags(&kept).unwrap(), control.mtu(&kept).unwrap(), control.mac(&kept).unwrap());
        assert_eq!(after, before);
        assert_eq!(control.address_v4(&kept).unwrap(), None);

        // A group address is refused by the kernel, after the MTU was changed.
        let bad = LinkConfig { mac: Some("01:00:5e:00:00:01".parse().unwrap()), ..link_config() };
        let error = TapSet::open(Some("kept"), 1, &bad).unwrap_err();
        assert_eq!(error.to_string(), "cannot set the MAC address of \"kept\"");
        assert_eq!(control.mtu(&kept).unwrap(), before.1);
        // The same on a new one leaves none behind.
        TapSet::open(Some("fresh"), 1, &bad).unwrap_err();
        assert!(!exists("fresh"));
    }

    fn ipv6_addresses_are_set() {
        let ip: IpAddr = "fd00::1".parse().unwrap();
        let config = LinkConfig { ip: Some((ip, "ffff:ffff:ffff:ffff::".parse().unwrap())), ..Default::default() };
        let set = TapSet::open(Some("six"), 1, &config).unwrap();
        let addresses = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap();
        let line = addresses.lines().find(|l| l.starts_with("fd000000000000000000000000000001")).unwrap();
        assert_eq!(line.split_whitespace().nth(2), Some("40"), "a prefix of 64");
        drop(set);
    }

    fn frames_are_spread_over_attached_queues_only() {
        let set = TapSet::open(None, 4, &link_config()).unwrap();
        for tap in &set.taps()[1..] {
            tap.set_attached(false).unwrap();
        }
        // Datagrams of many flows to a neighbour that was made known by its own request.
        let tap = &set.taps()[0];
        write(tap, &arp_request("2e:00:00:00:00:02".parse().unwrap())).unwrap();
        let send = |count: u16| {
            for port in 0..count {
                UdpSocket::bind("192.168.249.1:0").unwrap().send_to(b"x", ("192.168.249.2", 1000 + port)).unwrap();
            }
        };
        send(32);
        let mut buffer = [0u8; 2048];
        let drain = |tap: &Tap, buffer: &mut [u8]| {
            std::iter::from_fn(|| read(tap, buffer).ok().map(|n| (n, buffer[VNET_HDR_LEN + 23])))
                .filter(|&(_, protocol)| protocol == 17)
                .count()
        };
        assert_eq!(drain(tap, &mut buffer), 32, "all flows in the one queue");
        assert!(set.taps()[1..].iter().all(|t| read(t, &mut buffer).is_err()));

        for tap in &set.taps()[1..] {
            tap.set_attached(true).unwrap();
        }
        send(64);
        let counts: Vec<usize> = set.taps().iter().map(|t| drain(t, &mut buffer)).collect();
        assert_eq!(counts.iter().sum::<usize>(), 64, "{counts:?}");
        assert!(counts.iter().filter(|&&n| n > 0).count() > 1, "{counts:?}");
    }

    fn offloads_are_taken_and_large_segments_follow() {
        let set = TapSet::open(None, 1, &link_config()).unwrap();
        let tap = &set.taps()[0];
        let all = if tap.packs_datagrams().unwrap() { Offloads::all() } else { Offloads::all() - Offloads::USO };
        tap.set_offloads(all).unwrap();
        tap.set_offloads(Offloads::TSO4).unwrap();
        tap.set_offloads(Offloads::empty()).unwrap();
        // Without offloads a datagram arrives with its checksum filled in; with them it is left to the reader.
        write(tap, &arp_request("2e:00:00:00:00:02".parse().unwrap())).unwrap();
        let flags = |port: u16| {
            UdpSocket::bind("192.168.249.1:0").unwrap().send_to(&[7; 600], ("192.168.249.2", port)).unwrap();
            read_until(tap, |f| f[23] == 17 && f[36..38] == port.to_be_bytes())[0]
        };
        assert_eq!(flags(2000), 0);
        tap.set_offloads(all).unwrap();
        assert_eq!(flags(2001), 1, "VIRTIO_NET_HDR_F_NEEDS_CSUM");
    }

    fn a_macvtap_is_opened_by_name_and_by_descriptor() {
        let Some(index) = crate::wire::macvtap("2e:00:00:00:00:07") else { return };
        let mac: MacAddr = "2e:00:00:00:00:07".parse().unwrap();
        let set = open("above").unwrap();
        assert_eq!((set.name(), set.origin(), set.taps()[0].own_mac()), ("above", Origin::Existing, Some(mac)));
        let far = crate::wire::Wire::new("far").unwrap();
        write(&set.taps()[0], &arp_request(mac)).unwrap();
        let frame = far.expect(|frame| frame[12..14] == [8, 6]);
        assert_eq!(frame[crate::wire::HEADER..], arp_request(mac)[VNET_HDR_LEN..]);
        // To its own address, and to all, but to nobody else.
        let mut other = frame.clone();
        other[crate::wire::HEADER..][..6].copy_from_slice(&[0x2e, 0, 0, 0, 0, 9]);
        far.send(&other).unwrap();
        let mut own = frame.clone();
        own[crate::wire::HEADER..][..6].copy_from_slice(&mac.bytes());
        far.send(&own).unwrap();
        let got = read_until(&set.taps()[0], |f| f[12..14] == [8, 6]);
        assert_eq!(got[VNET_HDR_LEN..], own[crate::wire::HEADER..]);
        drop(set);
        assert!(exists("above"), "it stays");

        let file = std::fs::File::options().read(true).write(true).open(format!("/dev/tap{index}")).unwrap();
        let set = TapSet::from_fds(&[file.as_raw_fd()]).unwrap();
        assert_eq!((set.name(), set.taps()[0].own_mac()), ("above", Some(mac)));
        drop((set, file));
        let set = TapSet::open(Some("above"), 2, &LinkConfig::default()).unwrap();
        assert_eq!(set.taps().len(), 2);
        for attached in [false, true] {
            set.taps()[1].set_attached(attached).unwrap();
        }
        // A plain tap's address is the host's.
        assert_eq!(open("plain").unwrap().taps()[0].own_mac(), None);
    }

    fn descriptors_are_duplicated_and_checked() {
        let made = TapSet::open(Some("given"), 2, &LinkConfig::default()).unwrap();
        let fds: Vec<RawFd> = made.taps().iter().map(AsRawFd::as_raw_fd).collect();
        let set = TapSet::from_fds(&fds).unwrap();
        assert_eq!((set.name(), set.origin(), set.taps().len()), ("given", Origin::Passed, 2));
        drop(set);
        assert!(made.taps()[0].as_fd().try_clone_to_owned().is_ok(), "still open");
        assert!(TapSet::from_fds(&fds).is_ok(), "and good for another time");

        assert!(matches!(TapSet::from_fds(&[fds[0], fds[0]]), Err(Error::FdTwice(_))));
        let copy = made.taps()[0].as_fd().try_clone_to_owned().unwrap();
        assert!(matches!(TapSet::from_fds(&[fds[0], copy.as_raw_fd()]), Err(Error::FdTwice(_))));
        assert!(matches!(TapSet::from_fds(&[]), Err(Error::NoQueues)));
        let other = open("other").unwrap();
        let error = TapSet::from_fds(&[fds[0], other.taps()[0].as_raw_fd()]).unwrap_err();
        assert!(matches!(&error, Error::FdOtherTap { name, .. } if name == "other"), "{error}");

        // Open, but not attached to anything; and attached without the header.
        let bare = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        assert!(matches!(TapSet::from_fds(&[bare.as_raw_fd()]), Err(Error::FdNotATap(_))));
        let mut request = crate::sys::IfReq::empty().with_flags(libc::IFF_TAP | libc::IFF_NO_PI);
        crate::sys::tun_request(&bare, libc::TUNSETIFF, &mut request).unwrap();
        let error = TapSet::from_fds(&[bare.as_raw_fd()]).unwrap_err();
        assert!(matches!(error, Error::FdFlags { flag: "IFF_VNET_HDR", .. }), "{error}");
    }

    fn without_the_privilege_it_is_said() {
        persistent("theirs", false);
        // SAFETY: no pointers; the process is this test's own.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &header(), &[[0u32; 3]; 2]) }, 0);
        let error = open("new").unwrap_err();
        assert!(matches!(error, Error::Permission { .. }) && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        let error = open("theirs").unwrap_err();
        assert!(error.to_string().contains("\"theirs\""), "{error}");
    }
}

/// `struct __user_cap_header_struct`, version 3, this process.
fn header() -> [u32; 2] {
    [0x2008_0522, 0]
}

#[test]
fn counts_of_pairs_are_bounded() {
    let open = |pairs| TapSet::open(Some("x"), pairs, &LinkConfig::default()).unwrap_err();
    assert!(matches!(open(0), Error::NoQueues));
    assert!(matches!(open(MAX_QUEUE_PAIRS + 1), Error::TooManyQueues { pairs: 257, max: 256, .. }));
}
