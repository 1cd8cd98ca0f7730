//! The life of a machine: its start, in every way there is; its end, in every way there is; and what it is in between.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::held::Held;
use tests::living::Living;
use tests::probe::Report;

use crate::extras::Extra;
use crate::plan::Plan;
use crate::walk::Walk;

/// Lines that a VMM may write in its life, besides those of [`VERBOSE`].
const LINES: usize = 2000;
/// Has a VMM tell when the other end of a device is back.
const VERBOSE: &str = "-v";
/// Memory, in KiB, that `malloc` may keep for threads that there were at once.
const SLACK: u64 = 8192;
/// How long it may take until everything is given back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) living: Living,
    pub(crate) plan: Plan,
    pub(crate) extras: Vec<Extra>,
    /// Requests that have failed for the guest.
    pub(crate) failures: u64,
    /// How often the card's daemon was lost when the card got the partner that it has.
    pub(crate) losses: usize,
    name: String,
    /// What the process held when devices had come and gone once.
    rest: Option<Held>,
}

/// How a machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Guest,
    Question,
    Term,
    Kill,
}

impl Walk<'_> {
    /// Starts a machine by the command line or over the API.
    pub(crate) fn start(&mut self) {
        self.course.step("start");
        let plan = Plan::draw(&mut self.random);
        if self.random.one_in(4) {
            self.site.new_disk(&mut self.random);
        }
        self.site.serve(&plan);
        let name = self.site.name("machine");
        let begun = Instant::now();
        let logs = self.site.logs.path();
        let what = if plan.over_api {
            let living = waiting(logs, &name);
            self.life = Some(Life::new(living, plan, name));
            self.create();
            "start over the API"
        } else {
            let arguments = plan.arguments(&self.site.places());
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain([VERBOSE]).collect();
            let living = Living::boot(logs, &name, &plan.cmdline(), &arguments);
            self.life = Some(Life::new(living, plan, name));
            "start by the command line"
        };
        self.loads();
        self.course.tally.done(what, begun.elapsed());
    }

    /// Describes the machine, and has it booted.
    fn create(&mut self) {
        let description = self.life().plan.description(&self.site.places());
        self.ask("create", "PUT", "vm.create", &description);
        self.put("boot", "vm.boot");
    }

    /// Waits until the guest has begun.
    fn loads(&mut self) {
        let found = self.life_mut().living.wait_for("# loading ");
        assert_eq!(found, "disks=2 cards=1");
        self.life_mut().failures = 0;
        self.progress();
    }

    /// Waits for a sign of life, which tells of no errors, and of no failures that were not caused.
    pub(crate) fn progress(&mut self) {
        let life = self.life.as_mut().expect("there is a machine");
        life.living.progress(20, 10);
        let beat = life.living.beat();
        assert_eq!(beat.failures, life.failures, "requests failed without a reason\n{}", life.living.said());
    }

    /// The machine begins again, by the guest or by a question.
    pub(crate) fn reboot(&mut self) {
        let begun = Instant::now();
        if self.life().plan.resets && self.random.one_in(2) {
            self.course.step("reset by the guest");
            self.life_mut().living.end_load();
            self.life_mut().living.wait_for("PASS load ");
            self.loads();
            self.course.tally.done("reset by the guest", begun.elapsed());
        } else {
            self.put("reboot", "vm.reboot");
            self.loads();
        }
    }

    /// The machine is taken apart, and put together in the same process.
    pub(crate) fn begin_again(&mut self) {
        if self.random.one_in(2) {
            self.put("shut the machine down", "vm.shutdown");
            let info = self.life().living.info();
            assert_eq!(info["state"], "Created", "{info}");
            self.put("boot", "vm.boot");
        } else {
            self.put("delete", "vm.delete");
            self.life_mut().extras.drain(..).for_each(|extra| extra.forget(false));
            self.must_refuse("GET", "vm.info", &Value::Null, 404, &[]);
            self.create();
        }
        self.loads();
    }

    /// Takes a snapshot of the machine, which stands still then: its directory.
    pub(crate) fn save(&mut self) -> Option<PathBuf> {
        self.put("pause", "vm.pause")?;
        let directory = self.site.file("snapshot");
        if let Err(e) = std::fs::create_dir(&directory) {
            assert!(!self.reasons.is_empty(), "{e}: {}", directory.display());
            return None;
        }
        let url = json!({ "destination_url": format!("file://{}", directory.display()) });
        if self.ask("snapshot", "PUT", "vm.snapshot", &url).is_some() {
            return Some(directory);
        }
        if !self.life_mut().living.has_ended() {
            let left = std::fs::read_dir(&directory).expect("the directory is there").flatten();
            let left: Vec<_> = left.map(|file| file.file_name()).collect();
            assert!(left.is_empty(), "a snapshot that failed left {left:?}\n{}", self.life().living.said());
        }
        remove(&directory);
        None
    }

    /// Takes a snapshot, and goes on as if nothing had been.
    pub(crate) fn save_and_go_on(&mut self) {
        if let Some(directory) = self.save() {
            remove(&directory);
        }
        // If it was trouble that refused the pause, it runs, and if it refused the snapshot, it does not.
        if self.reasons.is_empty() {
            self.put("resume", "vm.resume");
            self.progress();
        }
    }

    /// Goes on in another process, or another machine in the same, with a snapshot: of now, or of a while ago.
    pub(crate) fn go_on_elsewhere(&mut self) {
        let directory = self.save().expect("nothing keeps it from being saved");
        if self.random.one_in(3) {
            let copies = self.site.copies();
            self.put("resume", "vm.resume");
            self.progress();
            let end = self.random.pick(&[(1, End::Kill), (1, End::Term)]);
            self.end_process(end);
            self.site.take_back(copies);
            self.restore_process(&directory);
        } else if self.random.one_in(3) {
            self.put("delete", "vm.delete");
            self.site.new_partner();
            self.restore_over_api(&directory);
        } else {
            let end = self.random.pick(&[(1, End::Kill), (1, End::Question)]);
            self.end_process(end);
            let moves = self.random.one_in(2);
            let served = self.saved.as_ref().is_some_and(|(plan, ..)| plan.net_served);
            if moves && !served {
                self.site.move_elsewhere();
            }
            self.restore_process(&directory);
        }
        self.progress();
        remove(&directory);
    }

    /// The process ends, but its machine is to live on.
    fn end_process(&mut self, end: End) {
        let life = self.life.take().expect("there is a machine");
        let Life { living, plan, extras, failures, name, .. } = life;
        let report = match end {
            End::Question => living.shut_down(),
            End::Term => living.killed(libc::SIGTERM),
            End::Kill | End::Guest => living.killed(libc::SIGKILL),
        };
        self.ended(&report, end, &name);
        self.saved = Some((plan, extras, failures));
    }

    /// The value of `--restore`, or what `vm.restore` takes, but for the snapshot.
    fn restore_process(&mut self, directory: &Path) {
        self.site.new_partner();
        let name = self.site.name("machine");
        let (plan, extras, failures) = self.saved.take().expect("a machine was saved");
        // Whoever is killed leaves its socket.
        extras.iter().for_each(Extra::clear_the_way);
        let begun = Instant::now();
        if self.random.one_in(2) {
            let living = waiting(self.site.logs.path(), &name);
            self.life = Some(Life { extras, failures, ..Life::new(living, plan, name) });
            self.restore_over_api(directory);
            return;
        }
        let mode = self.mode(&plan, ["copy", "ondemand", "mmap"]);
        let value = format!("source_url=file://{},memory_restore_mode={mode},resume=on", directory.display());
        let [disk, net] = self.overrides(&plan);
        let mut flags = vec![VERBOSE, "--disk", disk.as_str()];
        if !plan.net_served {
            flags.extend(["--net", net.as_str()]);
        }
        let mut living = Living::restore(self.site.logs.path(), &name, &value, &flags);
        living.beat();
        self.course.tally.done("restore by the command line", begun.elapsed());
        self.life = Some(Life { extras, failures, ..Life::new(living, plan, name) });
    }

    fn overrides(&self, plan: &Plan) -> [String; 2] {
        let places = self.site.places();
        let tap = if plan.net_served { String::new() } else { format!("id=net0,tap={}", places.tap) };
        [format!("id=disk0,path={}", places.disk.display()), tap]
    }

    fn restore_over_api(&mut self, directory: &Path) {
        let plan = self.life().plan.clone();
        let mode = self.mode(&plan, ["Copy", "OnDemand", "Mmap"]);
        let resume = self.random.one_in(2);
        let places = self.site.places();
        let mut body = json!({
            "source_url": format!("file://{}", directory.display()),
            "memory_restore_mode": mode,
            "resume": resume,
            "disks": [{"id": "disk0", "path": places.disk}],
        });
        if !plan.net_served {
            body["net"] = json!([{"id": "net0", "tap": places.tap}]);
        }
        self.ask("restore over the API", "PUT", "vm.restore", &body);
        if !resume {
            self.put("resume", "vm.resume");
        }
        self.life_mut().rest = None;
        self.life_mut().living.beat();
    }

    /// Shared memory only comes back by copy.
    fn mode<'m>(&mut self, plan: &Plan, modes: [&'m str; 3]) -> &'m str {
        if plan.shared { modes[0] } else { modes[self.random.below(3) as usize] }
    }

    /// Ends the machine for good.
    pub(crate) fn end(&mut self, end: End) {
        let begun = Instant::now();
        // A guest that would begin again does not end the VMM.
        let end = if end == End::Guest && self.life().plan.resets { End::Term } else { end };
        let what = match end {
            End::Guest => "power-off by the guest",
            End::Question => "vmm.shutdown",
            End::Term => "SIGTERM",
            End::Kill => "SIGKILL",
        };
        self.course.step(what);
        let Life { living, extras, name, .. } = self.life.take().expect("there is a machine");
        let report = match end {
            End::Guest => living.end(),
            End::Term => living.killed(libc::SIGTERM),
            End::Question => living.shut_down(),
            End::Kill => living.killed(libc::SIGKILL),
        };
        self.ended(&report, end, &name);
        if end == End::Guest {
            report.all_passed();
        }
        self.course.tally.done(what, begun.elapsed());
        extras.into_iter().for_each(|extra| extra.forget(end == End::Kill));
    }

    /// Checks what a process left, whose machine ended so.
    pub(crate) fn ended(&mut self, report: &Report, end: End, name: &str) {
        self.client = None;
        if end != End::Kill {
            report.ended_well();
        }
        check_words(report);
        let [socket, messages] =
            ["api", "messages"].map(|what| self.site.logs.file(&format!("{name}.{what}")));
        // A socket that its owner did not remove.
        assert!(end == End::Kill || !socket.exists(), "{} is still there", socket.display());
        drop(std::fs::remove_file(socket));
        std::fs::remove_file(messages).expect("the messages are there");
        self.site.images_are_whole();
        self.course.tally.checked("a torn sector, an image in disorder, a lock");
    }

    /// Looks whether the process holds what it held before, when devices of each kind have come and gone and all was done again.
    pub(crate) fn look_for_leaks(&mut self) {
        self.all_come_and_go();
        if self.life().rest.is_none() {
            // What is made once and kept has been made now.
            self.save_and_go_on();
            self.life_mut().rest = Some(Held::at_rest(self.life().living.id()));
            self.all_come_and_go();
        }
        self.save_and_go_on();
        self.course.step("look for leaks");
        let (begun, life) = (Instant::now(), self.life_mut());
        let rest = life.rest.as_mut().expect("it was taken");
        loop {
            let now = Held::at_rest(life.living.id());
            let more = life.plan.shared && now.memory > rest.memory + SLACK;
            if now.is_within(rest) && !more {
                // If it was more before, it is not to be so much again. What memory is kept is settled by the first time.
                *rest = Held { memory: rest.memory, ..now };
                break;
            }
            let patient = begun.elapsed() < PATIENCE;
            assert!(patient, "{rest:#?} has become {now:#?}\n{}", life.living.said());
        }
        self.course.tally.checked("of a VMM: a descriptor, a thread, memory");
    }
}

