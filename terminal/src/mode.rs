//! What a user says about a console: `off | pty | tty | null | file=<path> | socket=<path>`.

use std::path::{Path, PathBuf};

use sandbox::{HostPath, Use};
use serde::{Deserialize, Serialize};
use spec::{Key, Kind, Options, ParseError, Part, Refusal};

/// The kind of host side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// There is no device.
    Off,
    /// A new pseudo-terminal.
    Pty,
    /// The terminal that the program was started from.
    Tty,
    /// A file, for output only.
    File,
    /// A listening UNIX socket.
    Socket,
    /// There is a device, and its output is dropped.
    Null,
}

/// A mode with its path. Flattened into the options of every console.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsoleMode {
    /// The kind.
    pub mode: Mode,
    /// The file of mode `File`; the path of the terminal once one was opened in mode `Pty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl From<Mode> for ConsoleMode {
    fn from(mode: Mode) -> Self {
        ConsoleMode { mode, file: None, socket: None }
    }
}

impl Default for ConsoleMode {
    /// The mode of most consoles of most machines.
    fn default() -> Self {
        Mode::Null.into()
    }
}

impl ConsoleMode {
    /// The paths that [`crate::Terminal::open`] opens.
    pub fn paths(&self) -> Vec<HostPath> {
        let one = |path: &Option<PathBuf>, used| path.iter().map(|path| HostPath::new(path, used)).collect();
        match self.mode {
            // Standard streams are open.
            Mode::Off | Mode::Null | Mode::Tty => Vec::new(),
            Mode::Pty => {
                // Without the users' ends there is none at all, and whoever looks for them says that they are missing.
                let [users, multiplexer] = crate::pty::PATHS;
                let there = Some(multiplexer).filter(|path| Path::new(path).exists());
                let paths = std::iter::once(users).chain(there);
                paths.map(|path| HostPath::new(path, Use::ReadWrite)).collect()
            }
            Mode::File => one(&self.file, Use::Output),
            Mode::Socket => one(&self.socket, Use::Listen),
        }
    }

    /// Checks that the mode has the path that it needs.
    ///
    /// # Errors
    /// A [`Refusal`] in the words of the contract.
    pub fn check(&self) -> Result<(), Refusal> {
        match (self.mode, &self.file, &self.socket) {
            (Mode::File, None, _) => Err(missing("file")),
            (Mode::Socket, _, None) => Err(missing("socket")),
            _ => Ok(()),
        }
    }
}

fn missing(mode: &'static str) -> Refusal {
    Refusal::new(Kind::Invalid, crate::TerminalError::PathMissing(mode).to_string())
}

impl Part for ConsoleMode {
    fn keys() -> Vec<Key> {
        // A mode says all: the path of another one means nothing any more.
        let fields = &["mode", "file", "socket"];
        let bare = |name, help| Key { name, syntax: "", default: String::new(), help, bare: true, fields };
        let path =
            |name, help| Key { name, syntax: "<path>", default: String::new(), help, bare: false, fields };
        vec![
            bare("off", " No such device."),
            bare("pty", " A new pseudo-terminal, whose path vm.info shows."),
            bare("tty", " The terminal that the program was started from."),
            bare("null", " Drop the output."),
            path("file", " Write the output to this file, which is created or truncated."),
            path("socket", " Listen on this UNIX socket, for one client at a time."),
        ]
    }

    fn take(options: &mut Options) -> Result<Self, ParseError> {
        let path = |key: &'static str| -> Result<Option<PathBuf>, ParseError> {
            match spec::value::take(options, key, None)? {
                None => Err(ParseError::Other(crate::TerminalError::PathMissing(key).to_string())),
                path => Ok(path),
            }
        };
        // The order decides when several are given.
        for (key, mode) in [("off", Mode::Off), ("pty", Mode::Pty), ("tty", Mode::Tty), ("null", Mode::Null)]
        {
            if options.is_set(key) {
                return Ok(mode.into());
            }
        }
        if options.is_set("file") {
            Ok(ConsoleMode { mode: Mode::File, file: path("file")?, socket: None })
        } else if options.is_set("socket") {
            Ok(ConsoleMode { mode: Mode::Socket, file: None, socket: path("socket")? })
        } else {
            Err(ParseError::Other("invalid console mode given".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<ConsoleMode, String> {
        let mut options = Options::parse(text, &ConsoleMode::keys()).map_err(|e| e.to_string())?;
        ConsoleMode::take(&mut options).map_err(|e| e.to_string())
    }

    #[test]
    fn each_mode_is_understood_and_the_first_of_several_wins() {
        for (text, mode) in [
            ("off", Mode::Off),
            ("pty", Mode::Pty),
            ("tty", Mode::Tty),
            ("null", Mode::Null),
            ("null,tty,pty,off", Mode::Off),
            ("file=/x,null", Mode::Null),
        ] {
            assert_eq!(take(text).unwrap(), mode.into(), "{text}");
        }
        let file = take("socket=/b,file=/a").unwrap();
        assert_eq!((file.mode, file.file, file.socket), (Mode::File, Some("/a".into()), None));
        assert_eq!(take("socket=/b").unwrap().socket, Some("/b".into()));
    }

    #[test]
    fn no_mode_and_no_path_are_refused_in_the_words_of_the_contract() {
        assert_eq!(take("").unwrap_err(), "invalid console mode given");
        assert_eq!(take("file=").unwrap_err(), "Path missing when using file console mode");
        assert_eq!(take("socket=").unwrap_err(), "Path missing when using socket console mode");
        let spoken: ConsoleMode = serde_json::from_str(r#"{"mode":"File"}"#).unwrap();
        assert_eq!(spoken.check().unwrap_err().to_string(), "Path missing when using file console mode");
        assert!(serde_json::from_str::<ConsoleMode>(r#"{"file":"/x"}"#).is_err());
    }

    #[test]
    fn json_names_the_mode_and_leaves_out_what_is_not_there() {
        let text = serde_json::to_string(&take("file=/a").unwrap()).unwrap();
        assert_eq!(text, r#"{"mode":"File","file":"/a"}"#);
        assert_eq!(
            serde_json::from_str::<ConsoleMode>(r#"{"mode":"Tty","file":null}"#).unwrap(),
            Mode::Tty.into()
        );
    }
}
