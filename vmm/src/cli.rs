//! The command line of `cloud-hypervisor`.
//!
//! Flags of devices come from the catalog; those of the process itself are here. Man page and completions are generated from
//! [`command`] by the crate `docs-gen`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use catalog::flags::{self, Purpose};
use catalog::{JailSpec, LandlockRuleSpec, VmSpec};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use spec::{Options, Refusal};

use crate::logger;

const ABOUT: &str = "Runs a virtual machine.

With --kernel, the machine described by the flags is booted at once. Without, the process waits
for requests on the API socket (see ch-remote). Options that take key=value pairs show their keys
below; lists are written [a,b], sizes may end in K, M or G.";

const EXAMPLES: &str = "Examples:
  Boot a kernel with a disk, its console on this terminal (log out of the guest to end):
    cloud-hypervisor --kernel vmlinux --disk path=debian.img --cmdline 'console=hvc0 root=/dev/vda1'

  Two vCPUs, 2 GiB, a network card on a new tap, an API socket:
    cloud-hypervisor --api-socket /run/vm.sock --cpus boot=2 --memory size=2G \\
      --net mac=52:54:00:12:34:56 --kernel vmlinux --initramfs initrd.img --cmdline console=hvc0

  A network card for which neither root nor a tap is needed, and SSH to the guest on port 2222:
    cloud-hypervisor --net user=on,forward=[tcp:127.0.0.1:2222:22] --kernel vmlinux \
      --disk path=debian.img --cmdline 'console=hvc0 root=/dev/vda1'

  In a jail: namespaces and a user of its own, limits, and a directory for disks to be added and snapshots:
    cloud-hypervisor --jail memory=3G,pids=100 --landlock-rules path=/srv/vm,access=rw \\
      --api-socket /run/vm.sock --memory size=2G --kernel vmlinux --disk path=debian.img

  Wait for a machine to be described over the API:
    cloud-hypervisor --api-socket /run/vm.sock

  Ask whether this host can run guests at all:
    cloud-hypervisor --check-host";

/// The command with all its flags and their help.
pub fn command() -> Command {
    command_for(Purpose::Help)
}

/// What the command line says.
///
/// # Errors
/// A request for help, or a line that does not parse, with all that there is to say about it.
pub fn parse() -> Result<ArgMatches, clap::Error> {
    let words: Vec<OsString> = std::env::args_os().collect();
    parse_from(&words)
}

fn parse_from(words: &[OsString]) -> Result<ArgMatches, clap::Error> {
    // Whoever needs no help does not wait until it is written, nor for flags that were not given.
    let lean = command_for(Purpose::Parsing(words)).try_get_matches_from(words);
    lean.or_else(|_| command().try_get_matches_from(words))
}

fn command_for(purpose: Purpose<'_>) -> Command {
    let command = Command::new("cloud-hypervisor")
        .about("Runs a virtual machine")
        .long_about(ABOUT)
        .after_long_help(EXAMPLES)
        .disable_version_flag(true)
        .arg_required_else_help(true)
        .next_line_help(false);
    let of_process = [
        purpose.value(
            "api-socket",
            "path=<path>|fd=<number>",
            "UNIX socket for requests (see ch-remote); a bare path works too",
        ),
        purpose.value(
            "event-monitor",
            "path=<path>|fd=<number>",
            "Writes a JSON record of each event to this file",
        ),
        purpose.switch(
            "no-shutdown",
            "Keeps the process when the guest powers itself off; needs the API to go on",
        ),
        purpose.value(
            "passt",
            "program",
            "The passt that serves network cards with user=on, found on the PATH if it is not said; given at start so that such cards may come over \
             the API later",
        ),
        Some(flags::seccomp()),
        purpose.wants(JailSpec::FLAG).then(|| JailSpec::arg(purpose)),
        purpose.switch(
            "check-host",
            "Says whether this host can run guests, what is missing and how to mend it",
        ),
        Some(
            flags::switch("version", "Prints the version; with -v also the compiled-in features").short('V'),
        ),
    ];
    let of_logging = [
        purpose.value("log-file", "path", "Logs to this file instead of standard error"),
        Some(
            flags::value("log-format", "template", "Format of log records")
                .default_value(logger::DEFAULT_FORMAT),
        ),
        Some(
            Arg::new("v")
                .short('v')
                .action(ArgAction::Count)
                .help("Logs more: once for information, twice for debugging, three times for everything"),
        ),
    ];
    let command = VmSpec::add_flags(command, purpose)
        .next_help_heading("The process")
        .args(of_process.into_iter().flatten())
        .next_help_heading("Logging")
        .args(of_logging.into_iter().flatten());
    let dependent = VmSpec::dependent_flags();
    let group = |name: &'static str, flags: &[&'static str]| {
        let flags = flags.iter().copied().filter(|flag| purpose.wants(flag));
        ArgGroup::new(name).args(flags).multiple(true)
    };
    command
        .mut_args(|a| match a.get_id().as_str() {
            // A jail has rules before it has a machine.
            LandlockRuleSpec::FLAG => a.requires("ruled"),
            flag if dependent.contains(&flag) => a.requires("vm-source"),
            _ => a,
        })
        .group(group("vm-source", &SOURCES))
        .group(group("ruled", &[&SOURCES[..], &[JailSpec::FLAG]].concat()))
}

