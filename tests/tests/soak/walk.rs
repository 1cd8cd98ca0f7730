//! One machine's way through all that can happen to it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::promised::Witness;

use crate::asked::{Client, Reasons};
use crate::extras::Extra;
use crate::life::{End, Life};
use crate::plan::Plan;
use crate::random::Random;
use crate::site::Site;
use crate::tally::Tally;
use crate::traces::Around;

/// What was done last, for an error.
const REMEMBERED: usize = 25;

/// Where a walk is to go, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    pub(crate) nth: usize,
    pub(crate) seed: u64,
    pub(crate) end: Instant,
    /// Something is wrong, here or elsewhere.
    pub(crate) stop: &'a AtomicBool,
    pub(crate) tally: &'a Tally,
    pub(crate) steps: &'a Mutex<Vec<String>>,
}

impl Course<'_> {
    /// Something is done next.
    pub(crate) fn step(&self, what: &str) {
        let mut steps = self.steps.lock().expect("nobody panics with this lock held");
        if steps.len() == REMEMBERED {
            steps.remove(0);
        }
        steps.push(what.to_owned());
    }

    /// Something is wrong; that is the end for all.
    pub(crate) fn wrong(&self, what: &str) {
        let steps = self.steps.lock().expect("nobody panics with this lock held").join(", ");
        self.tally.wrong(format!("machine {} of seed {}, after {steps}:\n{what}", self.nth, self.seed));
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end || self.stop.load(Ordering::Relaxed)
    }
}

/// What can be done next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Look,
    Pause,
    Add,
    Remove,
    Resize,
    Wrong,
    Flood,
    Save,
    GoOn,
    Reboot,
    Again,
    End,
    Trouble,
    Leaks,
    Promises,
}

const STEPS: &[(u64, Step)] = &[
    (6, Step::Look),
    (6, Step::Pause),
    (10, Step::Add),
    (9, Step::Remove),
    (2, Step::Resize),
    (5, Step::Wrong),
    (1, Step::Flood),
    (3, Step::Save),
    (5, Step::GoOn),
    (3, Step::Reboot),
    (3, Step::Again),
    (4, Step::End),
    (14, Step::Trouble),
    (4, Step::Leaks),
    (1, Step::Promises),
];

/// A machine on its way.
pub(crate) struct Walk<'a> {
    pub(crate) course: Course<'a>,
    pub(crate) random: Random,
    // Before the place where it lives.
    pub(crate) life: Option<Life>,
    /// What of a machine lives on in another process: its plan, devices and failures.
    pub(crate) saved: Option<(Plan, Vec<Extra>, u64)>,
    pub(crate) client: Option<Client>,
    /// Why things may be refused now.
    pub(crate) reasons: Reasons,
    /// Consequences of trouble so far.
    pub(crate) felt: u64,
    witness: Option<Witness>,
    pub(crate) site: Site,
}

impl Walk<'_> {
    /// Goes until it is time.
    ///
    /// # Panics
    /// If something is wrong.
    pub(crate) fn go(course: Course<'_>) {
        let site = Site::new();
        let around = Around::now(site.small.path(), &site.disk);
        let random = Random::new(course.seed ^ (course.nth as u64).rotate_right(8));
        let mut walk = Walk {
            course,
            random,
            life: None,
            saved: None,
            client: None,
            reasons: &[],
            felt: 0,
            witness: None,
            site,
        };
        while !course.is_over() {
            walk.step();
        }
        if walk.life.is_some() {
            walk.end(End::Question);
        }
        walk.site.disk_daemon = None;
        walk.site.net_daemon = None;
        let rest = Around::now(walk.site.small.path(), &walk.site.disk);
        assert_eq!(rest, around, "something was left behind");
        course.tally.checked("of a walk: a file, a mount, a network interface");
    }

    /// The machine.
    pub(crate) fn life(&self) -> &Life {
        self.life.as_ref().expect("there is a machine")
    }

    /// The machine.
    pub(crate) fn life_mut(&mut self) -> &mut Life {
        self.life.as_mut().expect("there is a machine")
    }

    fn step(&mut self) {
        if self.life.is_none() {
            return self.start();
        }
        let step = self.random.pick(STEPS);
        match step {
            Step::Look => self.look(),
            Step::Pause => self.pause(),
            Step::Add => drop(self.add()),
            Step::Remove => drop(self.remove()),
            Step::Resize => self.resize(),
            Step::Wrong => self.ask_wrongly(),
            Step::Flood => self.flood(),
            Step::Save => self.save_and_go_on(),
            Step::GoOn => self.go_on_elsewhere(),
            Step::Reboot => self.reboot(),
            Step::Again => self.begin_again(),
            Step::End => {
                let how =
                    self.random.pick(&[(2, End::Guest), (1, End::Question), (2, End::Term), (3, End::Kill)]);
                self.end(how);
            }
            Step::Trouble => self.trouble(),
            Step::Leaks => self.look_for_leaks(),
            Step::Promises => self.promises(),
        }
    }

    fn look(&mut self) {
        let text = self.ask("info", "GET", "vm.info", &Value::Null).expect("nothing keeps it from answering");
        let info: Value = serde_json::from_str(&text).expect("vm.info is JSON");
        assert_eq!(info["state"], "Running");
        self.check_devices(&info);
        let text = self.ask("counters", "GET", "vm.counters", &Value::Null);
        let counters: Value = serde_json::from_str(&text.unwrap_or_default()).expect("vm.counters is JSON");
        assert!(counters["disk0"]["read_ops"].as_u64().is_some_and(|ops| ops > 0), "{counters}");
        self.ask("ping", "GET", "vmm.ping", &Value::Null);
        self.progress();
    }

    fn pause(&mut self) {
        for _ in 0..1 + self.random.below(8) {
            self.put("pause", "vm.pause");
            std::thread::sleep(Duration::from_millis(self.random.below(4)));
            self.put("resume", "vm.resume");
        }
        self.progress();
    }

    /// Another guest is killed at work, time and again with the same disk: what it was promised must be there.
    fn promises(&mut self) {
        const WHAT: &str = "a writing guest killed, its promises kept";
        self.course.step(WHAT);
        let format = ["raw", "qcow2"][self.random.below(2) as usize];
        let (direct, through) = (self.random.one_in(2), self.random.one_in(2));
        let engine = ["", ",_disable_io_uring=on", ",_disable_io_uring=on,_disable_aio=on"]
            [self.random.below(3) as usize];
        let moment = Duration::from_micros(self.random.below(8000));
        let begun = Instant::now();
        let witness = self.witness.take().filter(|_| !self.random.one_in(3));
        let mut witness = witness.unwrap_or_else(|| Witness::new(format, &[]));
        let keys = format!("{engine}{}", if direct { ",direct=on" } else { "" });
        witness.round(&keys, if through { "probe.through=on" } else { "" }, moment);
        self.witness = Some(witness);
        self.course.tally.done(WHAT, begun.elapsed());
    }
}
