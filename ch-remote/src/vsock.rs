//! `vsock-connect`: standard input and output as a connection to a port of the guest's, such as `ssh` wants of a `ProxyCommand`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

/// Name of the command, and of its argument.
pub const NAME: &str = "vsock-connect";
const PORT: &str = "port";

/// Most bytes of the line that says that the guest takes the connection.
const MOST: usize = 32;

/// Bytes that are passed on at once.
const PIECE: usize = 64 << 10;

/// The command.
pub(crate) fn command() -> Command {
    Command::new(NAME).about("Connect standard input and output with a port of the guest's, by its vsock device").arg(
        Arg::new(PORT)
            .value_name(PORT)
            .required(true)
            .value_parser(clap::value_parser!(u32))
            .help("The port, 22 for instance: ssh -o ProxyCommand='ch-remote --api-socket <path> vsock-connect 22' root@guest"),
    )
}

/// The socket of the machine's vsock device, from what `vm.info` says.
///
/// # Errors
/// There is no such device.
pub fn socket(info: &str) -> Result<PathBuf, Vec<String>> {
    let socket = serde_json::from_str::<Value>(info)
        .ok()
        .and_then(|info| info.pointer("/config/vsock/socket").and_then(Value::as_str).map(PathBuf::from));
    socket.ok_or_else(|| vec!["The machine has no vsock device".to_owned()])
}

/// Connects, and returns when the guest has said all.
///
/// # Errors
/// Messages, outermost first: nobody at the socket, or nobody at the port.
pub fn connect(socket: &Path, arguments: &ArgMatches) -> Result<(), Vec<String>> {
    let port = arguments.get_one::<u32>(PORT).copied().unwrap_or_default();
    let at = |e: io::Error| vec![format!("Cannot connect by {}", socket.display()), e.to_string()];
    let mut stream = UnixStream::connect(socket).map_err(at)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(at)?;
    if !taken(&mut stream).map_err(at)? {
        return Err(vec![format!("Nobody in the guest listens on port {port}")]);
    }
    let mut there = stream.try_clone().map_err(at)?;
    // It ends with the process if the guest is the first to have said all.
    let sending = std::thread::Builder::new().name("input".to_owned());
    let sending = sending.spawn(move || {
        let told = files().and_then(|[mut input, _]| pass(&mut input, &mut there));
        // One that is gone hears nothing of the end, which is no news to it.
        let _ = there.shutdown(Shutdown::Write);
        told
    });
    sending.map_err(at)?;
    let heard = files().and_then(|[_, mut output]| pass(&mut stream, &mut output));
    heard.map_err(|e| vec![format!("The connection to port {port} broke"), e.to_string()])
}

/// Reads the line with which the guest takes a connection, and nothing of what follows.
fn taken(stream: &mut UnixStream) -> io::Result<bool> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < MOST && stream.read(&mut byte)? == 1 {
        if byte == *b"\n" {
            return Ok(line.starts_with(b"OK "));
        }
        line.extend(byte);
    }
    Ok(false)
}

/// Passes on what comes, each piece at once: `io::copy` has the kernel do it, which from a pipe to a socket waits for more.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; PIECE];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&bytes[..count])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Standard input and output without buffers: each piece goes on as it comes.
fn files() -> io::Result<[File; 2]> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok([input.into(), output.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &[u8]) -> (bool, Vec<u8>) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(text).unwrap();
        drop(theirs);
        let taken = taken(&mut ours).unwrap();
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).unwrap();
        (taken, rest)
    }

    #[test]
    fn only_the_line_is_read() {
        assert_eq!(said(b"OK 1073741824\nSSH-2.0"), (true, b"SSH-2.0".to_vec()));
        assert_eq!(said(b""), (false, Vec::new()));
        assert_eq!(said(b"NO\nrest"), (false, b"rest".to_vec()));
        assert!(!said(&[b'O'; 100]).0);
    }

    #[test]
    fn a_machine_without_the_device_has_no_socket() {
        assert_eq!(socket(r#"{"config":{"vsock":{"cid":3,"socket":"/run/v"}}}"#), Ok("/run/v".into()));
        assert!(socket(r#"{"config":{}}"#).is_err());
    }
}
