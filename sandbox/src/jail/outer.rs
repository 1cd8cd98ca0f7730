//! The process that stays outside, and the first one in the process namespace.
//!
//! The outer one can do next to nothing: it has a filter for what is here, and no capability but, of root's, that to remove
//! what is in a directory of somebody else's.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

use super::group::Group;
use super::ids::{self, Ids};
use super::kernel::{self, check};
use super::{JailError, at, environment, root};
use crate::call::{Call, Set};
use crate::{Mode, Prepared, begin, common, note};

/// Signals that are handed on. Others do to the outer process what they do to any.
const HANDED_ON: [libc::c_int; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGCONT,
];

/// What the outer process does.
const OUTSIDE: Set = &[
    Call::any(libc::SYS_wait4),
    Call::any(libc::SYS_pidfd_send_signal),
    // Clearing away.
    Call::any(libc::SYS_rmdir),
    Call::any(libc::SYS_unlink),
];

/// What processes of a jail have in common while they are made.
pub(super) struct Begun {
    /// Has an end when the outer process has.
    life: OwnedFd,
    /// The outer process's end.
    ours: OwnedFd,
    /// Signals to hand on.
    signals: OwnedFd,
    /// Those that were blocked before.
    before: libc::sigset_t,
}

impl Begun {
    /// From now on signals wait.
    pub(super) fn new() -> Result<Begun, JailError> {
        // Who waits for children must not ignore their ends.
        // SAFETY: the default runs no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let (life, ours) = kernel::pipe().map_err(at("cannot make a pipe"))?;
        let (signals, before) = take_signals().map_err(at("cannot take signals"))?;
        Ok(Begun { life, ours, signals, before })
    }

    /// Nothing in the child.
    pub(super) fn fork(&self) -> Result<Option<libc::pid_t>, JailError> {
        kernel::fork().map_err(at("cannot start a process in the process namespace"))
    }

    /// In the child: `settle` puts it into the jail, and it ends when the outer process does.
    pub(super) fn inside<T>(self, settle: impl FnOnce() -> Result<T, JailError>) -> Result<T, JailError> {
        let Begun { life, ours, signals, before } = self;
        drop((ours, signals));
        // SAFETY: the set came from the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
        let settled = settle()?;
        if parent_has_ended(&life)? {
            return Err(JailError::new("the process outside has ended"));
        }
        Ok(settled)
    }

    /// In the outer process.
    pub(super) fn outside(
        self,
        first: libc::pid_t,
        inner: libc::pid_t,
        mut group: Option<Group>,
        mode: Mode,
    ) -> Result<Outer, JailError> {
        if let Some(group) = &mut group {
            group.watch();
        }
        let process = match kernel::process(inner) {
            Ok(process) => process,
            Err(e) => {
                // The first process takes this one along, and ends when it has been waited for.
                self.abandon(&[inner, first]);
                return Err(at("cannot watch the process in the jail")(e));
            }
        };
        let Begun { ours, signals, .. } = self;
        Ok(Outer { life: Some(ours), signals: signals.into(), first, inner, process, group, mode })
    }
}

impl Begun {
    /// In the outer process, which goes no further: has these processes end, and waits for them.
    pub(super) fn abandon(self, children: &[libc::pid_t]) {
        drop(self.ours);
        for child in children {
            // Another error than that with which this process ends would be of no use to anybody.
            let _ = kernel::wait(*child);
        }
    }
}

