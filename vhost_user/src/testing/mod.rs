//! For tests of programs that serve devices: the program at work, a front end, and peers that mean it no good.
//!
//! What a test here expects is what it panics without. The front end's half of the protocol is by the crate `vhost`, which others wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

pub mod front;
pub mod garbage;
pub mod hostile;
pub mod peer;
mod program;

pub use program::{Daemon, PATIENCE, Program, Scratch};
