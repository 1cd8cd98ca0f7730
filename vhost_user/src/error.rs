//! What the other side did wrong, or what went wrong on its behalf.

use std::io;

use device::DeviceError;
use thiserror::Error;

use crate::wire;

/// Why a message of the other side is of no use, why a request of a front end failed, or why a connection ended.
#[derive(Debug, Error)]
pub enum PeerError {
    /// It hung up between two messages, which is how connections end.
    #[error("it hung up")]
    HungUp,
    /// It hung up within a message.
    #[error("it hung up in the middle of a message")]
    Cut,
    /// The rest of a message did not come.
    #[error("it stopped in the middle of a message")]
    Slow,
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[source] io::Error),
    /// The header of a message is none.
    #[error("a message has flags {flags:#x} and {size} bytes")]
    Header {
        /// Version and flags.
        flags: u32,
        /// Bytes that are said to follow.
        size: u32,
    },
    /// A message of another length than its request has.
    #[error("{} with {size} bytes", wire::name(*request))]
    Size {
        /// The request.
        request: u32,
        /// Bytes that came.
        size: usize,
    },
    /// Descriptors that do not belong to the request, or that are missing.
    #[error("{} with {count} descriptors", wire::name(*request))]
    Descriptors {
        /// The request.
        request: u32,
        /// How many came.
        count: usize,
    },
    /// A request that is not known or not offered.
    #[error("{} is not offered", wire::name(*request))]
    NotOffered {
        /// The request.
        request: u32,
    },
    /// Features that were not offered.
    #[error("features {features:#x}, of which {offered:#x} are offered")]
    Features {
        /// What the front end wants.
        features: u64,
        /// What there is.
        offered: u64,
    },
    /// There is no such ring.
    #[error("there is no ring {0}")]
    NoRing(u64),
    /// A ring that cannot be.
    #[error("ring {index}: {what}")]
    Ring {
        /// Its number.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A region of memory that cannot be.
    #[error("memory of {size:#x} bytes at {guest:#x}: {what}")]
    Memory {
        /// Guest address.
        guest: u64,
        /// Bytes.
        size: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Memory went while it was mapped.
    #[error("memory that the front end shares was cut short")]
    Shrunk,
    /// The area for requests under way cannot be used.
    #[error("area for requests under way: {0}")]
    Inflight(String),
    /// A part of the configuration space that does not exist.
    #[error("{size} bytes at {offset} of the configuration space")]
    Config {
        /// Where.
        offset: u32,
        /// How many.
        size: u32,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
