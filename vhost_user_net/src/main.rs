//! `vhost_user_net`: serves network cards on taps to virtual machines in other processes.

use std::process::ExitCode;

use catalog::flags;
use device::Build;
use vhost_user::daemon;
use vhost_user_net::{BackendSpec, command, open};
use virtio_devices::net::NetSpec;

fn main() -> ExitCode {
    let matches = match flags::matches(command()) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    daemon::main("vhost_user_net", flags::seccomp_of(&matches), <NetSpec as Build>::CALLS, |daemon| {
        let specs: Vec<BackendSpec> = flags::many(&matches)?.unwrap_or_default();
        daemon.serve(open(&specs)?, |_| {})
    })
}
