//! One connection: a stream socket of the host's, and what is known of the guest's end (virtio 1.3 §5.10.6.3 to §5.10.6.5).
//!
//! ```text
//!   host connects:  Asking ── RESPONSE ──► Open          guest connects:  Open (RESPONSE is due)
//!   Open ── host's end closed: SHUTDOWN is due ── guest's RST ──► gone
//!   Open ── guest's SHUTDOWN of both directions ──► gone for the guest; Draining while the host has not taken all
//! ```
//!
//! Data is read from the host only as far as the guest has room for it, straight into the guest's buffers. What the guest sends goes
//! straight to the host; what the host does not take at once waits here, at most as much as the guest was promised room for.
//!
//! Nothing here knows other connections, queues or time.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::packet::{HEADER, HOST_CID, Header, MAX_DATA, STREAM, op, shutdown};
use crate::buffers::Gathered;

/// Which connection: its ports at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guest is asked whether it accepts.
    Asking,
    /// Both ends may use it.
    Open,
    /// The guest is done with it; the host has not taken everything.
    Draining,
}

/// The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) stage: Stage,
    /// It waits for its turn to give the guest a packet.
    pub(super) queued: bool,
    /// The host's end; none once both directions of it are closed.
    stream: Option<UnixStream>,
    /// There may be something to read from it.
    readable: bool,
    /// What the host will not do any more, as flags of SHUTDOWN, and what the guest was told of that.
    host_done: u32,
    told_done: u32,
    /// What the guest will not do any more.
    guest_done: u32,
    /// The guest's room, what left it, and what was sent there: counts that wrap.
    room: u32,
    left: u32,
    sent: u32,
    /// The guest was asked for news of its room, and has not answered.
    asked: bool,
    /// The room promised to the guest, what came, what went on to the host, and how much of that the guest was told.
    promised: u32,
    came: u32,
    went: u32,
    told: u32,
    /// What came and has not gone on.
    backlog: VecDeque<u8>,
    /// Packets to be sent.
    request: bool,
    response: bool,
    credit: bool,
}

impl Connection {
    /// One that the host wants.
    pub(super) fn asking(ports: Ports, stream: UnixStream, promised: u32) -> Self {
        Connection { request: true, stage: Stage::Asking, ..Connection::new(ports, stream, promised) }
    }

    /// One that the guest wants and the host has accepted.
    pub(super) fn accepted(ports: Ports, stream: UnixStream, promised: u32) -> Self {
        Connection { response: true, ..Connection::new(ports, stream, promised) }
    }

    fn new(ports: Ports, stream: UnixStream, promised: u32) -> Self {
        Connection {
            ports,
            stage: Stage::Open,
            queued: false,
            stream: Some(stream),
            // Whatever was there before we looked.
            readable: true,
            host_done: 0,
            told_done: 0,
            guest_done: 0,
            room: 0,
            left: 0,
            sent: 0,
            asked: false,
            promised,
            came: 0,
            went: 0,
            told: 0,
            backlog: VecDeque::new(),
            request: false,
            response: false,
            credit: false,
        }
    }

    /// Room promised to the guest, in bytes.
    pub(super) fn promised(&self) -> u32 {
        self.promised
    }

    /// Whether the guest has heard of it.
    pub(super) fn is_known(&self) -> bool {
        !self.request && self.stage != Stage::Draining
    }

