//! `vhost_user_block`: serves disks to virtual machines in other processes.

use std::process::ExitCode;

use catalog::flags;
use device::Build;
use vhost_user::daemon;
use vhost_user_block::{BackendSpec, command, look, open};
use virtio_devices::block::DiskSpec;

fn main() -> ExitCode {
    let matches = match flags::matches(command()) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    daemon::main("vhost_user_block", flags::seccomp_of(&matches), <DiskSpec as Build>::CALLS, |daemon| {
        let specs: Vec<BackendSpec> = flags::many(&matches)?.unwrap_or_default();
        daemon.serve(open(&specs)?, |servers| look(&specs, servers))
    })
}
