//! A machine in files: the directory of a snapshot, guest memory in a sparse file, and the ways back into memory.
//!
//! What a state means is its device's business ([`device::state`]); here are the container, its files and its checks. Nothing here
//! knows a hypervisor or a particular device. Everything that is read is untrusted.
