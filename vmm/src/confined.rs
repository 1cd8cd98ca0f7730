//! The threads of this program and what each may ask of the kernel, put together from what crates and devices say of themselves.

use api::http::syscalls::SERVER;
use catalog::machine::CALLS;
use device::{Calls, Threads};
use hypervisor::kvm::calls as kvm;
use migration::calls::{PAGER, WRITER};
use sandbox::{Call, Role, Set, call, common};
use spec::Refusal;

use crate::core_scheduling;

/// What the control thread does itself besides what it does for devices: memory, files of a machine, signals.
const CONTROL: Set = &[
    Call::any(libc::SYS_memfd_create),
    call::madvise(&[
        libc::MADV_HUGEPAGE as u32,
        libc::MADV_NOHUGEPAGE as u32,
        libc::MADV_MERGEABLE as u32,
        libc::MADV_POPULATE_READ as u32,
    ]),
    Call::any(libc::SYS_preadv),
    // Descriptors that were handed to us.
    Call::any(libc::SYS_getsockopt),
    call::fcntl(&[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_SETFD as u32]),
    // Sleep of a thread that waits for the kernel to give resources back, and limits for messages.
    Call::one_of(libc::SYS_prlimit64, 0, &[common::OURS]),
    // The end of the process that starts programs for devices.
    Call::any(libc::SYS_wait4),
    core_scheduling::JOIN,
];

/// Puts together what all kinds of devices do: those that are not there yet may come.
fn of_devices(part: impl Fn(&Calls) -> &'static [Set]) -> impl Iterator<Item = Set> {
    CALLS.iter().flat_map(move |(_, calls)| part(calls).iter().copied())
}

/// The main thread, which is the control thread. It starts all others, directly or not, so it may do what any of them does.
fn control_sets() -> Vec<Set> {
    let mut sets = vec![
        common::FILES,
        kvm::MACHINE,
        sandbox::paths::RESTRICT,
        migration::calls::FOLDER,
        migration::calls::RESTORE,
        CONTROL,
    ];
    sets.extend(SERVER.sets);
    sets.extend(PAGER.sets);
    sets.extend(WRITER.sets);
    sets.extend(vcpu_sets());
    sets.extend(spawner_sets());
    sets.extend(of_devices(|calls| calls.upkeep));
    sets.extend(of_devices(|calls| calls.host));
    sets
}

/// A vCPU, and what devices do when its guest accesses their registers.
fn vcpu_sets() -> Vec<Set> {
    let mut sets = vec![common::EVERYWHERE, kvm::VCPU];
    sets.extend(of_devices(|calls| calls.registers));
    sets
}

/// The thread that starts those of devices.
fn spawner_sets() -> Vec<Set> {
    let mut sets = vec![common::EVERYWHERE, common::STARTS_THREADS];
    sets.extend(of_devices(|calls| calls.own));
    sets.extend(of_devices(|calls| calls.shared));
    sets
}

/// Confines the main thread.
///
/// # Errors
/// The kernel has no filters.
pub fn control() -> Result<(), Refusal> {
    (Role { asked_by: "the control thread", sets: &control_sets() }).enter().map_err(|e| {
        Refusal::host(
            "Cannot confine the program; --seccomp false runs it without filters of system calls",
            e,
        )
    })
}

/// Confines the calling thread to running a vCPU.
///
/// # Errors
/// The kernel did not take the filter.
pub fn vcpu(index: u32) -> Result<(), sandbox::Refused> {
    (Role { asked_by: &format!("vCPU {index}"), sets: &vcpu_sets() }).enter()
}

/// Where devices' threads come from.
pub fn threads() -> Threads {
    Threads::by_spawner(spawner_sets())
}

/// What the thread that quiet devices share does.
pub fn quiet() -> Vec<Set> {
    of_devices(|calls| calls.shared).collect()
}

#[cfg(test)]
mod tests {
    use api::http::syscalls::CONNECTION;

    use super::*;
    use crate::launcher::calls::{LAUNCHER, PASST, PASST_SUPERVISED};

    /// What each kind of thread does, a line each: its name and its calls.
    fn all() -> String {
        let everywhere = || vec![common::EVERYWHERE];
        let mut kinds = vec![
            ("main", control_sets()),
            ("vcpu", vcpu_sets()),
            ("spawner", spawner_sets()),
            ("devices", [everywhere(), quiet()].concat()),
            ("http-server", SERVER.sets.to_vec()),
            ("http-connection", CONNECTION.sets.to_vec()),
            ("snapshot", WRITER.sets.to_vec()),
            ("pager", PAGER.sets.to_vec()),
        ];
        let calls = [("launcher", LAUNCHER), ("passt", PASST), ("passt, supervised", PASST_SUPERVISED)];
        kinds.extend(calls.map(|(name, sets)| (name, sets.to_vec())));
        for (flag, calls) in CALLS.iter().filter(|(_, calls)| !calls.own.is_empty()) {
            kinds.push((flag, [everywhere(), calls.own.to_vec()].concat()));
        }
        kinds.iter().map(|(name, sets)| format!("{name}: {}\n", call::list(sets))).collect()
    }

    #[test]
    fn no_thread_may_do_more_than_was_agreed_upon() {
        let agreed = include_str!("confined/calls");
        let found = all();
        assert!(
            found == agreed,
            "what threads may do has changed; if that is meant, it is for vmm/src/confined/calls:\n{found}"
        );
    }

    #[test]
    fn only_the_main_thread_opens_programs_files_and_none_starts_a_program() {
        for line in all().lines() {
            let (name, calls) = line.split_once(": ").unwrap();
            // They are processes of their own, without a machine.
            if name == "launcher" || name.starts_with("passt") {
                continue;
            }
            let has = |call: &str| calls.replace('(', " (").split(' ').any(|c| c == call);
            assert!(!has("execve") && !has("execveat") && !has("ptrace") && !has("fork"), "{name}");
            // Threads of disks look into /proc while their engine is made, before a guest is served.
            let opens = ["main", "snapshot", "spawner", "disk"].contains(&name);
            assert_eq!(has("openat"), opens, "{name}");
            // In a jail the files of others are ours, and whoever runs one that says so becomes its owner.
            for change in ["openat(3 without 0xc00)", "fchmod(1 without 0xc00)"] {
                let call = change.split('(').next().unwrap_or_default();
                assert!(!has(call) || calls.contains(change), "{name}");
            }
            for never in [
                "chmod",
                "fchmodat",
                "fchmodat2",
                "openat2",
                "open",
                "creat",
                "mknodat",
                "setxattr",
                "fsetxattr",
            ] {
                assert!(!has(never), "{name}: {never}");
            }
        }
    }
}
