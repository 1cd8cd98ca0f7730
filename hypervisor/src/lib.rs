//! KVM (and later MSHV) behind one small contract.
//!
//! [`Hypervisor`] makes a [`Vm`], a [`Vm`] makes [`Vcpu`]s, and [`Vcpu::run`] runs the guest, answering its port and memory
//! accesses through [`Exits`], until there is a reason to [`Stop`]. State is neutral ([`x86_64`]), capabilities are plain
//! data ([`Capabilities`]), and everything that an architecture adds is a facet ([`X86Vcpu`]).
//!
//! ```no_run
//! # use hypervisor::{Hypervisor, Vm, VmOptions, kvm::Kvm};
//! # fn main() -> Result<(), hypervisor::Error> {
//! let hypervisor = Kvm::open()?;
//! let vm = hypervisor.create_vm(&VmOptions::default())?;
//! let vcpu = vm.create_vcpu(0)?;
//! # Ok(()) }
//! ```
//!
//! No device crate sees this crate: devices get eventfds, interrupt routes and guest memory from the board.

pub mod check;
mod contract;
mod error;
pub mod kvm;
pub mod x86_64;

pub use check::check_host;
pub use contract::{
    Capabilities, ClockState, Doorbell, DoorbellSpace, Exits, Hypervisor, Kick, RamFlags, RamSlot, Stop,
    Vcpu, Vm, VmOptions, X86Vcpu,
};
pub use error::{Error, Failure, Result};
