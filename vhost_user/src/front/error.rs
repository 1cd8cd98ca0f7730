//! What a back end did wrong, or what kept us from it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::{PeerError, wire};

/// Why a back end is of no use, or no longer.
#[derive(Debug, Error)]
pub enum BackError {
    /// Nobody answers at the socket.
    #[error("cannot connect to socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// A program that is not started, or ended.
    #[error("{0}")]
    Program(String),
    /// There is something else in the socket's place.
    #[error("{} is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The connection ended, or what came is no message.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// No answer.
    #[error("it did not answer {} within {} seconds", wire::name(*request), after.as_secs())]
    Silent {
        /// The request.
        request: u32,
        /// How long was waited.
        after: Duration,
    },
    /// The device is being dropped, or the program is to end.
    #[error("it is not needed any more")]
    Gone,
    /// An answer to another request.
    #[error("it answered {} with {}", wire::name(*request), wire::name(*answer))]
    Other {
        /// The request.
        request: u32,
        /// What the answer says it belongs to.
        answer: u32,
    },
    /// It would not do what it was told.
    #[error("it refused {}", wire::name(*.0))]
    Refused(u32),
    /// It lacks something.
    #[error("it does not offer {0}")]
    Lacks(String),
    /// Fewer queues than the device has.
    #[error("it serves {offered} queues, and the device has {wanted}")]
    Queues {
        /// As many as it serves.
        offered: u64,
        /// As many as there are.
        wanted: usize,
    },
    /// An answer that cannot be.
    #[error("its answer to {}: {what}", wire::name(*request))]
    Answer {
        /// The request.
        request: u32,
        /// What is wrong with it.
        what: String,
    },
    /// Guest memory cannot be shown to another process.
    #[error("guest memory at {guest:#x} is not shared")]
    Private {
        /// Guest address of the region.
        guest: u64,
    },
    /// More regions than a message has room for.
    #[error("guest memory has {0} regions, and a message has room for {most}", most = wire::MAX_DESCRIPTORS)]
    Regions(usize),
    /// A ring that is not in memory.
    #[error("ring {index} is not in memory")]
    Ring {
        /// Its number.
        index: usize,
    },
    /// More than there is room for in a saved machine.
    #[error("it knows more than {most} bytes of its driver", most = super::handover::MOST)]
    KnowsTooMuch,
    /// What is known of a driver did not all come, or was not all taken.
    #[error("handing over what is known of its driver took more than {} seconds", after.as_secs())]
    Slow {
        /// How long was waited.
        after: Duration,
    },
    /// The host refused something of our own.
    #[error("cannot {what}")]
    Host {
        /// What it was for.
        what: &'static str,
        /// What it answered.
        #[source]
        source: io::Error,
    },
}

impl BackError {
    /// Whether the back end went, so that another may come in its place; otherwise it does what it must not. What our own host could not
    /// do (it had no descriptor to spare) ends the conversation as well, and may be possible when it is begun anew.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            BackError::Connect { .. }
                | BackError::Program(_)
                | BackError::Silent { .. }
                | BackError::Gone
                | BackError::Host { .. }
                | BackError::Peer(PeerError::HungUp | PeerError::Cut | PeerError::Socket(_))
        )
    }

    /// The error and what it is because of, in one line.
    pub(crate) fn line(&self) -> String {
        let cause = std::error::Error::source(self).map(|e| format!(": {e}")).unwrap_or_default();
        format!("{self}{cause}")
    }
}
