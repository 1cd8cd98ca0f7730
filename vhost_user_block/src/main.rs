//! `vhost_user_block`: serves disks to virtual machines in other processes.

use std::process::ExitCode;
use std::sync::Arc;

use catalog::flags;
use clap::ArgMatches;
use device::Events;
use spec::Refusal;
use vhost_user::daemon::{self, Signals, Watchman};
use vhost_user_block::{BackendSpec, command, confined, look, start};

fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            // Nothing can be done about a closed standard stream.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    daemon::log();
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            daemon::report("vhost_user_block", &e);
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches) -> Result<(), Refusal> {
    let specs: Vec<BackendSpec> = flags::many(matches)?.unwrap_or_default();
    let text = matches.get_one::<String>("seccomp").map_or("true", String::as_str);
    let mode = text.parse().map_err(|e| Refusal::invalid(format!("Error parsing --seccomp: {e}")))?;
    let signals = Signals::take().map_err(|e| Refusal::host("cannot take signals", e))?;
    sandbox::begin(mode, || {}).map_err(|e| Refusal::host("cannot take signals", e))?;
    confined::main()?;
    let watchman = Watchman::new().map_err(|e| Refusal::host("cannot watch over threads", e))?;
    let events: Arc<dyn Events> = watchman.clone();
    let servers = start(&specs, &events)?;
    daemon::run(servers, &signals, &watchman, |servers| look(&specs, servers))
}
