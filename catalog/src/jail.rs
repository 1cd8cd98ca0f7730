//! `--jail`: what a program's jail is to be, for all programs alike.

use std::path::{Component, Path, PathBuf};

use clap::{Arg, ArgMatches};
use sandbox::HostPath;
use sandbox::jail::{Limits, Owner, Plan};
use spec::value::Bytes;
use spec::{Facts, Refusal, Spec, Value};

use crate::flags::{self, Flag, Purpose};

spec::choice! {
    /// The network that a jail is in.
    pub enum JailNetwork {
        /// A namespace in which there is nothing.
        #[default]
        Empty = "empty",
        /// The host's.
        Host = "host",
    }
}

spec::spec! {
    /// Puts the process into a jail (on, or any of the keys): its own namespaces, a root in which there is nothing but the paths that its
    /// command line names, no capabilities, no environment. As root it also becomes somebody else.
    pub struct JailSpec: "jail" {
        flatten {}
        fields {
            /// The user to become, as root only; when absent, a number that nobody has and no other jail.
            "uid" => uid: Option<u32> = None,
            /// The group to become, likewise.
            "gid" => gid: Option<u32> = None,
            /// The network namespace: an empty one, or the host's. Taps of the command line are opened before and work in both; those
            /// that are added later come as descriptors.
            "network" => network: JailNetwork = JailNetwork::Empty,
            /// How many descriptors may be open; 4096 when absent, or what was allowed before if that is less.
            "files" => files: Option<u64> = None,
            /// Bytes of memory that the process may use, guest memory included (a control group).
            "memory" => memory: Option<Bytes> = None,
            /// How many CPUs it may use, such as 1.5 (a control group).
            "cpus" => cpus: Option<Share> = None,
            /// How many threads it may have (a control group).
            "pids" => pids: Option<u64> = None,
            /// The control group in which that of the jail is made, from the root of its hierarchy, such as machines/small; when absent, that
            /// of the process, or in version 2 the one above it.
            "cgroup" => cgroup: Option<PathBuf> = None,
        }
        unsupported {}
    }
}

/// Hundredths of a CPU, written as a decimal number of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Share(pub u32);

impl Value for Share {
    const SYNTAX: &'static str = "<number>";

    fn convert(text: &str) -> Result<Self, String> {
        let hint = || "expected a number of CPUs from 0.01 to 100000, with two decimals at most".to_owned();
        let text = spec::grammar::dequote(text);
        let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || part.len() > 2 || !digits(whole) || !digits(part) {
            return Err(hint());
        }
        let hundredths = format!("{whole}{part:0<2}").parse().map_err(|_| hint())?;
        if (1..=10_000_000).contains(&hundredths) { Ok(Share(hundredths)) } else { Err(hint()) }
    }

    fn show(&self) -> String {
        format!("{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl Spec for JailSpec {
    const FLAG: &'static str = JailSpec::FLAG;
    const ABOUT: &'static str = JailSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        let within = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            // setresuid(2) takes it for "as it is".
            if id == Some(u32::MAX) {
                return Err(Refusal::invalid(format!("--jail {key}={} is nobody's number", u32::MAX)));
            }
        }
        match &self.cgroup {
            Some(group) if !within(group) => Err(Refusal::invalid(format!(
                "--jail cgroup={} must be the name of a group, from the root of its hierarchy: no / before it, no ..",
                group.display()
            ))),
            _ => Ok(()),
        }
    }
}

impl JailSpec {
    /// The flag.
    pub fn arg(purpose: Purpose<'_>) -> Arg {
        Flag::of::<JailSpec>(false).arg(purpose).value_name("on|off|key=value,…")
    }

    /// What the command line says; nothing if there is to be no jail.
    ///
    /// # Errors
    /// What the grammar refused.
    pub fn from_matches(matches: &ArgMatches) -> Result<Option<JailSpec>, Refusal> {
        let spec = match flags::text(matches, JailSpec::FLAG) {
            None | Some("off") => return Ok(None),
            Some("") => return Err(Refusal::invalid("--jail is empty: say on, off, or key=value,…")),
            Some("on") => JailSpec::default(),
            Some(keys) => JailSpec::parse(keys.strip_prefix("on,").unwrap_or(keys))?,
        };
        spec.check(&Facts::default())?;
        Ok(Some(spec))
    }

    /// The jail with these paths in it.
    pub fn plan(&self, paths: Vec<HostPath>) -> Plan {
        Plan {
            owner: Owner { uid: self.uid, gid: self.gid },
            host_network: self.network == JailNetwork::Host,
            files: self.files,
            limits: Limits {
                group: self.cgroup.clone(),
                memory: self.memory.map(|bytes| bytes.0),
                cpus: self.cpus.map(|share| share.0),
                pids: self.pids,
            },
            paths,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn parse(text: &str) -> Result<Option<JailSpec>, Refusal> {
        let command = Command::new("x").arg(JailSpec::arg(Purpose::Parsing(&[])));
        JailSpec::from_matches(&command.try_get_matches_from(["x", "--jail", text]).unwrap())
    }

    #[test]
    fn one_word_is_enough_and_keys_say_more() {
        assert_eq!(parse("off").unwrap(), None);
        assert_eq!(parse("on").unwrap(), Some(JailSpec::default()));
        let spec = parse("on,uid=7,memory=1G,cpus=1.5,pids=64,cgroup=machines/small,network=host,files=99");
        let plan = spec.unwrap().unwrap().plan(Vec::new());
        assert_eq!(plan.owner, Owner { uid: Some(7), gid: None });
        let group = Some("machines/small".into());
        assert_eq!(plan.limits, Limits { group, memory: Some(1 << 30), cpus: Some(150), pids: Some(64) });
        assert!(plan.host_network && plan.files == Some(99));
        assert_eq!(parse("uid=7").unwrap().unwrap().uid, Some(7));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in ["", "yes", "uid=me", "uid=-1", "memory=lots", "network=none", "dir=/x", "on,off"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["0", "1.234", "-1", ".5", "1.x", "100001", "+1"] {
            assert!(Share::convert(text).is_err(), "{text}");
        }
        for key in ["uid", "gid"] {
            let error = parse(&format!("{key}=4294967295")).unwrap_err();
            assert!(error.to_string().contains(&format!("--jail {key}=4294967295")), "{error}");
        }
        for group in ["/a", "a/../b", ".."] {
            let error = parse(&format!("cgroup={group}")).unwrap_err();
            assert!(error.to_string().contains("--jail cgroup="), "{error}");
        }
    }

    #[test]
    fn shares_of_cpus_are_decimal() {
        for (text, hundredths) in [("1", 100), ("0.5", 50), ("0.01", 1), ("12.25", 1225)] {
            assert_eq!(Share::convert(text), Ok(Share(hundredths)), "{text}");
        }
        assert_eq!(Share(1205).show(), "12.05");
    }
}
