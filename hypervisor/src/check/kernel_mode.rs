//! Can this host run a stock kernel? Asked of the host, by running the instructions that such a kernel is made of.
//!
//! KVM's capabilities say nothing about it: where there is no hardware virtualisation beneath, a KVM may emulate guest kernel
//! mode and know only some instructions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::irq::MsiMessage;

use super::machine::{Machine, Outcome, Snippet, VECTOR};
use super::snippets::{ENTER_USER, End, TRIALS, Trial, counting_loop, msrs};
use super::watchdog::Watchdog;
use crate::contract::{Hypervisor, Stop};
use crate::error::{Failure, Result};

/// Time after which a trial counts as endless. Sound ones take microseconds, all of them together some 10 ms, or 300 ms
/// where kernel mode is emulated; this is for machines so loaded that nothing moves.
const LIMIT: Duration = Duration::from_secs(2);
/// Time that all trials together may take; what is left over then is not tried.
const TOTAL_LIMIT: Duration = Duration::from_secs(4);
/// Rounds of two instructions: some 10 ms for an emulator, nothing for hardware.
const ROUNDS: u32 = 5_000;

/// What came of the trials.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelMode {
    /// Number of instructions (or small groups) that were tried.
    pub tried: usize,
    /// Number of those for which no time was left.
    pub left: usize,
    /// Those that this host's KVM does not run, with what happened instead.
    pub refused: Vec<Refused>,
    /// Millions of instructions a second in a short loop in kernel mode, entry and exit included.
    pub kernel_speed: f64,
    /// The same in user mode.
    pub user_speed: f64,
}

impl KernelMode {
    /// A stock kernel can run.
    pub fn sound(&self) -> bool {
        self.refused.is_empty()
    }

    /// Kernel mode is emulated, instruction by instruction: hardware runs both modes at one speed.
    pub fn emulated(&self) -> bool {
        self.kernel_speed * 8.0 < self.user_speed
    }
}

/// An instruction that did not do what it does on every processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The instruction, as an assembler writes it.
    pub instruction: &'static str,
    /// What happened.
    pub outcome: String,
}

/// Runs the trials in a throwaway VM, well under a second in all.
///
/// # Errors
/// When no such VM can be made, or its processor cannot be set up.
pub fn try_kernel_mode(hypervisor: &dyn Hypervisor) -> Result<KernelMode> {
    let cpuid = hypervisor.supported_cpuid()?;
    let start = Instant::now();
    let watchdog = Arc::new(Watchdog::start()?);
    let mut machine = Machine::new(hypervisor, &watchdog)?;
    let mut report =
        KernelMode { tried: 0, left: 0, refused: Vec::new(), kernel_speed: 0.0, user_speed: 0.0 };
    for trial in TRIALS.iter().filter(|trial| trial.applies(&cpuid)) {
        if start.elapsed() > TOTAL_LIMIT {
            report.left += 1;
            continue;
        }
        let outcome = attempt(&mut machine, trial)?;
        log::debug!("kernel-mode trial {}: {outcome:?}", trial.name);
        report.tried += 1;
        let sound = match trial.end {
            End::Done => outcome == Outcome::Done,
            End::Exception(vector) => outcome == Outcome::Exception(vector),
        };
        if !sound {
            report.refused.push(Refused { instruction: trial.name, outcome: describe(&outcome) });
            // Whatever state that left behind.
            machine = Machine::new(hypervisor, &watchdog)?;
        }
    }
    let code = counting_loop(ROUNDS);
    report.kernel_speed = speed(&mut machine, ROUNDS, &Snippet { code: &code, ..Default::default() })?;
    // In ring 3, the `out` at the loop's end is an exception, which ends it just as well.
    let user = Snippet { code: ENTER_USER, user: &code, handler: &[] };
    report.user_speed = speed(&mut machine, ROUNDS, &user)?;
    Ok(report)
}

fn attempt(machine: &mut Machine, trial: &Trial) -> Result<Outcome> {
    let code = trial.code();
    machine.load(&trial.snippet(&code))?;
    machine.vcpu.x86_64().set_msrs(&msrs())?;
    if trial.interrupt {
        machine.vm.send_msi(MsiMessage { address: 0xfee0_0000, data: VECTOR.into() })?;
    }
    Ok(machine.run(LIMIT))
}

/// Millions of instructions a second that a loop takes; `snippet` has `rounds` of two. The best of a few runs, since the
/// first may include what the host does once, and any may be disturbed.
fn speed(machine: &mut Machine, rounds: u32, snippet: &Snippet<'_>) -> Result<f64> {
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        machine.load(snippet)?;
        machine.run(LIMIT);
        shortest = shortest.min(machine.taken);
    }
    Ok(f64::from(rounds) * 2.0 / 1e6 / shortest.as_secs_f64().max(1e-9))
}

fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "it raised no exception".into(),
        Outcome::Exception(vector) => format!("it raised exception {vector}"),
        Outcome::Endless => "it did not end".into(),
        Outcome::Stopped(Stop::TripleFault) => "it ended in a triple fault".into(),
        Outcome::Stopped(Stop::Failed(failure)) => match &**failure {
            Failure::Emulation { .. } => "KVM cannot emulate it".into(),
            other => other.to_string(),
        },
        Outcome::Stopped(stop) => format!("the vCPU stopped ({stop:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Kvm;

    /// Which instructions this machine refuses is its own affair; that plain ones run and that the answer comes soon is not.
    #[test]
    fn the_answer_is_quick_and_consistent() {
        let kvm = Kvm::open().unwrap();
        let start = Instant::now();
        let first = try_kernel_mode(&kvm).unwrap();
        assert!(start.elapsed() < TOTAL_LIMIT + LIMIT, "{:?}", start.elapsed());
        assert!(first.tried > 20 && first.left == 0, "{first:?}");
        assert!(first.kernel_speed > 0.0 && first.user_speed > 0.0);
        let names = |report: &KernelMode| report.refused.iter().map(|r| r.instruction).collect::<Vec<_>>();
        assert!(!names(&first).contains(&"cpuid"), "{first:?}");
        assert!(!names(&first).contains(&"rdmsr, wrmsr"), "{first:?}");
        assert_eq!(names(&first), names(&try_kernel_mode(&kvm).unwrap()));
        // Refusals are only ever seen where kernel mode is emulated.
        assert!(first.sound() || first.emulated(), "{first:?}");
    }
}
