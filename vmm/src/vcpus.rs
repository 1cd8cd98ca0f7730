//! vCPU threads: starting, pausing, continuing, ending, and what happens when a guest stops by itself.
//!
//! Each thread owns its [`Vcpu`]. It runs the guest until it is kicked or the guest does something that only the control thread
//! can decide; that is reported as a [`Request`] and the thread then stands still.

use std::error::Error as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use device::{Events, Request};
use hypervisor::{Exits, Kick, Stop, Vcpu};
use thiserror::Error;

use crate::confined;
use crate::core_scheduling::Cookie;
use crate::gate::{Gate, Pass};

/// Why vCPUs could not be started.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// The host has no thread left.
    #[error("cannot start the thread of vCPU {index}")]
    Thread {
        /// The vCPU.
        index: u32,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The thread is there no more; the log says why.
    #[error("the thread of vCPU {index} has ended")]
    Ended {
        /// The vCPU.
        index: u32,
    },
}

/// One vCPU's thread.
struct Running {
    gate: Arc<Gate<dyn Vcpu>>,
    nmi: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    kick: Arc<dyn Kick>,
    thread: Option<JoinHandle<()>>,
}

/// All vCPU threads of a machine; dropping it ends them.
pub struct Vcpus {
    running: Vec<Running>,
}

/// A vCPU ready to run.
pub struct Ready {
    /// The vCPU with its boot state.
    pub vcpu: Box<dyn Vcpu>,
    /// Host CPUs it may run on; empty for any.
    pub host_cpus: Vec<usize>,
}

impl Vcpus {
    /// Starts the threads; they stand still until [`Vcpus::resume`].
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(
        ready: Vec<Ready>,
        exits: Arc<dyn Exits + Send>,
        events: Arc<dyn Events>,
        cookie: Cookie,
    ) -> Result<Self, VcpuError> {
        let mut vcpus = Vcpus { running: Vec::with_capacity(ready.len()) };
        for (index, Ready { vcpu, host_cpus }) in (0..).zip(ready) {
            let gate = Arc::new(Gate::<dyn Vcpu>::default());
            let nmi = Arc::new(AtomicBool::new(false));
            let paused = Arc::new(AtomicBool::new(false));
            let kick = vcpu.kick_handle();
            let shared = Shared {
                index,
                gate: gate.clone(),
                nmi: nmi.clone(),
                paused: paused.clone(),
                exits: exits.clone(),
                events: events.clone(),
                cookie: cookie.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                // Register accesses nest a few calls deep; the default of 2 MiB would only cost address space.
                .stack_size(512 << 10)
                .spawn(move || shared.run(vcpu, &host_cpus))
                .map_err(|source| VcpuError::Thread { index, source })?;
            vcpus.running.push(Running { gate, nmi, paused, kick, thread: Some(thread) });
        }
        Ok(vcpus)
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.running.iter().for_each(|r| r.gate.open());
    }

    /// Stops all vCPUs; returns when every one stands still outside the guest.
    pub fn pause(&self) {
        for r in &self.running {
            r.gate.close();
            r.kick.kick();
        }
        self.running.iter().for_each(|r| r.gate.wait_parked());
        self.note_pause();
    }

    /// Has every vCPU tell its guest, when it goes on, that it stood still. All of them stand still.
    pub fn note_pause(&self) {
        self.running.iter().for_each(|r| r.paused.store(true, Ordering::SeqCst));
    }

    /// Asks every vCPU something, on its own thread. They are paused.
    ///
    /// # Errors
    /// The thread of a vCPU has ended: its index.
    pub fn ask<R: Send + 'static>(
        &self,
        question: impl Fn(u32, &dyn Vcpu) -> R + Send + Sync + 'static,
    ) -> Result<Vec<R>, VcpuError> {
        let question = Arc::new(question);
        let ask = |(index, r): (u32, &Running)| {
            let (answer, wait) = channel();
            let question = question.clone();
            r.gate.send(Box::new(move |vcpu: &mut (dyn Vcpu + 'static)| {
                // Whoever asked waits for the answer.
                let _ = answer.send(question(index, vcpu));
            }));
            (index, wait)
        };
        // All are asked before the first answer is waited for.
        let waits: Vec<_> = (0..).zip(&self.running).map(ask).collect();
        waits.into_iter().map(|(index, wait)| wait.recv().map_err(|_| VcpuError::Ended { index })).collect()
    }

