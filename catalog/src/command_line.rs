//! A machine on the command line: the flags that describe one, and what they ask for.

use std::path::PathBuf;

use clap::{ArgMatches, Command};
use metadata::MetadataSpec;
use sandbox::HostPath;
use spec::{Facts, RateLimitGroupSpec, Refusal};

use crate::flags::{self, Flag, Purpose};
use crate::{
    CpusSpec, JailSpec, LandlockRuleSpec, MemorySpec, PayloadSpec, PciSegmentSpec, PlatformSpec,
    RestoreRequest, RestoreSpec, VmSpec,
};

/// The switch that keeps the process to its paths.
const LANDLOCK: &str = "landlock";

/// Heading of the flags that describe a machine.
const HEADING: &str = "The machine";

impl VmSpec {
    /// Adds the flags that describe a machine to a command.
    pub fn add_flags(command: Command, purpose: Purpose<'_>) -> Command {
        let boot = [
            purpose.value(
                "kernel",
                "path",
                "Kernel to boot: an uncompressed vmlinux with a PVH note, or a bzImage",
            ),
            purpose
                .wants("cmdline")
                .then(|| flags::value("cmdline", "text", "Kernel command line").allow_hyphen_values(true)),
            purpose.value("initramfs", "path", "Initial RAM file system"),
        ];
        let groups = [
            Flag::of::<CpusSpec>(false),
            Flag::of::<MemorySpec>(false),
            Flag::of::<PlatformSpec>(false),
            Flag::of::<MetadataSpec>(false),
            Flag::of::<PciSegmentSpec>(true),
            Flag::of::<RateLimitGroupSpec>(true),
            Flag::of::<LandlockRuleSpec>(true),
        ];
        let groups = groups.into_iter().chain(VmSpec::device_flags()).chain([Flag::of::<RestoreSpec>(false)]);
        let groups = groups.map(|flag| purpose.wants(flag.name).then(|| flag.arg(purpose)));
        let landlock = purpose.switch(
            LANDLOCK,
            "Keeps the process to the paths of its machine (Landlock); a host that cannot do it is an error",
        );
        let unsupported =
            flags::UNSUPPORTED.iter().map(|flag| purpose.wants(flag.0).then(|| flags::unsupported_arg(flag)));
        let flags = boot.into_iter().chain(groups).chain([landlock]).chain(unsupported);
        command.next_help_heading(HEADING).args(flags.flatten())
    }

    /// Adds the flags by which devices of a saved machine are changed.
    pub fn add_override_flags(command: Command) -> Command {
        let flags = VmSpec::device_flags().chain([Flag::of::<MetadataSpec>(false)]);
        command.args(flags.map(|flag| flag.arg(Purpose::Help)))
    }

    /// The machine that the command line asks for; `None` if it describes none.
    ///
    /// # Errors
    /// A flag that is not supported yet or does not parse, or flags of a machine without a kernel.
    pub fn from_matches(matches: &ArgMatches) -> Result<Option<VmSpec>, Refusal> {
        flags::refuse_unsupported(matches)?;
        let text = |name| flags::text(matches, name).map(str::to_owned);
        let mut spec = VmSpec::default();
        let payload = PayloadSpec {
            kernel: text("kernel").map(PathBuf::from),
            cmdline: text("cmdline"),
            initramfs: text("initramfs").map(PathBuf::from),
            ..PayloadSpec::default()
        };
        if payload == PayloadSpec::default() {
            VmSpec::refuse_idle_rules(matches)?;
            return Ok(None);
        }
        spec.payload = Some(payload);
        spec.cpus = flags::one(matches)?.unwrap_or_default();
        spec.memory = flags::one(matches)?.unwrap_or_default();
        spec.platform = flags::one(matches)?;
        spec.metadata = flags::one(matches)?;
        spec.pci_segments = flags::many(matches)?;
        spec.rate_limit_groups = flags::many(matches)?;
        spec.landlock_enable = flags::is_on(matches, LANDLOCK);
        spec.landlock_rules = flags::many(matches)?;
        spec.take_devices(matches)?;
        spec.complete();
        Ok(Some(spec))
    }

    /// The saved machine that the command line asks for; `None` if it asks for none.
    ///
    /// # Errors
    /// A flag that does not parse, or one that describes a new machine.
    pub fn restore_from_matches(matches: &ArgMatches) -> Result<Option<RestoreRequest>, Refusal> {
        flags::refuse_unsupported(matches)?;
        let Some(restore) = flags::one::<RestoreSpec>(matches)? else { return Ok(None) };
        let jailed = JailSpec::from_matches(matches)?.is_some();
        let mut flags = VmSpec::fixed_flags().into_iter().chain(["kernel"]);
        // In a jail they say what else is in it.
        let new =
            flags.find(|flag| flags::is_there(matches, flag) && !(jailed && *flag == LandlockRuleSpec::FLAG));
        let new = new.or(flags::is_on(matches, LANDLOCK).then_some(LANDLOCK));
        if let Some(flag) = new {
            return Err(Refusal::invalid(format!(
                "--{flag} describes a new machine and cannot be given with --restore, which goes on with a saved one"
            )));
        }
        spec::Spec::check(&restore, &VmSpec::default().facts())?;
        Ok(Some(RestoreRequest { restore, overrides: VmSpec::overrides(matches)? }))
    }

    /// The paths of `--landlock-rules`, which a jail has in it whatever the machine is.
    ///
    /// # Errors
    /// What the grammar refused, or a path that is not there.
    pub fn rules_from_matches(matches: &ArgMatches) -> Result<Vec<HostPath>, Refusal> {
        let rules: Vec<LandlockRuleSpec> = flags::many(matches)?.unwrap_or_default();
        let one =
            |rule: &LandlockRuleSpec| spec::Spec::check(rule, &Facts::default()).and_then(|()| rule.path());
        rules.iter().map(one).collect()
    }

    /// Without a machine rules mean something only if there is a jail.
    fn refuse_idle_rules(matches: &ArgMatches) -> Result<(), Refusal> {
        let given = |flag| flags::is_there(matches, flag);
        if given(LandlockRuleSpec::FLAG)
            && !given(RestoreSpec::FLAG)
            && JailSpec::from_matches(matches)?.is_none()
        {
            return Err(Refusal::invalid("--landlock-rules needs --kernel, or --jail"));
        }
        Ok(())
    }

    /// Names of the flags that describe a new machine only.
    fn fixed_flags() -> [&'static str; 8] {
        [
            "cmdline",
            "initramfs",
            CpusSpec::FLAG,
            MemorySpec::FLAG,
            PlatformSpec::FLAG,
            PciSegmentSpec::FLAG,
            RateLimitGroupSpec::FLAG,
            LandlockRuleSpec::FLAG,
        ]
    }

    /// Names of the flags that mean nothing without a kernel or a saved machine.
    pub fn dependent_flags() -> Vec<&'static str> {
        let devices = VmSpec::device_flags().map(|f| f.name);
        VmSpec::fixed_flags().into_iter().chain([MetadataSpec::FLAG]).chain(devices).collect()
    }
}
