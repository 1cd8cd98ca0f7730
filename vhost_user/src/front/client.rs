//! Requests to a back end and its answers, one after the other, each within a time.
//!
//! The crate `vhost` is not used for this: its receiver tries again whenever a read says "not now", a read's timeout included, so a back
//! end that does not answer would hold up the machine for ever.

use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::wire::{Message, flag, request};
use crate::{BackError, PeerError};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same where it may have much to do first: a ring comes to rest when what was begun is finished, on a disk that may be slow.
const REST: Duration = Duration::from_secs(20);

/// How long a ring is waited for to be empty before it is to rest.
const EMPTY: Duration = Duration::from_secs(1);

/// How long none is waited for after one was in vain: rings come to rest one after the other, and a driver can see to it that none is ever empty.
const IN_VAIN: Duration = Duration::from_secs(30);

/// How often a ring is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(1);

/// How often somebody who waits looks whether the device is still there.
const LOOK: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Client {
    channel: Channel,
    /// The device is being dropped.
    pub(super) gone: Arc<AtomicBool>,
    /// What is told is acknowledged.
    pub(super) acknowledges: bool,
    /// When a ring was waited for to be empty and was not.
    in_vain: Option<Instant>,
}

impl Client {
    pub(super) fn new(stream: UnixStream, gone: Arc<AtomicBool>) -> Result<Self, BackError> {
        let channel = Channel::to_back_end(stream);
        let channel = channel.map_err(|source| BackError::Host { what: "set up the connection", source })?;
        Ok(Client { channel, gone, acknowledges: false, in_vain: None })
    }

    /// The connection once more, to watch it.
    pub(super) fn stream(&self) -> std::io::Result<UnixStream> {
        self.channel.stream()
    }

    /// Ends the connection.
    pub(super) fn hang_up(&self) {
        self.channel.hang_up();
    }

    /// Asks something.
    pub(super) fn ask(&mut self, number: u32, body: &[u8]) -> Result<Message, BackError> {
        self.channel.send(number, 0, body, &[])?;
        self.answer(number)
    }

    /// Asks for a number.
    pub(super) fn number(&mut self, number: u32) -> Result<u64, BackError> {
        self.number_for(number, &[], &[])
    }

    /// Says something, with descriptors, that is answered with a number.
    pub(super) fn number_for(&mut self, number: u32, body: &[u8], with: &[RawFd]) -> Result<u64, BackError> {
        self.channel.send(number, 0, body, with)?;
        one(&self.answer(number)?)
    }

    /// Says something, with descriptors.
    pub(super) fn tell(&mut self, number: u32, body: &[u8], with: &[RawFd]) -> Result<(), BackError> {
        let flags = if self.acknowledges { flag::NEED_REPLY } else { 0 };
        self.channel.send(number, flags, body, with)?;
        if self.acknowledges && one(&self.answer(number)?)? != 0 {
            return Err(BackError::Refused(number));
        }
        Ok(())
    }

    /// Says a ring's number and a value.
    pub(super) fn tell_ring(&mut self, number: u32, index: usize, value: u32) -> Result<(), BackError> {
        self.tell(number, &ring_value(index, value), &[])
    }

    /// Brings a ring to rest; where it would go on.
    pub(super) fn rest(&mut self, index: usize) -> Result<u16, BackError> {
        let answer = self.ask(request::GET_VRING_BASE, &ring_value(index, 0))?;
        let mut fields = answer.fields();
        let (of, base) = (fields.u32()?, fields.u32()?);
        fields.end()?;
        u16::try_from(base).ok().filter(|_| of as usize == index).ok_or_else(|| BackError::Answer {
            request: request::GET_VRING_BASE,
            what: format!("ring {of} goes on at {base}"),
        })
    }

    /// Waits until a ring is empty, for a while and as long as the back end is there and says nothing.
    pub(super) fn wait_for_empty(&mut self, empty: impl Fn() -> bool) {
        if self.in_vain.is_some_and(|then| then.elapsed() < IN_VAIN) {
            return;
        }
        let until = Instant::now() + EMPTY;
        while !empty() && !self.gone.load(Ordering::Relaxed) {
            if Instant::now() >= until {
                self.in_vain = Some(until);
                return;
            }
            // What comes is for whoever asks next.
            if !matches!(device::ready(self.channel.fd(), libc::POLLIN, GLANCE), Ok(0)) {
                return;
            }
        }
    }

    fn answer(&mut self, number: u32) -> Result<Message, BackError> {
        let patience = match number {
            request::GET_VRING_BASE | request::SET_DEVICE_STATE_FD | request::CHECK_DEVICE_STATE => REST,
            _ => PATIENCE,
        };
        let until = Instant::now() + patience;
        loop {
            if let Some(message) = self.channel.receive()? {
                if message.request != number {
                    return Err(BackError::Other { request: number, answer: message.request });
                }
                return Ok(message);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(BackError::Silent { request: number, after: patience });
            }
            if self.gone.load(Ordering::Relaxed) {
                return Err(BackError::Gone);
            }
            device::ready(self.channel.fd(), libc::POLLIN, left.min(LOOK)).map_err(PeerError::Socket)?;
        }
    }
}

/// The number that an answer consists of.
fn one(answer: &Message) -> Result<u64, BackError> {
    let mut fields = answer.fields();
    let value = fields.u64()?;
    fields.end()?;
    Ok(value)
}

fn ring_value(index: usize, value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    // Rings are counted in eight bits.
    bytes[..4].copy_from_slice(&(index as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_ring_is_waited_for_as_long_as_the_back_end_is_there() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours, Arc::default()).unwrap();
        let looks = Cell::new(0);
        let look = |enough: u32| {
            looks.set(looks.get() + 1);
            looks.get() >= enough
        };
        client.wait_for_empty(|| look(5));
        assert_eq!(looks.replace(0), 5);
        client.wait_for_empty(|| look(u32::MAX));
        assert!(looks.replace(0) > 1, "it is not waited for for ever");
        client.wait_for_empty(|| look(u32::MAX));
        assert_eq!(looks.replace(0), 0, "nor is the next one");
        client.in_vain = None;
        drop(theirs);
        client.wait_for_empty(|| look(u32::MAX));
        assert_eq!(looks.get(), 1);
    }
}