    /// Sends every vCPU a non-maskable interrupt; a paused one takes it when it continues.
    pub fn nmi(&self) {
        for r in &self.running {
            r.nmi.store(true, Ordering::SeqCst);
            r.kick.kick();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for r in &self.running {
            r.gate.end();
            r.kick.kick();
        }
        for r in &mut self.running {
            // A panic was caught and reported on the thread itself.
            let _ = r.thread.take().map(JoinHandle::join);
        }
    }
}

/// What a vCPU's thread shares with the rest.
struct Shared {
    index: u32,
    gate: Arc<Gate<dyn Vcpu>>,
    nmi: Arc<AtomicBool>,
    /// It has stood still in the midst of the guest.
    paused: Arc<AtomicBool>,
    exits: Arc<dyn Exits + Send>,
    events: Arc<dyn Events>,
    cookie: Cookie,
}

impl Shared {
    fn run(self, mut vcpu: Box<dyn Vcpu>, host_cpus: &[usize]) {
        if let Err(e) = device::worker::set_affinity(host_cpus) {
            log::warn!("cannot bind vCPU {} to host CPUs {host_cpus:?}: {e}", self.index);
        }
        self.cookie.join();
        if let Err(e) = confined::vcpu(self.index) {
            log::error!("{e}: {:?}", e.source());
            self.events.request(Request::Fault);
            return self.gate.leave();
        }
        let work = AssertUnwindSafe(|| {
            loop {
                match self.gate.pass() {
                    Pass::Run => {}
                    Pass::Do(errand) => {
                        errand(&mut *vcpu);
                        continue;
                    }
                    Pass::End => break,
                }
                if self.paused.swap(false, Ordering::SeqCst)
                    && let Err(e) = vcpu.x86_64().notify_paused()
                {
                    log::warn!("the watchdogs of vCPU {} may take the pause for a hang: {e}", self.index);
                }
                if self.nmi.swap(false, Ordering::SeqCst)
                    && let Err(e) = vcpu.x86_64().nmi()
                {
                    log::warn!("cannot send an NMI to vCPU {}: {e}", self.index);
                }
                let stop = vcpu.run(&*self.exits);
                if let Some(request) = self.verdict(stop) {
                    // The control thread will end or pause us; until then this vCPU executes nothing more.
                    self.gate.close();
                    if let Some(request) = request {
                        self.events.request(request);
                    }
                }
            }
        });
        if catch_unwind(work).is_err() {
            log::error!("the thread of vCPU {} panicked", self.index);
            self.events.request(Request::Fault);
        }
        self.gate.leave();
    }

    /// `None`: go on. `Some(None)`: stand still, the request was made by whoever asked. `Some(request)`: stand still and ask.
    fn verdict(&self, stop: Stop) -> Option<Option<Request>> {
        match stop {
            Stop::Interrupted => None,
            Stop::Asked => Some(None),
            Stop::Halted => {
                log::info!("vCPU {} halted for good", self.index);
                Some(None)
            }
            Stop::TripleFault => {
                log::warn!("vCPU {}: triple fault, the guest is reset", self.index);
                Some(Some(Request::Reset))
            }
            Stop::SystemReset => Some(Some(Request::Reset)),
            Stop::SystemShutdown => Some(Some(Request::PowerOff)),
            Stop::SystemCrash => {
                log::error!("vCPU {}: the guest reported a crash", self.index);
                Some(Some(Request::Fault))
            }
            Stop::Failed(failure) => {
                log::error!("vCPU {}: {failure}", self.index);
                Some(Some(Request::Fault))
            }
        }
    }
}
