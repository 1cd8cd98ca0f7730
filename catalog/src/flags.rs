//! The command line, derived from the specifications: what clap parses, what `--help`, the manual page and completions show.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use spec::{Key, Part, Refusal, Spec};

/// What a command is built for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// To be read: help, manual page, completions.
    Help,
    /// To parse these words with. Most flags of a machine are not among them, and then the command need not have them; nor are there help
    /// texts, which take longer to write than everything else on a command line takes to read.
    Parsing(&'a [OsString]),
}

impl Purpose<'_> {
    /// Whether the command must have the flag of this name, which need not be made otherwise. It has those anyway that say something even if they are
    /// not given, because of a default, and those with one letter, which may stand among others.
    pub fn wants(self, name: &str) -> bool {
        let Purpose::Parsing(words) = self else { return true };
        let named = |word: &OsString| {
            let rest =
                word.as_bytes().strip_prefix(b"--").and_then(|word| word.strip_prefix(name.as_bytes()));
            rest.is_some_and(|rest| matches!(rest, [] | [b'=', ..]))
        };
        words.iter().any(named)
    }

    /// A flag that one value follows, if the command must have it: [`value`].
    pub fn value(self, name: &'static str, syntax: &'static str, help: &'static str) -> Option<Arg> {
        self.wants(name).then(|| value(name, syntax, help))
    }

    /// A flag that is there or not, likewise: [`switch`].
    pub fn switch(self, name: &'static str, help: &'static str) -> Option<Arg> {
        self.wants(name).then(|| switch(name, help))
    }
}

/// What follows a flag that is given at most once. Nothing follows one that the command was not built with.
pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.try_get_one::<String>(name).ok().flatten().map(String::as_str)
}

/// What follows a flag that may be repeated, likewise.
pub fn texts<'a>(matches: &'a ArgMatches, name: &str) -> Option<impl Iterator<Item = &'a str>> {
    Some(matches.try_get_many::<String>(name).ok()??.map(String::as_str))
}

/// Whether a switch was given.
pub fn is_on(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one::<bool>(name).is_ok_and(|on| on.is_some_and(|on| *on))
}

/// Whether a flag was given or has a default.
pub fn is_there(matches: &ArgMatches, name: &str) -> bool {
    matches.try_contains_id(name).is_ok_and(|there| there)
}

/// A flag whose value is an option group.
#[derive(Clone)]
pub struct Flag {
    /// The name without dashes.
    pub name: &'static str,
    /// What it configures.
    pub about: &'static str,
    /// Its keys.
    pub keys: fn() -> Vec<Key>,
    /// Whether it may be given more than once.
    pub many: bool,
}

impl Flag {
    /// The flag of a specification.
    pub fn of<S: Spec>(many: bool) -> Self {
        Flag { name: S::FLAG, about: S::ABOUT, keys: S::keys, many }
    }

    /// The flag as clap knows it.
    pub fn arg(&self, purpose: Purpose<'_>) -> Arg {
        let arg = Arg::new(self.name).long(self.name).value_name("key=value,…");
        let arg = if self.many { arg.num_args(1..).action(ArgAction::Append) } else { arg.num_args(1) };
        if let Purpose::Parsing(_) = purpose {
            return arg;
        }
        let about = sentence(self.about);
        arg.help(first_sentence(&about).to_owned()).long_help(format!(
            "{}\n{}",
            wrap(&about, WIDTH).join("\n"),
            self.table()
        ))
    }

    /// The keys with their syntax, meaning and defaults, for help texts: in two columns, or the meaning on a line of its own
    /// where the syntax is long.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for key in (self.keys)().iter().filter(|k| !k.help.is_empty()) {
            let left = if key.bare { key.name.to_owned() } else { format!("{}={}", key.name, key.syntax) };
            let default =
                if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
            let mut lines = wrap(&format!("{}{default}", sentence(key.help)), WIDTH - LEFT).into_iter();
            let first = if left.len() + 2 > LEFT { String::new() } else { lines.next().unwrap_or_default() };
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {}", format!("{left:<LEFT$}{first}").trim_end());
            for line in lines {
                let _ = write!(text, "\n  {:LEFT$}{line}", "");
            }
        }
        text
    }
}

/// Columns of a table of keys; clap indents it by ten.
const WIDTH: usize = 88;
/// Columns of its left side.
const LEFT: usize = 26;

/// Breaks a text into lines of at most `width` characters, if its words allow.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A doc comment as one line, without the full stop and the marks of code that help texts do not have.
pub fn sentence(doc: &str) -> String {
    let words: Vec<_> = doc.split_whitespace().collect();
    words.join(" ").trim_end_matches('.').replace('`', "")
}

