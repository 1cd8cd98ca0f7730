//! Can this host run a stock kernel? Asked of the host, by running the instructions that such a kernel is made of.
//!
//! KVM's capabilities say nothing about it: where there is no hardware virtualisation beneath, a KVM may emulate guest kernel
//! mode and know only some instructions.

use std::time::{Duration, Instant};

use device::irq::MsiMessage;

use super::machine::{Machine, Outcome, Snippet, VECTOR};
use super::snippets::{End, SPEED, SPEED_ROUNDS, TRIALS, Trial, msrs};
use crate::contract::{Hypervisor, Stop};
use crate::error::{Failure, Result};

/// Time that one trial may take. Sound ones take microseconds.
const LIMIT: Duration = Duration::from_millis(100);
/// Time that all trials together may take; what is left over then is not tried.
const TOTAL_LIMIT: Duration = Duration::from_millis(700);
/// Hardware runs thousands of millions of instructions a second, an emulator a few.
const EMULATED_BELOW: f64 = 100.0;

/// What came of the trials.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelMode {
    /// Number of instructions (or small groups) that were tried.
    pub tried: usize,
    /// Those that this host's KVM does not run, with what happened instead.
    pub refused: Vec<Refused>,
    /// Millions of instructions a second in a loop in kernel mode.
    pub millions_per_second: f64,
}

impl KernelMode {
    /// A stock kernel can run.
    pub fn sound(&self) -> bool {
        self.refused.is_empty()
    }

    /// Kernel mode is emulated, instruction by instruction.
    pub fn emulated(&self) -> bool {
        self.millions_per_second < EMULATED_BELOW
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
    let mut machine = Machine::new(hypervisor)?;
    let mut report = KernelMode { tried: 0, refused: Vec::new(), millions_per_second: 0.0 };
    report.millions_per_second = speed(&mut machine)?;
    for trial in TRIALS.iter().filter(|trial| trial.applies(&cpuid)) {
        if start.elapsed() > TOTAL_LIMIT {
            log::debug!("kernel-mode trials took too long; {} not tried", trial.name);
            break;
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
            machine = Machine::new(hypervisor)?;
        }
    }
    Ok(report)
}

fn attempt(machine: &mut Machine, trial: &Trial) -> Result<Outcome> {
    let code = trial.code();
    machine.load(&trial.snippet(&code))?;
    machine.vcpu.x86_64().set_msrs(&msrs())?;
    if trial.interrupt {
        machine.vm.send_msi(MsiMessage { address: 0xfee0_0000, data: VECTOR.into() })?;
    }
    machine.run(LIMIT)
}

/// Millions of instructions a second.
fn speed(machine: &mut Machine) -> Result<f64> {
    let code = [SPEED, super::machine::DONE].concat();
    // Once for the host's own first steps with a new vCPU, once to measure.
    let mut taken = Duration::ZERO;
    for _ in 0..2 {
        machine.load(&Snippet { code: &code, ..Default::default() })?;
        let start = Instant::now();
        machine.run(LIMIT)?;
        taken = start.elapsed();
    }
    Ok(f64::from(SPEED_ROUNDS) * 2.0 / 1e6 / taken.as_secs_f64().max(1e-9))
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
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(first.tried > 20, "{first:?}");
        assert!(first.millions_per_second > 0.0);
        let names = |report: &KernelMode| report.refused.iter().map(|r| r.instruction).collect::<Vec<_>>();
        assert!(!names(&first).contains(&"cpuid"), "{first:?}");
        assert!(!names(&first).contains(&"rdmsr, wrmsr"), "{first:?}");
        assert_eq!(names(&first), names(&try_kernel_mode(&kvm).unwrap()));
        // Refusals are only ever seen where kernel mode is emulated.
        assert!(first.sound() || first.emulated(), "{first:?}");
        eprintln!("{:?} {first:#?}", start.elapsed());
    }
}
