//! Devices that come and go while the machine runs, and what the guest leaves in their files.

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::image;

use crate::plan::SEED;
use crate::walk::Walk;

/// Sectors of a disk that comes, and of a file as memory, whose size is a multiple of 2 MiB.
const DISK: u64 = 256;
const MEMORY: u64 = (2 << 20) / image::SECTOR;
/// Devices that the guest takes up at most.
const MOST: usize = 6;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Disk,
    Net,
    Memory,
    Socket,
}

/// One that came.
#[derive(Debug)]
pub(crate) struct Extra {
    pub(crate) id: String,
    kind: Kind,
    /// Its file or socket.
    path: Option<PathBuf>,
    /// Whether the guest has used it to the end.
    used: bool,
}

impl Extra {
    fn sectors(&self) -> u64 {
        if self.kind == Kind::Disk { DISK } else { MEMORY }
    }

    /// The first half of its file is as it was, the second as the guest writes it; later sectors came later.
    fn check(&self) {
        let Some(path) = self.path.as_ref().filter(|_| self.used && self.kind != Kind::Socket) else {
            return;
        };
        let content = std::fs::read(path).expect("the file is there");
        let half = self.sectors() / 2;
        let (first, rest) = content.split_at((half * image::SECTOR) as usize);
        assert!(first == image::pattern(7, 0, half), "{}: the first half changed", self.id);
        let second = &rest[..(half * image::SECTOR) as usize];
        assert!(
            second == image::pattern(SEED, half, half),
            "{}: the second half is not the guest's",
            self.id
        );
    }

    /// Removes the socket of a VMM that was killed, so that the next one can make it.
    pub(crate) fn clear_the_way(&self) {
        if let Some(path) = self.path.as_ref().filter(|_| self.kind == Kind::Socket) {
            // It is not there if the VMM ended in order.
            drop(std::fs::remove_file(path));
        }
    }

    /// Removes its file; a socket is the VMM's, unless that was killed.
    pub(crate) fn forget(self, killed: bool) {
        match self.path {
            Some(path) if self.kind == Kind::Socket && !killed => {
                assert!(!path.exists(), "{} is still there", path.display());
            }
            // A socket may not have been made yet.
            Some(path) => drop(std::fs::remove_file(path)),
            None => (),
        }
    }
}

