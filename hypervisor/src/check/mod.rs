//! Says in plain words whether this host can run guests: what was looked at, how it is, what to do about it.
//!
//! This crate answers for KVM ([`check_host`]); the program adds what else a host may have. A [`Report`] is data, and its
//! `Display` is for people.

mod kernel_mode;
mod machine;
mod snippets;
mod watchdog;

use std::fmt;

pub use kernel_mode::{KernelMode, Refused, try_kernel_mode};
#[cfg(test)]
pub(crate) use machine::{DATA, DONE, Machine, Outcome, Snippet};
#[cfg(test)]
pub(crate) use watchdog::Watchdog;

use crate::contract::{Capabilities, Hypervisor};
use crate::error::Error;
use crate::kvm::Kvm;

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// Guests run, but slower or with less than they could have.
    Degraded,
    /// Not there, and no guest runs without.
    Missing,
    /// Not there, and needed only by an option that has to be asked for.
    NotNeeded,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The thing, in a word or two.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do, when there is something to be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// A thing that is as it should be.
    pub fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(what, State::Ok, detail)
    }

    /// A thing and its state.
    pub fn new(what: impl Into<String>, state: State, detail: impl Into<String>) -> Self {
        Finding { what: what.into(), state, detail: detail.into(), remedy: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Finding { remedy: Some(remedy.into()), ..self }
    }
}

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Guests run as they should.
    Ready,
    /// Guests run, with limits.
    ReadyWithLimits,
    /// Guests do not run.
    NotReady,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of their weight.
    pub findings: Vec<Finding>,
}

impl Report {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        let any = |state| self.findings.iter().any(|finding| finding.state == state);
        if any(State::Missing) {
            Verdict::NotReady
        } else if any(State::Degraded) {
            Verdict::ReadyWithLimits
        } else {
            Verdict::Ready
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
        for Finding { what, state, detail, remedy } in &self.findings {
            let mark = match state {
                State::Ok => "ok",
                State::Degraded => "limited",
                State::Missing => "MISSING",
                State::NotNeeded => "absent",
            };
            writeln!(f, "{mark:<8} {what:<width$}  {detail}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "{:9}{:width$}  -> {remedy}", "", "")?;
            }
        }
        let missing: Vec<&str> =
            self.findings.iter().filter(|f| f.state == State::Missing).map(|f| f.what.as_str()).collect();
        writeln!(f)?;
        match self.verdict() {
            Verdict::Ready => writeln!(f, "This host can run guests."),
            Verdict::ReadyWithLimits => writeln!(f, "This host can run guests, with the limits named above."),
            Verdict::NotReady => {
                writeln!(f, "This host cannot run stock guests; it lacks: {}.", missing.join(", "))
            }
        }
    }
}

/// Looks at this host's KVM: whether it is there, what it can do, and whether a stock kernel can run on it.
pub fn check_host() -> Report {
    match Kvm::open() {
        Ok(kvm) => Report { findings: check_kvm(&kvm) },
        Err(error) => Report { findings: vec![device_finding(&error)] },
    }
}

/// The finding for a KVM that cannot be used at all.
fn device_finding(error: &Error) -> Finding {
    let mut detail = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        detail = format!("{detail}: {source}");
    }
    // The messages of these errors end in what to do: "what is wrong: what to do".
    match detail.split_once(": ") {
        Some((wrong, remedy)) if std::error::Error::source(error).is_none() => {
            Finding::new(crate::kvm::DEVICE, State::Missing, wrong).with_remedy(remedy)
        }
        _ => Finding::new(crate::kvm::DEVICE, State::Missing, detail),
    }
}

fn check_kvm(hypervisor: &dyn Hypervisor) -> Vec<Finding> {
    let capabilities = hypervisor.capabilities();
    let mut findings = vec![
        Finding::ok(crate::kvm::DEVICE, "present and permitted"),
        kernel_mode_finding(hypervisor),
        Finding::ok(
            "vCPUs",
            format!("up to {}, APIC ids below {}", capabilities.max_vcpus, capabilities.max_vcpu_id),
        ),
    ];
    findings.push(match hypervisor.physical_address_bits() {
        Ok(bits) => Finding::ok("guest addresses", format!("{bits} bits")),
        Err(error) => Finding::new("guest addresses", State::Missing, error.to_string()),
    });
    findings.extend(capability_findings(capabilities));
    findings
}

fn kernel_mode_finding(hypervisor: &dyn Hypervisor) -> Finding {
    const WHAT: &str = "kernel mode";
    const REMEDY: &str = "there is no hardware virtualisation beneath: use a machine with it, or have nested virtualisation \
                          enabled for this one";
    let kernel_mode = match try_kernel_mode(hypervisor) {
        Ok(kernel_mode) => kernel_mode,
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
            return Finding::new(WHAT, State::Missing, format!("no test machine: {error}{cause}"));
        }
    };
    if !kernel_mode.sound() {
        let list: Vec<_> = kernel_mode
            .refused
            .iter()
            .map(|refused| format!("{} ({})", refused.instruction, refused.outcome))
            .collect();
        let detail = format!(
            "{} of {} ordinary instructions do not work, so no stock kernel runs: {}",
            list.len(),
            kernel_mode.tried,
            list.join("; ")
        );
        return Finding::new(WHAT, State::Missing, detail).with_remedy(REMEDY);
    }
    let mut detail = format!("all {} instructions that were tried work", kernel_mode.tried);
    if kernel_mode.left > 0 {
        detail += &format!(" (no time was left for {} more)", kernel_mode.left);
    }
    if kernel_mode.emulated() {
        detail += &format!(", but emulated, {:.1} million a second", kernel_mode.kernel_speed);
        return Finding::new(WHAT, State::Degraded, detail).with_remedy(REMEDY);
    }
    Finding::ok(WHAT, detail)
}

