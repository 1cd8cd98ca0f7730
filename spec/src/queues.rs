//! What devices with virtqueues have in common: the bounds of their queues.

use crate::{Facts, Refusal};

/// Largest queue (virtio 1.3 §2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Checks the number of queues (or pairs of them) and their size.
///
/// # Errors
/// More queues than vCPUs at boot, or a size that is no power of two.
pub fn check(count: usize, size: u16, facts: &Facts) -> Result<(), Refusal> {
    let vcpus = facts.boot_vcpus;
    if count > vcpus as usize {
        return Err(Refusal::invalid(format!("Queue count ({count}) must not exceed boot vCPUs ({vcpus})")));
    }
    if !size.is_power_of_two() {
        return Err(Refusal::invalid(format!(
            "Queue size must be a power of 2 no greater than {MAX_QUEUE_SIZE}: {size}"
        )));
    }
    Ok(())
}
