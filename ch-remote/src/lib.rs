//! The command line of `ch-remote`: a command for each question of the API, and one that connects with the guest.

pub mod progress;
mod request;
pub mod vsock;

use api::action::{Body, Field, FieldValue, Route, Written, routes};
use catalog::VmSpec;
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command};

pub use request::{Request, request};

/// The argument that says what to restore.
const RESTORE: &str = "restore";
/// The argument that has a command wait for the guest.
const WAIT: &str = "wait";

/// The command with all its subcommands, as parsed, documented and completed.
pub fn command() -> Command {
    Command::new("ch-remote")
        .about("Asks a running cloud-hypervisor over its API socket.")
        .version(env!("CARGO_PKG_VERSION"))
        .arg_required_else_help(true)
        .subcommand_required(true)
        .arg(
            Arg::new("api-socket")
                .long("api-socket")
                .value_name("path")
                .global(true)
                .help("UNIX socket that cloud-hypervisor was started with"),
        )
        .subcommands(routes().map(subcommand))
        .subcommand(vsock::command())
}

fn subcommand(route: &'static Route) -> Command {
    let command = Command::new(&*route.command).about(&*route.help);
    let command = match route.body {
        Body::Json(_, Written::File) => command.arg(
            Arg::new("path")
                .value_name("path")
                .default_value("-")
                .help("File with the JSON body; - reads standard input"),
        ),
        Body::Json(_, Written::Fields(fields)) => command.args(fields.iter().map(argument)),
        Body::Device(hot) => command.arg(
            Arg::new("device")
                .value_name("key=value,…")
                .required(true)
                .help(format!("The device, as after --{} of cloud-hypervisor", hot.name)),
        ),
        Body::Restore => VmSpec::add_override_flags(command.arg(
            Arg::new(RESTORE).value_name("key=value,…").required(true).help(
                "The snapshot, as after --restore of cloud-hypervisor: source_url=file://<directory>,…",
            ),
        )),
        Body::None(_) | Body::Ignored(_) => command,
    };
    match request::waits_for(route) {
        Some(_) => command.arg(
            Arg::new(WAIT)
                .long(WAIT)
                .value_name("seconds")
                .num_args(0..=1)
                .default_missing_value("10")
                .value_parser(clap::value_parser!(f64))
                .help("Wait until the guest has done its part, at most this many seconds (10 unless given)"),
        ),
        None => command,
    }
}

fn argument(field: &'static Field) -> Arg {
    let arg = Arg::new(field.json).help(field.help).required(true);
    let arg = match field.flag {
        Some(flag) => arg.long(flag),
        None => arg,
    };
    match field.value {
        FieldValue::Text => arg.value_name(field.flag.unwrap_or(field.json)),
        FieldValue::Size => arg.value_name("size"),
        FieldValue::Seconds => {
            arg.value_name("seconds").required(false).value_parser(clap::value_parser!(f64))
        }
        FieldValue::Word(words) => arg.value_parser(PossibleValuesParser::new(words)),
    }
}

/// The route behind a subcommand.
pub fn route(command: &str) -> Option<&'static Route> {
    routes().find(|r| r.command == command)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_consistent() {
        super::command().debug_assert();
    }
}
