use device::fake::FakeEvents;

use super::*;
use crate::Inbox;

/// A terminal whose other end is a file, which nobody can wait for (epoll(7)).
fn unwaitable() -> Terminal {
    let mut shared = Shared::new().unwrap();
    let file = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap()));
    shared.ends = Mutex::new(Some(Ends::Tty { input: Some(file), output: None }));
    shared.served = true;
    Terminal(Arc::new(shared))
}

#[test]
fn a_session_that_cannot_be_served_ends_and_leaves_room_for_another() {
    let (terminal, workers) = (unwaitable(), Workers::new(Arc::new(FakeEvents::default())));
    let input: Arc<dyn Input> = Arc::new(Inbox::new(16).unwrap());
    for _ in 0..3 {
        // Were the one before still there, the terminal would be in use.
        let mut slot = Some(terminal.begin(&workers, input.clone()).unwrap());
        let e = Session::settle(&mut slot).unwrap_err();
        assert!(slot.is_none() && e.what.contains("cannot serve a terminal"), "{e:?}");
        assert!(Session::settle(&mut slot).is_ok());
    }
}

#[test]
fn a_session_that_is_served_stays() {
    let (terminal, workers) = (unwaitable(), Workers::new(Arc::new(FakeEvents::default())));
    *terminal.0.ends() = Some(Ends::default());
    let mut slot = Some(terminal.begin(&workers, Arc::new(Inbox::new(16).unwrap())).unwrap());
    Session::settle(&mut slot).unwrap();
    assert!(slot.is_some() && terminal.0.ends().is_none());
}
