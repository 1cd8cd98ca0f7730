//! From calls to a filter: a program for the kernel's packet filter (BPF), which sees each call's number and arguments.
//!
//! It looks numbers up in a tree: a filter is run for each call, and the kernel runs it for every number there is when it is put on a
//! thread, to learn which calls need no looking at.

use libc::sock_filter;

use crate::call::{Call, Set, When};
use crate::mode::Mode;

/// What the kernel says the processor is (`AUDIT_ARCH_…`, `linux/audit.h`): 64 bits, little endian.
#[cfg(target_arch = "x86_64")]
const PROCESSOR: u32 = 0xc000_0000 | 62;
#[cfg(target_arch = "aarch64")]
const PROCESSOR: u32 = 0xc000_0000 | 183;

/// Places in `struct seccomp_data` (`linux/seccomp.h`).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const COMMON_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Leaves of a tree of so many are looked through one by one.
const LEAF: usize = 3;

/// A program that allows these calls and answers all others as the mode says.
pub fn compile(sets: &[Set], mode: Mode) -> Vec<sock_filter> {
    let mut calls: Vec<&Call> = sets.iter().copied().flatten().collect();
    calls.sort_unstable_by_key(|call| call.number);
    let groups: Vec<&[&Call]> = calls.chunk_by(|a, b| a.number == b.number).collect();
    let mut program = Program { code: Vec::with_capacity(4 * calls.len() + 16), no: mode.answer() };
    program.push(LOAD, ARCHITECTURE);
    program.test(EQUAL, PROCESSOR, 1, 0);
    program.push(ANSWER, libc::SECCOMP_RET_KILL_PROCESS);
    program.push(LOAD, NUMBER);
    program.tree(&groups, &|group| group[0].number, &|program, group| program.rules(group));
    program.code
}

struct Program {
    code: Vec<sock_filter>,
    /// What to answer to what is not allowed.
    no: u32,
}

impl Program {
    fn push(&mut self, code: u16, k: u32) {
        self.code.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    /// Goes on `yes` instructions later if the test succeeds, `no` otherwise.
    fn test(&mut self, code: u16, k: u32, yes: u8, no: u8) {
        self.code.push(sock_filter { code, jt: yes, jf: no, k });
    }

    fn allow(&mut self) {
        self.push(ANSWER, libc::SECCOMP_RET_ALLOW);
    }

    /// Writes code with `write` that is run only if the test succeeds, or only if it fails, and passed over otherwise.
    fn when(&mut self, test: u16, k: u32, succeeds: bool, write: impl FnOnce(&mut Self)) {
        let at = self.code.len();
        self.test(test, k, 0, 0);
        write(self);
        let length = self.code.len() - at - 1;
        let (over, into) = match u8::try_from(length) {
            Ok(length) => (length, 0),
            Err(_) => {
                // Too far for a test: it goes on past a jump, or to it. A program has less than 2^16 instructions.
                self.code.insert(at + 1, sock_filter { code: JUMP, jt: 0, jf: 0, k: length as u32 });
                (0, 1)
            }
        };
        let test = &mut self.code[at];
        (test.jt, test.jf) = if succeeds { (into, over) } else { (over, into) };
    }

    /// Looks up what was loaded among entries that are in the order of their keys; `found` ends with an answer.
    fn tree<T>(&mut self, entries: &[T], key: &impl Fn(&T) -> u32, found: &impl Fn(&mut Self, &T)) {
        if entries.len() <= LEAF {
            for entry in entries {
                self.when(EQUAL, key(entry), true, |program| found(program, entry));
            }
            self.push(ANSWER, self.no);
            return;
        }
        let (low, high) = entries.split_at(entries.len() / 2);
        self.when(AT_LEAST, key(&high[0]), false, |program| program.tree(low, key, found));
        self.tree(high, key, found);
    }

    /// What is to be said of one call, by the rules for it: one of them is enough.
    fn rules(&mut self, rules: &[&Call]) {
        if rules.iter().any(|rule| rule.when == When::Always) {
            return self.allow();
        }
        let mut no = self.no;
        let mut lists: Vec<(u8, &[u32])> = Vec::new();
        for rule in rules {
            match rule.when {
                When::Always => {}
                When::OneOf(index, values) => lists.push((index, values)),
                When::Without(index, bits) => {
                    self.load(index);
                    self.when(COMMON_BITS, bits, false, Self::allow);
                }
                When::With(index, bits) => {
                    self.load(index);
                    self.push(AND, bits);
                    self.when(EQUAL, bits, true, Self::allow);
                }
                When::Ourselves(index) => {
                    self.load(index);
                    self.when(EQUAL, std::process::id(), true, Self::allow);
                }
                When::Supervised => no = libc::SECCOMP_RET_USER_NOTIF,
                When::Refused(error) => no = libc::SECCOMP_RET_ERRNO | u32::from(error),
            }
        }
        let before = std::mem::replace(&mut self.no, no);
        self.lists(&mut lists);
        self.no = before;
    }

    /// Allows what is in one of the lists for its argument, and nothing else.
    fn lists(&mut self, lists: &mut [(u8, &[u32])]) {
        lists.sort_unstable_by_key(|(index, _)| *index);
        let lists: Vec<_> = lists.chunk_by(|a, b| a.0 == b.0).collect();
        let Some((last, others)) = lists.split_last() else { return self.push(ANSWER, self.no) };
        let values = |list: &[(u8, &[u32])]| {
            let mut values: Vec<u32> = list.iter().flat_map(|(_, values)| values.iter().copied()).collect();
            values.sort_unstable();
            values.dedup();
            values
        };
        for list in others {
            self.load(list[0].0);
            for value in values(list) {
                self.when(EQUAL, value, true, Self::allow);
            }
        }
        self.load(last[0].0);
        self.tree(&values(last), &|value| *value, &|program, _| program.allow());
    }

    /// Loads the lower half of an argument.
    fn load(&mut self, index: u8) {
        let half = if cfg!(target_endian = "big") { 4 } else { 0 };
        self.push(LOAD, ARGUMENTS + 8 * u32::from(index) + half);
    }
}

#[cfg(test)]
mod tests;