impl Walk<'_> {
    /// Adds a device that the guest takes up. Whether it is there.
    pub(crate) fn add(&mut self) -> bool {
        let one = |extra: &Extra| extra.kind == Kind::Socket;
        let more = u64::from(!self.life().extras.iter().any(one));
        let kind =
            self.random.pick(&[(4, Kind::Disk), (3, Kind::Net), (2, Kind::Memory), (2 * more, Kind::Socket)]);
        self.life().extras.len() < MOST && self.add_one(kind)
    }

    /// Has one of each kind come and go, and nothing else stay.
    pub(crate) fn all_come_and_go(&mut self) {
        while !self.life().extras.is_empty() {
            self.remove();
        }
        for kind in [Kind::Disk, Kind::Net, Kind::Memory, Kind::Socket] {
            self.add_one(kind);
        }
        while !self.life().extras.is_empty() {
            self.remove();
        }
    }

    fn add_one(&mut self, kind: Kind) -> bool {
        let (id, path) = (self.site.name("extra"), self.extra_file(kind));
        let (what, name, body) = match kind {
            Kind::Disk => ("add a disk", "vm.add-disk", json!({"id": id, "path": path, "image_type": "Raw"})),
            Kind::Net => ("add a network card", "vm.add-net", json!({"id": id})),
            Kind::Memory => ("add a file as memory", "vm.add-pmem", json!({"id": id, "file": path})),
            Kind::Socket => ("add a vsock", "vm.add-vsock", json!({"id": id, "cid": 3, "socket": path})),
        };
        let mut extra = Extra { id, kind, path, used: false };
        if self.ask(what, "PUT", name, &body).is_none() {
            // What was refused has left nothing, unless the VMM has ended meanwhile.
            let killed = self.life_mut().living.has_ended();
            extra.forget(killed);
            return false;
        }
        let taken = self.life_mut().living.look_for("# taken ");
        extra.used = match taken {
            Some(line) if line.starts_with("badly") => {
                let expected = !self.reasons.is_empty();
                assert!(expected, "the guest cannot use {}: {line}\n{}", extra.id, self.life().living.said());
                self.felt += 1;
                false
            }
            Some(_) => true,
            None => {
                let ended = self.life_mut().living.has_ended();
                let said = self.life().living.serial();
                let notes: Vec<&str> = said.lines().filter(|line| !line.starts_with("LOAD ")).collect();
                let living = &self.life().living;
                assert!(ended, "the guest does not take {} up: {notes:#?}\n{}", extra.id, living.said());
                false
            }
        };
        self.life_mut().extras.push(extra);
        true
    }

    fn extra_file(&mut self, kind: Kind) -> Option<PathBuf> {
        let sectors = match kind {
            Kind::Net => return None,
            Kind::Socket => {
                let name = self.site.name("vsock");
                return Some(self.site.logs.file(&name));
            }
            Kind::Disk => DISK,
            Kind::Memory => MEMORY,
        };
        let path = self.site.file("extra");
        let bytes = image::pattern(7, 0, sectors);
        if std::fs::write(&path, bytes).is_err() {
            drop(std::fs::remove_file(&path));
            assert!(!self.reasons.is_empty(), "there is no room for {}", path.display());
            // Another place, where there is room even now.
            let name = self.site.name("extra");
            let path = self.site.logs.file(&name);
            return Some(image::make(&path, 7, sectors));
        }
        Some(path)
    }

    /// Has the guest let go of one of the devices that came. Whether that was done.
    pub(crate) fn remove(&mut self) -> bool {
        let count = self.life().extras.len() as u64;
        if count == 0 {
            return false;
        }
        let nth = self.random.below(count) as usize;
        let id = self.life().extras[nth].id.clone();
        if self.ask("remove a device", "PUT", "vm.remove-device", &json!({ "id": id })).is_none() {
            return false;
        }
        // It is gone from the description at once, and from the machine as soon as the guest lets go of it.
        let wait = json!({"id": id, "until": "removed", "timeout_ms": 60_000});
        while self.ask("wait for a device to be gone", "PUT", "vm.wait-device", &wait).is_none() {
            if self.life_mut().living.has_ended() {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // The guest looks whether it is gone, and must not find the next one in its place.
        if self.life_mut().living.look_for("# gone ").is_none() {
            let ended = self.life_mut().living.has_ended();
            assert!(ended, "the guest does not find {id} gone\n{}", self.life().living.said());
        }
        let extra = self.life_mut().extras.remove(nth);
        extra.check();
        extra.forget(false);
        true
    }

    /// Makes a disk larger that came.
    pub(crate) fn resize(&mut self) {
        let disk = self.life().extras.iter().find(|extra| extra.kind == Kind::Disk);
        let Some((id, path)) = disk.map(|disk| (disk.id.clone(), disk.path.clone())) else { return };
        let size = (DISK + self.random.below(DISK)) * image::SECTOR;
        let done =
            self.ask("resize a disk", "PUT", "vm.resize-disk", &json!({"id": id, "desired_size": size}));
        if let (Some(_), Some(path)) = (done, path) {
            let found = std::fs::metadata(&path).expect("the disk is there").len();
            assert_eq!(found, size, "{} has another size than was asked for", path.display());
        }
    }

    /// Checks that the machine has the devices that it should have, and no other.
    pub(crate) fn check_devices(&mut self, info: &Value) {
        let life = self.life();
        let mut wanted: Vec<&str> = life.extras.iter().map(|extra| extra.id.as_str()).collect();
        wanted.extend(["disk0", "disk1", "net0"]);
        let kinds = ["disks", "net", "pmem"].iter().filter_map(|kind| info["config"][kind].as_array());
        let mut found: Vec<&str> = kinds.flatten().filter_map(|device| device["id"].as_str()).collect();
        found.extend(info["config"]["vsock"]["id"].as_str());
        wanted.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, wanted, "devices of {}", info["config"]);
        let tree = info["device_tree"].as_object().expect("a tree of devices");
        let missing: Vec<_> = wanted.iter().filter(|id| !tree.contains_key(**id)).collect();
        assert!(missing.is_empty(), "{missing:?} are not in {tree:?}");
        let more = tree.keys().filter(|id| id.starts_with("extra") && !wanted.contains(&id.as_str()));
        let more: Vec<_> = more.collect();
        assert!(more.is_empty(), "{more:?} are still in the machine");
    }
}
