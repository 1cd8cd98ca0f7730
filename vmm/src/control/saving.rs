//! Saving the machine, and going on with a saved one.
//!
//! A snapshot is written while this thread goes on answering: whoever asked is answered when it is complete. Meanwhile the machine
//! stays as it is; ending it ends the snapshot, and leaves nothing of it.

use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use api::info::Progress;
use api::{Action, Reply};
use catalog::restore::fd_backed_nets;
use catalog::{MemoryRestoreMode, RestoreRequest, RestoreSpec, SnapshotSpec, VmSpec};
use device::Node;
use migration::{Directory, Pager, Source, USERFAULT_DEVICE};
use sandbox::{HostPath, Use};
use spec::{Kind, Refusal};

use super::{Control, Running, state};
use crate::machine::{Machine, Names, Site};
use crate::ram_restore::{self, unreadable, unwritable};
use crate::snapshot::{Job, Writing};

/// How often it is told how far a snapshot is.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// A snapshot being written, and the way back to whoever asked for it.
pub(super) struct Saving {
    writing: Writing,
    answer: SyncSender<Result<Reply, Refusal>>,
    told: Instant,
}

impl Saving {
    /// Readable when it is done.
    pub(super) fn fd(&self) -> i32 {
        self.writing.fd()
    }
}

impl Control {
    /// Begins to save the machine.
    pub(super) fn snapshot(&mut self, what: &SnapshotSpec, answer: SyncSender<Result<Reply, Refusal>>) {
        match self.begin_snapshot(what) {
            Ok(writing) => self.saving = Some(Saving { writing, answer, told: Instant::now() }),
            Err(e) => send(&answer, Err(not_saved(e))),
        }
    }

    fn begin_snapshot(&self, what: &SnapshotSpec) -> Result<Writing, Refusal> {
        self.refuse_while_saving()?;
        let running = self.running.as_ref().ok_or_else(|| self.not_running())?;
        if !running.paused {
            return Err(state("VM is running: pause it first, so that it can be saved"));
        }
        let path = what.directory()?;
        self.paths.check(&[HostPath::new(&path, Use::ReadWrite)])?;
        let directory = Directory::create(&path).map_err(unwritable)?;
        self.setup.monitor.record("vm", "snapshotting", &[]);
        let config = serde_json::to_string_pretty(&self.spec)
            .map_err(|e| Refusal::new(Kind::Bug, "Cannot write the description as JSON").because(e))?;
        let machine = running.machine.save(&*self.setup.hypervisor, &self.names)?;
        let behind = running.behind.pager.as_ref().and_then(Pager::backing);
        Writing::start(Job { directory, ram: running.machine.ram().clone(), behind, config, machine })
    }

    /// Refuses what would change a machine that is being saved.
    pub(super) fn refuse_while_saving(&self) -> Result<(), Refusal> {
        match &self.saving {
            Some(_) => Err(Refusal::new(Kind::Busy, "A snapshot of the VM is being written")),
            None => Ok(()),
        }
    }

    /// Whether a question may be asked while the machine is being saved.
    pub(super) fn harmless(action: &Action) -> bool {
        use Action::{
            VmCounters, VmDelete, VmInfo, VmMetadata, VmPatchMetadata, VmSetMetadata, VmShutdown,
            VmWaitDevice, VmmConfinement, VmmPing, VmmShutdown,
        };
        match action {
            VmmPing | VmmConfinement | VmmShutdown | VmInfo | VmCounters | VmWaitDevice(_) | VmShutdown
            | VmDelete => true,
            // None of it is in a snapshot.
            VmMetadata | VmSetMetadata(_) | VmPatchMetadata(_) => true,
            _ => false,
        }
    }

    /// Answers for a snapshot that is complete, and tells how far one is that is not.
    pub(super) fn follow_snapshot(&mut self) {
        let Some(saving) = &mut self.saving else { return };
        let progress = saving.writing.progress();
        if let Some(result) = saving.writing.result() {
            match &result {
                Ok(()) => self.setup.monitor.record("vm", "snapshotted", &[]),
                Err(e) => log::error!("the snapshot failed: {}", e.chain().join(": ")),
            }
            send(&saving.answer, result.map(|()| Reply::Done).map_err(not_saved));
            self.saving = None;
        } else if saving.told.elapsed() >= TOLD_EVERY {
            saving.told = Instant::now();
            log::info!(
                "snapshot: {} of {} MiB of memory, {} MiB/s",
                progress.done() >> 20,
                progress.total() >> 20,
                progress.rate() >> 20
            );
        }
    }

    /// Ends a snapshot that is being written; nothing of it is left, unless it was complete just before.
    pub(super) fn cancel_snapshot(&mut self) {
        if let Some(Saving { writing, answer, .. }) = self.saving.take() {
            let complete = writing.cancel();
            let why = || Refusal::new(Kind::Conflict, "The VM was ended before the snapshot was complete");
            send(&answer, if complete { Ok(Reply::Done) } else { Err(not_saved(why())) });
        }
    }

    /// How far the snapshot is.
    pub(super) fn snapshot_progress(&self) -> Option<Progress> {
        let progress = self.saving.as_ref()?.writing.progress();
        Some(Progress {
            operation: "snapshot".to_owned(),
            done: progress.done(),
            total: progress.total(),
            bytes_per_second: progress.rate(),
        })
    }

