//! What a back end knows of its driver, taken from one to be given to another (vhost-user, "Migrating back-end state"). Its bytes mean
//! nothing to this side.
//!
//! They go through a pipe while all rings are at rest, no more of them than there is room for and within a time. Our end of the pipe never
//! waits: the other side could read what it wrote itself.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::client::Client;
use crate::BackError;
use crate::wire::{NO_DESCRIPTOR, request};

/// Most bytes that are taken. virtiofsd has about a hundred for each file that the guest knows of.
pub(super) const MOST: usize = 16 << 20;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Directions.
const SAVE: u32 = 0;
const LOAD: u32 = 1;

/// The only phase: all rings are at rest.
const STOPPED: u32 = 0;

/// Errors, in the answer that also says [`NO_DESCRIPTOR`].
const ERROR: u64 = 0xff;

/// Bytes that are moved at once.
const PIECE: usize = 16 << 10;

/// Takes what a back end knows of its driver. It goes on to know it.
pub(super) fn take(client: &mut Client) -> Result<Vec<u8>, BackError> {
    let (mut ours, theirs) = pipe()?;
    never_waits(ours.as_raw_fd())?;
    begin(client, SAVE, theirs.as_raw_fd())?;
    drop(theirs);
    let until = Instant::now() + PATIENCE;
    let (mut known, mut piece) = (Vec::new(), vec![0; PIECE]);
    loop {
        match ours.read(&mut piece) {
            Ok(0) => break,
            Ok(count) if known.len() + count > MOST => {
                // It finds nobody to write to any more; what it says of that is no news.
                drop(ours);
                client.number(request::CHECK_DEVICE_STATE)?;
                return Err(BackError::KnowsTooMuch);
            }
            Ok(count) => known.extend_from_slice(&piece[..count]),
            Err(e) => wait(e, ours.as_raw_fd(), libc::POLLIN, until)?,
        }
    }
    check(client, request::CHECK_DEVICE_STATE)?;
    Ok(known)
}

/// Gives a back end what another one knew of its driver.
pub(super) fn give(client: &mut Client, known: &[u8]) -> Result<(), BackError> {
    let (theirs, mut ours) = pipe()?;
    never_waits(ours.as_raw_fd())?;
    begin(client, LOAD, theirs.as_raw_fd())?;
    drop(theirs);
    let until = Instant::now() + PATIENCE;
    let mut left = known;
    while !left.is_empty() {
        match ours.write(&left[..left.len().min(PIECE)]) {
            Ok(count) => left = &left[count..],
            // It wants no more, and says why when it is asked.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => break,
            Err(e) => wait(e, ours.as_raw_fd(), libc::POLLOUT, until)?,
        }
    }
    drop(ours);
    check(client, request::CHECK_DEVICE_STATE)
}

/// Announces a transfer through the other end of a pipe.
fn begin(client: &mut Client, direction: u32, end: RawFd) -> Result<(), BackError> {
    const NUMBER: u32 = request::SET_DEVICE_STATE_FD;
    let body = [direction, STOPPED].map(u32::to_ne_bytes).concat();
    match client.number_for(NUMBER, &body, &[end])? {
        answer if answer & ERROR != 0 => Err(BackError::Refused(NUMBER)),
        // Reading from it might wait for ever.
        answer if answer & NO_DESCRIPTOR == 0 => {
            Err(BackError::Answer { request: NUMBER, what: "a descriptor of its own".to_owned() })
        }
        _ => Ok(()),
    }
}

/// Asks whether a transfer succeeded.
fn check(client: &mut Client, number: u32) -> Result<(), BackError> {
    if client.number(number)? == 0 { Ok(()) } else { Err(BackError::Refused(number)) }
}

fn pipe() -> Result<(PipeReader, PipeWriter), BackError> {
    std::io::pipe().map_err(|source| BackError::Host { what: "make a pipe", source })
}

fn never_waits(fd: RawFd) -> Result<(), BackError> {
    // SAFETY: the descriptor is open, and the call reads one number of ours.
    match unsafe { libc::ioctl(fd, libc::FIONBIO, &raw const ON) } {
        0 => Ok(()),
        _ => Err(BackError::Host { what: "set a pipe up", source: std::io::Error::last_os_error() }),
    }
}

static ON: libc::c_int = 1;

/// Waits for a pipe that said "not now".
fn wait(source: std::io::Error, fd: RawFd, events: libc::c_short, until: Instant) -> Result<(), BackError> {
    if !matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
        return Err(BackError::Host { what: "use a pipe", source });
    }
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(BackError::Slow { after: PATIENCE });
    }
    let waited = device::ready(fd, events, left);
    waited.map(drop).map_err(|source| BackError::Host { what: "wait for a pipe", source })
}