/// What is absent, and what it is good for.
fn capability_findings(capabilities: &Capabilities) -> Vec<Finding> {
    let optional = [
        (capabilities.doorbells, State::Degraded, "ioeventfd", "each notification of a device is an exit"),
        (
            capabilities.doorbell_any_length || !capabilities.doorbells,
            State::Degraded,
            "ioeventfd of any length",
            "only 16-bit and 32-bit notifications are fast",
        ),
        (capabilities.clock, State::Degraded, "adjustable clock", "guests' clocks jump when they are paused"),
        (
            capabilities.readonly_ram,
            State::NotNeeded,
            "read-only memory",
            "for memory that the guest may only read",
        ),
        (
            capabilities.x2apic_32bit_ids,
            State::NotNeeded,
            "32-bit APIC ids",
            "for guests with more than 254 vCPUs",
        ),
        (
            capabilities.tsc_control,
            State::NotNeeded,
            "TSC scaling",
            "for guests that come from a host with another TSC frequency",
        ),
        (
            capabilities.nested_state,
            State::NotNeeded,
            "nested state",
            "for snapshots of guests that run guests themselves",
        ),
        (capabilities.hyperv, State::NotNeeded, "Hyper-V enlightenments", "for --cpus kvm_hyperv=on"),
    ];
    let (present, absent): (Vec<_>, Vec<_>) = optional.into_iter().partition(|(present, ..)| *present);
    let mut findings = Vec::new();
    if !present.is_empty() {
        let names: Vec<_> = present.iter().map(|(_, _, what, _)| *what).collect();
        findings.push(Finding::ok("KVM capabilities", names.join(", ")));
    }
    findings.extend(absent.into_iter().map(|(_, state, what, detail)| Finding::new(what, state, detail)));
    findings
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_verdict_is_that_of_the_worst_finding() {
        let verdict = |states: &[State]| {
            let findings = states.iter().map(|state| Finding::new("x", *state, "y")).collect();
            Report { findings }.verdict()
        };
        assert_eq!(verdict(&[State::Ok, State::NotNeeded]), Verdict::Ready);
        assert_eq!(verdict(&[State::Ok, State::Degraded]), Verdict::ReadyWithLimits);
        assert_eq!(verdict(&[State::Degraded, State::Missing, State::Ok]), Verdict::NotReady);
    }

    #[test]
    fn the_text_lines_up_and_ends_in_the_verdict() {
        let report = Report {
            findings: vec![
                Finding::ok("/dev/kvm", "present and permitted"),
                Finding::new("kernel mode", State::Missing, "no").with_remedy("do"),
            ],
        };
        assert_eq!(
            report.to_string(),
            "ok       /dev/kvm     present and permitted\n\
             MISSING  kernel mode  no\n\
             \x20                     -> do\n\
             \n\
             This host cannot run stock guests; it lacks: kernel mode.\n"
        );
    }

    #[test]
    fn a_missing_device_comes_with_its_remedy() {
        let finding = device_finding(&Error::Missing { path: PathBuf::from("/dev/kvm") });
        assert_eq!(finding.detail, "/dev/kvm does not exist");
        assert!(finding.remedy.unwrap().starts_with("load KVM (modprobe kvm_"));
        let finding = device_finding(&Error::Denied { path: PathBuf::from("/dev/kvm") });
        assert!(finding.remedy.unwrap().contains("usermod"));
        let finding = device_finding(&Error::CapabilityMissing("interrupt routing"));
        assert_eq!(finding.detail, "this host's KVM lacks interrupt routing, which is needed");
        let source = std::io::Error::from_raw_os_error(libc::EMFILE);
        let finding = device_finding(&Error::Open { path: PathBuf::from("/dev/kvm"), source });
        assert_eq!(finding.detail, "cannot open /dev/kvm: Too many open files (os error 24)");
    }

    #[test]
    fn this_host_is_looked_at() {
        let report = check_host();
        let of = |what| report.findings.iter().find(|f| f.what == what).map(|f| f.state);
        assert_eq!(of("/dev/kvm"), Some(State::Ok));
        assert!(of("kernel mode").is_some() && of("guest addresses") == Some(State::Ok));
        eprintln!("{report}");
    }

    #[test]
    fn what_is_absent_says_what_it_is_for() {
        let findings = capability_findings(&Capabilities::default());
        let degraded: Vec<_> =
            findings.iter().filter(|f| f.state == State::Degraded).map(|f| f.what.as_str()).collect();
        assert_eq!(degraded, ["ioeventfd", "adjustable clock"]);
        assert!(findings.iter().all(|finding| !finding.detail.is_empty()));
    }
}
