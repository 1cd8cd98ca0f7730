//! A small file system that a test fills up.

use std::ffi::CString;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::scratch::Scratch;

/// A tmpfs in memory, seen only by the thread that made it and by what that starts. It goes with the last of them.
#[derive(Debug)]
pub struct Small(Scratch);

impl Small {
    /// Moves the calling thread to a mount namespace of its own and mounts a file system of so many bytes in a new directory.
    ///
    /// # Panics
    /// Needs root.
    pub fn mount(bytes: u64) -> Small {
        private_mounts();
        let scratch = Scratch::new();
        mount(scratch.path(), 0, &format!("size={bytes}"));
        Small(scratch)
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// If more is in it.
    pub fn resize(&self, bytes: u64) {
        mount(self.0.path(), libc::MS_REMOUNT, &format!("size={bytes}"));
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.file(name)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let path = CString::new(self.0.path().as_os_str().as_bytes()).unwrap_or_default();
        // SAFETY: the path ends with a NUL. It fails if it is gone already; somebody may still have a file of it open.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Moves the calling thread, and what it starts, to a new mount namespace, which goes with the last of them.
///
/// # Panics
/// Needs root.
pub fn private_mounts() {
    // SAFETY: a plain system call; this thread alone, and what it starts, sees other mounts from now on.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(done, 0, "unshare: {}", Error::last_os_error());
    mount(Path::new("/"), libc::MS_PRIVATE | libc::MS_REC, "");
}

fn mount(path: &Path, flags: libc::c_ulong, options: &str) {
    let text = |bytes: &[u8]| CString::new(bytes).expect("no NUL is in a path");
    let (path, options) = (text(path.as_os_str().as_bytes()), text(options.as_bytes()));
    // SAFETY: all of them end with a NUL, or are null where the kernel looks at nothing.
    let done = unsafe {
        libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), flags, options.as_ptr().cast())
    };
    assert_eq!(done, 0, "mount: {}", Error::last_os_error());
}
