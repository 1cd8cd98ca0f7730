//! Memory that is paged in on demand, by threads that touch it while it comes.

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use device::fake::random::Random;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::alone;
use super::machine::{
    KINDS, Kind, assert_same, copied, empty_like, fill, memory, open, resident, save, save_at,
};
use super::scratch::Scratch;
use crate::{Error, MEMORY, Memory, PAGE, Pager};

const MIB: u64 = 1 << 20;
const RANGES: [(u64, u64); 2] = [(0, 48 * MIB), (1 << 32, 16 * MIB)];

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn unexpected(e: Error) {
    panic!("{e}");
}

/// Threads named `pager`, and descriptors of the kind, of this process.
fn traces() -> (usize, usize) {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let named = threads
        .filter_map(|t| fs::read_to_string(t.unwrap().path().join("comm")).ok())
        .filter(|name| name == "pager\n")
        .count();
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let fds = open
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|to| to.to_string_lossy().contains("userfaultfd"))
        .count();
    (named, fds)
}

#[test]
fn threads_find_the_right_content_while_it_comes() {
    for (kind, one_in) in KINDS.into_iter().flat_map(|kind| [(kind, 1), (kind, 40)]) {
        let scratch = Scratch::new();
        let saved = memory(Kind::Private, &RANGES);
        fill(&saved, 5, one_in);
        let source = save(scratch.path(), &saved);
        let ram = empty_like(&source, kind);
        let pager = source.page_in(&ram, unexpected).unwrap();
        thread::scope(|scope| {
            for seed in 0..3 {
                let (ram, saved) = (&ram, &saved);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    let (mut is, mut ought) = ([0; PAGE as usize], [0; PAGE as usize]);
                    for _ in 0..2000 {
                        let (base, length) = RANGES[random.below(2) as usize];
                        let gpa = GuestAddress(base + random.below(length / PAGE) * PAGE);
                        ram.read_slice(&mut is, gpa).unwrap();
                        saved.read_slice(&mut ought, gpa).unwrap();
                        assert!(is == ought, "{:#x}", gpa.0);
                    }
                });
            }
        });
        wait_until("the pager ends by itself", || pager.done());
        assert_eq!(pager.progress().done(), pager.progress().total());
        assert!(!pager.failed() && pager.backing().is_none());
        assert_same(&saved, &ram);
    }
}

#[test]
fn holes_stay_holes_and_nothing_is_left_behind() {
    let scratch = Scratch::new();
    let saved = memory(Kind::Private, &[(0, 1 << 30)]);
    for gpa in [0, 300 * MIB, (1 << 30) - PAGE] {
        saved.write_obj(1, GuestAddress(gpa)).unwrap();
    }
    let source = save(scratch.path(), &saved);
    let ram = empty_like(&source, Kind::Private);
    let pager = source.page_in(&ram, unexpected).unwrap();
    wait_until("all is there", || pager.done());
    assert_eq!(resident(&ram), 3 * 4);
    drop(pager);
    assert_same(&saved, &ram);
}

