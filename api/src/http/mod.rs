//! HTTP over a UNIX socket, by hyper, without an asynchronous runtime: a connection is served by a thread of its own, which
//! waits for its socket and nothing else.

pub mod client;
mod descriptors;
mod io;
pub mod server;
pub mod syscalls;
#[cfg(test)]
mod tests;
