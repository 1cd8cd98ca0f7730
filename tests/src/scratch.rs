//! A directory of a test's own, gone when the test is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Removed with everything in it on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the directory, its name unique among processes and tests.
    pub fn new() -> Scratch {
        Scratch::within(&std::env::temp_dir())
    }

    /// Makes it in that directory, and removes those there of processes that were killed.
    pub fn within(parent: &Path) -> Scratch {
        remove_orphans(parent);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("virga-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(name);
        std::fs::create_dir_all(&path).expect("the directory takes a new directory");
        Scratch(path)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn remove_orphans(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix("virga-test-"));
        let process = rest.and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Another process may be faster; and what belongs to another user is not ours to remove.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failure here must not hide the test's own; what is left lies in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
