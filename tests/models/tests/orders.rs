//! The gate at which a vCPU stands still, with its owner and the thread, and with two who tell it to end.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use models::gate::{Gate, Pass};

/// What a thread owns that passes a gate.
struct Own {
    errands: usize,
}

/// Runs `story` in every order in which threads may come to their turns, with at most three that are not forced.
fn in_every_order(story: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(story);
}

/// A thread that passes until it is told to end, and says while it runs. How often it ran, and how many errands it did.
fn passes(
    gate: &Arc<Gate<Own>>,
    running: &Arc<AtomicBool>,
    most: usize,
) -> thread::JoinHandle<(usize, usize)> {
    let (gate, running) = (gate.clone(), running.clone());
    thread::spawn(move || {
        let (mut own, mut ran) = (Own { errands: 0 }, 0);
        loop {
            match gate.pass() {
                Pass::Run => {
                    running.store(true, Ordering::SeqCst);
                    ran += 1;
                    running.store(false, Ordering::SeqCst);
                    // As a vCPU that asks for a reset.
                    if ran == most {
                        gate.end();
                    }
                }
                Pass::Do(errand) => errand(&mut own),
                Pass::End => break,
            }
        }
        gate.leave();
        (ran, own.errands)
    })
}

#[test]
fn whoever_waits_finds_the_thread_still_and_is_never_left_waiting() {
    in_every_order(|| {
        let (gate, running) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let thread = passes(&gate, &running, 2);
        gate.open();
        gate.close();
        gate.wait_parked();
        assert!(!running.load(Ordering::SeqCst), "it runs");
        gate.end();
        let (ran, _) = thread.join().unwrap();
        assert!(ran <= 2);
    });
}

#[test]
fn an_errand_is_done_once_or_dropped_and_its_sender_learns_which() {
    in_every_order(|| {
        let (gate, running) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let thread = passes(&gate, &running, 1);
        let (done, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let answer = Answer { done: done.clone(), dropped: dropped.clone() };
        gate.wait_parked();
        gate.send(Box::new(move |own: &mut Own| {
            own.errands += 1;
            answer.done.fetch_add(1, Ordering::SeqCst);
        }));
        gate.end();
        let (_, errands) = thread.join().unwrap();
        assert_eq!(done.load(Ordering::SeqCst), errands);
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "its sender would wait for ever");
        assert!(errands <= 1);
    });
}

/// What an errand answers with; gone when nobody can answer any more.
struct Answer {
    done: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_was_ended_stays_so_whoever_opens_it() {
    in_every_order(|| {
        let (gate, running) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let thread = passes(&gate, &running, 2);
        let other = gate.clone();
        let ending = thread::spawn(move || other.end());
        gate.open();
        gate.close();
        ending.join().unwrap();
        gate.open();
        // It comes to its end although it was told to run last.
        thread.join().unwrap();
        gate.wait_parked();
    });
}
