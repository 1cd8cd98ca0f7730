//! Places for files of tests, gone when the test is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory of its own.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// In the directory for temporary files.
    pub(crate) fn new() -> Self {
        Scratch::within(&std::env::temp_dir())
    }

    pub(crate) fn within(parent: &Path) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("migration-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// An empty directory in it.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file without a name.
pub(crate) fn file() -> File {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}
