//! What `vmm.confinement` tells: the confinement in force, as the kernel reports it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `vmm.confinement`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmConfinement {
    /// Whether the process is in a jail (`--jail`).
    pub jail: bool,
    /// The namespaces that the process is in, by the names of `/proc/self/ns`.
    pub namespaces: BTreeMap<String, Namespace>,
    /// What is in the root directory, as far as it may be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Vec<String>>,
    /// Landlock (`--landlock`).
    pub landlock: Landlock,
    /// Resource limits that are not unlimited, by the names of `/proc/self/limits`.
    pub limits: BTreeMap<String, Limit>,
    /// Lines of `/proc/self/cgroup`.
    pub cgroups: Vec<String>,
    /// The threads.
    pub threads: Vec<ThreadConfinement>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The kernel's name of it, such as `net:[4026531840]`.
    pub id: String,
    /// Whether it is another one than that of whoever started the process.
    pub own: bool,
}

/// What is known of Landlock: the kernel does not list domains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    /// Domains that the control thread entered, and threads that it started later are in.
    pub domains: usize,
    /// Paths that they allow.
    pub rules: usize,
    /// Whether the kernel refuses the control thread something that permissions allow: a look at the root directory.
    pub denies_root: bool,
}

/// A limit; nothing stands for "unlimited".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The limit in force.
    pub soft: Option<u64>,
    /// How far it may be raised.
    pub hard: Option<u64>,
}

/// A thread, from `/proc/self/task`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadConfinement {
    /// The kernel's number of it, in the process namespace that it is in.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// What becomes of system calls (`Seccomp`): 0 all are made, 2 filters decide.
    pub seccomp: u32,
    /// How many filters, those of the threads that it comes from included.
    pub filters: u32,
    /// Who asked for the filters that it put on itself, the last one last.
    pub asked_by: Vec<String>,
    /// Whether programs that it would start gain nothing.
    pub no_new_privs: bool,
    /// Capabilities, as the kernel writes them: `inheritable`, `permitted`, `effective`, `bounding`, `ambient`.
    pub capabilities: BTreeMap<String, String>,
    /// Real, effective, saved and file system's user, in its user namespace.
    pub uid: Vec<u32>,
    /// The same of the group.
    pub gid: Vec<u32>,
    /// Further groups.
    pub groups: Vec<u32>,
}
