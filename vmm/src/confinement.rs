//! The confinement in force (`vmm.confinement`), as the kernel tells it: not what was asked for, but what `/proc` shows.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use api::confinement::{Landlock, Limit, Namespace, ThreadConfinement, VmmConfinement};
use sandbox::jail::namespaces;
use spec::Refusal;

/// What keeps this process. `outside` are the namespaces of the process outside its jail, if it is in one; `landlock` is how many
/// domains there are, and rules.
///
/// # Errors
/// `/proc` is not there, or cannot be understood.
pub fn told(
    outside: Option<&BTreeMap<String, String>>,
    (domains, rules): (usize, usize),
) -> Result<VmmConfinement, Refusal> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| unreadable(path, e));
    let ours = namespaces().map_err(|e| unreadable("/proc/self/ns", e))?;
    let one = |(name, id): (String, String)| {
        let own = outside.is_some_and(|outside| outside.get(&name) != Some(&id));
        (name, Namespace { id, own })
    };
    let root = fs::read_dir("/");
    let denies_root = matches!(&root, Err(e) if e.kind() == io::ErrorKind::PermissionDenied);
    let names = |entries: fs::ReadDir| {
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    };
    Ok(VmmConfinement {
        jail: outside.is_some(),
        namespaces: ours.into_iter().map(one).collect(),
        // That of the host is nobody's concern.
        root: root.ok().filter(|_| outside.is_some()).map(names),
        landlock: Landlock { domains, rules, denies_root },
        limits: limits(&read("/proc/self/limits")?),
        cgroups: read("/proc/self/cgroup")?.lines().map(str::to_owned).collect(),
        threads: threads()?,
    })
}

fn unreadable(path: &str, e: io::Error) -> Refusal {
    Refusal::host(format!("Cannot read {path}"), e)
}

fn threads() -> Result<Vec<ThreadConfinement>, Refusal> {
    const TASKS: &str = "/proc/self/task";
    let tasks = fs::read_dir(TASKS).map_err(|e| unreadable(TASKS, e))?;
    // One that has ended meanwhile has no status any more.
    let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let one = |status: String| {
        thread(&status).ok_or_else(|| unreadable(TASKS, io::Error::other("a status has another form")))
    };
    let mut all = statuses.map(one).collect::<Result<Vec<_>, _>>()?;
    all.sort_unstable_by_key(|thread| thread.id);
    Ok(all)
}

/// What the status of a thread says (`proc_pid_status(5)`).
fn thread(status: &str) -> Option<ThreadConfinement> {
    let value =
        |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":")).map(str::trim);
    let number = |key: &str| value(key)?.parse::<u32>().ok();
    let numbers = |key: &str| -> Option<Vec<u32>> {
        value(key)?.split_whitespace().map(|word| word.parse().ok()).collect()
    };
    let capabilities = [
        ("inheritable", "CapInh"),
        ("permitted", "CapPrm"),
        ("effective", "CapEff"),
        ("bounding", "CapBnd"),
        ("ambient", "CapAmb"),
    ];
    let capability = |(name, key): (&str, &str)| Some((name.to_owned(), value(key)?.to_owned()));
    let id = i32::try_from(number("Pid")?).ok()?;
    Some(ThreadConfinement {
        id,
        name: value("Name")?.to_owned(),
        seccomp: number("Seccomp")?,
        filters: number("Seccomp_filters")?,
        asked_by: sandbox::asked_by(id),
        no_new_privs: number("NoNewPrivs")? == 1,
        capabilities: capabilities.into_iter().map(capability).collect::<Option<_>>()?,
        uid: numbers("Uid")?,
        gid: numbers("Gid")?,
        groups: numbers("Groups")?,
    })
}

/// The limits that there are: a line is a name of words, two values and perhaps a unit, in columns.
fn limits(text: &str) -> BTreeMap<String, Limit> {
    let value = |word: &str| if word == "unlimited" { Some(None) } else { word.parse().ok().map(Some) };
    let one = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| value(word).is_some())?;
        let (soft, hard) = (value(words[at])?, value(words.get(at + 1)?)?);
        (soft, hard).ne(&(None, None)).then(|| (words[..at].join(" "), Limit { soft, hard }))
    };
    text.lines().skip(1).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_told_as_it_is() {
        let told = told(None, (0, 0)).unwrap();
        assert!(!told.jail && told.root.is_none());
        assert!(told.namespaces.len() >= 6 && told.namespaces.values().all(|namespace| !namespace.own));
        // SAFETY: no pointers; it cannot fail.
        let (us, user) = unsafe { (libc::gettid(), libc::geteuid()) };
        let here = told.threads.iter().find(|thread| thread.id == us).unwrap();
        assert_eq!((here.uid.len(), here.uid[1], here.seccomp), (4, user, 0));
        assert_eq!(here.capabilities.len(), 5);
        assert!(told.limits.contains_key("Max open files"));
    }

    #[test]
    fn limits_are_read_from_their_columns() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max core file size        0                    unlimited            bytes     \n\
                    Max open files            1024                 4096                 files     \n";
        let read: Vec<_> = limits(text).into_iter().collect();
        let limit = |soft, hard| Limit { soft, hard };
        let expected = [
            ("Max core file size".to_owned(), limit(Some(0), None)),
            ("Max open files".to_owned(), limit(Some(1024), Some(4096))),
        ];
        assert_eq!(read, expected);
    }
}
