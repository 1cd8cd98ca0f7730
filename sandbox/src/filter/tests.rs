use std::collections::BTreeMap;

use super::*;
use crate::call::{all, ioctl, prctl};
use crate::common::{EVERYWHERE, FILES, STARTS_THREADS};

/// Runs a program as the kernel would, for one call.
fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0u32; 16];
    (data[0], data[1]) = (number, architecture);
    for (i, argument) in arguments.into_iter().enumerate() {
        (data[4 + 2 * i], data[5 + 2 * i]) = (argument as u32, (argument >> 32) as u32);
    }
    let (mut at, mut loaded) = (0, 0u32);
    loop {
        let step = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
        match step.code {
            LOAD => loaded = data[step.k as usize / 4],
            AND => loaded &= step.k,
            EQUAL => at += jump(loaded == step.k),
            AT_LEAST => at += jump(loaded >= step.k),
            ABOVE => at += jump(loaded > step.k),
            COMMON_BITS => at += jump(loaded & step.k != 0),
            JUMP => at += step.k as usize,
            ANSWER => return step.k,
            other => panic!("{other:#x} is no instruction of ours"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;

fn ask(program: &[sock_filter], number: i64, arguments: [u64; 6]) -> u32 {
    run(program, PROCESSOR, number as u32, arguments)
}

#[test]
fn every_number_is_allowed_exactly_if_it_is_listed() {
    // Sets of all sizes, so that trees of all shapes and jumps of all lengths are there.
    for step in 1..9u32 {
        for count in [0, 1, 2, 3, 4, 5, 17, 64, 150] {
            let calls: Vec<Call> = (0..count).map(|i| Call::any((i * step).into())).collect();
            let calls: Set = Vec::leak(calls);
            let program = compile(&[calls], Mode::Kill);
            assert!(program.len() < 4096);
            for number in 0..1300 {
                let listed = number % step == 0 && number / step < count;
                let answer = run(&program, PROCESSOR, number, [7; 6]);
                assert_eq!(answer, if listed { ALLOW } else { TRAP }, "{number} of {count} by {step}");
            }
        }
    }
}

#[test]
fn arguments_decide_where_they_are_to() {
    const REQUESTS: &[u32] = &[0xae80, 0x5413, 0x8008_ae9f, 1, 2, 3, 4, 5];
    const SETS: &[Set] = &[
        &[ioctl(REQUESTS), Call::new(libc::SYS_mmap, When::Without(2, 4)), prctl(&[15])],
        &[ioctl(&[0x5401]), Call::new(libc::SYS_clone, When::With(0, 0x1_0100)), prctl(&[38])],
        &[Call::one_of(libc::SYS_ioctl, 2, &[99]), Call::new(libc::SYS_clone3, When::Refused(38))],
        &[Call::new(libc::SYS_tgkill, When::Ourselves(0))],
    ];
    let program = compile(SETS, Mode::Kill);
    let second = |number, argument| ask(&program, number, [0, argument, 0, 0, 0, 0]);
    for request in 0..0x6000u64 {
        let listed = request == 0x5401 || REQUESTS.contains(&(request as u32));
        assert_eq!(second(libc::SYS_ioctl, request), if listed { ALLOW } else { TRAP }, "{request:#x}");
    }
    assert_eq!(second(libc::SYS_ioctl, 0x8008_ae9f), ALLOW);
    // The kernel takes a request for 32 bits.
    assert_eq!(second(libc::SYS_ioctl, 0xffff_ffff_8008_ae9f), ALLOW);
    assert_eq!(ask(&program, libc::SYS_ioctl, [0, 0, 99, 0, 0, 0]), ALLOW);
    for (protection, answer) in [(0, ALLOW), (3, ALLOW), (4, TRAP), (7, TRAP)] {
        assert_eq!(ask(&program, libc::SYS_mmap, [0, 0, protection, 0, 0, 0]), answer);
    }
    for (flags, answer) in [(0x3d_0f00, ALLOW), (0x3c_0f00, TRAP), (0x1_0000, TRAP), (17, TRAP)] {
        assert_eq!(ask(&program, libc::SYS_clone, [flags, 0, 0, 0, 0, 0]), answer, "{flags:#x}");
    }
    assert_eq!(ask(&program, libc::SYS_clone3, [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    let us = u64::from(std::process::id());
    assert_eq!(ask(&program, libc::SYS_tgkill, [us, 1, 9, 0, 0, 0]), ALLOW);
    assert_eq!(ask(&program, libc::SYS_tgkill, [us + 1, 1, 9, 0, 0, 0]), TRAP);
    assert_eq!([15, 38, 16].map(|option| ask(&program, libc::SYS_prctl, [option; 6])), [ALLOW, ALLOW, TRAP]);
}

/// What the rules say, without a program.
fn said(calls: &[Call], number: u32, arguments: [u64; 6]) -> u32 {
    let mut no = TRAP;
    for call in calls.iter().filter(|call| call.number == number) {
        let argument = |index: u8| arguments[usize::from(index)] as u32;
        let allows = match call.when {
            When::Always => true,
            When::OneOf(index, values) => values.contains(&argument(index)),
            When::Without(index, bits) => argument(index) & bits == 0,
            When::With(index, bits) => argument(index) & bits == bits,
            When::Ourselves(index) => argument(index) == std::process::id(),
            When::Supervised | When::Refused(_) => {
                no = libc::SECCOMP_RET_USER_NOTIF;
                false
            }
        };
        if allows {
            return ALLOW;
        }
    }
    no
}

#[test]
fn programs_say_what_their_rules_say_in_any_mixture() {
    // Knuth's multiplicative generator: the same mixtures each time, and most jumps are longer than a test's.
    let mut state = 1u64;
    let mut below = |limit: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(limit)) as u32
    };
    let mut longest = 0;
    for _ in 0..60 {
        let numbers = 1 + below(200);
        let calls: Vec<Call> = (0..below(300))
            .map(|_| {
                let (number, index) = (below(numbers), below(3) as u8);
                let when = match below(8) {
                    0..=2 => When::Always,
                    3 | 4 => {
                        let values: Vec<u32> = (0..below(40)).map(|_| below(64)).collect();
                        When::OneOf(index, values.leak())
                    }
                    5 => When::Without(index, 1 << below(6)),
                    6 => When::With(index, 1 << below(6) | 1),
                    _ => When::Supervised,
                };
                Call::new(number.into(), when)
            })
            .collect();
        let set: Set = calls.clone().leak();
        let program = compile(&[set], Mode::Kill);
        longest = longest.max(program.len());
        for number in 0..numbers + 3 {
            for _ in 0..40 {
                let arguments = [0; 6].map(|_: u64| u64::from(below(70)));
                assert_eq!(
                    run(&program, PROCESSOR, number, arguments),
                    said(&calls, number, arguments),
                    "{number} {arguments:?}: {calls:?}"
                );
            }
        }
    }
    assert!(longest > 3 * usize::from(u8::MAX), "{longest}");
}

#[test]
fn long_lists_of_requests_are_jumped_over() {
    let requests: &[u32] = Vec::leak((0..400).map(|i| 3 * i).collect());
    let calls: Set = Vec::leak(vec![Call::any(1), ioctl(requests), Call::any(300)]);
    let program = compile(&[calls], Mode::Kill);
    for (number, answer) in [(1, ALLOW), (2, TRAP), (299, TRAP), (300, ALLOW)] {
        assert_eq!(ask(&program, number, [0; 6]), answer);
    }
    for request in 0..1300 {
        let listed = request % 3 == 0 && request < 1200;
        let answer = ask(&program, libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        assert_eq!(answer, if listed { ALLOW } else { TRAP }, "{request}");
    }
}

#[test]
fn other_processors_numbers_are_not_taken_for_ours() {
    let program = compile(&[EVERYWHERE], Mode::Log);
    // 32-bit calls, and those of x32.
    assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(run(&program, PROCESSOR, 0x4000_0000 | 1, [0; 6]), libc::SECCOMP_RET_LOG);
}

#[test]
fn nothing_common_starts_a_program_or_makes_memory_executable() {
    let program = compile(&[EVERYWHERE, STARTS_THREADS, FILES], Mode::Errno);
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    for number in all([
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_bpf,
        libc::SYS_kill,
        libc::SYS_setuid,
        libc::SYS_process_vm_writev,
        libc::SYS_init_module,
    ]) {
        assert_eq!(
            run(&program, PROCESSOR, number.number, [0; 6]),
            refused,
            "{}",
            crate::name(number.number)
        );
    }
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        assert_eq!(ask(&program, number, [0, 0, libc::PROT_EXEC as u64, 0, 0, 0]), refused);
        assert_eq!(ask(&program, number, [0, 0, libc::PROT_READ as u64, 0, 0, 0]), ALLOW);
    }
    // A process by clone.
    assert_eq!(ask(&program, libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]), refused);
}

#[test]
fn a_look_up_is_short() {
    // Steps to the answer for every number: this is what each call costs.
    let program = compile(&[EVERYWHERE, STARTS_THREADS, FILES], Mode::Kill);
    let mut longest = BTreeMap::new();
    for number in 0..450u32 {
        let (mut at, mut steps) = (0, 0);
        loop {
            let step = program[at];
            (at, steps) = (at + 1, steps + 1);
            let yes = match step.code {
                LOAD => continue,
                EQUAL if step.k == PROCESSOR => true,
                EQUAL => step.k == number,
                AT_LEAST => number >= step.k,
                ABOVE => number > step.k,
                JUMP => {
                    at += step.k as usize;
                    continue;
                }
                _ => break,
            };
            at += usize::from(if yes { step.jt } else { step.jf });
        }
        longest.insert(steps, number);
    }
    assert!(*longest.last_key_value().unwrap().0 <= 18, "{longest:?}");
}

#[test]
fn what_is_supervised_is_asked_about_unless_another_rule_allows_it() {
    const SETS: &[Set] = &[&[
        Call::new(libc::SYS_connect, When::Supervised),
        Call::one_of(libc::SYS_sendto, 4, &[0]),
        Call::new(libc::SYS_sendto, When::Supervised),
    ]];
    let to = |address| [3, 0, 0, 0, address, 0];
    for (mode, other) in [(Mode::Kill, TRAP), (Mode::Off, ALLOW)] {
        let program = compile(SETS, mode);
        assert_eq!(ask(&program, libc::SYS_connect, to(0)), libc::SECCOMP_RET_USER_NOTIF);
        assert_eq!(ask(&program, libc::SYS_sendto, to(0)), ALLOW);
        assert_eq!(ask(&program, libc::SYS_sendto, to(0x7fff_0000)), libc::SECCOMP_RET_USER_NOTIF);
        assert_eq!(ask(&program, libc::SYS_bind, to(0)), other);
    }
}
