//! All queue pairs of one tap, opened together: created, attached to by name, or made of descriptors.

use std::io;
use std::os::fd::RawFd;

use crate::tap::Tap;
use crate::{Error, IfName, LinkConfig, link, sys};

/// Most queue pairs of one tap: the kernel's `MAX_TAP_QUEUES`.
pub const MAX_QUEUE_PAIRS: usize = 256;

/// The name under which a tap is created when none is given; the kernel puts a number for `%d`.
pub const NAME_TEMPLATE: &str = "vmtap%d";

/// Where a tap comes from, which decides what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Made here: it disappears when its last descriptor is closed.
    Created,
    /// It was there: it stays, with the link as configured here.
    Existing,
    /// Handed over as descriptors: only these are used, the link is not touched.
    Passed,
}

/// A tap with all its queue pairs.
#[derive(Debug)]
pub struct TapSet {
    name: IfName,
    origin: Origin,
    taps: Vec<Tap>,
}

impl TapSet {
    /// Opens `pairs` queue pairs (1 to [`MAX_QUEUE_PAIRS`]) of the tap `name` and configures its link.
    ///
    /// An interface of that name is attached to if it is a tap or a macvtap; else one is created. Without a name one is created from
    /// [`NAME_TEMPLATE`]. On failure a created tap is gone and an existing one is as it was.
    pub fn open(name: Option<&str>, pairs: usize, config: &LinkConfig) -> Result<Self, Error> {
        let name = IfName::new(name.unwrap_or(NAME_TEMPLATE))?;
        check_pairs(&name, pairs)?;
        let (first, origin) = open_first(&name, pairs)?;
        let name = first.name().clone();
        let mut taps = Vec::with_capacity(pairs);
        taps.push(first);
        for _ in 1..pairs {
            taps.push(match taps[0].own_mac() {
                Some(_) => Tap::macvtap(&name)?.ok_or_else(|| Error::NotATap(name.to_string()))?,
                None => {
                    let tap = Tap::attach(&name, libc::IFF_MULTI_QUEUE)?;
                    tap.map_err(|e| attach_error(&name, pairs, e))?
                }
            });
        }
        link::configure(&name, config)?;
        Ok(TapSet { name, origin, taps })
    }

    /// Takes one queue pair per descriptor, all of one tap. The descriptors are duplicated and stay the caller's.
    pub fn from_fds(fds: &[RawFd]) -> Result<Self, Error> {
        let mut taps: Vec<Tap> = Vec::with_capacity(fds.len());
        for (i, &fd) in fds.iter().enumerate() {
            if fds[..i].iter().any(|&other| sys::same_file(other, fd)) {
                return Err(Error::FdTwice(fd));
            }
            let tap = Tap::from_fd(fd)?;
            if let Some(first) = taps.first()
                && first.name() != tap.name()
            {
                let (name, first) = (tap.name().to_string(), first.name().to_string());
                return Err(Error::FdOtherTap { fd, name, first });
            }
            taps.push(tap);
        }
        let name = taps.first().ok_or(Error::NoQueues)?.name().clone();
        check_pairs(&name, taps.len())?;
        Ok(TapSet { name, origin: Origin::Passed, taps })
    }

    /// The interface: the name as the kernel gave it, never a template.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The queue pairs, never none.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// The queue pairs, for those who spread them over threads.
    pub fn into_taps(self) -> Vec<Tap> {
        self.taps
    }
}

fn check_pairs(name: &IfName, pairs: usize) -> Result<(), Error> {
    match pairs {
        0 => Err(Error::NoQueues),
        1..=MAX_QUEUE_PAIRS => Ok(()),
        _ => Err(Error::TooManyQueues { name: name.to_string(), pairs, max: MAX_QUEUE_PAIRS }),
    }
}

/// Opens the first queue pair, which tells whether the interface was there.
fn open_first(name: &IfName, pairs: usize) -> Result<(Tap, Origin), Error> {
    let multi = if pairs > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    // With IFF_TUN_EXCL the kernel answers in one step whether the name was free: nobody can come in between.
    match Tap::attach(name, multi | libc::IFF_TUN_EXCL)? {
        Ok(tap) => return Ok((tap, Origin::Created)),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        Err(e) => return Err(attach_error(name, pairs, e)),
    }
    let attached = match Tap::attach(name, multi)? {
        // A tap made for several queues must be attached to as such, even for one.
        Err(e) if pairs == 1 && e.raw_os_error() == Some(libc::EINVAL) => {
            Tap::attach(name, libc::IFF_MULTI_QUEUE)?
        }
        other => other,
    };
    if attached.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
        && let Some(tap) = Tap::macvtap(name)?
    {
        return Ok((tap, Origin::Existing));
    }
    attached.map(|tap| (tap, Origin::Existing)).map_err(|e| match e.raw_os_error() {
        Some(libc::EINVAL) if pairs > 1 => Error::NotMultiQueue { name: name.to_string(), pairs },
        Some(libc::EINVAL) => Error::NotATap(name.to_string()),
        _ => attach_error(name, pairs, e),
    })
}

fn attach_error(name: &IfName, pairs: usize, source: io::Error) -> Error {
    let name = name.to_string();
    match source.raw_os_error() {
        Some(libc::EBUSY) => Error::InUse(name),
        Some(libc::EPERM) => Error::Permission { name, operation: "create or open it" },
        Some(libc::E2BIG) => Error::TooManyQueues { name, pairs, max: MAX_QUEUE_PAIRS },
        _ => Error::Attach { name, source },
    }
}

#[cfg(test)]
mod tests;
