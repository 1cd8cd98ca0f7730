//! Programs that heed permissions although the tests run as root.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Drops privileges that let root read and write what its permissions forbid, so that they count in the program too.
pub fn heeding_permissions(command: &mut Command) -> &mut Command {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    // SAFETY: prctl is a plain system call, safe between fork and exec. It fails only for those who have no privileges to drop.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0);
            Ok(())
        })
    }
}
