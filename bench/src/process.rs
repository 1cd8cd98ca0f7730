//! A VMM at work: started, listened to with a limit, always ended.

use std::io::{Error, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Killed and waited for on drop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    begun: Instant,
    seen: Vec<u8>,
}

/// What a process costs the host, in kB; see `man 5 proc`, smaps_rollup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Footprint {
    /// Its pages, shared ones divided by those who share.
    pub(crate) proportional: f64,
    /// Its pages, shared ones in full.
    pub(crate) resident: f64,
    /// Pages that it alone has and has written to.
    pub(crate) private_dirty: f64,
    /// Pages of no file, shared ones divided. Of several processes that come from one this says what they have written, of which some they
    /// share, so that it is private to none of them.
    pub(crate) anonymous: f64,
    /// Its threads.
    pub(crate) threads: f64,
    /// CPU time that it has used so far, in its own code and in the kernel's, in ms. Less of a lottery on a busy machine than time.
    pub(crate) cpu_millis: f64,
}

/// Does something on a thread that runs as soon as it is woken, where the host allows that. A guest that goes on after its first byte keeps its processor
/// otherwise, on which whoever reads the byte is woken as well, until the scheduler's next tick: 3 ms that are not the VMM's. What is
/// started meanwhile has the usual priority.
pub(crate) fn promptly<R>(work: impl FnOnce() -> R) -> R {
    let set = |policy, priority| {
        let parameter = libc::sched_param { sched_priority: priority };
        // SAFETY: the call reads the parameter; it is about the calling thread.
        unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) == 0 }
    };
    let prompt = set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
    let done = work();
    if prompt && !set(libc::SCHED_OTHER, 0) {
        // Where the one is allowed, so is the other.
        eprintln!("bench: cannot go back to the usual priority: {}", Error::last_os_error());
    }
    done
}

/// CPU time so far of a process, threads that have ended included, and the kernel's on its behalf.
pub(crate) fn used(process: u32) -> Result<Duration, Error> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls write where they are told to; the process is a child that has not been waited for.
    let error = unsafe {
        let mut clock = 0;
        match libc::clock_getcpuclockid(process.cast_signed(), &mut clock) {
            0 => libc::clock_gettime(clock, &mut time),
            error => error,
        }
    };
    match error {
        0 => Ok(Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)),
        _ => Err(Error::other("its CPU time is not to be had")),
    }
}

/// CPU time so far of those of its threads that run a guest.
fn used_by_guest(process: u32) -> Result<Duration, Error> {
    let mut nanos = None;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        // Threads come and go.
        let read = |what| std::fs::read_to_string(task.join(what));
        let (Ok(name), Ok(text)) = (read("comm"), read("schedstat")) else { continue };
        // Ours and Cloud Hypervisor's, and QEMU's.
        if name.starts_with("vcpu") || name.starts_with("CPU ") {
            let run = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
            let run =
                run.ok_or_else(|| Error::other(format!("{}/schedstat says {text:?}", task.display())))?;
            nanos = Some(nanos.unwrap_or(0) + run);
        }
    }
    let gone = || Error::other("its vCPUs had gone before one could look");
    nanos.map(Duration::from_nanos).ok_or_else(gone)
}

impl Process {
    /// Starts it; time counts from just before.
    pub(crate) fn start(mut command: Command) -> Result<Process, Error> {
        let begun = Instant::now();
        let child = command.spawn()?;
        Ok(Process { child, begun, seen: Vec::new() })
    }

    /// Since its start.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Reads its standard output until `enough` of what came.
    ///
    /// Fails when it ends or is silent for too long, with what it said on standard error.
    pub(crate) fn read_until(
        &mut self,
        limit: Duration,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let out = self.child.stdout.as_mut().ok_or(ErrorKind::BrokenPipe)?;
        let deadline = Instant::now() + limit;
        while !enough(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = device::ready(out.as_raw_fd(), libc::POLLIN, left)? != 0;
            let mut bytes = [0; 4096];
            let len = if ready { out.read(&mut bytes)? } else { 0 };
            if len == 0 {
                return Err(self.complaint(if ready { "it ended" } else { "it is silent" }));
            }
            self.seen.extend_from_slice(&bytes[..len]);
        }
        Ok(())
    }

    /// CPU time so far of its threads but those that run the guest.
    pub(crate) fn used_besides_guest(&self) -> Result<Duration, Error> {
        // In this order: time that passes in between is not to make it negative.
        let guest = used_by_guest(self.child.id())?;
        Ok(used(self.child.id())?.saturating_sub(guest))
    }

    /// Everything it wrote so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    fn complaint(&mut self, what: &str) -> Error {
        // It may have ended by itself.
        let _ = self.child.kill();
        let mut said = Vec::new();
        if let Some(err) = &mut self.child.stderr {
            // What it said is only an ornament of the message.
            let _ = err.take(4096).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        let (text, last) =
            (self.text(), |text: &str| text.trim().lines().last().unwrap_or("nothing").to_owned());
        Error::other(format!("{what} after {:?} on its output and {:?} as message", last(&text), last(&said)))
    }

    /// What it costs now, with the processes that it started: in a jail a VMM is not alone. Besides, where there are several, what that
    /// with the guest's threads costs.
    pub(crate) fn footprint(&self) -> Result<(Footprint, Option<Footprint>), Error> {
        let all = family(self.child.id())?.into_iter().map(footprint).collect::<Result<Vec<_>, _>>()?;
        let mut sum = Footprint::default();
        all.iter().for_each(|one| sum.add(one));
        let vmm = all.iter().max_by(|a, b| a.threads.total_cmp(&b.threads)).filter(|_| all.len() > 1);
        Ok((sum, vmm.copied()))
    }
}

/// A process and all that come from it.
fn family(first: u32) -> Result<Vec<u32>, Error> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(process) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // Others' processes come and go.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok());
        parents.extend(parent.map(|parent| (process, parent)));
    }
    let (mut all, mut next) = (vec![first], 0);
    while let Some(parent) = all.get(next).copied() {
        all.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| process));
        next += 1;
    }
    Ok(all)
}

/// What one process costs now.
fn footprint(process: u32) -> Result<Footprint, Error> {
    let proc = format!("/proc/{process}");
    let rollup = std::fs::read_to_string(format!("{proc}/smaps_rollup"))?;
    let status = std::fs::read_to_string(format!("{proc}/status"))?;
    let number = |text: &str, name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let word = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
        word.ok_or_else(|| Error::other(format!("{proc} does not tell {name}")))
    };
    Ok(Footprint {
        proportional: number(&rollup, "Pss")?,
        resident: number(&rollup, "Rss")?,
        private_dirty: number(&rollup, "Private_Dirty")?,
        anonymous: number(&rollup, "Pss_Anon")?,
        threads: number(&status, "Threads")?,
        cpu_millis: used(process)?.as_secs_f64() * 1e3,
    })
}

impl Footprint {
    fn add(&mut self, other: &Footprint) {
        self.proportional += other.proportional;
        self.resident += other.resident;
        self.private_dirty += other.private_dirty;
        self.anonymous += other.anonymous;
        self.threads += other.threads;
        self.cpu_millis += other.cpu_millis;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