/// Other tests of this process have pagers too, so this one is run in a process of its own.
#[test]
fn thread_and_descriptors_go() {
    if !alone::is_alone() {
        let output = alone::command("tests::demand::thread_and_descriptors_go", "yes").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let scratch = Scratch::new();
    let saved = memory(Kind::Private, &RANGES);
    fill(&saved, 5, 2);
    drop(save(scratch.path(), &saved));
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    for round in 0..20 {
        let source = open(scratch.path());
        let ram = empty_like(&source, Kind::Private);
        let pager = source.page_in(&ram, unexpected).unwrap();
        drop(source);
        if round % 2 == 0 {
            // In the midst of it.
            ram.read_obj::<u8>(GuestAddress(20 * MIB)).unwrap();
        } else {
            wait_until("all is there", || pager.done());
            // The file is closed, and the thread gone, before the pager is dropped.
            wait_until("it cleans up", || traces() == (0, 0) && fds() == before + 1);
            assert_same(&saved, &ram);
        }
        drop(pager);
        assert_eq!((traces(), fds()), ((0, 0), before));
    }
}

#[test]
fn a_machine_is_saved_while_it_comes_back() {
    for kind in KINDS {
        let scratch = Scratch::new();
        let saved = memory(Kind::Private, &RANGES);
        fill(&saved, 9, 3);
        let source = save(&scratch.folder("first"), &saved);
        for round in 0..8 {
            let saved = copied(&source, Kind::Private);
            let ram = empty_like(&source, kind);
            let pager = source.page_in(&ram, unexpected).unwrap();
            for ram in [&ram, &saved] {
                ram.write_slice(&[round + 1; 100], GuestAddress(30 * MIB + u64::from(round) * 5000)).unwrap();
            }
            let folder = scratch.folder(&format!("round-{round}"));
            let behind = pager.backing();
            save_at(&folder, &Memory { ram: &ram, behind: behind.as_ref(), marks: &[] }).unwrap();
            let again = open(&folder);
            assert_same(&saved, &copied(&again, Kind::Private));
            drop(pager);
        }
    }
}

/// What reads of memory that is not there yet does not depend on the pager at all.
#[test]
fn saving_does_not_make_pages_that_have_not_come() {
    let scratch = Scratch::new();
    let saved = memory(Kind::Private, &RANGES);
    fill(&saved, 9, 3);
    let source = save(&scratch.folder("first"), &saved);
    // As if no page had come yet.
    let ram = empty_like(&source, Kind::Private);
    let folder = scratch.folder("second");
    save_at(&folder, &Memory { ram: &ram, behind: Some(source.backing()), marks: &[] }).unwrap();
    assert_eq!(resident(&ram), 0);
    assert_same(&saved, &copied(&open(&folder), Kind::Private));
}

#[test]
fn a_page_that_cannot_be_read_is_said_and_never_made_up() {
    let scratch = Scratch::new();
    let saved = memory(Kind::Private, &[(0, 256 * MIB)]);
    fill(&saved, 9, 1);
    let source = save(scratch.path(), &saved);
    let ram = empty_like(&source, Kind::Private);
    let (tell, told) = mpsc::channel();
    let pager: Pager = source.page_in(&ram, move |e| tell.send(e.to_string()).unwrap()).unwrap();
    File::options().write(true).open(scratch.path().join(MEMORY)).unwrap().set_len(64 * MIB).unwrap();
    let released = AtomicBool::new(false);
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let value = ram.read_obj::<u8>(GuestAddress(200 * MIB + 1)).unwrap();
            assert!(released.load(Ordering::SeqCst), "it went on with {value}");
        });
        let message = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(message.contains(MEMORY), "{message}");
        thread::sleep(Duration::from_millis(100));
        assert!(!waits.is_finished());
        assert!(pager.failed() && !pager.done());
        // Nor can it be saved.
        let folder = scratch.folder("second");
        let behind = pager.backing();
        let refused = save_at(&folder, &Memory { ram: &ram, behind: behind.as_ref(), marks: &[] });
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        released.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        drop(pager);
        assert!(begun.elapsed() < Duration::from_secs(30));
    });
    // Once it is known to be short, it is not even begun with.
    let ram = empty_like(&source, Kind::Private);
    assert!(matches!(source.page_in(&ram, unexpected), Err(Error::Damaged { .. })));
    assert!(matches!(source.map(false), Err(Error::Damaged { .. })));
}

#[test]
fn memory_that_is_given_back_comes_again() {
    let scratch = Scratch::new();
    let saved = memory(Kind::Private, &[(0, 256 * MIB)]);
    fill(&saved, 9, 1);
    let source = save(scratch.path(), &saved);
    let ram = empty_like(&source, Kind::Private);
    let pager = source.page_in(&ram, unexpected).unwrap();
    let gpa = GuestAddress(200 * MIB);
    let host = ram.get_host_address(gpa).unwrap();
    let mut times = 0;
    while !pager.done() {
        // SAFETY: the page lies within the region; its content may become what it was.
        assert_eq!(unsafe { libc::madvise(host.cast(), PAGE as usize, libc::MADV_DONTNEED) }, 0);
        let value = ram.read_obj::<u64>(gpa).unwrap();
        if value != saved.read_obj::<u64>(gpa).unwrap() {
            // What is given back after the end is zero, as ever.
            assert_eq!(value, 0);
            wait_until("it has come to its end", || pager.done());
        }
        times += 1;
    }
    assert!(times > 1, "{times}");
}
