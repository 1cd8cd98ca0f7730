//! From calls to a filter: a program for the kernel's packet filter (BPF), which sees each call's number and arguments.
//!
//! It looks numbers up in a tree: a filter is run for each call, and the kernel runs it for every number there is when it is put on a
//! thread, to learn which calls need no looking at. And it is short, as the kernel translates it for the processor whenever a thread is
//! confined, which is a good part of what a machine's start costs.

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
const ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const COMMON_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Leaves of a tree of so many are looked through one by one.
const LEAF: usize = 4;

/// The farthest that a test can go on from, less what may come in between.
const REACH: usize = u8::MAX as usize - 4;

/// A program that allows these calls and answers all others as the mode says.
pub fn compile(sets: &[Set], mode: Mode) -> Vec<sock_filter> {
    let mut calls: Vec<&Call> = sets.iter().copied().flatten().collect();
    calls.sort_unstable_by_key(|call| call.number);
    let mut program = Program { code: Vec::with_capacity(2 * calls.len() + 16), answers: Vec::new() };
    let no = mode.answer();
    let always = |rules: &[&Call]| rules.iter().any(|rule| rule.when == When::Always);
    let groups = calls.chunk_by(|a, b| a.number == b.number);
    let looked_at = groups.map(|rules| (rules[0].number, (!always(rules)).then(|| program.rules(rules, no))));
    let looked_at: Vec<(u32, Option<Place>)> = looked_at.collect();
    // What needs no looking at is one place, so that it makes ranges.
    let (allow, otherwise) = (program.answer(libc::SECCOMP_RET_ALLOW), program.answer(no));
    let tree = ranges(looked_at.into_iter().map(|(number, to)| (number, to.unwrap_or(allow))));
    let tree = program.tree(&tree, otherwise);
    let number = program.before(LOAD, NUMBER, tree);
    let other = program.answer(libc::SECCOMP_RET_KILL_PROCESS);
    let test = program.test(EQUAL, PROCESSOR, number, other);
    program.before(LOAD, ARCHITECTURE, test);
    program.code.reverse();
    program.code
}

/// A place in a program: the nth instruction from its end.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(usize);

/// Where to go on with what was loaded, if it is one of these values.
struct Range {
    low: u32,
    high: u32,
    to: Place,
}

/// Puts values that follow each other and go on at the same place together.
fn ranges(values: impl Iterator<Item = (u32, Place)>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::with_capacity(values.size_hint().0);
    for (value, to) in values {
        match ranges.last_mut() {
            Some(last) if last.to == to && last.high.checked_add(1) == Some(value) => last.high = value,
            _ => ranges.push(Range { low: value, high: value, to }),
        }
    }
    ranges
}

/// A program, written from its end to its beginning: where a test goes on is known when it is written, and many tests share an answer.
struct Program {
    /// The last instruction first.
    code: Vec<sock_filter>,
    /// Where each answer was written last.
    answers: Vec<(u32, Place)>,
}

impl Program {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Place {
        self.code.push(sock_filter { code, jt, jf, k });
        Place(self.code.len() - 1)
    }

    /// How many instructions are between the one that is written next and that one.
    fn distance(&self, to: Place) -> usize {
        self.code.len() - 1 - to.0
    }

    /// A place of an answer that the next test can reach.
    fn answer(&mut self, answer: u32) -> Place {
        let known = self.answers.iter().position(|(known, _)| *known == answer);
        match known.map(|at| self.answers[at].1) {
            Some(place) if self.distance(place) <= REACH => return place,
            _ => {}
        }
        let place = self.push(ANSWER, 0, 0, answer);
        match known {
            Some(at) => self.answers[at].1 = place,
            None => self.answers.push((answer, place)),
        }
        place
    }

    /// This place, or one that leads there or says the same, and that the next test can reach.
    fn near(&mut self, to: Place) -> Place {
        let (distance, target) = (self.distance(to), self.code[to.0]);
        if distance <= REACH {
            to
        } else if target.code == ANSWER {
            self.answer(target.k)
        } else {
            // A program has less than 2^16 instructions.
            self.push(JUMP, 0, 0, distance as u32)
        }
    }

    /// Goes on at `yes` if the test succeeds, and at `no` otherwise.
    fn test(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let (yes, no) = (self.near(yes), self.near(no));
        // What was written for the second keeps the first within 255.
        let [yes, no] = [yes, no].map(|to| self.distance(to) as u8);
        self.push(code, yes, no, k)
    }

    /// Does something that is no test, and goes on there.
    fn before(&mut self, code: u16, k: u32, then: Place) -> Place {
        let distance = self.distance(then);
        if distance > 0 {
            self.push(JUMP, 0, 0, distance as u32);
        }
        self.push(code, 0, 0, k)
    }

    /// Loads the lower half of an argument, and goes on there.
    fn load(&mut self, index: u8, then: Place) -> Place {
        let half = if cfg!(target_endian = "big") { 4 } else { 0 };
        self.before(LOAD, ARGUMENTS + 8 * u32::from(index) + half, then)
    }

    /// Looks up what was loaded among ranges that are in their order.
    fn tree(&mut self, ranges: &[Range], otherwise: Place) -> Place {
        if ranges.len() > LEAF {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let border = high[0].low;
            let (high, low) = (self.tree(high, otherwise), self.tree(low, otherwise));
            return self.test(AT_LEAST, border, high, low);
        }
        ranges.iter().rev().fold(otherwise, |next, &Range { low, high, to }| {
            if low == high {
                return self.test(EQUAL, low, to, next);
            }
            let reached = self.test(ABOVE, high, next, to);
            self.test(AT_LEAST, low, reached, otherwise)
        })
    }

    /// What is to be said of one call, by the rules for it: one of them is enough.
    fn rules(&mut self, rules: &[&Call], no: u32) -> Place {
        let mut no = no;
        let mut lists: Vec<(u8, &[u32])> = Vec::new();
        for rule in rules {
            match rule.when {
                When::OneOf(index, values) => lists.push((index, values)),
                When::Supervised => no = libc::SECCOMP_RET_USER_NOTIF,
                When::Refused(error) => no = libc::SECCOMP_RET_ERRNO | u32::from(error),
                _ => {}
            }
        }
        let mut next = self.answer(no);
        next = self.lists(&mut lists, next);
        for rule in rules {
            let allow = self.answer(libc::SECCOMP_RET_ALLOW);
            next = match rule.when {
                When::Without(index, bits) => {
                    let test = self.test(COMMON_BITS, bits, next, allow);
                    self.load(index, test)
                }
                When::With(index, bits) => {
                    let test = self.test(EQUAL, bits, allow, next);
                    let all = self.before(AND, bits, test);
                    self.load(index, all)
                }
                When::Ourselves(index) => {
                    let test = self.test(EQUAL, std::process::id(), allow, next);
                    self.load(index, test)
                }
                _ => next,
            };
        }
        next
    }

    /// Allows what is in one of the lists for its argument.
    fn lists(&mut self, lists: &mut [(u8, &[u32])], otherwise: Place) -> Place {
        lists.sort_unstable_by_key(|(index, _)| *index);
        lists.chunk_by(|a, b| a.0 == b.0).fold(otherwise, |next, list| {
            let mut values: Vec<u32> = list.iter().flat_map(|(_, values)| values.iter().copied()).collect();
            values.sort_unstable();
            values.dedup();
            let allow = self.answer(libc::SECCOMP_RET_ALLOW);
            let tree = self.tree(&ranges(values.into_iter().map(|value| (value, allow))), next);
            self.load(list[0].0, tree)
        })
    }
}

#[cfg(test)]
mod tests;
