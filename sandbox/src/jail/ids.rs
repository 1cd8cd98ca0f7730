//! Who a process is, and what it may do for it.
//!
//! Root becomes somebody who owns nothing; an ordinary user stays who they are, in a user namespace that knows nobody else. In both cases the
//! process is alone in a user namespace, and has no capability in any.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use super::kernel::{self, check, control};
use super::{JailError, at};

/// The user and the group that root becomes; both are one that nobody has unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Number of the user.
    pub uid: Option<u32>,
    /// Number of the group.
    pub gid: Option<u32>,
}

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The first of the ids that jails have; process numbers end below 2^22, so that no two jails of a host share one.
const UNUSED: u32 = 1 << 30;

impl Owner {
    /// Whom to become; nobody else for an ordinary user.
    pub(super) fn resolve(self, privileged: bool) -> Result<Option<Ids>, JailError> {
        if !privileged {
            return match (self.uid, self.gid) {
                (None, None) => Ok(None),
                _ => Err(JailError::new(
                    "uid= and gid= are for root: who starts the program as an ordinary user stays who they are",
                )),
            };
        }
        let unused = UNUSED | std::process::id();
        Ok(Some(Ids { uid: self.uid.unwrap_or(unused), gid: self.gid.unwrap_or(unused) }))
    }
}

/// `struct __user_cap_header_struct` (`linux/capability.h`).
#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

/// `struct __user_cap_data_struct`, of which there are two.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// Whether the process may change ids and mounts, which is what a jail takes.
pub(super) fn privileged() -> io::Result<bool> {
    const NEEDED: u32 = 1 << 6 | 1 << 7 | 1 << 21; // CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
    let mut header = Header { version: VERSION, process: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the kernel reads the header and writes two sets, all of which live during the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    Ok(sets[0].effective & NEEDED == NEEDED)
}

/// Enters a user namespace in which there is nobody but the user, who has all capabilities in it for now.
pub(super) fn unshare_users() -> Result<(), JailError> {
    // SAFETY: no pointers; these cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    kernel::unshare(libc::CLONE_NEWUSER).map_err(at(
        "cannot make a user namespace, which an ordinary user's jail begins with (are there to be any, \
         user.max_user_namespaces?)",
    ))?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    for (name, text) in maps {
        let path = format!("/proc/self/{name}");
        // In one piece: the kernel takes a map once.
        let written =
            std::fs::File::options().write(true).open(&path).and_then(|mut f| f.write_all(text.as_bytes()));
        written.map_err(at(format!("cannot write {path}")))?;
    }
    Ok(())
}

/// A user namespace with one user and one group: `inside` there are `outside` here. `proc` shows processes of this process namespace.
///
/// A namespace lives as long as a process or a descriptor: a child makes it, and goes.
pub(super) fn namespace(proc: &OwnedFd, inside: Ids, outside: Ids) -> io::Result<OwnedFd> {
    let (made, tell) = kernel::pipe()?;
    let (stay, end) = kernel::pipe()?;
    let Some(child) = kernel::fork()? else {
        drop((made, end));
        let done = kernel::unshare(libc::CLONE_NEWUSER).and_then(|()| {
            std::fs::File::from(tell).write_all(&[1])?;
            kernel::readable([&stay], false)
        });
        // SAFETY: it only ends the process, without what the parent would do at its end.
        unsafe { libc::_exit(i32::from(done.is_err())) }
    };
    drop((tell, stay));
    let result = name_users(proc, child, &made, inside, outside);
    drop(end);
    kernel::wait(child)?;
    result
}

fn name_users(
    proc: &OwnedFd,
    child: libc::pid_t,
    made: &OwnedFd,
    inside: Ids,
    outside: Ids,
) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    // SAFETY: the kernel writes at most one byte.
    let read = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(made), byte.as_mut_ptr().cast(), 1) };
    if check(read as libc::c_long)? != 1 {
        return Err(io::Error::other("the kernel makes no user namespace (user.max_user_namespaces?)"));
    }
    let open = |name: &str, flags| {
        let path = CString::new(format!("{child}/{name}")).map_err(io::Error::other)?;
        kernel::open_at(proc.as_fd(), &path, flags, 0)
    };
    for (name, inner, outer) in [("uid_map", inside.uid, outside.uid), ("gid_map", inside.gid, outside.gid)] {
        let text = format!("{inner} {outer} 1");
        std::fs::File::from(open(name, libc::O_WRONLY)?).write_all(text.as_bytes())?;
    }
    open("ns/user", libc::O_RDONLY)
}

/// Becomes somebody else, for good, in another user namespace if there is one for it.
pub(super) fn become_owner(ids: Ids, users: Option<&OwnedFd>) -> Result<(), JailError> {
    let Ids { uid, gid } = ids;
    if let Some(users) = users {
        kernel::join_users(users).map_err(at("cannot enter the user namespace"))?;
    }
    // Capabilities are dropped by themselves, all sets of them; it takes some to do that.
    control(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP as libc::c_ulong, 0)
        .map_err(at("cannot set secure bits"))?;
    // The calls of the kernel rather than the C library's, which have all threads follow: there is one.
    // SAFETY: no group is listed, so that no pointer is used.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })
        .map_err(at("cannot give up groups"))?;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
        .map_err(at(format!("cannot become group {gid}")))?;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
        .map_err(at(format!("cannot become user {uid}")))?;
    Ok(())
}

/// The capability to remove what is in a directory that nobody may write to, as that of a control group is.
pub(super) const DAC_OVERRIDE: u32 = 1 << 1;

/// No capability is left in any set but those to `keep`, none can be gained, and no id is special any more.
pub(super) fn drop_capabilities(keep: u32) -> Result<(), JailError> {
    let failed = || at("cannot drop capabilities");
    for capability in 0..64 {
        match control(libc::PR_CAPBSET_DROP, capability, 0) {
            // Beyond the last that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            result => result.map_err(failed())?,
        }
    }
    control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map_err(failed())?;
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    control(libc::PR_SET_SECUREBITS, bits as libc::c_ulong, 0).map_err(at("cannot set secure bits"))?;
    let (mut header, mut sets) = (Header { version: VERSION, process: 0 }, [Sets::default(); 2]);
    (sets[0].effective, sets[0].permitted) = (keep, keep);
    // SAFETY: the kernel reads the header and two sets, all of which live during the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) }).map_err(failed())?;
    control(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(at("cannot give up new privileges"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_nobody_in_particular_and_users_stay_who_they_are() {
        let said = Owner { uid: Some(7), gid: None };
        let unused = UNUSED | std::process::id();
        assert_eq!(said.resolve(true).unwrap(), Some(Ids { uid: 7, gid: unused }));
        assert_eq!(Owner::default().resolve(false).unwrap(), None);
        assert!(said.resolve(false).unwrap_err().to_string().contains("uid= and gid= are for root"));
    }
}
