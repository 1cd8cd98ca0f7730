//! Everything that can be asked of a VMM.

use catalog::VmSpec;

/// A request to the control thread.
#[derive(Debug)]
pub enum Action {
    /// Who are you?
    VmmPing,
    /// End the process, shutting the machine down first.
    VmmShutdown,
    /// Take the description of a machine.
    VmCreate(Box<VmSpec>),
    /// Build the machine and start it.
    VmBoot,
    /// Forget the description, shutting the machine down first.
    VmDelete,
    /// Describe the machine.
    VmInfo,
    /// Count what its devices did.
    VmCounters,
    /// Stop its vCPUs and I/O.
    VmPause,
    /// Continue after a pause.
    VmResume,
    /// Stop the machine and drop it; the description stays.
    VmShutdown,
    /// Replace the machine by a new one of the same description.
    VmReboot,
    /// Press the ACPI power button.
    VmPowerButton,
    /// Send every vCPU a non-maskable interrupt.
    VmNmi,
}
