//! Where a machine lives: images in a small file system, a disk that fails when it is told to, daemons, taps and who sits behind them.
//!
//! The thread that makes it is in a mount and a network namespace of its own from then on, and all of it goes with the thread.

use std::fs::File;
use std::path::{Path, PathBuf};

use tests::daemon::Daemon;
use tests::failing::Failing;
use tests::image::{SECTOR, qemu_img, raw_copy, text, written};
use tests::programs;
use tests::promised::wait_for_lock;
use tests::scratch::Scratch;
use tests::small::Small;
use tests::tap::{self, Partner, Tap};

use crate::plan::{MAC_BYTES, Places, Plan};
use crate::random::Random;

/// Sectors of each disk.
const SECTORS: u64 = 8192;
/// Room for images and snapshots.
const ROOM: u64 = 512 << 20;
/// The machine's card is at one of them.
const TAPS: [&str; 2] = ["load0", "load1"];
const FORMATS: [&str; 3] = ["raw", "qcow2", "vhdx"];

/// All of it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) disk_daemon: Option<Daemon>,
    pub(crate) net_daemon: Option<Daemon>,
    partner: Option<Partner>,
    epoch: u32,
    tap: usize,
    _taps: [Tap; 2],
    pub(crate) failing: Failing,
    /// Messages and sockets, which trouble with the small file system does not touch.
    pub(crate) logs: Scratch,
    pub(crate) disk: PathBuf,
    pub(crate) format: &'static str,
    backing: PathBuf,
    disk_socket: PathBuf,
    net_socket: PathBuf,
    names: u64,
    pub(crate) small: Small,
}

impl Site {
    pub(crate) fn new() -> Site {
        tap::enter_private_network().expect("the soak runs as root");
        let small = Small::mount(ROOM);
        let (disk, backing) = (small.file("disk"), small.file("backing"));
        empty(&disk);
        empty(&backing);
        let logs = Scratch::new();
        let taps = TAPS.map(|name| Tap::new(name).expect("a tap can be made"));
        let partner = Partner::new(TAPS[0], MAC_BYTES, 0).expect("a partner can sit down at it");
        Site {
            disk_daemon: None,
            net_daemon: None,
            partner: Some(partner),
            epoch: 0,
            tap: 0,
            _taps: taps,
            failing: Failing::mount(&backing),
            disk_socket: logs.file("disk1.socket"),
            net_socket: logs.file("net0.socket"),
            logs,
            disk,
            format: "raw",
            backing,
            names: 0,
            small,
        }
    }

    /// A name that nothing had before.
    pub(crate) fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// A file of a new name among the images.
    pub(crate) fn file(&mut self, kind: &str) -> PathBuf {
        let name = self.name(kind);
        self.small.file(&name)
    }

    pub(crate) fn tap_name(&self) -> &'static str {
        TAPS[self.tap]
    }

    pub(crate) fn places(&self) -> Places<'_> {
        Places {
            disk: &self.disk,
            format: self.format,
            failing: self.failing.path(),
            disk_socket: &self.disk_socket,
            tap: self.tap_name(),
            net_socket: &self.net_socket,
        }
    }

    /// Another first disk, empty and of another format.
    pub(crate) fn new_disk(&mut self, random: &mut Random) {
        self.format = FORMATS[random.below(FORMATS.len() as u64) as usize];
        std::fs::remove_file(&self.disk).expect("the disk is there");
        self.disk = self.file("disk");
        let size = (SECTORS * SECTOR).to_string();
        qemu_img(&["create", "-q", "-f", self.format, text(&self.disk), &size]);
    }

    /// Starts the daemons that a machine needs, and ends those that it does not.
    pub(crate) fn serve(&mut self, plan: &Plan) {
        if !plan.disk_served {
            self.disk_daemon = None;
        } else if self.disk_daemon.is_none() {
            self.disk_daemon = Some(Daemon::start(&self.backing, &self.disk_socket, ",image_type=raw"));
        }
        self.net_daemon = None;
        if plan.net_served {
            let keys = format!("tap={}", self.tap_name());
            let daemon = Daemon::of(programs::vhost_user_net(), "--net-backend", &self.net_socket, &keys);
            self.net_daemon = Some(daemon);
        }
    }

    /// Somebody else sits behind the card, who has the guest give up frames that were out.
    pub(crate) fn new_partner(&mut self) {
        self.partner = None;
        self.epoch += 1;
        let partner = Partner::new(self.tap_name(), MAC_BYTES, self.epoch);
        self.partner = Some(partner.expect("a partner can sit down at it"));
    }

    /// The first disk goes on in a copy, and the card at another tap.
    pub(crate) fn move_elsewhere(&mut self) {
        let copy = self.file("disk");
        std::fs::copy(&self.disk, &copy).expect("there is room for a copy");
        std::fs::remove_file(&self.disk).expect("the disk is there");
        self.disk = copy;
        self.tap = 1 - self.tap;
    }

    /// Copies of both disks as they are now.
    pub(crate) fn copies(&mut self) -> [PathBuf; 2] {
        [self.disk.clone(), self.backing.clone()].map(|from| {
            let copy = self.file("copy");
            std::fs::copy(from, &copy).expect("there is room for a copy");
            copy
        })
    }

    /// Both disks become again what they were when they were copied.
    pub(crate) fn take_back(&mut self, copies: [PathBuf; 2]) {
        std::fs::remove_file(&self.disk).expect("the disk is there");
        let [disk, backing] = copies;
        self.disk = disk;
        // The file stays, as others have it open.
        std::fs::copy(&backing, &self.backing).expect("there is room for a copy");
        std::fs::remove_file(backing).expect("the copy is there");
    }

    /// Checks that each sector of both disks is whole, and the image in order.
    pub(crate) fn images_are_whole(&self) {
        wait_for_lock(&self.disk);
        let raw = raw_copy(&self.disk, self.format);
        written(&raw, SECTORS);
        if raw != self.disk {
            std::fs::remove_file(raw).expect("the copy is there");
        }
        wait_for_lock(self.failing.path());
        written(&self.backing, SECTORS);
    }
}

fn empty(image: &Path) {
    File::create(image).and_then(|file| file.set_len(SECTORS * SECTOR)).expect("there is room for an image");
}
