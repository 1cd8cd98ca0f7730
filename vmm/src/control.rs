//! The control thread: it owns the machine and is the only one that changes it.
//!
//! It waits for three things: questions from the API, requests from devices and vCPUs, and signals.
//!
//! ```text
//!   nothing ─ create → described ─ boot → running ⇄ paused ← restore ─ nothing
//!      ↑                 │   ↑               │
//!      └──── delete ─────┘   └── shutdown ───┘        reboot: running or paused → running
//! ```

mod hotplug;
mod metadata;
pub(crate) mod saving;
mod waiting;

use std::sync::Arc;

use ::metadata::Store;
use api::{Action, Inbox, Monitor, Reply, VmInfo, VmState, VmmPing};
use catalog::VmSpec;
use device::{Kept, Launcher, Request};
use hypervisor::Hypervisor;
use migration::Pager;
use sandbox::HostPath;
use sandbox::jail::Jail;
use sandbox::paths::Trail;
use spec::{Kind, Refusal};

use crate::confinement;
use crate::launcher::Hand;
use crate::machine::{Machine, Names, Site};
use crate::paths::Confinement;
use crate::ram_restore::Behind;
use crate::reports::{Generation, Reports};
use crate::signals::{Signal, Signals};
use crate::wait::Wait;
pub use saving::Opened;
use saving::Saving;
pub(crate) use saving::userfault_device;
use waiting::Waiting;

/// The version, as `--version` and `vmm.ping` tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version with its origin.
pub fn build_version() -> String {
    format!("v{VERSION}")
}

/// What the control thread is given to begin with.
pub struct Setup {
    /// Makes machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where events are recorded.
    pub monitor: Arc<Monitor>,
    /// Questions from the API; absent when there is none.
    pub inbox: Option<Inbox>,
    /// Signals.
    pub signals: Signals,
    /// Starts programs that serve devices, if they may be needed.
    pub launcher: Option<Arc<Hand>>,
    /// Keeps the process when the guest powers itself off.
    pub no_shutdown: bool,
    /// Paths that the process itself uses as long as it lives.
    pub paths: Vec<HostPath>,
    /// Where threads that are there already find what the process is kept to.
    pub trail: Trail,
    /// The jail that the process is in.
    pub jail: Option<Arc<Jail>>,
}

struct Running {
    machine: Machine,
    paused: bool,
    generation: Generation,
    /// What memory of a restored machine depends on; dropped after the machine.
    behind: Behind,
}

/// See the module.
pub struct Control {
    setup: Setup,
    reports: Reports,
    spec: Option<VmSpec>,
    running: Option<Running>,
    kept: Kept,
    /// What the guest finds about itself, if it is to; as long as the description.
    metadata: Option<Arc<Store>>,
    names: Names,
    paths: Confinement,
    waiting: Vec<Waiting>,
    saving: Option<Saving>,
    generation: Generation,
}

/// Whether the process goes on.
enum Next {
    Go,
    End,
}

impl Control {
    /// A control thread with no machine.
    ///
    /// # Errors
    /// No descriptor could be had.
    pub fn new(mut setup: Setup) -> Result<Self, Refusal> {
        let reports = Reports::new(setup.monitor.clone())
            .map_err(|e| Refusal::host("cannot create the control thread's queue", e))?;
        let paths =
            Confinement::new(std::mem::take(&mut setup.paths), setup.jail.clone(), setup.trail.clone());
        let launcher = setup.launcher.clone().map(|hand| -> Arc<dyn Launcher> { hand });
        Ok(Control {
            setup,
            paths,
            reports,
            spec: None,
            running: None,
            kept: Kept::with_launcher(launcher),
            metadata: None,
            names: Names::default(),
            waiting: Vec::new(),
            saving: None,
            generation: 0,
        })
    }

