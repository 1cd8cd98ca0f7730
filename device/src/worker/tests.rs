use super::*;
use crate::fake::FakeEvents;
use std::os::fd::AsRawFd;

struct Count {
    kick: EventFd,
    seen: u64,
    done: Sender<u64>,
}

impl Task for Count {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.kick.as_raw_fd(), 7, EventSet::IN)
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) {
        assert_eq!(token, 7);
        self.seen += self.kick.read().unwrap();
        self.done.send(self.seen).unwrap();
    }
}

#[test]
fn a_task_moves_in_serves_and_moves_back_many_times() {
    let events = Arc::new(FakeEvents::default());
    let workers = Workers::new(events.clone());
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let (done, wait) = channel();
    let mut task = Count { kick: kick.try_clone().unwrap(), seen: 0, done };
    for round in 1..=100 {
        let worker = workers.shared().unwrap();
        let attached = worker.attach(task).unwrap_or_else(|e| panic!("{e}"));
        kick.write(1).unwrap();
        assert_eq!(wait.recv().unwrap(), round);
        assert_eq!(attached.with(|t| t.seen).unwrap(), round);
        task = attached.stop().unwrap();
    }
    assert!(events.requests().is_empty());
}

#[test]
fn a_panic_on_a_worker_is_reported_and_calls_fail_instead_of_hanging() {
    struct Bad(EventFd);
    impl Task for Bad {
        fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
            watch.add(self.0.as_raw_fd(), 0, EventSet::IN)
        }
        fn ready(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) {
            panic!("as the test wants");
        }
    }
    let events = Arc::new(FakeEvents::default());
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let worker = Workers::new(events.clone()).own("bad", &[]).unwrap();
    let attached = worker.attach(Bad(kick.try_clone().unwrap())).unwrap_or_else(|e| panic!("{e}"));
    kick.write(1).unwrap();
    while events.requests().is_empty() {
        std::thread::yield_now();
    }
    assert!(attached.stop().is_none());
    assert_eq!(events.requests(), [Request::Fault]);
}

#[test]
fn a_task_is_begun_before_there_is_a_thread_and_settled_when_there_is() {
    let workers = Workers::with(Arc::new(FakeEvents::default()), Threads::apart(), Vec::new());
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let (done, served) = channel();
    let task = Count { kick: kick.try_clone().unwrap(), seen: 0, done };
    let begun = workers.shared().unwrap().begin(task).unwrap();
    kick.write(3).unwrap();
    std::thread::yield_now();
    assert!(served.try_recv().is_err());
    begun.settle().unwrap();
    begun.settle().unwrap();
    assert_eq!(served.recv().unwrap(), 3);
    assert_eq!(begun.stop().unwrap().seen, 3);
    // What was never waited for ends as well.
    drop(workers.own("unused", &[]).unwrap());
    drop(Workers::with(Arc::new(FakeEvents::default()), Threads::apart(), Vec::new()).own("unused", &[]));
}

#[test]
fn a_thread_that_cannot_be_had_is_told_to_whoever_asks_and_another_is_tried() {
    struct Never;
    impl Task for Never {
        fn start(&mut self, _: &mut Watch<'_>) -> io::Result<()> {
            panic!("there is no thread to do it")
        }
        fn ready(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) {}
    }
    let workers = Workers::with(Arc::new(FakeEvents::default()), Threads::none(), Vec::new());
    let first = workers.shared().unwrap();
    for failed in [first.attach(Never).err(), first.begin(Never).err(), first.attach_made(|| Never).err()] {
        let text = failed.unwrap().to_string();
        assert!(text.starts_with("no thread can be had: "), "{text}");
    }
    assert!(!Arc::ptr_eq(&first, &workers.shared().unwrap()));
}
