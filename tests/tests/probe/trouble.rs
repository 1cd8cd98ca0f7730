//! Trouble of the host with one disk: the guest is told of each request that failed, the others and another disk go on, and so does
//! everything when the trouble is over. The log has a few lines of it, however many requests fail.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::failing::Failing;
use tests::image::{qemu_img, raw_copy, text};
use tests::limits;
use tests::living::Living;
use tests::scratch::Scratch;
use tests::small::Small;

const MIB: u64 = 1 << 20;
/// Of each disk.
const SIZE: u64 = 4 * MIB;
/// Requests for all of a disk.
const ALL: u64 = SIZE / (64 << 10);

/// Keys that choose an engine and how it reaches the file.
const WAYS: [&str; 4] =
    ["", ",direct=on", ",_disable_io_uring=on,direct=on", ",_disable_io_uring=on,_disable_aio=on"];

/// What came of writing or reading all of a disk.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    ok: u64,
    failed: u64,
    /// Whether the flush behind the writes failed, or sectors that are not as they should be.
    bad: u64,
}

const GOOD: Sum = Sum { ok: ALL, failed: 0, bad: 0 };
/// The same of the other disk, which has half the size.
const OTHER_GOOD: Sum = Sum { ok: ALL / 2, failed: 0, bad: 0 };

/// Makes a file that is a hole.
fn hole(path: &Path, bytes: u64) {
    File::create(path).and_then(|file| file.set_len(bytes)).expect("the directory takes a file");
}

/// A machine with two disks, of which one will be in trouble.
struct Story {
    machine: Living,
    _scratch: Scratch,
}

impl Story {
    fn begin(image: &Path, format: &str, keys: &str) -> Story {
        let scratch = Scratch::new();
        let other = scratch.file("other");
        hole(&other, SIZE / 2);
        let first = format!("path={},image_type={format}{keys}", image.display());
        let second = format!("path={},image_type=raw", other.display());
        let mut machine =
            Living::boot(scratch.path(), "boot", "probe.run=steps", &["--disk", &first, &second]);
        machine.wait_for("# ready for steps");
        Story { machine, _scratch: scratch }
    }

    /// Has all of both disks written (`w`) or read (`r`); what came of it on the first. The second must be well.
    #[track_caller]
    fn step(&mut self, letter: &str, answer: &str, bad: &str) -> Sum {
        self.machine.type_in(letter);
        let [first, second] = [0, 1].map(|nth| {
            let line = self.machine.wait_for(&format!("{answer} {nth} "));
            let number = |key| {
                line.split_whitespace()
                    .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
            };
            let sum = || Some(Sum { ok: number("ok")?, failed: number("failed")?, bad: number(bad)? });
            sum().unwrap_or_else(|| panic!("no figures in {line:?}"))
        });
        assert_eq!(second, OTHER_GOOD, "the other disk is not well");
        assert_eq!(first.ok + first.failed, ALL);
        first
    }

    #[track_caller]
    fn write(&mut self) -> Sum {
        self.step("w", "WROTE", "flush")
    }

    #[track_caller]
    fn read(&mut self) -> Sum {
        self.step("r", "READ", "wrong")
    }

    /// Limits what files the VMM may make grow, and how far.
    fn limit_files(&self, bytes: Option<u64>) {
        limits::set(self.machine.id(), libc::RLIMIT_FSIZE, bytes);
    }

    /// Ends the machine, which has been well all the time.
    #[track_caller]
    fn end(mut self) {
        assert_eq!(self.write(), GOOD, "writes after the trouble");
        assert_eq!(self.read(), GOOD, "reads after the trouble");
        assert_eq!(self.machine.ask("GET", "vm.info", &Value::Null).0, 200);
        let report = self.machine.end();
        report.all_passed();
        let lines = report.messages.lines().count();
        assert!((1..60).contains(&lines), "{lines} lines of messages: {report}");
    }
}

#[test]
fn a_full_file_system_fails_writes_until_there_is_room_again() {
    for (format, ways) in [("raw", &WAYS[..]), ("qcow2", &WAYS), ("vhdx", &WAYS[..1])] {
        for keys in ways {
            let small = Small::mount(2 * MIB);
            let image = small.file("image");
            qemu_img(&["create", "-q", "-f", format, text(&image), &SIZE.to_string()]);
            let mut story = Story::begin(&image, format, keys);
            let what = format!("{format}{keys}");
            for _ in 0..2 {
                let wrote = story.write();
                assert!(wrote.ok > 0 && wrote.failed > 0, "{what}: {wrote:?}");
                assert_eq!(story.read(), GOOD, "{what}");
            }
            small.resize(16 * MIB);
            story.end();
            raw_copy(&image, format);
        }
    }
}

