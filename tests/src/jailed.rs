//! Looking at a jail from outside, through the eyes of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The three processes of a program in a jail.
#[derive(Clone, Copy, Debug)]
pub struct Jailed {
    /// The one that was started.
    pub outer: u32,
    /// The first of the process namespace.
    pub first: u32,
    /// The program.
    pub inner: u32,
}

/// A line of `/proc/PID/status`, in words.
pub fn status(process: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":"));
    let line = line.unwrap_or_else(|| panic!("no {key} in {text}"));
    line.split_whitespace().map(str::to_owned).collect()
}

/// Processes whose parent this is.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let of = |process: &u32| {
        let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        text.lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|rest| rest.trim() == parent.to_string()))
    };
    processes.filter_map(number).filter(of).collect()
}

impl Jailed {
    /// Finds the processes of a program that is there already.
    pub fn find(outer: u32) -> Jailed {
        let all = children(outer);
        let numbered = |number: &str| {
            let is =
                |process: &&u32| status(&process.to_string(), "NSpid").last().is_some_and(|n| n == number);
            *all.iter().find(is).unwrap_or_else(|| panic!("{outer} has {all:?}, none of them {number}"))
        };
        Jailed { outer, first: numbered("1"), inner: numbered("2") }
    }

    /// Waits until none of them is left, but for the outer one, which is its parent's to wait for.
    pub fn all_end(self) {
        let begun = Instant::now();
        while [self.first, self.inner].iter().any(|process| alive(*process)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "of {self:?} something lives");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Checks that no process of the jail may do anything, or shares more than it must with those outside.
    #[track_caller]
    pub fn is_confined(self) {
        // The program may be at work before the others are done with themselves.
        let begun = Instant::now();
        while [self.outer, self.first].iter().any(|process| status(&process.to_string(), "Seccomp") != ["2"])
        {
            assert!(begun.elapsed() < Duration::from_secs(60), "{self:?}: something has no filter");
            std::thread::sleep(Duration::from_millis(2));
        }
        let ours = namespaces(std::process::id());
        for process in [self.first, self.inner] {
            let theirs = namespaces(process);
            for name in ["ipc", "mnt", "net", "pid", "uts"] {
                assert_ne!(theirs[name], ours[name], "{name} of {process}");
            }
            let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process is there");
            for task in tasks.flatten() {
                let task = format!("{process}/task/{}", task.file_name().display());
                for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                    assert_eq!(status(&task, set), ["0000000000000000"], "{set} of {task}");
                }
                assert_eq!(status(&task, "NoNewPrivs"), ["1"], "{task}");
                assert_eq!(status(&task, "Seccomp"), ["2"], "{task}");
            }
            let environment = fs::read(format!("/proc/{process}/environ")).expect("the process is there");
            assert!(environment.iter().all(|byte| *byte == 0), "{process} has an environment");
        }
        assert_ne!(namespaces(self.inner)["user"], ours["user"]);
        for set in ["CapInh", "CapPrm", "CapBnd", "CapAmb"] {
            // The outer one may remove a control group.
            let set = status(&self.outer.to_string(), set);
            assert!(["0000000000000000", "0000000000000002"].contains(&set[0].as_str()), "{set:?}");
        }
        assert_eq!(status(&self.outer.to_string(), "Seccomp"), ["2"]);
    }

