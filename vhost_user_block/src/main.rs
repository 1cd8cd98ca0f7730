//! `vhost_user_block`: serves disks to virtual machines in other processes.

use std::process::ExitCode;

use catalog::{JailSpec, flags};
use device::Build;
use vhost_user::daemon;
use vhost_user_block::{BackendSpec, command, look, open, paths};
use virtio_devices::block::DiskSpec;

fn main() -> ExitCode {
    let matches = match flags::matches(command()) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    let prepare = || {
        let specs: Vec<BackendSpec> = flags::many(&matches)?.unwrap_or_default();
        let jail = JailSpec::from_matches(&matches)?;
        let plan = |jail: JailSpec| daemon::alone().map(|()| jail.plan(paths(&specs)));
        let plan = jail.map(plan).transpose()?;
        Ok((specs, plan))
    };
    let (seccomp, calls) = (flags::seccomp_of(&matches), <DiskSpec as Build>::CALLS);
    daemon::main("vhost_user_block", seccomp, calls, prepare, |daemon, specs| {
        daemon.serve(open(&specs)?, |servers| look(&specs, servers))
    })
}