/// Of a user's processes (RLIMIT_FSIZE).
#[test]
fn a_limit_for_the_size_of_files_fails_writes_and_does_not_end_the_vmm() {
    for keys in WAYS {
        let scratch = Scratch::new();
        let image = scratch.file("image");
        qemu_img(&["create", "-q", "-f", "qcow2", text(&image), &SIZE.to_string()]);
        let mut story = Story::begin(&image, "qcow2", keys);
        story.limit_files(Some(2 * MIB));
        let wrote = story.write();
        assert!(wrote.ok > 0 && wrote.failed > 0, "{keys}: {wrote:?}");
        assert_eq!(story.read(), GOOD, "{keys}");
        story.limit_files(None);
        story.end();
    }
}

/// A block device whose own device fails: errors come with the writes, or with the flush where the host writes later.
#[test]
fn a_block_device_that_fails_is_told_of_and_goes_on_when_it_can() {
    for keys in WAYS {
        let small = Small::mount(2 * MIB);
        let backing = small.file("backing");
        hole(&backing, SIZE);
        let device = Loop::new(&backing);
        let mut story = Story::begin(&device.0, "raw", keys);
        let wrote = story.write();
        assert!(wrote.ok > 0 && wrote.failed + wrote.bad > 0, "{keys}: {wrote:?}");
        assert_eq!(story.read().failed, 0, "{keys}");
        small.resize(16 * MIB);
        story.end();
    }
}

/// A loop device; taken apart on drop.
struct Loop(PathBuf);

impl Loop {
    fn new(backing: &Path) -> Loop {
        let output = Command::new("losetup").args(["--find", "--show", text(backing)]).output();
        let output = output.expect("losetup runs");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Loop(String::from_utf8_lossy(&output.stdout).trim_end().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A failure must not hide the test's own.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Reads too, whose errors a host's page cache or a loop device would keep from us; and of the flush alone.
#[test]
fn a_disk_that_answers_with_errors_is_told_of_and_goes_on_when_it_can() {
    for (format, ways) in [("raw", &WAYS[..]), ("qcow2", &WAYS)] {
        for keys in ways {
            let scratch = Scratch::new();
            let backing = scratch.file("backing");
            qemu_img(&["create", "-q", "-f", format, text(&backing), &SIZE.to_string()]);
            let failing = Failing::mount(&backing);
            let mut story = Story::begin(failing.path(), format, keys);
            let what = format!("{format}{keys}");
            assert_eq!(story.write(), GOOD, "{what}");
            failing.fail(1000, 0, 0);
            assert_eq!(story.read(), Sum { ok: 0, failed: ALL, bad: 0 }, "{what}: no read succeeds");
            failing.fail(300, 0, 0);
            let read = story.read();
            assert!(read.ok > 0 && read.failed > 0 && read.bad == 0, "{what}: {read:?}");
            failing.fail(0, 1000, 0);
            let wrote = story.write();
            assert!(wrote.ok == 0 && wrote.failed == ALL, "{what}: {wrote:?}");
            failing.fail(0, 0, 1000);
            assert_eq!(story.write(), Sum { ok: ALL, failed: 0, bad: 1 }, "{what}: the flush fails");
            failing.fail(0, 0, 0);
            assert_eq!(story.read(), GOOD, "{what}");
            story.end();
            raw_copy(&backing, format);
        }
    }
}

#[test]
fn an_image_that_somebody_cuts_short_fails_reads_of_what_is_gone() {
    for keys in WAYS {
        let scratch = Scratch::new();
        let image = scratch.file("image");
        hole(&image, SIZE);
        let mut story = Story::begin(&image, "raw", keys);
        assert_eq!(story.write(), GOOD);
        let file = File::options().write(true).open(&image).expect("the image is there");
        file.set_len(SIZE / 2).expect("a file can be cut");
        for _ in 0..2 {
            let read = story.read();
            assert_eq!(read, Sum { ok: ALL / 2, failed: ALL / 2, bad: 0 }, "{keys}");
        }
        story.end();
    }
}
