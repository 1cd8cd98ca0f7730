//! The order in which a program's functions are first executed, found by stepping through it (ptrace(2)).
//!
//! The linker lays the functions out in that order (`vmm/build.rs`), so that a start touches few pages of the program. What every start
//! executes comes first, then what others add, each in one piece. Nothing is measured here.

use std::collections::HashSet;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tests::functions::{Functions, Order, compiler};

use crate::layers::{STARTS, told};
use crate::load::Setting;
use crate::restore;
use crate::served::Directory;
use crate::subject::{Extra, Subject};

/// The words of a start that is recorded after those of the layers of confinement.
const WITH_API: [&str; 2] = ["--api-socket", "SCRATCH/api"];
/// A step takes microseconds, and a start a million of them.
const PATIENCE: Duration = Duration::from_secs(1200);
/// What has written is followed for so many steps more, or until nothing has moved for so long: threads are yet to come to rest.
const STEPS: u32 = 50_000;
const REST: Duration = Duration::from_millis(200);

/// Writes to `target` the functions that starts need: the usual one, with each layer of confinement, with the API, and the restore of
/// which targets speak.
pub(crate) fn write(
    setting: &Setting<'_>,
    subject: &Subject,
    first_byte: &Path,
    target: &Path,
) -> Result<(), Error> {
    let (functions, compiler) = (Functions::of(&subject.program)?, compiler(&subject.program)?);
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    let mut follow = |command| -> Result<(), Error> {
        for address in addresses(command, &subject.program)? {
            names.extend(
                functions.at(address).filter(|name| seen.insert((*name).to_owned())).map(str::to_owned),
            );
        }
        Ok(())
    };
    let room = Directory::new(setting.scratch);
    std::fs::create_dir(&room.0)?;
    let start =
        |words: &[&str]| told(subject, &subject.name, words, &room.0).run(first_byte, "", Extra::None);
    STARTS.into_iter().chain([&WITH_API[..]]).try_for_each(|words| follow(start(words)))?;
    let saved = restore::save_usual(setting, subject)?;
    follow(subject.restored(&saved.0, restore::MAPPED))?;
    Order { compiler, names }.write(std::fs::File::create(target)?)
}

/// Addresses of a position-independent program's instructions, relative to its begin, in the order of their first execution by any of its
/// threads, and of processes that it forks, until it has written to its standard output.
fn addresses(mut command: Command, program: &Path) -> Result<Vec<u64>, Error> {
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut child = command.spawn()?;
    let found = stepped(&child, program);
    child.kill()?;
    // All of its threads are traced, and so are its processes, which nobody else can wait for before.
    let mut status = 0;
    loop {
        // SAFETY: waits for our own children; the status outlives the call.
        match unsafe { libc::waitpid(-1, &mut status, libc::__WALL) } {
            ..0 => return found,
            // SAFETY: plain numbers; it is stopped, and so still the one that was traced.
            thread if libc::WIFSTOPPED(status) => unsafe { libc::kill(thread, libc::SIGKILL) },
            _ => continue,
        };
    }
}

fn stepped(child: &Child, program: &Path) -> Result<Vec<u64>, Error> {
    let (tracee, deadline) = (child.id().cast_signed(), Instant::now() + PATIENCE);
    let output = child.stdout.as_ref().map(AsRawFd::as_raw_fd).ok_or_else(|| Error::other("no output"))?;
    let mut status = 0;
    // SAFETY: waits for our own child; the status outlives the call.
    if unsafe { libc::waitpid(tracee, &mut status, libc::__WALL) } != tracee || !libc::WIFSTOPPED(status) {
        return Err(Error::other(format!("{} did not begin", program.display())));
    }
    let options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK;
    request(libc::PTRACE_SETOPTIONS, tracee, options as libc::c_ulong)?;
    let (begin, end) = place(tracee, program)?;
    let (mut order, mut seen) = (Vec::new(), HashSet::new());
    request(libc::PTRACE_SINGLESTEP, tracee, 0)?;
    let (mut left, mut moved) = (STEPS, Instant::now());
    loop {
        let written = device::ready(output, libc::POLLIN, Duration::ZERO)? != 0;
        if written && (left == 0 || moved.elapsed() > REST) {
            return Ok(order);
        }
        if Instant::now() > deadline {
            return Err(Error::other(format!("{} wrote nothing in {PATIENCE:?}", program.display())));
        }
        // SAFETY: as above. Of all threads of the only child; without waiting, since all of them may be waiting for something themselves.
        let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::WNOHANG) };
        match thread {
            0 => continue,
            ..0 => return Err(Error::last_os_error()),
            _ if !libc::WIFSTOPPED(status) && thread == tracee => {
                return Err(Error::other(format!("{} ended before it wrote", program.display())));
            }
            _ if !libc::WIFSTOPPED(status) => continue,
            _ => {}
        }
        (left, moved) = (left - u32::from(written), Instant::now());
        let address = instruction(thread)?;
        if (begin..end).contains(&address) && seen.insert(address) {
            order.push(address - begin);
        }
        let signal = match libc::WSTOPSIG(status) {
            // A step, or a thread or process that is new.
            libc::SIGTRAP | libc::SIGSTOP => 0,
            other => other,
        };
        request(libc::PTRACE_SINGLESTEP, thread, signal as libc::c_ulong)?;
    }
}

fn request(what: libc::c_uint, thread: libc::pid_t, data: libc::c_ulong) -> Result<(), Error> {
    // SAFETY: requests of which the kernel takes no address in this process.
    match unsafe { libc::ptrace(what, thread, 0, data) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Where the thread is.
fn instruction(thread: libc::pid_t) -> Result<u64, Error> {
    // SAFETY: all zeroes are valid registers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes registers where there is room for them.
    match unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, 0, &mut registers) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(registers.rip),
    }
}

/// From where to where the program's file is mapped.
fn place(process: libc::pid_t, program: &Path) -> Result<(u64, u64), Error> {
    let (path, maps) = (program.canonicalize()?, std::fs::read_to_string(format!("/proc/{process}/maps"))?);
    let ours = maps.lines().filter(|line| line.ends_with(&*path.to_string_lossy()));
    let ends = ours.filter_map(|line| {
        let (begin, end) = line.split(' ').next()?.split_once('-')?;
        Some((u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    let whole = ends.reduce(|all, part| (all.0.min(part.0), all.1.max(part.1)));
    whole.ok_or_else(|| Error::other(format!("{} is not mapped", path.display())))
}
