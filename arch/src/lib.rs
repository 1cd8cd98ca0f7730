//! The architecture of the guest machine: its memory map, how a kernel is put into it, and the tables by which it is told
//! what it has (CPUID, ACPI, SMBIOS, MP).
//!
//! Everything here is computed from plain values and gives plain values or bytes. Only [`x86_64::boot`] touches guest
//! memory. Nothing here talks to a hypervisor, opens a device, or keeps state after boot.

mod error;
pub mod x86_64;

pub use error::{Error, Result};
