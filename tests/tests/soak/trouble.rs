//! Trouble of the host, made for a while: the machine goes on, what is asked meanwhile is done or refused for this reason, and when it is over
//! everything is as it should be.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::Daemon;
use tests::limits::{self, Resource};

use crate::asked::{Client, Reasons};
use crate::life::{End, Life};
use crate::walk::Walk;

/// What the daemons serve.
const DAEMONS: [&str; 2] = ["disk1", "net0"];
/// How long it may take until one that came back is found.
const PATIENCE: Duration = Duration::from_secs(60);

const KIB: u64 = 1 << 10;
const DESCRIPTORS: Reasons = &["os error 24", "Too many open files"];
const MEMORY: Reasons = &["os error 12", "Cannot allocate memory", "os error 11", "Resource temporarily"];
const SPACE: Reasons = &["os error 28", "No space left"];
const SIZE: Reasons = &["os error 27", "File too large"];

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Descriptors,
    Memory,
    Space,
    FileSize,
    DiskErrors,
    SlowDisk,
    DaemonDies,
    DaemonStops,
    HungQuestioners,
}

impl Walk<'_> {
    /// Makes one kind of trouble, does some things meanwhile, and looks whether all is well when it is over.
    pub(crate) fn trouble(&mut self) {
        let plan = &self.life().plan;
        let local = u64::from(!plan.disk_served);
        let served = u64::from(plan.disk_served || plan.net_served);
        let kind = self.random.pick(&[
            (4, Kind::Descriptors),
            (3, Kind::Memory),
            (3, Kind::Space),
            (2, Kind::FileSize),
            (4 * local, Kind::DiskErrors),
            (2 * local, Kind::SlowDisk),
            (6 * served, Kind::DaemonDies),
            (2 * served, Kind::DaemonStops),
            (2, Kind::HungQuestioners),
        ]);
        self.course.step(&format!("{kind:?}"));
        self.felt = 0;
        match kind {
            Kind::Descriptors => self.without_descriptors(),
            Kind::Memory => self.without_memory(),
            Kind::Space => self.without_space(),
            Kind::FileSize => self.with_small_files(),
            Kind::DiskErrors => self.with_disk_errors(),
            Kind::SlowDisk => self.with_a_slow_disk(),
            Kind::DaemonDies => self.daemon_dies(),
            Kind::DaemonStops => self.daemon_stops(),
            Kind::HungQuestioners => {
                let streams = self.hung_questioners();
                self.do_some();
                drop(streams);
                self.over("questioners that hang half way");
            }
        }
    }

    /// Some things that may be refused.
    fn do_some(&mut self) {
        for _ in 0..1 + self.random.below(4) {
            if self.life_mut().living.has_ended() {
                return;
            }
            match self.random.below(7) {
                0 | 1 => drop(self.add()),
                2 => drop(self.remove()),
                3 => self.save_and_go_on(),
                4 => drop(self.ask("counters", "GET", "vm.counters", &Value::Null)),
                5 => self.resize(),
                _ => {
                    if self.put("pause", "vm.pause").is_some() {
                        self.put("resume", "vm.resume");
                    }
                }
            }
            if !self.reasons.is_empty() && !self.runs() {
                return;
            }
        }
    }

    /// In trouble a resume may be refused, and is tried again. Whether the machine runs, or it is not known.
    fn runs(&mut self) -> bool {
        let answer = self.ask("info", "GET", "vm.info", &Value::Null);
        !answer.is_some_and(|text| text.contains("\"state\":\"Paused\""))
            || self.put("resume", "vm.resume").is_some()
    }

    /// All is well again: the machine runs, has what it should have, and no request fails any more.
    fn over(&mut self, what: &'static str) {
        self.reasons = &[];
        self.client = None;
        if self.life_mut().living.has_ended() {
            self.over_with_it(what);
            return;
        }
        let text = self.ask("info", "GET", "vm.info", &Value::Null).expect("it is answered");
        let info: Value = serde_json::from_str(&text).expect("vm.info is JSON");
        if info["state"] == "Paused" {
            self.put("resume", "vm.resume");
        }
        self.check_devices(&info);
        let [losses, _] = self.life().lost_and_back(DAEMONS[1]);
        if losses > self.life().losses {
            // And with it frames that it had taken.
            self.site.new_partner();
            self.life_mut().losses = losses;
        }
        let life = self.life_mut();
        let before = life.failures;
        // Signs from before may still be on their way, and what was under way may still have failed.
        life.living.type_in("m");
        life.living.wait_for("# marked");
        life.living.progress(200, 20);
        life.failures = life.living.beat().failures;
        self.felt += self.life().failures - before;
        let felt = self.felt;
        self.progress();
        self.course.tally.trouble(what, felt, true);
    }

    /// Only the lack of memory may end a VMM, which says so.
    fn over_with_it(&mut self, what: &'static str) {
        let life = self.life.take().expect("there is a machine");
        let (living, extras, name) = Life::remains(life);
        let report = living.ends();
        let words = ["memory allocation of", "Cannot allocate memory", "os error 12"];
        let said = what == NO_MEMORY && words.iter().any(|word| report.messages.contains(word));
        assert!(said, "{what} ended the VMM: {report}");
        self.ended(&report, End::Kill, &name);
        extras.into_iter().for_each(|extra| extra.forget(true));
        self.course.tally.trouble(what, self.felt, false);
    }

    /// Sets a limit of the VMM's process for a while.
    fn limit(&self, resource: Resource, to: Option<u64>) {
        limits::set(self.life().living.id(), resource, to);
    }

    fn without_descriptors(&mut self) {
        self.reasons = DESCRIPTORS;
        // A connection that is there before, as none can be had later; and one that the VMM was asked on is sure to be there.
        self.client = Client::connect(self.life().living.api_socket());
        self.ask("ping", "GET", "vmm.ping", &Value::Null);
        let left = self.random.below(12) as usize;
        limits::leave_descriptors(self.life().living.id(), left);
        self.do_some();
        self.limit(libc::RLIMIT_NOFILE, None);
        self.over("no descriptors");
    }

    fn without_memory(&mut self) {
        self.reasons = MEMORY;
        self.client = Client::connect(self.life().living.api_socket());
        self.ask("ping", "GET", "vmm.ping", &Value::Null);
        let left = self.random.below(4096) * KIB;
        limits::leave_memory(self.life().living.id(), left);
        self.do_some();
        self.limit(libc::RLIMIT_AS, None);
        self.over(NO_MEMORY);
    }

    fn without_space(&mut self) {
        self.reasons = SPACE;
        let ballast = self.ballast();
        self.do_some();
        std::fs::remove_file(ballast).expect("the ballast is there");
        self.over("no space on the file system");
    }

    /// A file that takes all room but for a little.
    fn ballast(&mut self) -> PathBuf {
        let path = self.site.file("ballast");
        let mut file = File::create(&path).expect("the file system takes a file");
        for bytes in [1 << 20, 64 << 10, 4 << 10] {
            let zeroes = vec![0; bytes];
            while file.write_all(&zeroes).is_ok() {}
        }
        let little = self.random.below(256) * 4 * KIB;
        let length = file.metadata().expect("the file is open").len();
        file.set_len(length.saturating_sub(little)).expect("a file can be cut");
        path
    }

    fn with_small_files(&mut self) {
        self.reasons = SIZE;
        let limit = self.random.below(3 << 10) * KIB;
        self.limit(libc::RLIMIT_FSIZE, Some(limit));
        self.do_some();
        std::thread::sleep(Duration::from_millis(self.random.below(200)));
        self.limit(libc::RLIMIT_FSIZE, None);
        self.over("a limit for the size of files");
    }

    fn with_disk_errors(&mut self) {
        self.reasons = &["os error 5", "Input/output error"];
        let before = self.site.failing.failed();
        let chances = [0, 1, 30, 400, 1000];
        let mut chance = || chances[self.random.below(chances.len() as u64) as usize];
        let (reads, writes, flushes) = (chance(), chance(), chance());
        self.site.failing.fail(reads, writes, flushes);
        self.do_some();
        std::thread::sleep(Duration::from_millis(self.random.below(500)));
        self.site.failing.fail(0, 0, 0);
        self.over("errors of the disk (EIO)");
        let injected = self.site.failing.failed() - before;
        self.course.tally.trouble("requests of a disk that failed", injected, true);
    }

    fn with_a_slow_disk(&mut self) {
        self.site.failing.delay(Duration::from_millis(1 + self.random.below(20)));
        self.do_some();
        self.site.failing.delay(Duration::ZERO);
        self.over("a slow disk");
    }

    /// Whichever daemon there is, killed under load, and another in its place.
    fn daemon_dies(&mut self) {
        let away = Duration::from_millis(self.random.below(4) * 100);
        let before = DAEMONS.map(|device| self.life().lost_and_back(device));
        let which = self.random.below(3);
        let site = &mut self.site;
        let disk = site.disk_daemon.take_if(|_| which != 0).map(Daemon::die);
        let net = site.net_daemon.take_if(|_| which != 1).map(Daemon::die);
        let dead = [disk.is_some(), net.is_some()];
        std::thread::sleep(away);
        if dead[1] {
            // Frames that it had taken are lost: the guest is to give them up before it sees later ones come back.
            self.site.new_partner();
        }
        if let Some(disk) = disk {
            self.site.disk_daemon = Some(disk.rise());
        }
        if let Some(net) = net {
            self.site.net_daemon = Some(net.rise());
        }
        for ((device, before), _) in DAEMONS.iter().zip(before).zip(dead).filter(|(_, dead)| *dead) {
            self.until_back(device, before);
        }
        // Its partner is the new one already.
        let [losses, _] = self.life().lost_and_back(DAEMONS[1]);
        self.life_mut().losses = losses;
        self.over("a daemon that serves a device killed");
    }

    /// Waits until the VMM has found the other process of a device again: before that, it may refuse a snapshot.
    fn until_back(&self, device: &str, before: [usize; 2]) {
        let begun = Instant::now();
        loop {
            let [lost, back] = self.life().lost_and_back(device);
            if back > before[1] && back >= lost {
                return;
            }
            let late = begun.elapsed() > PATIENCE;
            assert!(!late, "{device} is not served any more\n{}", self.life().living.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn daemon_stops(&mut self) {
        let moment = Duration::from_millis(100 + self.random.below(700));
        let daemons = || [&self.site.disk_daemon, &self.site.net_daemon].into_iter().flatten();
        daemons().for_each(|daemon| daemon.signal(libc::SIGSTOP));
        std::thread::sleep(moment);
        daemons().for_each(|daemon| daemon.signal(libc::SIGCONT));
        self.over("a daemon that serves a device stopped");
    }
}

const NO_MEMORY: &str = "no memory";