    /// How long until there is something to tell of the snapshot.
    pub(super) fn snapshot_patience(&self) -> Option<Duration> {
        self.saving.as_ref().map(|saving| TOLD_EVERY.saturating_sub(saving.told.elapsed()))
    }

    /// Goes on with a saved machine: paused, unless the request has it resumed. `opened` is what came of opening
    /// the snapshot before, if somebody did.
    ///
    /// # Errors
    /// There is a machine already, the snapshot is none, or something it needs is not to be had; nothing of it is left then.
    pub fn restore(
        &mut self,
        request: &RestoreRequest,
        opened: Option<Result<Opened, Refusal>>,
    ) -> Result<(), Refusal> {
        if self.spec.is_some() {
            return Err(state("VM is already created"));
        }
        self.setup.monitor.record("vm", "restoring", &[]);
        let restored = self.rebuild(request, opened);
        if let Err(e) = restored {
            self.kept.clear();
            self.metadata = None;
            self.names = Names::default();
            // A state may have been large, and what the allocator keeps of it would stay with this process.
            // SAFETY: only memory that is free is given back.
            unsafe { libc::malloc_trim(0) };
            return Err(e);
        }
        self.setup.monitor.record("vm", "restored", &[]);
        Ok(())
    }

    fn rebuild(
        &mut self,
        request: &RestoreRequest,
        opened: Option<Result<Opened, Refusal>>,
    ) -> Result<(), Refusal> {
        let restore = &request.restore;
        spec::Spec::check(restore, &VmSpec::default().facts())?;
        let place = HostPath::new(restore.directory()?, Use::Read);
        self.paths.check(std::slice::from_ref(&place))?;
        let Opened { source, mut spec } = opened.unwrap_or_else(|| Opened::new(request))?;
        refuse_late_pages(restore, &spec)?;
        self.paths.enter(&spec, [place].into_iter().chain(userfault_device(restore)).collect())?;
        self.open_metadata(&spec)?;
        super::metadata::keep(self.metadata.as_ref(), &self.kept);
        let node: Node = source.machine().map_err(unreadable)?;

        self.generation += 1;
        let reporter = self.reports.reporter(self.generation);
        let site = Site::new(&self.setup.hypervisor, reporter.clone(), &self.kept);
        let memory = ram_restore::restore(restore, &spec.memory, &source, reporter)?;
        drop(source);
        let machine = Machine::restore(&mut spec, node, memory.ram, site, &mut self.names)?;
        if restore.resume {
            machine.resume()?;
        }
        self.spec = Some(spec);
        let (paused, generation, behind) = (!restore.resume, self.generation, memory.behind);
        self.running = Some(Running { machine, paused, generation, behind });
        Ok(())
    }
}

/// How those get a userfaultfd who may not make one otherwise, where memory comes back on demand.
pub(crate) fn userfault_device(restore: &RestoreSpec) -> Option<HostPath> {
    let device = Path::new(USERFAULT_DEVICE);
    (is_late(restore) && device.exists()).then(|| HostPath::new(device, Use::ReadWrite))
}

fn is_late(restore: &RestoreSpec) -> bool {
    restore.memory_restore_mode == Some(MemoryRestoreMode::OnDemand)
}

/// A snapshot that was opened, for those who have to know the machine before they restore it.
pub struct Opened {
    source: Source,
    /// The machine, with what is to be different.
    pub spec: VmSpec,
}

impl Opened {
    /// Opens it.
    ///
    /// # Errors
    /// The snapshot is none, or something of the description cannot be.
    pub fn new(request: &RestoreRequest) -> Result<Opened, Refusal> {
        let source = Source::open(&request.restore.directory()?).map_err(unreadable)?;
        let spec = description(&source, request)?;
        Ok(Opened { source, spec })
    }
}

/// The description of a saved machine, with what is different now.
fn description(source: &Source, request: &RestoreRequest) -> Result<VmSpec, Refusal> {
    let malformed =
        |e| Refusal::invalid("The description of the saved machine cannot be understood").because(e);
    // As bytes, as from everywhere else: text would have a second set of deserialisers for all that a machine has.
    let mut spec: VmSpec = serde_json::from_slice(source.config().as_bytes()).map_err(malformed)?;
    let with_fds = fd_backed_nets(&spec);
    spec.replace(&request.overrides)?;
    request.give_taps(&mut spec, &with_fds)?;
    spec.check().map_err(|e| e.within("Failed to validate config"))?;
    Ok(spec)
}

/// Refuses memory on demand where another process works on it, whose accesses to pages that are not there yet nobody would see.
fn refuse_late_pages(restore: &RestoreSpec, spec: &VmSpec) -> Result<(), Refusal> {
    match spec.devices().iter().find(|device| is_late(restore) && device.shares_memory()) {
        Some(device) => Err(Refusal::invalid(format!(
            "memory_restore_mode=ondemand cannot be used with a --{} that another process serves: use copy",
            device.flag()
        ))),
        None => Ok(()),
    }
}

fn not_saved(e: Refusal) -> Refusal {
    e.within("The VM could not be snapshotted").within("Error from API")
}

fn send(answer: &SyncSender<Result<Reply, Refusal>>, result: Result<Reply, Refusal>) {
    if answer.send(result).is_err() {
        log::debug!("whoever asked did not wait for the answer");
    }
}
