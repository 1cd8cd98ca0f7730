//! `vhost_user_net`: serves network cards on taps to virtual machines in other processes.

use std::process::ExitCode;

use catalog::{JailSpec, flags};
use device::Build;
use vhost_user::daemon;
use vhost_user_net::{ahead, cards, command, open};
use virtio_devices::net::NetSpec;

fn main() -> ExitCode {
    let matches = match flags::matches(command()) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    let prepare = || {
        let mut cards = cards(flags::many(&matches)?.unwrap_or_default())?;
        let jail = JailSpec::from_matches(&matches)?;
        let mut plan = |jail: JailSpec| {
            daemon::alone()?;
            ahead(&mut cards).map(|paths| jail.plan(paths))
        };
        let plan = jail.map(&mut plan).transpose()?;
        Ok((cards, plan))
    };
    let (seccomp, calls) = (flags::seccomp_of(&matches), <NetSpec as Build>::CALLS);
    daemon::main("vhost_user_net", seccomp, calls, prepare, |daemon, cards| {
        daemon.serve(open(cards)?, |_| {})
    })
}
