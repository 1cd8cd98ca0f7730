//! Stock Debian kernels, an old one and a current one, under the VMM: told as stories, each a boot or a few, seen from inside
//! and outside. Kernels, entries, processor counts are spread over them.
//!
//! On a host whose KVM cannot run such kernels, each story runs in the lab's outer machine; see [`tests::place`].

mod cards;
mod consoles;
mod debian;
mod disks;
mod ends;
mod folders;
mod hotplug;
mod jail;
mod lifecycle;
mod machine;
mod metadata;
mod network;
mod pmem;
mod ssh;
mod storage;
mod vhost_user;
mod vsock;