    /// Takes a machine's description, and keeps the process to its paths if it says so.
    ///
    /// # Errors
    /// There is one already, or the process cannot be kept to its paths.
    pub fn create(&mut self, mut spec: VmSpec) -> Result<(), Refusal> {
        if self.spec.is_some() {
            return Err(state("VM is already created"));
        }
        spec.complete();
        self.paths.enter(&spec, Vec::new())?;
        self.open_metadata(&spec)?;
        self.spec = Some(spec);
        Ok(())
    }

    /// Builds the described machine and starts it.
    ///
    /// # Errors
    /// There is none, it runs already, or something it needs is not to be had.
    pub fn boot(&mut self) -> Result<(), Refusal> {
        if self.running.is_some() {
            return Err(state("VM is already created"));
        }
        let spec = self.spec.as_mut().ok_or_else(no_vm)?;
        self.setup.monitor.record("vm", "booting", &[]);
        spec.check().map_err(|e| e.within("Failed to validate config"))?;
        self.generation += 1;
        let reporter = self.reports.reporter(self.generation);
        metadata::keep(self.metadata.as_ref(), &self.kept);
        let site = Site::new(&self.setup.hypervisor, reporter, &self.kept);
        let built = Machine::build(spec, site, &mut self.names);
        let machine = match built.and_then(|machine| machine.resume().map(|()| machine)) {
            Ok(machine) => machine,
            Err(e) => {
                self.kept.clear();
                return Err(e);
            }
        };
        self.running =
            Some(Running { machine, paused: false, generation: self.generation, behind: Behind::default() });
        self.setup.monitor.record("vm", "booted", &[]);
        Ok(())
    }

    /// Serves until the process should end.
    ///
    /// # Errors
    /// The machine failed, or waiting did.
    pub fn run(&mut self) -> Result<(), Refusal> {
        loop {
            let wait = Wait::new(&[
                self.setup.signals.fd(),
                self.reports.fd(),
                self.setup.inbox.as_ref().map_or(-1, Inbox::fd),
                self.saving.as_ref().map_or(-1, Saving::fd),
            ]);
            let patience = self.patience().into_iter().chain(self.snapshot_patience()).min();
            wait.ready(patience)
                .map_err(|e| Refusal::host("the control thread cannot wait for events", e))?;
            if let Next::End = self.turn()? {
                return Ok(());
            }
        }
    }

    /// Handles what is waiting.
    fn turn(&mut self) -> Result<Next, Refusal> {
        while let Some(signal) = self.setup.signals.next() {
            match signal {
                Signal::End => {
                    log::info!("ending on a signal");
                    return Ok(Next::End);
                }
                Signal::Resized => {
                    if let Some(running) = &self.running {
                        running.machine.terminal_resized();
                    }
                }
            }
        }
        if let Next::End = self.requests()? {
            return Ok(Next::End);
        }
        let calls: Vec<_> = self.setup.inbox.as_ref().map_or_else(Vec::new, |i| i.drain().collect());
        for call in calls {
            let ending = matches!(call.action, Action::VmmShutdown);
            let action = match call.action {
                Action::VmWaitDevice(what) => {
                    self.wait_for(what, call.answer);
                    continue;
                }
                Action::VmSnapshot(what) => {
                    self.snapshot(&what, call.answer);
                    continue;
                }
                action => action,
            };
            let answer = self.perform(action);
            if call.answer.send(answer).is_err() {
                log::debug!("whoever asked did not wait for the answer");
            }
            // The answer to the last question is given before the process ends.
            if ending {
                return Ok(Next::End);
            }
            // The next question is answered by a machine that has done what the guest asked meanwhile.
            if let Next::End = self.requests()? {
                return Ok(Next::End);
            }
        }
        self.follow_snapshot();
        self.answer_waiting();
        Ok(Next::Go)
    }

    /// Does what devices and vCPUs asked for.
    fn requests(&mut self) -> Result<Next, Refusal> {
        self.reports.woken();
        while let Some(generation) = self.running.as_ref().map(|r| r.generation)
            && let Some(request) = self.reports.next(generation)
        {
            if let Next::End = self.on_request(request)? {
                return Ok(Next::End);
            }
        }
        Ok(Next::Go)
    }

