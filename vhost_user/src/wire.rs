//! The messages, byte by byte (vhost-user, "Message Specification"). Numbers are in the host's byte order.

use std::os::fd::OwnedFd;

use crate::PeerError;

/// Most queues of a device: messages about descriptors have eight bits for the number of one.
pub const MAX_QUEUES: usize = 256;

/// Most bytes of a message after its header; the longest that is of use has 8 + 32 × 32.
pub(crate) const MAX_BODY: usize = 4096;

/// Most descriptors with a message, one for each region of memory.
pub(crate) const MAX_DESCRIPTORS: usize = 32;

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;

/// Header flags.
pub(crate) mod flag {
    pub(crate) const VERSION_MASK: u32 = 3;
    pub(crate) const VERSION: u32 = 1;
    pub(crate) const REPLY: u32 = 4;
    pub(crate) const NEED_REPLY: u32 = 8;
}

/// The feature bit that says that there are protocol features.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features.
pub(crate) mod protocol {
    pub(crate) const MQ: u64 = 1 << 0;
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    pub(crate) const CONFIG: u64 = 1 << 9;
    pub(crate) const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub(crate) const RESET_DEVICE: u64 = 1 << 13;
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub(crate) const DEVICE_STATE: u64 = 1 << 19;

    /// Those that a front end makes use of.
    pub(crate) const WANTED: u64 =
        MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | DEVICE_STATE;

    /// Their names.
    pub(crate) const NAMES: &[(u64, &str)] = &[
        (MQ, "VHOST_USER_PROTOCOL_F_MQ"),
        (REPLY_ACK, "VHOST_USER_PROTOCOL_F_REPLY_ACK"),
        (BACKEND_REQ, "VHOST_USER_PROTOCOL_F_BACKEND_REQ"),
        (CONFIG, "VHOST_USER_PROTOCOL_F_CONFIG"),
        (INFLIGHT_SHMFD, "VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD"),
        (RESET_DEVICE, "VHOST_USER_PROTOCOL_F_RESET_DEVICE"),
        (DEVICE_STATE, "VHOST_USER_PROTOCOL_F_DEVICE_STATE"),
    ];

    /// Those that are offered whatever the device; [`CONFIG`] and [`INFLIGHT_SHMFD`] depend on it.
    pub(crate) const OFFERED: u64 = MQ | REPLY_ACK | BACKEND_REQ | RESET_DEVICE | CONFIGURE_MEM_SLOTS;
}

macro_rules! requests {
    ($($name:ident = $number:literal),+ $(,)?) => {
        /// Requests of front ends.
        pub(crate) mod request {
            $( pub(crate) const $name: u32 = $number; )+
        }

        /// The name of a request, for messages.
        pub(crate) fn name(number: u32) -> String {
            match number {
                $( $number => stringify!($name).to_owned(), )+
                _ => format!("request {number}"),
            }
        }
    };
}

requests! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SET_BACKEND_REQ_FD = 21,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    RESET_DEVICE = 34,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
}

/// What a back end asks of a front end: to look at the configuration space again.
pub(crate) const CONFIG_CHANGE: u32 = 2;

/// In place of a descriptor: there is none.
pub(crate) const NO_DESCRIPTOR: u64 = 1 << 8;

/// A message, complete and not yet looked into.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The body's fields, from the first on.
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields { request: self.request, all: self.body.len(), rest: &self.body }
    }

    /// The only descriptor.
    pub(crate) fn descriptor(&mut self) -> Result<OwnedFd, PeerError> {
        match (self.descriptors.pop(), self.descriptors.len()) {
            (Some(only), 0) => Ok(only),
            (last, count) => Err(PeerError::Descriptors {
                request: self.request,
                count: count + usize::from(last.is_some()),
            }),
        }
    }
}

/// Reads fields one after the other; what is too short is an error about the message.
pub(crate) struct Fields<'a> {
    request: u32,
    all: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn error(&self) -> PeerError {
        PeerError::Size { request: self.request, size: self.all }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PeerError> {
        let (first, rest) = self.rest.split_first_chunk().ok_or_else(|| self.error())?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, PeerError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, PeerError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, PeerError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), PeerError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error()) }
    }
}

