//! The link behind a tap: MTU, address of the host's end, IP address, up.
//!
//! Done with the old interface ioctls rather than netlink. What is needed are eight fixed-size requests, all of which
//! Linux keeps as user-space ABI; of the netlink crates, `rtnetlink` wants an asynchronous runtime, and `neli` or
//! `netlink-packet-route` would each bring several crates and thousands of lines to say the same. Should more be
//! needed one day (routes, several IPv4 addresses), this is the file to change.
//!
//! A change that is there already is not made, so that a tap which an administrator prepared needs no privilege.
//! When a later change fails, the earlier ones are undone: a link is configured whole or left as it was found.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use log::warn;

use crate::sys::Control;
use crate::{Error, IfName, MacAddr};

/// What the host's end of a tap should be like. What is `None` is left alone. The link is always brought up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConfig {
    /// Address and mask, of one family.
    pub ip: Option<(IpAddr, IpAddr)>,
    /// Ethernet address of the host's end.
    pub mac: Option<MacAddr>,
    /// Largest payload of a frame, in bytes.
    pub mtu: Option<u16>,
}

/// How to take back one change.
enum Undo {
    Flags(i32),
    Mtu(i32),
    Mac(MacAddr),
    V4(Option<(Ipv4Addr, Ipv4Addr)>),
    V6(Ipv6Addr, u8),
}

/// The changes made so far. Dropping it takes them back, latest first, unless [`Changes::keep`] was called.
struct Changes<'a> {
    name: &'a IfName,
    control: &'a Control,
    done: Vec<Undo>,
}

impl Changes<'_> {
    fn keep(mut self) {
        self.done.clear();
    }

    fn undo(&self, change: &Undo) -> io::Result<()> {
        let (name, control) = (self.name, self.control);
        match *change {
            Undo::Flags(flags) => control.set_flags(name, flags),
            Undo::Mtu(mtu) => control.set_mtu(name, mtu),
            Undo::Mac(mac) => control.set_mac(name, mac),
            Undo::V4(old) => {
                let (ip, mask) = old.unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
                control.set_address_v4(name, ip, mask)
            }
            Undo::V6(ip, prefix) => Control::v6()?.remove_address_v6(name, ip, prefix),
        }
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        while let Some(change) = self.done.pop() {
            if let Err(error) = self.undo(&change) {
                warn!("cannot put \"{}\" back as it was: {error}", self.name);
            }
        }
    }
}

/// Makes the link `name` be as `config` says, and up.
pub(crate) fn configure(name: &IfName, config: &LinkConfig) -> Result<(), Error> {
    let failed = |operation| move |source| failure(name, operation, source);
    let control = Control::v4().map_err(failed("look at the link"))?;
    let mut changes = Changes { name, control: &control, done: Vec::new() };

    if let Some(mtu) = config.mtu {
        let old = control.mtu(name).map_err(failed("read the MTU"))?;
        if old != i32::from(mtu) {
            control.set_mtu(name, i32::from(mtu)).map_err(failed("set the MTU"))?;
            changes.done.push(Undo::Mtu(old));
        }
    }
    if let Some(mac) = config.mac {
        let old = control.mac(name).map_err(failed("read the MAC address"))?;
        if old != mac {
            control.set_mac(name, mac).map_err(failed("set the MAC address"))?;
            changes.done.push(Undo::Mac(old));
        }
    }
    if let Some((ip, mask)) = config.ip {
        let bad_mask = || Error::Mask { name: name.to_string(), ip, mask };
        let prefix = prefix_len(mask).ok_or_else(bad_mask)?;
        match (ip, mask) {
            (IpAddr::V4(ip), IpAddr::V4(mask)) => {
                let old = control.address_v4(name).map_err(failed("read the IP address"))?;
                if old != Some((ip, mask)) {
                    // Pushed first: the address may be in place when the mask is refused.
                    changes.done.push(Undo::V4(old));
                    control.set_address_v4(name, ip, mask).map_err(failed("set the IP address"))?;
                }
            }
            (IpAddr::V6(ip), IpAddr::V6(_)) => {
                let control = Control::v6().map_err(failed("set the IP address"))?;
                match control.add_address_v6(name, ip, prefix) {
                    Ok(()) => changes.done.push(Undo::V6(ip, prefix)),
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(e) => return Err(failure(name, "set the IP address", e)),
                }
            }
            _ => return Err(bad_mask()),
        }
    }
    let old = control.flags(name).map_err(failed("look at the link"))?;
    if old & libc::IFF_UP == 0 {
        control.set_flags(name, old | libc::IFF_UP).map_err(failed("bring up the link"))?;
        changes.done.push(Undo::Flags(old));
    }
    changes.keep();
    Ok(())
}

fn failure(name: &IfName, operation: &'static str, source: io::Error) -> Error {
    if source.raw_os_error() == Some(libc::EPERM) {
        return Error::Permission { name: name.to_string(), operation };
    }
    Error::Link { name: name.to_string(), operation, source }
}

/// Length of the prefix that `mask` covers; `None` if the mask has a hole.
fn prefix_len(mask: IpAddr) -> Option<u8> {
    let (bits, width) = match mask {
        IpAddr::V4(mask) => (u128::from(u32::from(mask)) << 96, 32),
        IpAddr::V6(mask) => (u128::from(mask), 128),
    };
    let ones = bits.leading_ones();
    // All bits past the leading ones must be zero; a shift by the whole width would overflow.
    let rest = bits.checked_shl(ones).unwrap_or(0);
    (rest == 0 && ones <= width).then_some(ones as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_of_masks() {
        let prefix = |text: &str| prefix_len(text.parse().unwrap());
        assert_eq!(prefix("255.255.255.0"), Some(24));
        assert_eq!(prefix("255.255.255.255"), Some(32));
        assert_eq!(prefix("0.0.0.0"), Some(0));
        assert_eq!(prefix("255.0.255.0"), None);
        assert_eq!(prefix("ffff:ffff:ffff:ffff::"), Some(64));
        assert_eq!(prefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(128));
        assert_eq!(prefix("::"), Some(0));
        assert_eq!(prefix("::1"), None);
    }
}