/// What summaries show.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}

/// Parses the command line of a small program. Help, and what is wrong, are printed; then there is only an exit code: 0 or 2, or 1 if nobody
/// takes the help.
///
/// # Errors
/// The program has nothing to do.
pub fn matches(command: Command) -> Result<ArgMatches, ExitCode> {
    command.try_get_matches().map_err(|e| {
        let printed = e.print();
        match e.use_stderr() {
            // Nothing can be done about a standard error that takes nothing.
            true => ExitCode::from(2),
            false if printed.is_ok() => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    })
}

/// The specification after a flag that is given at most once.
///
/// # Errors
/// What the grammar refused.
pub fn one<S: Spec>(matches: &ArgMatches) -> Result<Option<S>, Refusal> {
    text(matches, S::FLAG).map(S::parse).transpose()
}

/// The specifications after a flag that may be repeated.
///
/// # Errors
/// What the grammar refused.
pub fn many<S: Spec>(matches: &ArgMatches) -> Result<Option<Vec<S>>, Refusal> {
    let Some(texts) = texts(matches, S::FLAG) else { return Ok(None) };
    texts.map(S::parse).collect::<Result<_, _>>().map(Some)
}

/// Flags of the contract that this version does not offer: name, and whether a value follows.
pub const UNSUPPORTED: &[(&str, bool)] = &[
    ("balloon", true),
    ("dbus-object-path", true),
    ("dbus-service-name", true),
    ("dbus-system-bus", false),
    ("device", true),
    ("firmware", true),
    ("fw-cfg-config", true),
    ("gdb", true),
    ("host-data", true),
    ("igvm", true),
    ("ivshmem", true),
    ("memory-zone", true),
    ("numa", true),
    ("pvmemcontrol", false),
    ("pvpanic", false),
    ("rtc", true),
    ("tpm", true),
    ("user-device", true),
    ("vdpa", true),
    ("watchdog", false),
];

/// A flag that one value follows, and that is given at most once.
pub fn value(name: &'static str, syntax: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(syntax).num_args(1).help(help)
}

/// A flag that is there or not.
pub fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// The flag by which a program is told what becomes of system calls that it has no need of.
pub fn seccomp() -> Arg {
    value("seccomp", "mode", sandbox::Mode::HELP).default_value("true")
}

/// What [`seccomp`] was given.
pub fn seccomp_of(matches: &ArgMatches) -> &str {
    text(matches, "seccomp").unwrap_or("true")
}

/// A flag of the contract that is refused when used; it does not show in the help.
pub fn unsupported_arg((name, value): &(&'static str, bool)) -> Arg {
    let arg = Arg::new(*name).long(*name).hide(true);
    match value {
        // `--rtc` and its like may stand alone.
        true => arg.num_args(0..).action(ArgAction::Append),
        false => arg.action(ArgAction::SetTrue),
    }
}

/// Refuses the first flag in use that is not offered.
///
/// # Errors
/// `--flag is not supported yet`.
pub fn refuse_unsupported(matches: &ArgMatches) -> Result<(), Refusal> {
    let used =
        |name: &str| is_there(matches, name) && matches.value_source(name) == Some(ValueSource::CommandLine);
    match UNSUPPORTED.iter().find(|(name, _)| used(name)) {
        Some((name, _)) => Err(Refusal::unsupported(format!("--{name}"))),
        None => Ok(()),
    }
}

/// The keys of an option group, for tests that hold the contract against them.
pub fn key_names<P: Part>() -> Vec<&'static str> {
    P::keys().into_iter().map(|k| k.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_keys_fits_its_columns() {
        let flag = Flag {
            name: "x",
            about: "",
            keys: || {
                let key = |name, syntax, help, default: &str| Key {
                    name,
                    syntax,
                    help,
                    default: default.into(),
                    bare: false,
                    fields: &[],
                };
                vec![
                    key("a", "<size>", " Short.", "1M"),
                    key("hidden", "", "", ""),
                    key(
                        "much_longer_name",
                        "first|second|third",
                        " Many words: a b c d e f g h i j k l m n o p q r s t u v w x.",
                        "",
                    ),
                ]
            },
            many: false,
        };
        assert_eq!(
            flag.table(),
            "\n  a=<size>                  Short [default: 1M]\
             \n  much_longer_name=first|second|third\
             \n                            Many words: a b c d e f g h i j k l m n o p q r s t u v w x"
        );
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("", 5), [""; 0]);
        assert_eq!(sentence(" Use `a`.\n Or b."), "Use a. Or b");
        assert_eq!(first_sentence("Use a. Or b"), "Use a");
    }
}
