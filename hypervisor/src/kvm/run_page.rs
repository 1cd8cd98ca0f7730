//! The page that KVM shares with whoever runs a vCPU (`struct kvm_run`), and the kick that goes by it.
//!
//! The kernel writes the page only within `KVM_RUN`; outside of it, the thread that runs the vCPU owns it, with one
//! exception: `immediate_exit`, a byte that any thread may set at any time and that is only ever touched atomically.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::contract::Kick;
use crate::error::{Result, refused};

/// The shared page of one vCPU, mapped for as long as the vCPU or a kick handle lives.
pub(super) struct RunPage {
    page: NonNull<kvm_run>,
    size: usize,
    /// The thread that is in [`super::vcpu::KvmVcpu`]'s `run` or was there last; 0 before the first time.
    thread: AtomicI32,
}

// SAFETY: the page is shared memory that stays mapped; of it, only the atomic `immediate_exit` is reached through `&RunPage`.
// Everything else goes through `RunPage::get`, which is unsafe and reserved to the vCPU's owner.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of a vCPU; `size` is what `KVM_GET_VCPU_MMAP_SIZE` said.
    pub(super) fn map(vcpu: &impl AsRawFd, size: usize) -> Result<Self> {
        let failed = refused("map a vCPU's shared page");
        if size < size_of::<kvm_run>() {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidData)));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(page.cast()) {
            Some(_) if page == libc::MAP_FAILED => Err(failed(io::Error::last_os_error())),
            None => Err(failed(io::Error::from(io::ErrorKind::InvalidData))),
            Some(page) => Ok(RunPage { page, size, thread: AtomicI32::new(0) }),
        }
    }

    /// The page itself.
    pub(super) fn get(&self) -> *mut kvm_run {
        self.page.as_ptr()
    }

    /// Bytes in the mapping.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// While this is not 0, `KVM_RUN` finishes the instruction whose exit it reported last, and returns at once.
    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the field is one byte inside the mapping, which lives as long as `self`; every access of this program
        // to it is through this atomic, and the kernel only reads it.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.page.as_ptr()).immediate_exit) }
    }

    /// Makes kicks reach the calling thread. To be called before each stretch of `KVM_RUN`s.
    pub(super) fn enter(&self) {
        // SAFETY: plain system call without arguments.
        let thread = unsafe { libc::gettid() };
        if self.thread.swap(thread, Ordering::SeqCst) != thread {
            // A thread that inherited a mask with the signal in it would not leave the guest.
            if let Err(error) = vmm_sys_util::signal::unblock_signal(SIGRTMIN()) {
                log::warn!("cannot unblock the kick signal on a vCPU thread: {error:?}");
            }
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: `map` made exactly this mapping, and nothing refers to it once `self` is gone.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.size) };
    }
}

impl Kick for RunPage {
    fn kick(&self) {
        // First the flag, then the signal: a thread on its way into KVM_RUN sees the flag, one that is inside sees the
        // signal, and one that has not stored its id yet will see the flag.
        self.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal that has a handler. If the thread is gone this fails (nobody is left to be kicked); if
            // its id was given to another thread of this process, that one runs an empty handler.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
        }
    }
}

/// Installs the empty handler of the kick signal, once for the process. Its arrival is all that matters: without a handler
/// the process would die of it, ignored it would interrupt nothing.
pub(super) fn install_kick_handler() -> Result<()> {
    extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), on_kick).map_err(|error| error.errno()))
        .map_err(|errno| {
            refused("install the handler of the kick signal")(io::Error::from_raw_os_error(errno))
        })
}
