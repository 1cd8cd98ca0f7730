//! The one error that reaches a user: a kind, which decides exit and HTTP status, and a chain of causes, outermost first.

use std::error::Error;
use std::fmt;

use crate::plain::plain;

/// Who is at fault, and hence which HTTP status answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request can never work as written (400).
    Invalid,
    /// The request contradicts what exists: a name taken (409).
    Conflict,
    /// What exists is not in a state that allows the request: no machine is running, it is paused already (405).
    State,
    /// The request names something that does not exist (404).
    Absent,
    /// The request may work later (429).
    Busy,
    /// What was waited for did not come in time (504).
    Late,
    /// The contract has it, this version does not yet (400).
    Unsupported,
    /// The host refused: a file, a tap, memory, a kernel feature (500).
    Host,
    /// We broke a promise of our own (500).
    Bug,
}

/// A refused request.
#[derive(Debug)]
pub struct Refusal {
    kind: Kind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Refusal {
    /// A refusal without a deeper cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into(), source: None }
    }

    /// A request that can never work as written.
    pub fn invalid(message: impl Into<String>) -> Self {
        Refusal::new(Kind::Invalid, message)
    }

    /// Something of the contract that this version does not offer.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Refusal::new(Kind::Unsupported, format!("{what} is not supported yet"))
    }

    /// Something the host refused, with the reason.
    pub fn host(message: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Refusal::new(Kind::Host, message).because(cause)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Wraps this refusal in an outer message; the kind stays.
    #[must_use]
    pub fn within(self, message: impl Into<String>) -> Self {
        Refusal { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// Who is at fault.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The messages, outermost first, each of bounded length: what is quoted in them may be somebody's whole file.
    pub fn chain(&self) -> Vec<String> {
        let mut messages = vec![bounded(self.message.clone())];
        let mut next = self.source();
        while let Some(error) = next {
            messages.push(bounded(error.to_string()));
            next = error.source();
        }
        messages
    }

    /// What a program says when it ends because of this: once, and in full.
    pub fn report(&self, program: &str) -> String {
        let chain: Vec<String> = self.chain().iter().map(|message| plain(message)).collect();
        if let [message] = chain.as_slice() {
            return format!("Error: {program} exited with the following error:\n  {message}\n");
        }
        let lines = chain.iter().enumerate().map(|(depth, message)| format!("  {depth}: {message}\n"));
        format!("Error: {program} exited with the following chain of errors:\n{}", lines.collect::<String>())
    }
}

/// The longest message that is told, in bytes: room for two of the longest paths.
pub const LONGEST_MESSAGE: usize = 10_000;

/// A message of at most [`LONGEST_MESSAGE`] bytes; what is cut off is told by an ellipsis.
pub fn bounded(mut message: String) -> String {
    const CUT: &str = "…";
    if message.len() > LONGEST_MESSAGE {
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE - CUT.len()));
        message.push_str(CUT);
    }
    message
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|e| e.as_ref() as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded() {
        let chain = Refusal::invalid("short").because("ä".repeat(1 << 20)).chain();
        assert_eq!(chain[0], "short");
        assert!(chain[1].len() <= LONGEST_MESSAGE && chain[1].ends_with("ä…"));
        assert_eq!(bounded("x".repeat(LONGEST_MESSAGE)).len(), LONGEST_MESSAGE);
    }

    #[test]
    fn a_refusal_tells_its_whole_chain_and_keeps_its_kind() {
        let e = Refusal::host("cannot open /srv/a.img", std::io::Error::from_raw_os_error(13))
            .within("cannot add disk \"data0\"");
        assert_eq!(e.kind(), Kind::Host);
        assert_eq!(
            e.chain(),
            ["cannot add disk \"data0\"", "cannot open /srv/a.img", "Permission denied (os error 13)"]
        );
        assert_eq!(
            e.report("It"),
            "Error: It exited with the following chain of errors:\n  0: cannot add disk \"data0\"\n  \
             1: cannot open /srv/a.img\n  2: Permission denied (os error 13)\n"
        );
        let alone = Refusal::invalid("no").report("It");
        assert_eq!(alone, "Error: It exited with the following error:\n  no\n");
    }
}
