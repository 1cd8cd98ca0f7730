//! What can go wrong with a tap. Every message names the tap, and says what to do where there is something to do.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

/// Errors of taps and of their links.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not fit into the kernel's `IFNAMSIZ`.
    #[error("tap name \"{0}\" is too long: {len} bytes, at most 15", len = .0.len())]
    NameTooLong(String),
    /// The name holds a character that no interface name can have, or is empty.
    #[error("\"{0}\" is not a valid interface name")]
    NameInvalid(String),
    /// `/dev/net/tun` is missing or answers that there is no driver behind it.
    #[error("cannot open /dev/net/tun: this kernel has no tap driver (try: modprobe tun)")]
    NoDriver(#[source] io::Error),
    /// `/dev/net/tun` cannot be opened for another reason.
    #[error("cannot open /dev/net/tun")]
    OpenTun(#[source] io::Error),
    /// Somebody else holds all queues of the tap.
    #[error("tap \"{0}\" is in use: another process has it open (only one at a time can)")]
    InUse(String),
    /// Creating a tap, attaching to one, or changing its link needs a privilege.
    #[error(
        "no permission for tap \"{name}\": cannot {operation} without CAP_NET_ADMIN \
         (or give an existing tap of your own, or an open one by fd)"
    )]
    Permission {
        /// Name or template.
        name: String,
        /// What was being done.
        operation: &'static str,
    },
    /// The name belongs to an interface of another kind.
    #[error("interface \"{0}\" exists and is not a tap")]
    NotATap(String),
    /// Several queue pairs were asked of an interface that has one, or that is no tap.
    #[error(
        "interface \"{name}\" exists and is not a tap that takes {pairs} queue pairs \
         (make it with: ip tuntap add dev {name} mode tap multi_queue)"
    )]
    NotMultiQueue {
        /// The interface.
        name: String,
        /// Pairs asked for.
        pairs: usize,
    },
    /// More queue pairs than the kernel has for one tap.
    #[error("tap \"{name}\" cannot have {pairs} queue pairs: at most {max}")]
    TooManyQueues {
        /// Name or template.
        name: String,
        /// Pairs asked for.
        pairs: usize,
        /// Pairs that there can be.
        max: usize,
    },
    /// A tap needs one queue pair at least.
    #[error("a tap needs at least one queue pair")]
    NoQueues,
    /// Attaching failed for another reason.
    #[error("cannot open tap \"{name}\"")]
    Attach {
        /// Name or template.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not open.
    #[error("fd {fd} is not open")]
    BadFd {
        /// The descriptor's number.
        fd: RawFd,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The descriptor is open but is no tap.
    #[error("fd {0} is not a tap")]
    FdNotATap(RawFd),
    /// The descriptor is a tap whose frames have another shape than ours.
    #[error("fd {fd} (tap \"{name}\") was opened without {flag}")]
    FdFlags {
        /// The descriptor's number.
        fd: RawFd,
        /// The interface.
        name: String,
        /// The missing flag, as in `linux/if_tun.h`.
        flag: &'static str,
    },
    /// The same descriptor was given for two queue pairs.
    #[error("fd {0} was given twice")]
    FdTwice(RawFd),
    /// Two descriptors of one device lead to two interfaces.
    #[error("fd {fd} belongs to tap \"{name}\", the ones before it to \"{first}\"")]
    FdOtherTap {
        /// The descriptor's number.
        fd: RawFd,
        /// Its interface.
        name: String,
        /// The interface of the first descriptor.
        first: String,
    },
    /// The kernel refused a setting of the tap itself.
    #[error("cannot {operation} of tap \"{name}\"")]
    Tap {
        /// The interface.
        name: String,
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a setting of the link.
    #[error("cannot {operation} of \"{name}\"")]
    Link {
        /// The interface.
        name: String,
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The mask has a hole, or belongs to the other family.
    #[error("{mask} is not a mask for the address {ip} of \"{name}\"")]
    Mask {
        /// The interface.
        name: String,
        /// The address.
        ip: IpAddr,
        /// The mask as given.
        mask: IpAddr,
    },
}
