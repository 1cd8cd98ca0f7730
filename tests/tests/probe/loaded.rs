//! What stories about a machine under load share: two disks and a card in a network of their own, and a partner for the card.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::image::{SECTOR, qemu_img, raw_copy, text, written};
use tests::living::Living;
use tests::scratch::Scratch;
use tests::tap::{self, Partner, Tap};

/// The guest's card.
pub(crate) const MAC: &str = "52:54:00:10:ad:01";
const MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0x10, 0xad, 1];
/// Sectors of a disk.
pub(crate) const SECTORS: u64 = 8192;

/// The surroundings of a machine. The thread that makes it is in a network namespace of its own from then on.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) scratch: Scratch,
    pub(crate) partner: Partner,
    image_type: &'static str,
    _tap: Tap,
}

/// Other disks and another tap, for a machine that is restored beside the first or after it.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(crate) disks: [PathBuf; 2],
    pub(crate) tap: String,
    image_type: &'static str,
    _partner: Partner,
    _tap: Tap,
}

impl Elsewhere {
    /// The flags that replace what the machine had.
    pub(crate) fn flags(&self) -> Vec<String> {
        let disk = |nth: usize| format!("id=disk{nth},path={}", self.disks[nth].display());
        ["--disk", &disk(0), &disk(1), "--net", &format!("id=net0,tap={}", self.tap)].map(String::from).into()
    }

    /// The same for `vm.restore`.
    pub(crate) fn json(&self) -> Value {
        let disk = |nth: usize| json!({"id": format!("disk{nth}"), "path": self.disks[nth]});
        json!({"disks": [disk(0), disk(1)], "net": [{"id": "net0", "tap": self.tap}]})
    }

    /// Checks that every sector of both disks is whole.
    pub(crate) fn images_are_whole(&self) {
        for disk in &self.disks {
            assert!(written_to(disk, self.image_type) > 0, "nothing was written to {}", disk.display());
        }
    }
}

impl Loaded {
    /// Copies of these disks as they are now, and another tap, whose partner has the guest's frames of the past given up. `nth` counts
    /// from 1.
    pub(crate) fn elsewhere(&self, nth: u32, disks: [&Path; 2]) -> Elsewhere {
        let tap = format!("load{nth}");
        let copies = [0, 1].map(|i| {
            let copy = self.scratch.file(&format!("disk{i}.{nth}"));
            std::fs::copy(disks[i], &copy).expect("the scratch directory has room for a copy");
            copy
        });
        let made = Tap::new(&tap).expect("a tap can be made");
        let partner = Partner::new(&tap, MAC_BYTES, nth).expect("a partner can sit down at it");
        Elsewhere { disks: copies, tap, image_type: self.image_type, _partner: partner, _tap: made }
    }

    /// Two empty disks, `disk0` and `disk1`, and a tap, `load0`, with a partner behind it.
    pub(crate) fn new() -> Loaded {
        Loaded::with_disks("raw")
    }

    /// The same with disks of another type.
    pub(crate) fn with_disks(image_type: &'static str) -> Loaded {
        tap::enter_private_network().expect("these tests run as root");
        let scratch = Scratch::new();
        for name in ["disk0", "disk1"] {
            let (path, size) = (scratch.file(name), (SECTORS * SECTOR).to_string());
            qemu_img(&["create", "-q", "-f", image_type, text(&path), &size]);
        }
        let tap = Tap::new("load0").expect("a tap can be made");
        Loaded { scratch, partner: Loaded::partner(0), image_type, _tap: tap }
    }

    /// A partner at the tap. One for a machine that is restored there, with an epoch above 0, has the guest give up what nobody received
    /// when the first one ended.
    pub(crate) fn partner(epoch: u32) -> Partner {
        Partner::new("load0", MAC_BYTES, epoch).expect("a partner can sit down at it")
    }

    /// A machine with all of it, under load; more words for the probe.
    pub(crate) fn boot(&self, words: &str) -> Living {
        self.boot_with(&format!("probe.run=load {words}"), &[])
    }

    /// The same with the probe's whole command line, which ends in a load, and more arguments for the VMM.
    pub(crate) fn boot_with(&self, cmdline: &str, arguments: &[&str]) -> Living {
        let disks = ["disk0", "disk1"].map(|name| {
            let path = self.scratch.file(name);
            format!("path={},image_type={},id={name}", path.display(), self.image_type)
        });
        let net = format!("tap=load0,mac={MAC},id=net0");
        let devices = ["--disk", &disks[0], &disks[1], "--net", &net];
        let mut machine =
            Living::boot(self.scratch.path(), "boot", cmdline, &[&devices[..], arguments].concat());
        let found = machine.wait_for("# loading ");
        assert_eq!(found, "disks=2 cards=1");
        machine
    }

    /// Where a disk is.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// Checks that every sector of both disks is whole.
    pub(crate) fn images_are_whole(&self) {
        for name in ["disk0", "disk1"] {
            assert!(written_to(&self.disk(name), self.image_type) > 0, "nothing was written to {name}");
        }
    }
}

/// The same for an image of any type, which must be in order itself.
fn written_to(image: &Path, image_type: &str) -> usize {
    written(&raw_copy(image, image_type), SECTORS)
}