impl Life {
    fn new(living: Living, plan: Plan, name: String) -> Life {
        Life { living, plan, extras: Vec::new(), failures: 0, losses: 0, name, rest: None }
    }

    /// How often another process that serves this device was lost, and was back again.
    pub(crate) fn lost_and_back(&self, device: &str) -> [usize; 2] {
        let messages = self.living.messages();
        let count = |begin: String, end: &str| {
            messages.lines().filter(|line| line.contains(&begin) && line.ends_with(end)).count()
        };
        let lost = count(format!("{device}: lost the back end at "), "requests wait until it is back");
        [lost, count(format!("{device}: the back end at "), " is back")]
    }

    /// Parts of a machine whose VMM has ended.
    pub(crate) fn remains(self) -> (Living, Vec<Extra>, String) {
        (self.living, self.extras, self.name)
    }
}

/// Checks that neither VMM nor guest said what they must not say.
pub(crate) fn check_words(report: &Report) {
    for word in ["panicked at", "seccomp violation", "internal error"] {
        assert!(!report.messages.contains(word), "{word}: {report}");
    }
    for word in ["FAIL ", "# wrong"] {
        assert!(!report.serial.contains(word), "{word}: {report}");
    }
    let lines = report.messages.lines().filter(|line| !line.contains(" INFO:")).count();
    assert!(lines < LINES, "{lines} lines of messages: {report}");
}

/// A VMM that waits for questions.
fn waiting(directory: &Path, name: &str) -> Living {
    Living::wait_with(directory, name, &[VERBOSE])
}

fn remove(directory: &Path) {
    std::fs::remove_dir_all(directory).expect("the snapshot is there");
}
