//! The x86-64 machine, by the names and addresses that its guests and its clients know.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod registers;
pub mod smbios;
pub mod topology;
pub mod vcpu_state;
