//! What devices that other processes serve (vhost-user) have in common.

use std::path::Path;

use crate::{Facts, Refusal};

/// Checks that other processes can see guest memory.
///
/// # Errors
/// They cannot.
pub fn check_memory(facts: &Facts) -> Result<(), Refusal> {
    if !facts.shared_memory {
        return Err(Refusal::invalid(
            "Using vhost-user requires using shared memory or huge pages (--memory shared=on or hugepages=on)",
        ));
    }
    Ok(())
}

/// Checks what a device needs that is served at `socket`.
///
/// # Errors
/// No socket, memory that other processes cannot see, or a limit that only a process of ours could keep.
pub fn check(socket: Option<&Path>, limited: bool, facts: &Facts) -> Result<(), Refusal> {
    check_memory(facts)?;
    if socket.is_none() {
        return Err(Refusal::invalid("No socket provided when using vhost-user"));
    }
    if limited {
        return Err(Refusal::invalid("Rate limiting is not supported with vhost-user"));
    }
    Ok(())
}
