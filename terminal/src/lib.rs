//! The host side of a guest's console: where its output goes and where its input comes from.
//!
//! Serial port, virtio-console and debug console share it. [`ConsoleMode`] is what a user says, [`Terminal`] what it turns into,
//! [`Input`] what a device implements to be typed at.
//!
//! Three promises hold for every mode:
//! * output never waits: what the other side does not take goes into a ring of [`ring::CAPACITY`] bytes, whose oldest bytes are
//!   dropped, and which is replayed when somebody connects;
//! * input is only read as far as the device has room ([`Input::room`]), so the rest stays in the kernel;
//! * the settings of the user's own terminal are restored when the last [`Terminal`] on it goes, or by [`restore_all`] at once.
//!
//! Nothing here knows a device, and no helper process is ever started: see [`Terminal::size`] for how sizes are followed.

pub mod calls;
pub mod error;
pub mod input;
pub mod mode;
mod outlet;
mod pty;
mod pump;
pub mod ring;
mod shared;
pub mod socket;
mod tty;

pub use error::TerminalError;
pub use input::{Inbox, Input};
pub use mode::{ConsoleMode, Mode};
pub use shared::{Session, Terminal};
pub use socket::Listener;
pub use tty::restore_all;
