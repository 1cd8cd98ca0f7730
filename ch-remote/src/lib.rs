//! The command line of `ch-remote`: a command for each question of the API.

use api::action::{Body, ROUTES, Route};
use clap::{Arg, Command};

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
        .subcommands(ROUTES.iter().map(subcommand))
}

fn subcommand(route: &Route) -> Command {
    let command = Command::new(route.command).about(route.help);
    match route.body {
        Body::Json(_) => command.arg(
            Arg::new("path")
                .value_name("path")
                .default_value("-")
                .help("File with the JSON body; - reads standard input"),
        ),
        Body::None(_) | Body::Ignored(_) => command,
    }
}

/// The route behind a subcommand.
pub fn route(command: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|r| r.command == command)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_consistent() {
        super::command().debug_assert();
    }
}
