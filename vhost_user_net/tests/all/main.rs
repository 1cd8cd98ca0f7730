//! The program as front ends and users see it, each test in a network namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

mod bad_lines;
mod card;
mod frames;
mod hostile;
mod life;
mod pairs;