/// Flags that say what runs in the machine.
const SOURCES: [&str; 5] = ["kernel", "firmware", "igvm", "fw-cfg-config", "restore"];

/// A path or a descriptor opened by whoever started us.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A path.
    Path(PathBuf),
    /// A descriptor.
    Fd(RawFd),
}

fn place(text: &str) -> Option<Place> {
    let key =
        |name, syntax| spec::Key { name, syntax, default: String::new(), help: "", bare: false, fields: &[] };
    let options = Options::parse(text, &[key("path", "<path>"), key("fd", "<number>")]).ok()?;
    match (options.raw("path"), options.raw("fd")) {
        (Some(path), None) => Some(Place::Path(spec::grammar::dequote(path).into())),
        (None, Some(fd)) => fd.parse().ok().map(Place::Fd),
        _ => None,
    }
}

/// Where `--api-socket` points; a text that is no `path=` or `fd=` is itself the path.
///
/// # Errors
/// `fd=` without a number.
pub fn api_socket(matches: &ArgMatches) -> Result<Option<Place>, Refusal> {
    let Some(text) = flags::text(matches, "api-socket") else { return Ok(None) };
    match place(text) {
        Some(place) => Ok(Some(place)),
        // Nobody means a file of such a name.
        None if text.is_empty() || text.starts_with("fd=") || text.starts_with("path=") => {
            Err(Refusal::invalid(format!(
                "Error parsing --api-socket: expected <path>, path=<path> or fd=<number>, not {text:?}"
            )))
        }
        None => Ok(Some(Place::Path(text.into()))),
    }
}

/// The numbers of descriptors that the process's own flags speak of.
pub fn descriptors(matches: &ArgMatches) -> Vec<RawFd> {
    let named = ["api-socket", "event-monitor"].into_iter();
    let places = named.filter_map(|flag| place(flags::text(matches, flag)?));
    places.filter_map(|place| if let Place::Fd(fd) = place { Some(fd) } else { None }).collect()
}

/// What `--seccomp` says.
///
/// # Errors
/// Another word.
pub fn seccomp(matches: &ArgMatches) -> Result<sandbox::Mode, Refusal> {
    flags::seccomp_of(matches).parse().map_err(|e| Refusal::invalid(format!("Error parsing --seccomp: {e}")))
}

/// The file that `--event-monitor` names.
///
/// # Errors
/// Neither `path=` nor `fd=`, or a file that cannot be created.
pub fn event_monitor(matches: &ArgMatches) -> Result<Option<File>, Refusal> {
    let Some(text) = flags::text(matches, "event-monitor") else { return Ok(None) };
    match place(text) {
        Some(Place::Path(path)) => {
            let mut how = OpenOptions::new();
            how.create(true).truncate(true).write(true).custom_flags(libc::O_NONBLOCK);
            // A FIFO whose reader is still to come is not waited for; it keeps what fits until then.
            let fifo = std::fs::metadata(&path).is_ok_and(|m| m.file_type().is_fifo());
            how.read(fifo).open(&path).map(Some).map_err(|e| {
                Refusal::host(format!("Error creating event monitor file {}", path.display()), e)
            })
        }
        Some(Place::Fd(fd)) => open_fd(fd, "--event-monitor").map(|fd| Some(File::from(fd))),
        None => Err(Refusal::invalid(format!(
            "Error parsing --event-monitor: expected path=<path> or fd=<number>, not {text:?}"
        ))),
    }
}