/// Blocks what is handed on: a descriptor to read it from, and what was blocked before.
fn take_signals() -> io::Result<(OwnedFd, libc::sigset_t)> {
    // SAFETY: zeroed sets are what sigemptyset makes; the calls only read and write the sets.
    unsafe {
        let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
        libc::sigemptyset(&raw mut set);
        for signal in HANDED_ON {
            libc::sigaddset(&raw mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        check(fd.into())?;
        Ok((OwnedFd::from_raw_fd(fd), before))
    }
}

/// The kernel ends this process when its parent ends; whether that has happened already.
fn parent_has_ended(life: &OwnedFd) -> Result<bool, JailError> {
    let failed = || at("cannot tie the process to the one outside");
    kernel::control(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0).map_err(failed())?;
    let [ended] = kernel::readable([life], true).map_err(failed())?;
    Ok(ended)
}

/// The first process of the namespace: it waits until the outer one has ended, or closes the pipe. It can do nothing, sees no file, and
/// nobody in the jail can look at it.
pub(super) fn first(begun: Begun, owner: Option<Ids>, mode: Mode) -> ! {
    let Begun { life, ours, signals, .. } = begun;
    drop((ours, signals));
    let settle = || {
        kernel::close_all_but(&life).map_err(at("cannot close descriptors"))?;
        environment::limit(super::FILES, false)?;
        root::namespaces(libc::CLONE_NEWNET)?;
        root::build(&[], "/".as_ref(), None, None)?;
        if let Some(ids) = owner {
            ids::become_owner(ids, None)?;
        }
        ids::drop_capabilities(0)?;
        kernel::set_dumpable(false).map_err(at("cannot hide the first process"))?;
        // Whoever could not come into the jail has said so, and that was the end of the outer one too: it is no failure here.
        if parent_has_ended(&life)? {
            return Ok(());
        }
        confine("the first process of the jail", &[], mode)
    };
    let code = if let Err(e) = settle() {
        let cause = e.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
        // Nothing can be done about a standard error that takes nothing.
        let _ = io::Write::write_all(
            &mut io::stderr(),
            format!("Error: the first process of the jail: {e}{cause}\n").as_bytes(),
        );
        1
    } else {
        // SAFETY: what is left is to wait and to end, which takes no memory.
        unsafe { kernel::forget_heap() };
        i32::from(kernel::readable([&life], false).is_err())
    };
    // SAFETY: it only ends the process, without what the outer one does at its end.
    unsafe { libc::_exit(code) }
}

fn confine(asked_by: &'static str, sets: &[Set], mode: Mode) -> Result<(), JailError> {
    begin(mode, || {}).map_err(at("cannot take signals"))?;
    if mode == Mode::Off {
        return Ok(());
    }
    // No more than that is kept of it: nobody asks these processes for what they are confined to.
    note(asked_by);
    let all = [&[common::EVERYWHERE], sets].concat();
    Prepared::new(&all, mode).enter().map_err(at("cannot filter system calls"))
}

/// The process outside.
#[derive(Debug)]
pub struct Outer {
    /// The first process ends when it is closed.
    life: Option<OwnedFd>,
    signals: File,
    first: libc::pid_t,
    inner: libc::pid_t,
    process: OwnedFd,
    group: Option<Group>,
    mode: Mode,
}

/// How the process in the jail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    status: libc::c_int,
    /// Bytes that it might have, if the kernel killed it because it wanted more.
    short_of: Option<u64>,
}

impl End {
    /// Ends as the process in the jail did: returns its exit code, or dies of its signal.
    pub fn follow(self) -> ExitCode {
        if libc::WIFSIGNALED(self.status) {
            die_of(libc::WTERMSIG(self.status));
        }
        ExitCode::from(u8::try_from(libc::WEXITSTATUS(self.status)).unwrap_or(u8::MAX))
    }

    /// What the process in the jail had no time to say.
    pub fn unsaid(self) -> Option<JailError> {
        let bytes = self.short_of?;
        let what = format!(
            "the kernel killed the program in the jail: it needed more memory than its control group may have (memory={bytes})"
        );
        Some(JailError::new(what))
    }
}

fn die_of(signal: libc::c_int) {
    // SAFETY: an empty set is filled in before it is read; the default runs no handler.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        if signal == libc::SIGSYS {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
}

impl Outer {
    /// Hands signals on until the process in the jail has ended, and clears away what was made for it. Everything else that this process
    /// has open is to be closed before, and what it remembers for the work inside forgotten: it would cost the host memory until then.
    ///
    /// # Errors
    /// The host refused something without which the process cannot be watched; it is ended then.
    pub fn wait(mut self) -> Result<End, JailError> {
        let result = self.watch();
        if result.is_err() {
            // It fails if the process has ended.
            let _ = kernel::signal(&self.process, libc::SIGKILL);
            let _ = kernel::wait(self.inner);
        }
        self.life = None;
        kernel::wait(self.first).map_err(at("cannot wait for the first process of the jail"))?;
        if let Some(group) = self.group.take() {
            group.remove()?;
        }
        result
    }

    fn watch(&mut self) -> Result<End, JailError> {
        // Of the process in the jail, core files are forbidden; the same end here makes none either.
        kernel::set_dumpable(false).map_err(at("cannot hide the process outside"))?;
        let root = ids::privileged().map_err(at("cannot read capabilities"))?;
        ids::drop_capabilities(if root { ids::DAC_OVERRIDE } else { 0 })?;
        confine("the process outside the jail", &[OUTSIDE], self.mode)?;
        // SAFETY: only memory that is free is given back.
        unsafe { libc::malloc_trim(0) };
        let failed = || at("cannot watch the process in the jail");
        let signals = self.signals.try_clone().map_err(failed())?.into();
        loop {
            let [signal, ended] = kernel::readable([&signals, &self.process], false).map_err(failed())?;
            if signal {
                self.hand_on();
            }
            if ended {
                let status = kernel::wait(self.inner).map_err(failed())?;
                let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
                let short_of = self.group.as_mut().filter(|_| killed).and_then(Group::short_of);
                return Ok(End { status, short_of });
            }
        }
    }

    fn hand_on(&mut self) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        // The descriptor is non-blocking; an error means that there is none.
        while self.signals.read_exact(&mut info).is_ok() {
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            // It fails if the process has ended, which is noticed next.
            let _ = kernel::signal(&self.process, number.cast_signed());
        }
    }
}
