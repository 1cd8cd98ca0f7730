//! A control group of the jail's own: `Documentation/admin-guide/cgroup-v2.rst`, and `cgroup-v1/` on hosts that have controllers there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{JailError, at};

/// What a control group limits. Without anything there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The group in which the jail's is made, below the root of the hierarchy; when absent, that of the process that starts it (version
    /// 1) or the one above it (version 2, where a group has either processes or groups).
    pub group: Option<PathBuf>,
    /// Bytes of memory, guest memory included.
    pub memory: Option<u64>,
    /// Hundredths of a CPU.
    pub cpus: Option<u32>,
    /// Threads and processes.
    pub pids: Option<u64>,
}

/// The time, in microseconds, over which use of CPUs is counted.
const PERIOD: u64 = 100_000;

/// A controller and what it is told, in both versions.
struct Controller {
    name: &'static str,
    new: Vec<(&'static str, String)>,
    old: Vec<(&'static str, String)>,
}

impl Limits {
    fn controllers(&self) -> Vec<Controller> {
        let mut all = Vec::new();
        if let Some(bytes) = self.memory {
            let text = bytes.to_string();
            let (new, old) = (vec![("memory.max", text.clone())], vec![("memory.limit_in_bytes", text)]);
            all.push(Controller { name: "memory", new, old });
        }
        if let Some(hundredths) = self.cpus {
            let quota = u64::from(hundredths) * PERIOD / 100;
            let new = vec![("cpu.max", format!("{quota} {PERIOD}"))];
            let old =
                vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())];
            all.push(Controller { name: "cpu", new, old });
        }
        if let Some(count) = self.pids {
            let list = vec![("pids.max", count.to_string())];
            all.push(Controller { name: "pids", new: list.clone(), old: list });
        }
        all
    }
}

/// A hierarchy of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    /// The version is 2.
    new: bool,
    /// Controllers of version 1.
    controllers: Vec<String>,
    /// The group of this process.
    own: PathBuf,
}

/// The hierarchies that are mounted, as `/proc/self/mountinfo` and `/proc/self/cgroup` tell of them.
fn hierarchies(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let own = |of: &dyn Fn(&str) -> bool| {
        let entry = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            of(controllers).then(|| PathBuf::from(path))
        });
        entry.unwrap_or_else(|| PathBuf::from("/"))
    };
    let one = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let root = PathBuf::from(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        match (after.next()?, after.nth(1)?) {
            ("cgroup2", _) => {
                Some(Hierarchy { root, new: true, controllers: Vec::new(), own: own(&str::is_empty) })
            }
            ("cgroup", options) => {
                let controllers = words(options);
                let has = |listed: &str| words(listed).iter().any(|name| controllers.contains(name));
                Some(Hierarchy { root, new: false, own: own(&has), controllers })
            }
            _ => None,
        }
    };
    mounts.lines().filter_map(one).collect()
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        if !self.new {
            return self.controllers.iter().any(|name| name == controller);
        }
        fs::read_to_string(self.root.join("cgroup.controllers"))
            .is_ok_and(|list| list.split_whitespace().any(|name| name == controller))
    }

    /// Where groups of jails are made.
    fn parent(&self, wanted: Option<&Path>) -> PathBuf {
        let own = if self.new { self.own.parent().unwrap_or(&self.own) } else { &self.own };
        let group = wanted.unwrap_or(own);
        self.root.join(group.strip_prefix("/").unwrap_or(group))
    }
}

/// The groups of a jail, one a hierarchy; dropping it removes them.
#[derive(Debug, Default)]
pub(super) struct Group {
    directories: Vec<PathBuf>,
    /// Bytes that there may be, and where the kernel counts whom it killed for want of more.
    memory: Option<(u64, PathBuf)>,
    kills: Option<fs::File>,
}

/// What names of jails' groups begin with; the process outside follows.
const NAME: &str = "virga-";

impl Group {
    /// Makes the groups that the limits need, if any, named after `process`.
    pub(super) fn make(limits: &Limits, process: u32) -> Result<Option<Group>, JailError> {
        if *limits == Limits::default() {
            return Ok(None);
        }
        let read = |path: &str| fs::read_to_string(path).map_err(at(format!("cannot read {path}")));
        let all = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let mut group = Group::default();
        let controllers = limits.controllers();
        for controller in &controllers {
            let found = all.iter().find(|h| h.new && h.has(controller.name));
            let found = found.or_else(|| all.iter().find(|h| !h.new && h.has(controller.name)));
            let name = controller.name;
            let found = found.ok_or_else(|| {
                JailError::new(format!(
                    "no control groups with the controller {name:?} are mounted on this host"
                ))
            })?;
            group.limit(found, limits, Some(controller), process)?;
        }
        if controllers.is_empty() {
            let found = all.iter().find(|h| h.new);
            let found = found
                .ok_or_else(|| JailError::new("no control groups (cgroup2) are mounted on this host"))?;
            group.limit(found, limits, None, process)?;
        }
        Ok(Some(group))
    }