    /// Whether nothing that the guest sent waits here.
    pub(super) fn is_drained(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Bytes that went on to the host so far.
    pub(super) fn went(&self) -> u32 {
        self.went
    }

    /// Takes what every packet of the guest's tells of its room (§5.10.6.3).
    pub(super) fn note_room(&mut self, header: &Header) {
        (self.room, self.left, self.asked) = (header.buf_alloc, header.fwd_cnt, false);
    }

    /// Bytes that the guest has room for. A guest that says nonsense has none.
    pub(super) fn guest_room(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.left))
    }

    /// The guest accepts: the host's end is told by which port it is known.
    pub(super) fn accept(&mut self) -> Result<(), Broken> {
        if self.stage != Stage::Asking || self.request {
            return Err(Broken);
        }
        self.stage = Stage::Open;
        let line = format!("OK {}\n", self.ports.host);
        // A socket to which nothing was written before takes a line.
        match self.stream.as_ref().map(|mut stream| stream.write(line.as_bytes())) {
            Some(Ok(count)) if count == line.len() => Ok(()),
            _ => Err(Broken),
        }
    }

    /// Takes data from the guest.
    pub(super) fn take(&mut self, packet: &mut Gathered<'_>, length: u32) -> Result<(), Broken> {
        let open = self.stage == Stage::Open && self.guest_done & shutdown::SEND == 0;
        // What the guest was not told of is no room of its own.
        let used = self.came.wrapping_sub(self.told);
        if !open || used.checked_add(length).is_none_or(|used| used > self.promised) {
            return Err(Broken);
        }
        self.came = self.came.wrapping_add(length);
        let mut done = 0;
        if self.backlog.is_empty() {
            done = self.write_at_once(packet, length as usize);
        }
        let rest = length as usize - done;
        self.count_gone(done);
        if self.host_done & shutdown::RECEIVE != 0 {
            self.count_gone(rest);
            return Ok(());
        }
        if rest > 0 {
            let start = self.backlog.len();
            self.backlog.resize(start + rest, 0);
            let (front, back) = self.backlog.as_mut_slices();
            let skip = start.saturating_sub(front.len());
            let front = front.get_mut(start..).unwrap_or_default();
            let first = packet.read(HEADER + done, front);
            packet.read(HEADER + done + first, &mut back[skip..]);
            self.flush();
        }
        Ok(())
    }

    /// Writes data straight from guest memory; tells how much went.
    fn write_at_once(&mut self, packet: &mut Gathered<'_>, length: usize) -> usize {
        let Some(stream) = &self.stream else { return 0 };
        if length == 0 {
            return 0;
        }
        let result = packet.part(HEADER, length, |pieces| {
            // SAFETY: the pieces are mapped guest memory, and only read; there are at most `MAX_PIECES`.
            let count =
                unsafe { libc::writev(stream.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        });
        result.unwrap_or_else(|e| {
            self.write_failed(&e);
            0
        })
    }

    /// Gives the host what waits for it, as far as it takes it.
    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let Some(stream) = &mut self.stream else { break };
            let (front, back) = self.backlog.as_slices();
            match stream.write_vectored(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.count_gone(count);
                }
                Err(e) => {
                    self.write_failed(&e);
                    break;
                }
            }
        }
        if self.backlog.is_empty() {
            // Its memory is only held while it is needed.
            self.backlog = VecDeque::new();
            if self.guest_done & shutdown::SEND != 0 {
                self.close(Shutdown::Write);
            }
        }
    }

    fn write_failed(&mut self, e: &io::Error) {
        if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            self.host_takes_no_more();
        }
    }

    /// Whatever the guest still sends is lost.
    fn host_takes_no_more(&mut self) {
        self.host_done |= shutdown::RECEIVE;
        self.count_gone(self.backlog.len());
        self.backlog = VecDeque::new();
    }

    /// Counts what left our room, and tells the guest when that is worth a packet.
    fn count_gone(&mut self, count: usize) {
        // At most what came, which was counted in 32 bits.
        self.went = self.went.wrapping_add(count as u32);
        let news = self.went.wrapping_sub(self.told);
        let short = self.came.wrapping_sub(self.told) > self.promised / 2;
        self.credit |= news > 0 && short && (news >= self.promised / 4 || self.went == self.came);
    }

    /// Something happened at the host's end.
    pub(super) fn host_event(&mut self, readable: bool, writable: bool, gone: bool) {
        self.readable |= readable || gone;
        if gone {
            self.host_takes_no_more();
        } else if writable && !self.backlog.is_empty() {
            self.flush();
        }
    }

    /// The guest wants news of our room.
    pub(super) fn ask_credit(&mut self) {
        self.credit = true;
    }

    /// The guest is done with these directions (§5.10.6.5). When it is with both, the connection is over for it.
    pub(super) fn guest_shutdown(&mut self, flags: u32) {
        self.guest_done |= flags & shutdown::BOTH;
        if self.guest_done & shutdown::RECEIVE != 0 {
            self.readable = false;
            self.close(Shutdown::Read);
        }
        if self.guest_done == shutdown::BOTH {
            self.stage = Stage::Draining;
        }
        self.flush();
    }

    /// Whether the guest is done with both directions.
    pub(super) fn guest_left(&self) -> bool {
        self.guest_done == shutdown::BOTH
    }

    fn close(&self, how: Shutdown) {
        if let Some(Err(e)) = self.stream.as_ref().map(|stream| stream.shutdown(how)) {
            // The other side was faster.
            log::debug!("vsock: {e}");
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_news(&self) -> bool {
        match self.stage {
            Stage::Asking => self.request,
            Stage::Draining => false,
            Stage::Open => {
                let data = self.wants_to_read() && (self.guest_room() > 0 || !self.asked);
                self.response || self.credit || self.host_done != self.told_done || data
            }
        }
    }

    fn wants_to_read(&self) -> bool {
        self.readable && self.host_done & shutdown::SEND == 0 && self.guest_done & shutdown::RECEIVE == 0
    }

    /// Puts the next packet's data behind the place of its header, and tells the header.
    ///
    /// # Errors
    /// The host's end is broken.
    pub(super) fn next(&mut self, cid: u64, buffer: &mut Gathered<'_>) -> Result<Option<Header>, Broken> {
        let mut header = self.header(cid);
        if std::mem::take(&mut self.request) {
            header.op = op::REQUEST;
        } else if self.stage != Stage::Open {
            return Ok(None);
        } else if std::mem::take(&mut self.response) {
            header.op = op::RESPONSE;
        } else if let Some(count) = self.read(buffer)? {
            (header.op, header.len) = (op::RW, count);
        } else if self.host_done != self.told_done {
            self.told_done = self.host_done;
            (header.op, header.flags) = (op::SHUTDOWN, self.told_done);
            if self.told_done == shutdown::BOTH {
                self.stream = None;
            }
        } else if self.credit {
            header.op = op::CREDIT_UPDATE;
        } else if self.wants_to_read() && self.guest_room() == 0 && !self.asked {
            self.asked = true;
            header.op = op::CREDIT_REQUEST;
        } else {
            return Ok(None);
        }
        // Each packet tells of our room.
        (self.credit, self.told) = (false, self.went);
        Ok(Some(header))
    }

    fn header(&self, cid: u64) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            kind: STREAM,
            buf_alloc: self.promised,
            fwd_cnt: self.went,
            ..Header::default()
        }
    }

    /// Reads as much as there is and fits; tells how much, if anything.
    fn read(&mut self, buffer: &mut Gathered<'_>) -> Result<Option<u32>, Broken> {
        let space = buffer.length().saturating_sub(HEADER);
        let length = space.min(MAX_DATA).min(self.guest_room() as usize);
        if length == 0 || !self.wants_to_read() {
            return Ok(None);
        }
        let Some(stream) = &self.stream else { return Ok(None) };
        let result = buffer.part(HEADER, length, |pieces| {
            // SAFETY: the pieces are mapped guest memory for the device to write; there are at most `MAX_PIECES`.
            let count =
                unsafe { libc::readv(stream.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        });
        match result {
            Ok(0) => {
                self.readable = false;
                self.host_done |= shutdown::SEND;
                Ok(None)
            }
            Ok(count) => {
                // At most `MAX_DATA`.
                self.sent = self.sent.wrapping_add(count as u32);
                Ok(Some(count as u32))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(_) => Err(Broken),
        }
    }
}
