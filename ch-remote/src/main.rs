//! `ch-remote`: asks a running `cloud-hypervisor`, prints the answer, tells errors as a numbered chain.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use api::client::{self, ClientError};

fn main() -> ExitCode {
    let matches = match catalog::flags::matches(ch_remote::command()) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(chain) => {
            let mut text = "Error: ch-remote exited with the following chain of errors:\n".to_owned();
            for (depth, message) in chain.iter().enumerate() {
                text += &format!("  {depth}: {}\n", spec::plain(message));
            }
            // Nothing can be done about a standard error that takes nothing, and the exit status tells the rest.
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &clap::ArgMatches) -> Result<(), Vec<String>> {
    let socket = matches
        .get_one::<String>("api-socket")
        .ok_or_else(|| vec!["Please provide the API socket: --api-socket <path>".to_owned()])?;
    let (name, arguments) = matches.subcommand().ok_or_else(|| vec!["No command given".to_owned()])?;
    if name == ch_remote::vsock::NAME {
        let info = ch_remote::route("info").ok_or_else(|| vec!["Nothing to ask".to_owned()])?;
        let info = client::ask(Path::new(socket), info, None, &[]).map_err(|e| chain(&e))?;
        return ch_remote::vsock::connect(&ch_remote::vsock::socket(&info)?, arguments);
    }
    let route = ch_remote::route(name).ok_or_else(|| vec![format!("Unknown command {name}")])?;
    let request = ch_remote::request(route, arguments)?;
    let ask = |route, body, descriptors: &[_]| {
        client::ask(Path::new(socket), route, body, descriptors).map_err(|e| chain(&e))
    };
    let first = || ask(route, request.body.clone(), &request.descriptors);
    let answer = ch_remote::progress::telling(Path::new(socket), first)?;
    if !answer.is_empty() {
        let mut stdout = std::io::stdout().lock();
        let written = writeln!(stdout, "{answer}").and_then(|()| stdout.flush());
        written.map_err(|e| vec!["Cannot write to standard output".to_owned(), e.to_string()])?;
    }
    if let (Some(body), Some(route)) = (request.then(&answer), ch_remote::route("wait-device")) {
        ask(route, Some(body), &[])?;
    }
    Ok(())
}

/// The error's causes, and what the server said of its own.
fn chain(error: &ClientError) -> Vec<String> {
    let mut messages = vec!["http client error".to_owned(), error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        messages.push(cause.to_string());
        next = cause.source();
    }
    if let ClientError::Refused { body, .. } = error {
        match serde_json::from_str::<Vec<String>>(body) {
            Ok(theirs) => messages.extend(theirs),
            Err(_) => messages.push(format!("Can't get remote's error messages from JSON response: {body}")),
        }
    }
    messages
}
