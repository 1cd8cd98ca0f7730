//! System calls and the arguments with which they may be made.
//!
//! Only the lower half of an argument is looked at: all arguments named here are numbers of 32 bits to the kernel, or flags of which
//! those that matter lie there.

use std::collections::{BTreeMap, BTreeSet};

/// What one kind of code asks of the kernel.
pub type Set = &'static [Call];

/// A system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// When it may be made.
    pub when: When,
}

/// When a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With any arguments.
    Always,
    /// When the argument with this index is one of these.
    OneOf(u8, &'static [u32]),
    /// When the argument has none of these bits.
    Without(u8, u32),
    /// When the argument has all of these bits.
    With(u8, u32),
    /// When the argument is this process.
    Ourselves(u8),
    /// When who listens to the filter ([`crate::Prepared::enter_supervised`]) has made it in the caller's place; other rules for the call
    /// come before.
    Supervised,
    /// Never; it is answered with this error instead, because whoever asks has another way.
    Refused(u16),
}

impl Call {
    /// The call with this number (`SYS_…`), with any arguments.
    pub const fn any(number: libc::c_long) -> Call {
        Call::new(number, When::Always)
    }

    /// The call, when its argument `index` is one of `values`.
    pub const fn one_of(number: libc::c_long, index: u8, values: &'static [u32]) -> Call {
        Call::new(number, When::OneOf(index, values))
    }

    /// The call with other conditions.
    pub const fn new(number: libc::c_long, when: When) -> Call {
        Call { number: number as u32, when }
    }
}

/// Calls with any arguments, by their numbers.
pub const fn all<const N: usize>(numbers: [libc::c_long; N]) -> [Call; N] {
    let mut calls = [Call::any(0); N];
    let mut i = 0;
    while i < N {
        calls[i] = Call::any(numbers[i]);
        i += 1;
    }
    calls
}

/// `ioctl(2)` with these requests.
pub const fn ioctl(requests: &'static [u32]) -> Call {
    Call::one_of(libc::SYS_ioctl, 1, requests)
}

/// `fcntl(2)` with these commands.
pub const fn fcntl(commands: &'static [u32]) -> Call {
    Call::one_of(libc::SYS_fcntl, 1, commands)
}

/// `prctl(2)` with these options.
pub const fn prctl(options: &'static [u32]) -> Call {
    Call::one_of(libc::SYS_prctl, 0, options)
}

/// `madvise(2)` with this advice.
pub const fn madvise(advice: &'static [u32]) -> Call {
    Call::one_of(libc::SYS_madvise, 2, advice)
}

/// `socket(2)` of these families.
pub const fn socket(families: &'static [u32]) -> Call {
    Call::one_of(libc::SYS_socket, 0, families)
}

/// A list of all calls of these sets for people, by name and each once: `read mmap(2 without 0x4) ioctl(1: 3)`, where the last is allowed with
/// three different values of its argument 1.
pub fn list(sets: &[Set]) -> String {
    let mut rules: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let mut values: BTreeMap<(u32, u8), BTreeSet<u32>> = BTreeMap::new();
    for call in sets.iter().copied().flatten() {
        let of = rules.entry(call.number).or_default();
        of.insert(match call.when {
            When::Always => String::new(),
            When::OneOf(index, list) => {
                values.entry((call.number, index)).or_default().extend(list);
                continue;
            }
            When::Without(index, bits) => format!("({index} without {bits:#x})"),
            When::With(index, bits) => format!("({index} with {bits:#x})"),
            When::Ourselves(index) => format!("({index} is us)"),
            When::Supervised => "(supervised)".to_owned(),
            When::Refused(error) => format!("(never: error {error})"),
        });
    }
    for ((number, index), values) in values {
        let of = rules.entry(number).or_default();
        of.insert(format!("({index}: {})", values.len()));
    }
    let text = |(number, rules): (u32, BTreeSet<String>)| {
        // One that is always allowed needs no more to be said.
        let rules = if rules.contains("") { String::new() } else { rules.into_iter().collect() };
        format!("{}{rules}", crate::name(number))
    };
    let mut list: Vec<String> = rules.into_iter().map(text).collect();
    list.sort_unstable();
    list.join(" ")
}