    fn on_request(&mut self, request: Request) -> Result<Next, Refusal> {
        match request {
            Request::Reset => {
                log::info!("the guest asked for a reboot");
                self.reboot().map_err(|e| e.within("The guest asked for a reboot, which failed"))?;
                Ok(Next::Go)
            }
            Request::PowerOff if self.setup.no_shutdown => {
                self.shutdown()?;
                Ok(Next::Go)
            }
            Request::PowerOff => {
                log::info!("the guest powered itself off");
                Ok(Next::End)
            }
            Request::Eject { segment, slots } => {
                self.ejected(segment, slots);
                Ok(Next::Go)
            }
            Request::Fault => Err(Refusal::new(
                Kind::Bug,
                "The machine cannot go on: a thread of it failed, and the log says which",
            )),
        }
    }

    fn perform(&mut self, action: Action) -> Result<Reply, Refusal> {
        if !Control::harmless(&action) {
            self.refuse_while_saving().map_err(|e| e.within("Error from API"))?;
        }
        let (result, text) = match action {
            Action::VmmPing => return json(&self.ping()),
            Action::VmmConfinement => {
                let confinement = self.confinement();
                return confinement.map_err(|e| e.within("The confinement is not available"));
            }
            Action::VmmShutdown => return Ok(Reply::Empty),
            Action::VmInfo => (self.info(), "The VM info is not available"),
            Action::VmCounters => (self.counters(), "The VM counters are not available"),
            Action::VmCreate(spec) => (done(self.create(*spec)), "The VM could not be created"),
            Action::VmBoot => (done(self.boot()), "The VM could not boot"),
            Action::VmDelete => (done(self.delete()), "The VM could not be deleted"),
            Action::VmMetadata => (self.metadata(), "The metadata is not available"),
            Action::VmSetMetadata(document) => {
                (done(self.set_metadata(document)), "The metadata could not be replaced")
            }
            Action::VmPatchMetadata(patch) => {
                (done(self.patch_metadata(&patch)), "The metadata could not be changed")
            }
            Action::VmAdd(addition) => {
                let text = hotplug::not_added(addition.flag());
                return self.add(addition).map_err(|e| e.within(text).within("Error from API"));
            }
            Action::VmRemoveDevice(body) => {
                (self.remove(&body), "The device could not be removed from the VM")
            }
            Action::VmResizeDisk(body) => (self.resize_disk(&body), "The disk could not be resized"),
            // Answered later: see `turn`.
            Action::VmWaitDevice(_) | Action::VmSnapshot(_) => return Ok(Reply::Done),
            Action::VmRestore(request) => {
                (done(self.restore(&request, None)), "The VM could not be restored")
            }
            Action::VmPause => (done(self.pause()), "The VM could not be paused"),
            Action::VmResume => (done(self.resume()), "The VM could not resume"),
            Action::VmShutdown => (done(self.shutdown()), "The VM could not shutdown"),
            Action::VmReboot => (done(self.reboot()), "The VM could not reboot"),
            Action::VmPowerButton => {
                (done(self.on_machine(Machine::power_button)), "Error triggering power button")
            }
            Action::VmNmi => (done(self.on_machine(Machine::nmi)), "Error triggering NMI"),
        };
        result.map_err(|e| e.within(text).within("Error from API"))
    }

    fn on_machine(&self, act: impl FnOnce(&Machine) -> Result<(), Refusal>) -> Result<(), Refusal> {
        act(&self.running.as_ref().ok_or_else(|| self.not_running())?.machine)
    }

    fn not_running(&self) -> Refusal {
        if self.spec.is_some() { state("VM is not running") } else { no_vm() }
    }

    fn pause(&mut self) -> Result<(), Refusal> {
        let refusal = self.not_running();
        let running = self.running.as_mut().ok_or(refusal)?;
        self.setup.monitor.record("vm", "pausing", &[]);
        if running.paused {
            return Err(state("VM is already paused"));
        }
        running.machine.pause()?;
        running.paused = true;
        self.setup.monitor.record("vm", "paused", &[]);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        let refusal = self.not_running();
        let running = self.running.as_mut().ok_or(refusal)?;
        self.setup.monitor.record("vm", "resuming", &[]);
        if !running.paused {
            return Err(state("VM is already running"));
        }
        running.machine.resume()?;
        running.paused = false;
        self.setup.monitor.record("vm", "resumed", &[]);
        Ok(())
    }

