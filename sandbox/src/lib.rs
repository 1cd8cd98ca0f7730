//! What the threads of a program may ask of the kernel, and what happens when one asks for more.
//!
//! Who runs code on a thread says beside that code which system calls it makes, as plain data: a [`Set`] of [`Call`]s. A [`Role`] is the
//! sum of what one kind of thread does. [`Role::enter`] compiles it into a filter of the kernel (seccomp, `Documentation/userspace-api/
//! seccomp_filter.rst`), once for each role, and puts it on the calling thread, where it stays. A thread has its own filter and those of
//! the threads that it comes from, and all of them must allow a call.
//!
//! Which files a process may open is said in the same way, as [`HostPath`]s, and enforced by a [`paths::Domain`].
//!
//! Until [`begin`] is called, which programs do and tests of single crates do not, roles are entered without effect. Nothing here
//! knows a device.

pub mod call;
pub mod common;
mod ends;
mod filter;
mod mode;
mod names;
pub mod paths;
mod role;
mod violation;

pub use call::{Call, Set, When};
pub use ends::begin;
pub use filter::compile;
pub use mode::{Mode, UnknownMode, mode};
pub use names::name;
pub use paths::{HostPath, Use};
pub use role::{Prepared, Refused, Role};
pub use violation::{also_tell, note};