/// Takes over a descriptor that was opened for us.
///
/// # Errors
/// It is not open, or is one of the standard streams.
pub fn open_fd(fd: RawFd, flag: &str) -> Result<std::os::fd::OwnedFd, Refusal> {
    let refuse = |e: std::io::Error| Refusal::host(format!("{flag}: descriptor {fd} cannot be used"), e);
    if fd <= 2 {
        return Err(refuse(std::io::Error::other("it is a standard stream or no descriptor")));
    }
    // SAFETY: fcntl with F_GETFD only asks whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(refuse(std::io::Error::last_os_error()));
    }
    // SAFETY: it is open, was passed to us by number, and nothing else in this process uses it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// What `--version` prints.
pub fn version(verbose: bool) -> String {
    let mut text =
        format!("cloud-hypervisor {}\nMigration Protocol Versions: 0\n", crate::control::build_version());
    if verbose {
        text.push_str(&format!("Enabled features: {:?}\n", crate::FEATURES));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> ArgMatches {
        command().try_get_matches_from(args).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    /// What came of a line: each flag with what it was given, or what is wrong.
    fn outcome(matches: Result<ArgMatches, clap::Error>) -> Result<Vec<String>, String> {
        let matches = matches.map_err(|e| e.to_string())?;
        let given = matches.ids().map(|id| {
            let raw = matches.get_raw(id.as_str()).map(Iterator::collect::<Vec<_>>);
            format!("{id}: {raw:?}")
        });
        let mut given: Vec<_> = given.filter(|text| !text.ends_with(r#"Some(["false"])"#)).collect();
        given.sort();
        Ok(given)
    }

    #[test]
    fn a_line_means_the_same_to_a_command_that_has_no_more_flags_than_that() {
        for line in [
            "",
            "--help",
            "-V",
            "-vvv --kernel k",
            "--kernel k --disk path=a path=b --disk=path=c --net tap=t",
            "--kernel=k --cpus boot=2 --memory=size=1G --landlock --landlock-rules path=/x,access=r",
            "--kernel k --cmdline --disk",
            "--kernel k --cmdline=--disk",
            "--kernel k --rtc --watchdog",
            "--api-socket s --jail on --landlock-rules path=/x,access=r",
            "--restore source_url=x --net id=n,tap=t",
            "--firmware f --disk path=a",
            "--disk path=a",
            "--landlock-rules path=/x",
            "--kernel k --nonsense",
            "--kernel k --kerne x",
            "--kernel",
            "--kernel k --kernel l",
            "--kernel k -- --disk",
            "stray",
        ] {
            let words: Vec<OsString> =
                ["x"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect();
            let whole = outcome(command().try_get_matches_from(&words));
            assert_eq!(outcome(parse_from(&words)), whole, "{line}");
        }
    }

    #[test]
    fn a_command_to_parse_with_has_no_flags_that_were_not_given() {
        let words = ["x", "--kernel", "k", "--disk", "path=a"].map(OsString::from);
        let lean = command_for(Purpose::Parsing(&words));
        let has = |name: &str| lean.get_arguments().any(|arg| arg.get_id() == name);
        assert!(has("disk") && !has("net") && !has("rtc"));
        lean.debug_assert();
    }

    #[test]
    fn the_api_socket_may_be_a_bare_path() {
        for (text, place) in [
            ("/tmp/a.sock", Place::Path("/tmp/a.sock".into())),
            ("path=/tmp/a.sock", Place::Path("/tmp/a.sock".into())),
            ("fd=7", Place::Fd(7)),
        ] {
            assert_eq!(api_socket(&parse(&["x", "--api-socket", text])).unwrap(), Some(place));
        }
        for text in ["", "fd=x", "fd=", "path=", "path=a,fd=7", "path=a,mode=b"] {
            assert!(api_socket(&parse(&["x", "--api-socket", text])).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_of_a_machine_need_a_kernel() {
        let e = command().try_get_matches_from(["x", "--disk", "path=a"]).unwrap_err();
        assert_eq!(e.exit_code(), 2);
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_by_name() {
        let e = VmSpec::from_matches(&parse(&["x", "--kernel", "k", "--tpm", "socket=s"])).unwrap_err();
        assert_eq!(e.chain(), ["--tpm is not supported yet"]);
    }

    #[test]
    fn several_disks_may_follow_one_flag_or_many() {
        let m = parse(&["x", "--kernel", "k", "--disk", "path=a", "path=b", "--disk", "path=c"]);
        let spec = VmSpec::from_matches(&m).unwrap().unwrap();
        assert_eq!(spec.disks.unwrap().len(), 3);
    }
}
