//! The last words of a process whose thread made a call that its filter does not allow.
//!
//! The kernel does not make the call and sends SIGSYS instead. Its handler writes one line and lets the process die of that signal, as
//! whoever started it expects. It uses only what may be used in a handler, and calls that every filter allows.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::{io, mem, ptr};

use crate::names::name;

/// Bytes of a name that are shown.
const NAME: usize = 40;

thread_local! {
    /// Who asked for the filter of this thread.
    static ASKED_BY: Cell<[u8; NAME]> = const { Cell::new([0; NAME]) };
}

/// A descriptor that the line is written to besides standard error.
static LOG: AtomicI32 = AtomicI32::new(-1);

/// What is done before the process dies.
static BEFORE: OnceLock<fn()> = OnceLock::new();

/// Says for whom this thread works until it enters a role of its own.
pub fn note(asked_by: &str) {
    let mut bytes = [0; NAME];
    for (to, from) in bytes.iter_mut().zip(asked_by.bytes()) {
        *to = from;
    }
    ASKED_BY.set(bytes);
}

/// Has the line written to this descriptor as well, which stays open until the process ends.
pub fn also_tell(fd: std::os::fd::RawFd) {
    LOG.store(fd, Ordering::Relaxed);
}

/// Sets the handler up. `before` is called before the process dies: it may be called in a signal handler, at any time, on any thread.
///
/// # Errors
/// What the kernel answered.
pub(crate) fn watch(before: fn()) -> io::Result<()> {
    // Somebody who calls twice means the same.
    let _ = BEFORE.set(before);
    // SAFETY: zeros are a valid action, to be filled in.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is valid, and its handler keeps to what handlers may do.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `si_code` of a filter's answer (`asm-generic/siginfo.h`).
const SYS_SECCOMP: i32 = 1;

/// The part of `siginfo_t` that SIGSYS has (`asm-generic/siginfo.h`).
#[repr(C)]
struct Siginfo {
    signal: i32,
    error: i32,
    code: i32,
    address: *const libc::c_void,
    call: i32,
    processor: u32,
}

extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t`, which begins with these fields for this signal.
    let info = unsafe { &*info.cast::<Siginfo>() };
    if info.code == SYS_SECCOMP {
        let mut line = Line::default();
        line.tell(info, arguments(context));
        line.write(libc::STDERR_FILENO);
        let log = LOG.load(Ordering::Relaxed);
        if log >= 0 {
            line.write(log);
        }
    }
    if let Some(before) = BEFORE.get() {
        before();
    }
    // SAFETY: plain numbers. The signal waits until this handler returns, and then ends the process.
    unsafe {
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGSYS);
    }
}

/// The first three arguments of the call.
#[cfg(target_arch = "x86_64")]
fn arguments(context: *mut libc::c_void) -> [u64; 3] {
    // SAFETY: the kernel passes the thread's registers as they were at the call.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(|register| registers[register as usize] as u64)
}

#[cfg(target_arch = "aarch64")]
fn arguments(context: *mut libc::c_void) -> [u64; 3] {
    // SAFETY: as above.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.regs };
    [registers[0], registers[1], registers[2]]
}

/// A line being written, without the allocator.
struct Line {
    bytes: [u8; 320],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Line { bytes: [0; 320], length: 0 }
    }
}

impl Line {
    fn tell(&mut self, info: &Siginfo, arguments: [u64; 3]) {
        // The beginning is what programs look for that watch over machines.
        self.text(b"Probable seccomp violation: si_syscall=");
        self.number(u64::from(info.call.unsigned_abs()), 10);
        self.text(b" si_arch=0x");
        self.number(info.processor.into(), 16);
        self.text(b" thread=");
        let mut thread = [0u8; 16];
        // SAFETY: the kernel writes at most 16 bytes.
        unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
        self.text(until_zero(&thread));
        self.text(b" call=");
        self.text(name(info.call.unsigned_abs()).as_bytes());
        for (i, argument) in arguments.into_iter().enumerate() {
            self.text(if i == 0 { b"(0x" } else { b", 0x" });
            self.number(argument, 16);
        }
        self.text(b", ...) filter=\"");
        self.text(until_zero(&ASKED_BY.get()));
        self.text(b"\"\n");
    }

    fn text(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text[..count]);
        self.length += count;
    }

    fn number(&mut self, mut value: u64, base: u64) {
        let mut digits = [0u8; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(value % base) as usize];
            value /= base;
            if value == 0 {
                break;
            }
        }
        self.text(&digits[first..]);
    }

    fn write(&self, fd: libc::c_int) {
        // SAFETY: the bytes are valid for the length. Nobody is left to be told that they could not be written.
        unsafe { libc::write(fd, self.bytes.as_ptr().cast(), self.length) };
    }
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_which_thread_which_call_and_whose_filter() {
        note("device \"_disk0\"");
        let info = Siginfo {
            signal: libc::SIGSYS,
            error: 0,
            code: SYS_SECCOMP,
            address: ptr::null(),
            call: libc::SYS_socket as i32,
            processor: 0xc000_003e,
        };
        let tell = || {
            let mut line = Line::default();
            line.tell(&info, [2, 0x80801, 0]);
            String::from_utf8(line.bytes[..line.length].to_vec()).unwrap()
        };
        let said = std::thread::Builder::new().name("_disk0_q0".into()).spawn(|| ()).unwrap();
        said.join().unwrap();
        let line = tell();
        let thread = line.split("thread=").nth(1).unwrap().split(' ').next().unwrap();
        assert_eq!(
            line,
            format!(
                "Probable seccomp violation: si_syscall=41 si_arch=0xc000003e thread={thread} call=socket(0x2, 0x80801, 0x0, ...) \
                 filter=\"device \"_disk0\"\"\n"
            )
        );
        // However long names are, the line keeps within its room.
        note(&"x".repeat(100));
        assert!(tell().len() < 320);
    }
}
