//! Holding the thread that writes a snapshot, by ptrace: it goes on from one system call to the next, as far as a test wants it to.
//!
//! So a test is in the middle of a snapshot for as long as it likes, however fast the host is. All calls for one thread come from the thread
//! that began.

use std::io::Error;

use crate::server::Server;

/// The thread that asks for a snapshot to be written, before it was asked.
pub(crate) struct Catcher(libc::pid_t);

/// A thread that stands still.
pub(crate) struct Held {
    process: libc::pid_t,
    thread: libc::pid_t,
    /// It is there and stopped.
    stopped: bool,
}

/// One of ptrace's requests that take a number.
fn ptrace(request: libc::c_uint, thread: libc::pid_t, data: libc::c_long) -> Result<(), Error> {
    // SAFETY: none of the requests used here makes the kernel write to our memory.
    match unsafe { libc::ptrace(request, thread, 0 as libc::c_long, data) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits for a thread to stop or end; its status.
fn wait(thread: libc::pid_t) -> Result<libc::c_int, Error> {
    let mut status = 0;
    // SAFETY: the kernel writes an int.
    match unsafe { libc::waitpid(thread, &mut status, libc::__WALL) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(status),
    }
}

impl Catcher {
    /// Lies in wait for the next thread that the program's first one starts.
    pub(crate) fn new(server: &Server) -> Catcher {
        let process = server.id().cast_signed();
        let options = libc::c_long::from(libc::PTRACE_O_TRACECLONE);
        ptrace(libc::PTRACE_SEIZE, process, options).expect("our own child may be traced");
        Catcher(process)
    }

    /// Waits for that thread and stops it before it does anything.
    pub(crate) fn catch(self) -> Held {
        let process = self.0;
        let status = wait(process).expect("it is traced");
        let event = (status >> 16) & 0xffff;
        assert!(libc::WIFSTOPPED(status) && event == libc::PTRACE_EVENT_CLONE, "{status:#x}");
        let mut thread: libc::c_ulong = 0;
        // SAFETY: the kernel writes an unsigned long.
        let told =
            unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, process, 0 as libc::c_long, &raw mut thread) };
        assert_eq!(told, 0, "{}", Error::last_os_error());
        ptrace(libc::PTRACE_DETACH, process, 0).expect("it is stopped");
        let thread = thread as libc::pid_t;
        wait(thread).expect("a thread of a traced one is traced");
        Held { process, thread, stopped: true }
    }
}

impl Held {
    /// Lets it go on to where it enters or leaves a system call; `false` if it ended.
    fn step(&mut self) -> bool {
        self.stopped = false;
        ptrace(libc::PTRACE_SYSCALL, self.thread, 0).expect("it is stopped");
        self.stopped = wait(self.thread).is_ok_and(|status| libc::WIFSTOPPED(status));
        self.stopped
    }

    /// Lets it go on until it has its name and something is so.
    #[track_caller]
    pub(crate) fn until(&mut self, so: impl Fn() -> bool) {
        let name = format!("/proc/{}/task/{}/comm", self.process, self.thread);
        while !std::fs::read(&name).is_ok_and(|name| name == b"snapshot\n") || !so() {
            assert!(self.step(), "the snapshot is complete, and it was never so");
        }
    }

    /// Whether the program's first thread waits for this one.
    pub(crate) fn is_waited_for(&self) -> bool {
        let call = std::fs::read_to_string(format!("/proc/{0}/task/{0}/syscall", self.process));
        call.unwrap().starts_with(&format!("{} ", libc::SYS_futex))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.stopped && ptrace(libc::PTRACE_DETACH, self.thread, 0).is_err() {
            // It was killed; its end is ours to take note of.
            let _ = wait(self.thread);
        }
    }
}
