//! A small machine with a bit of everything, and its snapshots, to be damaged.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::{image, programs};

use crate::bench::{Bench, read, until};
use crate::namespace::{has_interfaces, interfaces};
use crate::server::Server;

/// The files of a snapshot.
pub(crate) const FILES: [&str; 3] = ["config.json", "state.json", "memory-ranges"];

/// Where the good snapshot is, from the program's directory.
pub(crate) const GOOD: &str = "file://good";

/// What comes before the messages of a restore that is refused.
pub(crate) const NOT_RESTORED: [&str; 2] = ["Error from API", "The VM could not be restored"];

/// A machine whose guest never rests and tells so on its serial port. Paths are relative to the program's directory.
pub(crate) fn machine() -> Value {
    json!({
        "payload": {
            "kernel": programs::probe(),
            "cmdline": "probe.run=load probe.touch=1 probe.sectors=256 probe.beat=100",
        },
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "memory": {"size": 32 << 20},
        "disks": [{"id": "disk", "path": "disk", "image_type": "Raw"}],
        "net": [{"id": "net", "tap": "t0", "mac": "52:54:00:10:ad:01"}],
        "console": {"mode": "Pty"},
        "serial": {"mode": "File", "file": "serial"},
        "debug_console": {"mode": "File", "file": "debug"},
    })
}

impl Server {
    /// A program in which this machine runs.
    pub(crate) fn with(machine: &Value) -> Server {
        let bench = Bench::new();
        image_at(&bench.path("disk"));
        let server = Server::start_in(bench);
        server.does("vm.create", machine);
        server.does("vm.boot", &Value::Null);
        server.goes_on();
        server
    }

    /// Signs of life of the guest so far; it has found no error.
    #[track_caller]
    fn beats(&self) -> usize {
        let serial = read(&self.bench.path("serial"));
        // The last line may not be whole.
        let lines = serial.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let beats: Vec<_> = lines.filter(|line| line.starts_with("LOAD ")).collect();
        let good = beats.iter().all(|line| line.contains(" errors=0 failures=0"));
        assert!(good && !serial.contains("# wrong") && !serial.contains("FAIL"), "{serial}");
        beats.len()
    }

    /// Waits until the guest has given two signs of life from now.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let before = self.beats();
        until("a sign of life", || self.beats() >= before + 2);
    }

    /// Pauses, and takes a snapshot into a new directory.
    pub(crate) fn snapshot(&self, name: &str) -> Snapshot {
        self.does("vm.pause", &Value::Null);
        std::fs::create_dir(self.bench.path(name)).unwrap();
        self.does("vm.snapshot", &json!({"destination_url": format!("file://{name}")}));
        Snapshot::read(self.bench.path(name))
    }

    /// Checks that there is no machine.
    #[track_caller]
    pub(crate) fn has_no_machine(&self) {
        let none = ["Error from API", "The VM info is not available", "VM is not created"];
        self.refuses("GET", "vm.info", b"", 404, &none);
    }
}

/// An empty disk.
pub(crate) fn image_at(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(256 * image::SECTOR).unwrap();
}

/// A snapshot, its texts as values.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) directory: PathBuf,
    pub(crate) config: Value,
    pub(crate) state: Value,
}

impl Snapshot {
    pub(crate) fn read(directory: PathBuf) -> Snapshot {
        let json = |name| serde_json::from_slice(&std::fs::read(directory.join(name)).unwrap()).unwrap();
        let (config, state) = (json("config.json"), json("state.json"));
        Snapshot { directory, config, state }
    }

    /// A copy in another directory, which is made anew. They share the file of memory unless `own` says otherwise.
    pub(crate) fn copy(&self, directory: PathBuf, own: bool) -> Snapshot {
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
        for name in FILES {
            let (from, to) = (self.directory.join(name), directory.join(name));
            match name == "memory-ranges" && !own {
                true => std::fs::hard_link(from, to).unwrap(),
                false => std::fs::copy(from, to).map(drop).unwrap(),
            }
        }
        Snapshot { directory, ..self.clone() }
    }

    /// What is saved of the machine.
    pub(crate) fn machine(&mut self) -> &mut Value {
        &mut self.state["machine"]["body"]
    }