    fn limit(
        &mut self,
        hierarchy: &Hierarchy,
        limits: &Limits,
        controller: Option<&Controller>,
        process: u32,
    ) -> Result<(), JailError> {
        let parent = hierarchy.parent(limits.group.as_deref());
        let directory = parent.join(format!("{NAME}{process}"));
        if let Some(Controller { name, .. }) = controller.filter(|_| hierarchy.new) {
            let switch = parent.join("cgroup.subtree_control");
            let list =
                fs::read_to_string(&switch).map_err(at(format!("cannot read {}", switch.display())))?;
            if !list.split_whitespace().any(|enabled| enabled == *name) {
                fs::write(&switch, format!("+{name}"))
                    .map_err(at(format!("cannot enable {name:?} in {}", switch.display())))?;
            }
        }
        if !self.directories.contains(&directory) {
            sweep(&parent);
            fs::create_dir(&directory)
                .map_err(at(format!("cannot make the control group {}", directory.display())))?;
            self.directories.push(directory.clone());
        }
        let values = controller.map(|c| if hierarchy.new { &c.new } else { &c.old });
        for (file, value) in values.into_iter().flatten() {
            let path = directory.join(file);
            fs::write(&path, value).map_err(at(format!("cannot write {value:?} to {}", path.display())))?;
        }
        if let Some(bytes) = limits.memory.filter(|_| controller.is_some_and(|c| c.name == "memory")) {
            let path = directory.join(if hierarchy.new { "memory.events" } else { "memory.oom_control" });
            self.memory = Some((bytes, path));
        }
        Ok(())
    }

    /// In the process that stays outside: opens what it may not open later.
    pub(super) fn watch(&mut self) {
        // It only makes a message clearer.
        self.kills = self.memory.as_ref().and_then(|(_, path)| fs::File::open(path).ok());
    }

    /// Bytes that there might be, if the kernel killed a process of the group because it wanted more. Asked once.
    pub(super) fn short_of(&mut self) -> Option<u64> {
        let ((bytes, _), file) = (self.memory.as_ref()?, self.kills.as_mut()?);
        // The file is short, and the process outside may do no more than read it; what cannot be read is not known.
        let mut text = [0; 1024];
        let length = io::Read::read(file, &mut text).ok()?;
        kills(std::str::from_utf8(&text[..length]).ok()?).filter(|kills| *kills > 0).map(|_| *bytes)
    }

    /// Moves this process into the groups.
    pub(super) fn join(&self) -> Result<(), JailError> {
        for directory in &self.directories {
            let path = directory.join("cgroup.procs");
            fs::write(&path, "0").map_err(at(format!("cannot join {}", path.display())))?;
        }
        Ok(())
    }

    /// Removes the groups, whose processes have ended.
    pub(super) fn remove(mut self) -> Result<(), JailError> {
        for directory in std::mem::take(&mut self.directories) {
            remove(&directory)
                .map_err(at(format!("cannot remove the control group {}", directory.display())))?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in &self.directories {
            if let Err(e) = remove(directory) {
                // Whoever drops it is on the way out with another error.
                let _ = io::Write::write_all(
                    &mut io::stderr(),
                    format!("cannot remove {}: {e}\n", directory.display()).as_bytes(),
                );
            }
        }
    }
}

/// How many processes of a group were killed for want of memory: `memory.events` of version 2, `memory.oom_control` of version 1.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The kernel may take a moment to see that a group is empty.
fn remove(directory: &Path) -> io::Result<()> {
    for _ in 0..100 {
        match fs::remove_dir(directory) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
    fs::remove_dir(directory)
}

/// Removes the groups of processes that were killed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // One that is in use, or another's, stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hierarchies_are_found_with_the_process_s_own_groups() {
        let groups = "4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/user.slice/session.scope\n";
        let all = hierarchies(MOUNTS, groups);
        let parents: Vec<_> = all.iter().map(|h| (h.new, h.parent(None))).collect();
        let expected = [
            (false, "/sys/fs/cgroup/memory/a/b"),
            (false, "/sys/fs/cgroup/cpu,cpuacct/c"),
            (true, "/sys/fs/cgroup/unified/user.slice"),
        ];
        assert_eq!(parents, expected.map(|(new, path)| (new, PathBuf::from(path))));
        assert!(all[1].has("cpu") && !all[1].has("memory"));
        let named = all[2].parent(Some(Path::new("machines")));
        assert_eq!(named, Path::new("/sys/fs/cgroup/unified/machines"));
        // At the root there is nothing above.
        let root = hierarchies(MOUNTS, "0::/\n");
        assert_eq!(root[2].parent(None), Path::new("/sys/fs/cgroup/unified/"));
    }

    #[test]
    fn deaths_for_want_of_memory_are_read_in_both_versions() {
        assert_eq!(kills("low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(kills("oom_kill_disable 1\n"), None);
    }

    #[test]
    fn limits_are_told_to_their_controllers() {
        let limits = Limits { group: None, memory: Some(1 << 20), cpus: Some(150), pids: Some(9) };
        let told: Vec<_> =
            limits.controllers().iter().map(|c| (c.name, format!("{:?} {:?}", c.new, c.old))).collect();
        assert_eq!(told[0].1, r#"[("memory.max", "1048576")] [("memory.limit_in_bytes", "1048576")]"#);
        assert_eq!(
            told[1].1,
            r#"[("cpu.max", "150000 100000")] [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000")]"#
        );
        assert_eq!(told[2], ("pids", r#"[("pids.max", "9")] [("pids.max", "9")]"#.to_owned()));
        assert!(Group::make(&Limits::default(), 1).unwrap().is_none());
    }
}
