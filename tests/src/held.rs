//! What a process holds of its host: descriptors, threads, memory.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::path::Path;
use std::time::Duration;

/// The sum at one time.
#[derive(Clone, Debug)]
pub struct Held {
    /// What each descriptor is, in order.
    pub descriptors: Vec<String>,
    /// How many threads there are, without those that io_uring lends it now and then.
    pub threads: usize,
    /// Memory of its own, in KiB.
    pub memory: u64,
}

impl Held {
    /// Of this process, now.
    ///
    /// # Panics
    /// If there is no such process.
    #[track_caller]
    pub fn now(process: u32) -> Held {
        let list = |what: &str| fs::read_dir(format!("/proc/{process}/{what}")).expect("the process runs");
        let target = |entry: std::io::Result<DirEntry>| fs::read_link(entry.ok()?.path()).ok();
        let mut descriptors: Vec<_> =
            list("fd").filter_map(target).map(|path| path.display().to_string()).collect();
        descriptors.sort();
        let own =
            |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|name| !name.starts_with("iou-"));
        let threads = list("task").flatten().filter(|task| own(&task.path())).count();
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of memory");
        let memory = line.trim().trim_end_matches(" kB").parse().expect("a number");
        Held { descriptors, threads, memory }
    }

    /// The least within half a second: a connection of a question that was answered takes a moment to its end.
    ///
    /// # Panics
    /// If there is no such process.
    #[track_caller]
    pub fn at_rest(process: u32) -> Held {
        let sample = || {
            std::thread::sleep(Duration::from_millis(10));
            Held::now(process)
        };
        let fewest = (0..50).map(|_| sample()).min_by_key(|held| (held.descriptors.len(), held.threads));
        fewest.expect("there are samples")
    }

    /// What kinds of descriptors there are: sockets have numbers of their own; how many of each kind there are is what matters.
    fn kinds(&self) -> BTreeMap<&str, usize> {
        let mut kinds = BTreeMap::new();
        for descriptor in &self.descriptors {
            *kinds.entry(descriptor.split('[').next().unwrap_or_default()).or_default() += 1;
        }
        kinds
    }

    /// Whether it is no more than at another time, but for memory. It may be less: on a busy host something may have been on its way out then.
    pub fn is_within(&self, other: &Held) -> bool {
        let most = other.kinds();
        let within = |(kind, count): (&str, usize)| most.get(kind).is_some_and(|most| count <= *most);
        self.kinds().into_iter().all(within) && self.threads <= other.threads
    }
}