    fn shutdown(&mut self) -> Result<(), Refusal> {
        let refusal = self.not_running();
        let running = self.running.take().ok_or(refusal)?;
        self.cancel_snapshot();
        self.end_machine(running);
        self.kept.clear();
        self.setup.monitor.record("vm", "shutdown", &[]);
        Ok(())
    }

    fn reboot(&mut self) -> Result<(), Refusal> {
        let refusal = self.not_running();
        let running = self.running.take().ok_or(refusal)?;
        self.setup.monitor.record("vm", "rebooting", &[]);
        // All of the old machine goes before the new one is built: it holds the taps, locks and memory that the new one needs.
        self.end_machine(running);
        self.boot()?;
        self.setup.monitor.record("vm", "rebooted", &[]);
        Ok(())
    }

    fn delete(&mut self) -> Result<(), Refusal> {
        if self.running.is_some() {
            self.shutdown()?;
        }
        self.names = Names::default();
        self.metadata = None;
        if self.spec.take().is_some() {
            self.setup.monitor.record("vm", "deleted", &[]);
        }
        Ok(())
    }

    fn info(&self) -> Result<Reply, Refusal> {
        let config = self.spec.clone().ok_or_else(no_vm)?;
        let state = match &self.running {
            None => VmState::Created,
            Some(r) if r.paused => VmState::Paused,
            Some(_) => VmState::Running,
        };
        json(&VmInfo {
            memory_actual_size: config.memory.size.0,
            config,
            state,
            device_tree: self.running.as_ref().map(|r| r.machine.device_tree()),
            progress: self.snapshot_progress(),
        })
    }

    fn counters(&self) -> Result<Reply, Refusal> {
        let running = self.running.as_ref().ok_or_else(|| self.not_running())?;
        json(&running.machine.counters())
    }

    fn ping(&self) -> VmmPing {
        // Whoever asks knows the process that was started; those in a jail have other numbers there.
        let process = self.setup.jail.as_ref().map_or_else(std::process::id, |jail| jail.outer);
        VmmPing {
            build_version: build_version(),
            version: VERSION.to_owned(),
            pid: i32::try_from(process).unwrap_or(i32::MAX),
            features: crate::FEATURES.iter().map(|f| (*f).to_owned()).collect(),
        }
    }

    fn confinement(&self) -> Result<Reply, Refusal> {
        let outside = self.setup.jail.as_ref().map(|jail| &jail.outside);
        json(&confinement::told(outside, self.paths.domains())?)
    }

    /// Ends the machine, if there is one, and records the end of everything.
    pub fn end(mut self) {
        if self.running.as_ref().and_then(|r| r.behind.pager.as_ref()).is_some_and(Pager::failed) {
            // Threads of devices may wait for pages that will never come, and must not go on without them: the end of the process
            // is theirs.
            std::mem::forget(self.running.take());
        }
        if let Err(e) = self.delete() {
            log::error!("cannot shut the machine down: {e}");
        }
        if let Some(launcher) = &self.setup.launcher {
            launcher.finish();
        }
        self.setup.monitor.record("vmm", "shutdown", &[]);
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<Reply, Refusal> {
    serde_json::to_string(value)
        .map(Reply::Json)
        .map_err(|e| Refusal::new(Kind::Bug, "cannot write the answer as JSON").because(e))
}

fn done(result: Result<(), Refusal>) -> Result<Reply, Refusal> {
    result.map(|()| Reply::Done)
}

fn state(message: &str) -> Refusal {
    Refusal::new(Kind::State, message)
}

fn no_vm() -> Refusal {
    Refusal::new(Kind::Absent, "VM is not created")
}
