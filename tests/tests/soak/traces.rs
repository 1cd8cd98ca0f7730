//! What is there of the host's things: before, and the same after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tests::held::Held;

/// Of this process.
#[derive(Debug)]
pub(crate) struct Traces(Held);

impl Traces {
    pub(crate) fn of_us() -> Traces {
        Traces(Held::now(std::process::id()))
    }

    /// What there is more now; nothing if that is nothing.
    pub(crate) fn left_behind(&self) -> Option<String> {
        let now = Held::at_rest(std::process::id());
        let children = children();
        let same = now.is_within(&self.0) && children.is_empty();
        (!same).then(|| format!("left behind: processes {children:?}, {:?} was {:?}", now, self.0))
    }
}

/// Names of the processes that we started and that are still there.
fn children() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = |stat: &String| {
        // The name, in brackets, may hold anything; state and parent follow.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        behind.split_whitespace().nth(1) == Some(&std::process::id().to_string())
    };
    processes
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter(ours)
        .collect()
}

/// Mounts and network interfaces of the calling thread's namespaces, and files below a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Around {
    mounts: usize,
    interfaces: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Around {
    /// Of a directory without this file.
    pub(crate) fn now(directory: &Path, without: &Path) -> Around {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/thread-self/{file}")).expect("a thread has its files")
        };
        // Others' were there when this namespace was made, and go when their owners like.
        let ours = format!("/virga-test-{}-", std::process::id());
        let interface = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
        let files = std::fs::read_dir(directory).expect("the directory is there");
        Around {
            mounts: read("mountinfo").lines().filter(|line| line.contains(&ours)).count(),
            interfaces: read("net/dev").lines().filter_map(interface).collect(),
            files: files.flatten().map(|file| file.path()).filter(|file| file != without).collect(),
        }
    }
}
