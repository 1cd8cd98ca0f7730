//! The program as front ends and users see it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

mod bad_lines;
mod confined;
mod death;
mod disk;
mod hostile;
mod io;
mod life;
