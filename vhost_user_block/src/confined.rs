//! The threads of the program and what each may ask of the kernel.

use device::{Build, Calls};
use sandbox::{Role, Set, common};
use spec::Refusal;
use virtio_devices::block::DiskSpec;

/// What disks do.
pub(crate) const DISK: Calls = <DiskSpec as Build>::CALLS;

/// Confines the main thread, which opens images and sockets, and starts a thread for each disk.
///
/// # Errors
/// The kernel has no filters.
pub fn main() -> Result<(), Refusal> {
    let mut sets: Vec<Set> = vec![
        common::EVERYWHERE,
        common::STARTS_THREADS,
        common::FILES,
        vhost_user::calls::SERVE,
        terminal::calls::OPEN,
    ];
    sets.extend([DISK.own, DISK.registers, DISK.upkeep, DISK.host].concat());
    (Role { asked_by: "the main thread", sets: &sets }).enter().map_err(|e| {
        Refusal::host(
            "cannot confine the program; --seccomp false runs it without filters of system calls",
            e,
        )
    })
}
