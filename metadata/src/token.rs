//! Session tokens. They are random, kept by the card that gave them out, and in no snapshot: a restored machine's old ones are refused.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::random;

/// Longest life of a token, in seconds.
pub const MAX_TTL: u32 = 21_600;
/// Tokens that a card knows at a time. One more, and the oldest is forgotten: its holder gets another.
pub const MAX_TOKENS: usize = 1024;

const LENGTH: usize = 32;

/// The tokens of a card.
#[derive(Default)]
pub struct Tokens(VecDeque<(String, Instant)>);

impl Tokens {
    /// Gives out a token for so many seconds; `None` for a time that is none, or too long.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn issue(&mut self, seconds: u32, now: Instant) -> io::Result<Option<String>> {
        if !(1..=MAX_TTL).contains(&seconds) {
            return Ok(None);
        }
        let token = random::bytes::<LENGTH>()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.0.retain(|(_, end)| *end > now);
        if self.0.len() == MAX_TOKENS {
            self.0.pop_front();
        }
        self.0.push_back((token.clone(), now + Duration::from_secs(seconds.into())));
        Ok(Some(token))
    }

    /// Whether this token was given out and has not ended.
    pub fn knows(&self, token: &[u8], now: Instant) -> bool {
        // All are looked at in full, so that the time this takes tells nothing of how alike they are.
        self.0
            .iter()
            .fold(false, |known, (other, end)| known | (same(other.as_bytes(), token) & (*end > now)))
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_until_its_end_and_no_other_does() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(10, now).unwrap().unwrap();
        assert_eq!(token.len(), 2 * LENGTH);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(tokens.knows(token.as_bytes(), now) && tokens.knows(token.as_bytes(), at(9)));
        assert!(!tokens.knows(token.as_bytes(), at(10)));
        for bad in ["", &token[1..], &format!("{token}0"), &"0".repeat(2 * LENGTH)] {
            assert!(!tokens.knows(bad.as_bytes(), now), "{bad}");
        }
        assert_ne!(tokens.issue(10, now).unwrap().unwrap(), token);
        tokens.clear();
        assert!(!tokens.knows(token.as_bytes(), now));
    }

    #[test]
    fn times_and_their_number_are_bounded() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for seconds in [0, MAX_TTL + 1, u32::MAX] {
            assert!(tokens.issue(seconds, now).unwrap().is_none(), "{seconds}");
        }
        let all: Vec<_> = (0..=MAX_TOKENS).map(|_| tokens.issue(MAX_TTL, now).unwrap().unwrap()).collect();
        assert_eq!(tokens.0.len(), MAX_TOKENS);
        assert!(!tokens.knows(all[0].as_bytes(), now), "the oldest had to go");
        assert!(all[1..].iter().all(|token| tokens.knows(token.as_bytes(), now)));
        // Those that have ended make room.
        tokens.issue(1, now + Duration::from_secs(MAX_TTL.into())).unwrap();
        assert_eq!(tokens.0.len(), 1);
    }
}