/// A region of memory as a front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionBody {
    /// Guest address.
    pub(crate) guest: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Where the front end itself has it: what rings are told by.
    pub(crate) user: u64,
    /// Where it begins in its file.
    pub(crate) offset: u64,
}

impl RegionBody {
    /// Bytes of one.
    const SIZE: usize = 32;

    pub(crate) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (to, from) in bytes.chunks_exact_mut(8).zip([self.guest, self.size, self.user, self.offset]) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, PeerError> {
        Ok(RegionBody {
            guest: fields.u64()?,
            size: fields.u64()?,
            user: fields.u64()?,
            offset: fields.u64()?,
        })
    }
}

/// The area for requests under way, as both sides describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflightBody {
    /// Bytes.
    pub(crate) size: u64,
    /// Where it begins in its file.
    pub(crate) offset: u64,
    /// Rings.
    pub(crate) queues: u16,
    /// Descriptors of each.
    pub(crate) queue_size: u16,
}

impl InflightBody {
    /// Bytes of one as a structure of C.
    pub(crate) const SIZE: usize = 24;

    /// Reads it; front ends that send a structure of C pad it to a multiple of eight.
    pub(crate) fn read(mut fields: Fields<'_>) -> Result<Self, PeerError> {
        let body = InflightBody {
            size: fields.u64()?,
            offset: fields.u64()?,
            queues: fields.u16()?,
            queue_size: fields.u16()?,
        };
        if !fields.rest.is_empty() {
            fields.u32()?;
        }
        fields.end()?;
        Ok(body)
    }

    /// Its bytes, as many as the request had.
    pub(crate) fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&self.size.to_ne_bytes());
        bytes.extend_from_slice(&self.offset.to_ne_bytes());
        bytes.extend_from_slice(&self.queues.to_ne_bytes());
        bytes.extend_from_slice(&self.queue_size.to_ne_bytes());
        bytes.resize(length, 0);
        bytes
    }
}

/// A header.
pub(crate) fn header(request: u32, flags: u32, size: usize) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&request.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(flags | flag::VERSION).to_ne_bytes());
    // Bodies are at most `MAX_BODY` long.
    bytes[8..].copy_from_slice(&(size as u32).to_ne_bytes());
    bytes
}

/// Requests that descriptors come with.
pub(crate) fn takes_descriptors(number: u32) -> bool {
    matches!(
        number,
        request::SET_MEM_TABLE
            | request::ADD_MEM_REG
            // Some send one that is of no use.
            | request::REM_MEM_REG
            | request::SET_VRING_KICK
            | request::SET_VRING_CALL
            | request::SET_VRING_ERR
            | request::SET_BACKEND_REQ_FD
            | request::SET_INFLIGHT_FD
            | request::SET_DEVICE_STATE_FD
    )
}

/// Requests that are answered with more than whether they succeeded.
pub(crate) fn expects_answer(number: u32) -> bool {
    matches!(
        number,
        request::GET_FEATURES
            | request::GET_PROTOCOL_FEATURES
            | request::GET_QUEUE_NUM
            | request::GET_MAX_MEM_SLOTS
            | request::GET_VRING_BASE
            | request::GET_CONFIG
            | request::GET_INFLIGHT_FD
            | request::SET_DEVICE_STATE_FD
            | request::CHECK_DEVICE_STATE
    )
}

/// The protocol feature without which a request must not come.
pub(crate) fn belongs_to(number: u32) -> Option<u64> {
    match number {
        request::GET_QUEUE_NUM => Some(protocol::MQ),
        request::SET_BACKEND_REQ_FD => Some(protocol::BACKEND_REQ),
        request::GET_CONFIG | request::SET_CONFIG => Some(protocol::CONFIG),
        request::GET_INFLIGHT_FD | request::SET_INFLIGHT_FD => Some(protocol::INFLIGHT_SHMFD),
        request::RESET_DEVICE => Some(protocol::RESET_DEVICE),
        request::SET_DEVICE_STATE_FD | request::CHECK_DEVICE_STATE => Some(protocol::DEVICE_STATE),
        request::GET_MAX_MEM_SLOTS | request::ADD_MEM_REG | request::REM_MEM_REG => {
            Some(protocol::CONFIGURE_MEM_SLOTS)
        }
        _ => None,
    }
}