    /// What is saved of a vCPU.
    pub(crate) fn cpu(&mut self, index: usize) -> &mut Value {
        &mut self.machine()["cpus"][index]["body"]
    }

    /// What is saved of a device.
    pub(crate) fn device(&mut self, id: &str) -> &mut Value {
        &mut self.machine()["board"]["devices"][id]
    }

    /// Writes both texts with the checksums that they must have, so that what is in them is looked at.
    pub(crate) fn write(&mut self) {
        let config = serde_json::to_string_pretty(&self.config).unwrap();
        let checksum = format!("{:08x}", image::crc32(config.as_bytes()));
        self.state["config"] = json!({"length": config.len(), "checksum": checksum});
        std::fs::write(self.directory.join("config.json"), config).unwrap();
        self.write_state(&state_text(&self.state));
    }

    /// Writes the manifest; `text` lacks the checksum and the end.
    pub(crate) fn write_state(&self, text: &str) {
        let text = format!("{text},\"checksum\":\"{:08x}\"}}\n", image::crc32(text.as_bytes()));
        std::fs::write(self.directory.join("state.json"), text).unwrap();
    }
}

/// The text of a manifest up to the checksum.
pub(crate) fn state_text(state: &Value) -> String {
    let mut members = state.as_object().unwrap().clone();
    members.remove("checksum");
    let mut text = Value::from(members).to_string();
    text.pop();
    text
}

/// A program without a machine, beside a good snapshot of one.
pub(crate) struct Story {
    pub(crate) server: Server,
    pub(crate) good: Snapshot,
    held: [usize; 2],
    interfaces: Vec<String>,
}

impl Story {
    pub(crate) fn new() -> Story {
        Story::of(&machine())
    }

    /// With this machine.
    pub(crate) fn of(machine: &Value) -> Story {
        let server = Server::with(machine);
        let good = server.snapshot("good");
        server.does("vm.delete", &Value::Null);
        std::fs::copy(server.bench.path("disk"), server.bench.path("disk.saved")).unwrap();
        // What is made once and kept is made now.
        server.does("vm.restore", &json!({"source_url": GOOD}));
        server.does("vm.delete", &Value::Null);
        let held = server.settled();
        Story { server, good, held, interfaces: interfaces() }
    }

    /// Checks that nothing is left of a restore: no machine, descriptor, thread or tap.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        self.server.has_no_machine();
        // The last answer's connection is closed when the server gets to it.
        until("the end of what a restore made", || self.server.holdings() <= self.held);
        has_interfaces(&self.interfaces);
    }

    /// Asks for what must be refused, with these messages behind those that all have.
    #[track_caller]
    pub(crate) fn refuses(&self, request: &Value, status: u16, messages: &[&str]) {
        let body = request.to_string();
        self.server.refuses(
            "PUT",
            "vm.restore",
            body.as_bytes(),
            status,
            &[&NOT_RESTORED, messages].concat(),
        );
        self.nothing_is_left();
    }

    /// The good snapshot with something different, which must be refused.
    #[track_caller]
    pub(crate) fn refuses_with(&self, change: impl FnOnce(&mut Snapshot), status: u16, messages: &[&str]) {
        let mut bad = self.bad();
        change(&mut bad);
        bad.write();
        self.refuses(&json!({"source_url": "file://bad"}), status, messages);
    }

    /// A copy to be changed.
    pub(crate) fn bad(&self) -> Snapshot {
        self.good.copy(self.server.bench.path("bad"), false)
    }

    /// Makes the disk what it was when the good snapshot was taken.
    pub(crate) fn renew_disk(&self) {
        std::fs::copy(self.server.bench.path("disk.saved"), self.server.bench.path("disk")).unwrap();
    }

    /// Restores the good snapshot in the same program, and checks that its guest goes on.
    #[track_caller]
    pub(crate) fn restores(&self, request: &Value) {
        self.renew_disk();
        self.server.does("vm.restore", request);
        assert_eq!(self.server.info()["state"], "Paused");
        self.server.does("vm.resume", &Value::Null);
        self.server.goes_on();
        self.server.does("vm.delete", &Value::Null);
        self.nothing_is_left();
    }

    /// Restores the good snapshot, and ends.
    #[track_caller]
    pub(crate) fn ends_well(self) {
        self.restores(&json!({"source_url": GOOD}));
        self.server.ends_well();
    }
}
