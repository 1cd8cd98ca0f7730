//! What the tests of formats have in common: QEMU's tools, and engines used one request at a time.

#![allow(clippy::unwrap_used, dead_code)]

use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use block::{Choice, Engine, Format, Image, Options, Segment, Type};
use vmm_sys_util::tempdir::TempDir;

/// Small, repeatable randomness.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A directory in memory if there is one: what is tested here is not the disk.
pub(crate) fn directory() -> TempDir {
    TempDir::new_in(Path::new("/dev/shm")).or_else(|_| TempDir::new()).unwrap()
}

pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs one of QEMU's tools, which must succeed.
pub(crate) fn qemu(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Asserts that an image is in order: no errors, and no leaks unless they are allowed.
pub(crate) fn check(path: &Path, leaks: bool) {
    let check = || run("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
    let mut output = check();
    // A process that was killed lets go of its files when the kernel has taken its ring apart.
    for _ in 0..100 {
        if !String::from_utf8_lossy(&output.stderr).contains("Failed to lock") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        output = check();
    }
    let code = output.status.code();
    assert!(code == Some(0) || leaks && code == Some(3), "{output:?}");
}

pub(crate) fn options(path: &Path, format: Format) -> Options {
    Options { path: path.to_owned(), format: Type::Stated(format), ..Options::default() }
}

/// An image with an engine of one queue.
pub(crate) struct Disk {
    pub(crate) image: Arc<Image>,
    pub(crate) engine: Box<dyn Engine>,
}

impl Disk {
    pub(crate) fn open(options: &Options) -> Disk {
        Disk::with(options, Choice::default())
    }

    pub(crate) fn with(options: &Options, choice: Choice) -> Disk {
        let image = Image::open(options).unwrap_or_else(|e| panic!("{e} {e:?}"));
        let engine = image.engine(16, choice);
        Disk { image, engine }
    }

    pub(crate) fn wait(&mut self) -> io::Result<u32> {
        let mut last = None;
        self.engine.drain(&mut |_, result| last = Some(result)).unwrap();
        last.unwrap()
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut memory = vec![0xeeu8; length];
        // In two pieces, of which the first is odd.
        let (a, b) = memory.split_at_mut((length / 3).min(700));
        let segments = [a, b].map(|part| Segment::new(part.as_mut_ptr(), part.len()));
        // SAFETY: the memory outlives the request, which is waited for.
        unsafe { self.engine.read(offset, &segments, 0).unwrap() };
        self.wait().map(|_| memory)
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let segments = [Segment::new(bytes.as_ptr().cast_mut(), bytes.len())];
        // SAFETY: as above, and it is only read.
        unsafe { self.engine.write(offset, &segments, 0).unwrap() };
        self.wait().map(drop)
    }

    pub(crate) fn zero(&mut self, offset: u64, length: u64, may_free: bool) -> io::Result<()> {
        self.engine.zero(offset, length, may_free, 0).unwrap();
        self.wait().map(drop)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.engine.flush(0).unwrap();
        self.wait().map(drop)
    }
}

/// Writes, zeroes, discards, flushes and reads at random, and compares with the model.
pub(crate) fn exercise(disk: &mut Disk, model: &mut [u8], random: &mut Random, rounds: usize) {
    let sectors = model.len() as u64 / 512;
    for round in 0..rounds {
        let most = if random.below(4) == 0 { 600 } else { 40 };
        let first = random.below(sectors);
        let count = (1 + random.below(most)).min(sectors - first);
        let (offset, length) = (first * 512, count * 512);
        let range = offset as usize..(offset + length) as usize;
        match random.below(9) {
            0 => disk.flush().unwrap(),
            1 => {
                disk.engine.discard(offset, length, 0).unwrap();
                disk.wait().unwrap();
                model[range].fill(0);
            }
            kind @ (2 | 3) => {
                disk.zero(offset, length, kind == 2).unwrap();
                model[range].fill(0);
            }
            4 | 5 => assert!(disk.read(offset, length as usize).unwrap() == model[range], "round {round}"),
            _ => {
                let seed = random.next();
                model[range.clone()].iter_mut().enumerate().for_each(|(i, byte)| {
                    *byte = (seed.wrapping_add(i as u64 / 512).wrapping_mul(0x9e37_79b9) >> 8) as u8;
                });
                disk.write(offset, &model[range]).unwrap();
            }
        }
    }
    assert!(disk.read(0, model.len()).unwrap() == *model, "at the end");
}

/// The content of an image, as QEMU reads it.
pub(crate) fn content(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("content");
    qemu("qemu-img", &["convert", "-f", format, "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// Something to fill images with: parts that repeat, parts that do not, and holes.
pub(crate) fn pattern(length: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(20_000) {
        match random.below(3) {
            0 => {}
            1 => chunk.fill(random.next() as u8),
            _ => chunk.iter_mut().for_each(|byte| *byte = random.next() as u8),
        }
    }
    bytes
}
