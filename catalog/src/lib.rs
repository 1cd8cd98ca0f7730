//! The one list of what a machine can be made of.
//!
//! From [`machine`]'s list of devices derive the specification of a machine ([`VmSpec`], which is also the JSON body of
//! `vm.create`), the flags of the command line, their help, the order of PCI slots, and the checks that look at all devices
//! together. A new device is its own file and one line in that list.
//!
//! Nothing here opens a file or talks to a hypervisor.

mod checks;
mod command_line;
pub mod cpus;
pub mod flags;
pub mod hot;
pub mod jail;
pub mod landlock;
pub mod machine;
pub mod memory;
pub mod overrides;
pub mod payload;
pub mod pci_segment;
pub mod platform_spec;
pub mod plug;
pub mod restore;

pub use cpus::CpusSpec;
pub use flags::Flag;
pub use hot::{Addable, Addition, Hot};
pub use jail::JailSpec;
pub use landlock::LandlockRuleSpec;
pub use machine::VmSpec;
pub use memory::MemorySpec;
pub use overrides::Overrides;
pub use payload::PayloadSpec;
pub use pci_segment::PciSegmentSpec;
pub use platform_spec::PlatformSpec;
pub use plug::Plug;
pub use restore::{MemoryRestoreMode, RestoreRequest, RestoreSpec, SnapshotSpec};
