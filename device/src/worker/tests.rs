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
