//! What can go wrong with the hypervisor ([`Error`]) and with a vCPU that it runs ([`Failure`]).

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that the hypervisor refused, with a hint where there is a remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device node is not there.
    #[error("{} does not exist: {}", path.display(), hint_load_module())]
    Missing {
        /// The device node.
        path: PathBuf,
    },
    /// The device node is there and nothing answers.
    #[error(
        "{} has no driver behind it: virtualisation is off in the firmware or in the outer hypervisor, or {}",
        path.display(), hint_load_module()
    )]
    NoDriver {
        /// The device node.
        path: PathBuf,
    },
    /// The device node may not be opened by this user.
    #[error(
        "no permission to open {}: add the user to the group that owns it (usermod -aG kvm USER, then log in again)",
        path.display()
    )]
    Denied {
        /// The device node.
        path: PathBuf,
    },
    /// The device node cannot be opened for another reason.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device node is something other than KVM, or a KVM of another age.
    #[error("{} speaks version {found} of the KVM interface, {expected} is needed: is it really KVM?", path.display())]
    ApiVersion {
        /// The device node.
        path: PathBuf,
        /// What it says (negative: it does not know the question).
        found: i32,
        /// What this program speaks.
        expected: i32,
    },
    /// Something that cannot be done without.
    #[error(
        "this host's KVM lacks {0}, which is needed: run a newer kernel, or ask for it from the outer hypervisor"
    )]
    CapabilityMissing(&'static str),
    /// Something that was asked for and that this host cannot do.
    #[error("this host's KVM cannot do {0}")]
    Unsupported(&'static str),
    /// The hypervisor refused an operation on itself, on a VM or on a vCPU.
    #[error("cannot {operation}")]
    Refused {
        /// What was tried, as in "cannot …".
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A vCPU could not be made.
    #[error("cannot create the vCPU with APIC id {id}")]
    CreateVcpu {
        /// Its APIC id.
        id: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A range of guest RAM was refused.
    #[error("cannot map RAM slot {slot} at guest address {guest_address:#x}, {size:#x} bytes")]
    MapRam {
        /// Slot number.
        slot: u32,
        /// Where the guest sees it.
        guest_address: u64,
        /// Bytes.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A doorbell was refused.
    #[error("cannot {verb} the doorbell at {space} address {address:#x}")]
    Doorbell {
        /// "add" or "remove".
        verb: &'static str,
        /// Ports or memory.
        space: &'static str,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All interrupt routes are in use.
    #[error("no interrupt route is free: all {0} are in use")]
    RoutesExhausted(u32),
    /// The pin does not exist.
    #[error("the IOAPIC has no pin {pin}: it has {pins}")]
    NoSuchPin {
        /// Pin asked for.
        pin: u32,
        /// Number of pins.
        pins: u32,
    },
    /// An MSR was refused.
    #[error("cannot {verb} MSR {index:#x}")]
    Msr {
        /// "read" or "write".
        verb: &'static str,
        /// Number of the register.
        index: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A state to be loaded has the wrong shape.
    #[error("{what} has {found} {unit}, this host's KVM takes {expected}")]
    StateShape {
        /// Which state.
        what: &'static str,
        /// What is counted.
        unit: &'static str,
        /// Count in the state.
        found: usize,
        /// Count that is taken.
        expected: usize,
    },
}

/// For `map_err`: wraps the cause of a refused operation.
pub(crate) fn refused<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Refused { operation, source: source.into() }
}

/// Which module makes KVM appear on this machine.
fn hint_load_module() -> &'static str {
    match crate::kvm::host::vendor() {
        crate::kvm::host::Vendor::Amd => "load KVM (modprobe kvm_amd)",
        crate::kvm::host::Vendor::Intel => "load KVM (modprobe kvm_intel)",
        crate::kvm::host::Vendor::Other => "load KVM (modprobe kvm_amd or kvm_intel)",
    }
}

/// Why a vCPU cannot go on. The guest may have caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The hypervisor had to emulate an instruction and cannot.
    Emulation {
        /// Address of the instruction (virtual).
        rip: u64,
        /// The bytes there, as far as the hypervisor could fetch them; may be empty.
        bytes: Vec<u8>,
    },
    /// An exit came in the middle of the delivery of an event, where none can be handled.
    Delivery {
        /// Address of the interrupted instruction.
        rip: u64,
        /// Vectoring information, exit reason and whatever else the hypervisor told.
        data: Vec<u64>,
    },
    /// Another error within the hypervisor.
    Internal {
        /// Kind of error as the hypervisor numbers it (for KVM: `suberror`).
        kind: u32,
        /// Address of the current instruction.
        rip: u64,
        /// Whatever else the hypervisor told.
        data: Vec<u64>,
    },
    /// The processor refused to enter the guest: its state is invalid.
    Entry {
        /// The processor's reason (VMX or SVM encoding).
        reason: u64,
        /// Address of the current instruction.
        rip: u64,
    },
    /// The guest touched memory that the host cannot give (gone, poisoned, or not mapped).
    Memory {
        /// Guest-physical address, when known.
        address: Option<u64>,
        /// Address of the current instruction.
        rip: u64,
        /// `errno` of the host.
        errno: i32,
    },
    /// The run request itself failed.
    Run {
        /// Address of the current instruction.
        rip: u64,
        /// `errno` of the host.
        errno: i32,
    },
    /// An exit nobody asked for.
    UnknownExit {
        /// The hypervisor's number for it.
        reason: u32,
        /// Address of the current instruction.
        rip: u64,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Emulation { rip, bytes } if bytes.is_empty() => {
                write!(f, "KVM cannot emulate the instruction at RIP {rip:#x}")
            }
            Failure::Emulation { rip, bytes } => {
                write!(f, "KVM cannot emulate the instruction at RIP {rip:#x} (bytes{})", Hex(bytes))
            }
            Failure::Delivery { rip, data } => {
                write!(f, "KVM met an exit while it delivered an event at RIP {rip:#x} (data {data:x?})")
            }
            Failure::Internal { kind, rip, data } => {
                let name = match kind {
                    2 => " (simultaneous exceptions)",
                    4 => " (unexpected exit)",
                    _ => "",
                };
                write!(f, "KVM internal error {kind}{name} at RIP {rip:#x} (data {data:x?})")
            }
            Failure::Entry { reason, rip } => {
                write!(f, "the processor refused to enter the guest at RIP {rip:#x} (reason {reason:#x})")
            }
            Failure::Memory { address: Some(address), rip, errno } => write!(
                f,
                "the host has no memory behind guest address {address:#x} at RIP {rip:#x}: {}",
                io::Error::from_raw_os_error(*errno)
            ),
            Failure::Memory { address: None, rip, errno } => write!(
                f,
                "the host has no memory behind an address used at RIP {rip:#x}: {}",
                io::Error::from_raw_os_error(*errno)
            ),
            Failure::Run { rip, errno } => {
                write!(
                    f,
                    "KVM cannot run the vCPU at RIP {rip:#x}: {}",
                    io::Error::from_raw_os_error(*errno)
                )?;
                match *errno {
                    libc::EAGAIN => {
                        write!(f, " (a limit of threads may forbid the kernel one for the machine)")
                    }
                    _ => Ok(()),
                }
            }
            Failure::UnknownExit { reason, rip } => write!(f, "unexpected KVM exit {reason} at RIP {rip:#x}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Bytes as " 0f 0b".
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}