    /// Waits until the first process has given back what it was born with of the program's heap.
    #[track_caller]
    pub fn first_forgets(self) {
        let heap = || {
            let text =
                fs::read_to_string(format!("/proc/{}/smaps", self.first)).expect("the process is there");
            let (_, heap) = text.split_once("[heap]").expect("it has a heap");
            let size = heap.lines().find_map(|line| line.strip_prefix("Rss:")).expect("it has a size");
            size.trim_end_matches("kB").trim().parse::<u64>().expect("it is a number")
        };
        let begun = Instant::now();
        // The thread's own variables stay.
        while heap() > 12 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{self:?}: {} kB", heap());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the descriptors of a process are, without those of the kernel that have no name in any file system.
    pub fn files(process: u32) -> BTreeSet<String> {
        let list = fs::read_dir(format!("/proc/{process}/fd")).expect("the process is there").flatten();
        let names = list.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()));
        let named = |name: &String| {
            !["anon_inode:", "socket:", "pipe:", "/memfd:"].iter().any(|b| name.starts_with(b))
        };
        names.filter(named).collect()
    }

    /// What is in the root of the jail: paths that are mounted, with their options, and device nodes. Everything else is directories.
    pub fn root(self) -> BTreeMap<PathBuf, String> {
        let text =
            fs::read_to_string(format!("/proc/{}/mountinfo", self.inner)).expect("the process is there");
        let mount = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            (PathBuf::from(words[4]), words[5].to_owned())
        };
        let mut all: BTreeMap<PathBuf, String> = text.lines().map(mount).collect();
        for (path, options) in &all {
            assert!(
                options.contains("nosuid") && options.contains("noexec"),
                "{}: {options}",
                path.display()
            );
        }
        let root = PathBuf::from(format!("/proc/{}/root", self.inner));
        let device = fs::metadata(root.join(".")).expect("root may look at it").dev();
        let mut left = vec![PathBuf::from("/")];
        while let Some(directory) = left.pop() {
            let inside = root.join(directory.strip_prefix("/").expect("it is absolute"));
            for entry in fs::read_dir(inside).expect("root may look at it").flatten() {
                let path = directory.join(entry.file_name());
                let Ok(found) = fs::symlink_metadata(entry.path()) else { continue };
                if found.dev() != device {
                    assert!(all.contains_key(&path), "{} is not mounted", path.display());
                } else if found.is_dir() {
                    left.push(path);
                } else {
                    assert!(found.file_type().is_char_device(), "{} is in the jail", path.display());
                    all.insert(path, "node".to_owned());
                }
            }
        }
        all
    }

    /// A file of the control group that the jail has with this controller: its name in version 2, and in version 1.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn limit(self, controller: &str, files: [&str; 2]) -> String {
        let (old, group) = self.group(controller);
        let file = group.join(files[usize::from(old)]);
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    }

    /// The control group that the jail has with this controller, and whether it is of version 1.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn group(self, controller: &str) -> (bool, PathBuf) {
        let groups =
            fs::read_to_string(format!("/proc/{}/cgroup", self.inner)).expect("the process is there");
        let group = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let old = controllers.split(',').any(|name| name == controller);
            (path.contains("virga-") && (old || controllers.is_empty())).then(|| (old, path.to_owned()))
        });
        let (old, path) = group.unwrap_or_else(|| panic!("no group with {controller}: {groups}"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it is there");
        let root = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let fits = match old {
                true => {
                    after.starts_with("cgroup ")
                        && after.rsplit(' ').next()?.split(',').any(|o| o == controller)
                }
                false => after.starts_with("cgroup2 "),
            };
            fits.then(|| before.split(' ').nth(4).map(PathBuf::from))?
        });
        (old, root.expect("it is mounted").join(path.trim_start_matches('/')))
    }
}

/// Whether a thread of a process runs, be it that the first one has ended.
pub fn alive(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let state = |stat: &str| stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    stats.map(|stat| state(&stat)).any(|state| !matches!(state, Some('Z' | 'X')))
}

/// The namespaces of a process.
fn namespaces(process: u32) -> BTreeMap<String, PathBuf> {
    let list = fs::read_dir(format!("/proc/{process}/ns")).expect("root may look at it").flatten();
    list.map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, fs::read_link(entry.path()).expect("it is a link"))
    })
    .collect()
}

/// Checks that no control group of this process's jail is left, in any hierarchy.
#[track_caller]
pub fn no_group_is_left(outer: u32) {
    let name = format!("virga-{outer}");
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = left.pop() {
        assert!(directory.file_name() != Some(name.as_ref()), "{} is left", directory.display());
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        left.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
}

/// The scratch directory with everything in it belongs to this user from now on.
pub fn give(directory: &Path, user: u32) {
    std::os::unix::fs::chown(directory, Some(user), Some(user)).expect("root may give files away");
    for entry in fs::read_dir(directory).expect("it is there").flatten() {
        if entry.path().is_dir() {
            give(&entry.path(), user);
        } else {
            std::os::unix::fs::chown(entry.path(), Some(user), Some(user)).expect("root may give files away");
        }
    }
}
