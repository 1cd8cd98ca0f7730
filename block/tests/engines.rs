//! All engines, on real files, checked against a model in memory.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Choice, Engine, Format, Image, MAX_REQUEST_BYTES, Options, Refused, Segment, Type};
use vmm_sys_util::tempdir::TempDir;

const SIZE: usize = 1 << 20;
const ROUNDS: usize = 25;

/// Small, repeatable randomness.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn image(path: &Path, direct: bool) -> Arc<Image> {
    Image::open(&Options {
        path: path.to_owned(),
        direct,
        format: Type::Stated(Format::Raw),
        ..Options::default()
    })
    .unwrap()
}

/// A directory on a disk (`/tmp` may be a tmpfs).
fn directory() -> TempDir {
    TempDir::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// A directory in memory if there is one, for tests that would only wait for the disk.
fn memory_directory() -> TempDir {
    TempDir::new_in(Path::new("/dev/shm")).unwrap_or_else(|_| directory())
}

fn file(dir: &TempDir, content: &[u8]) -> PathBuf {
    let path = dir.as_path().join("image");
    fs::write(&path, content).unwrap();
    path
}

fn choices() -> &'static [Choice] {
    if block::io_uring_available() {
        &[BEST, AIO, SYNC]
    } else {
        eprintln!("io_uring is not available: the engine for it is not tested");
        &[AIO, SYNC]
    }
}

const BEST: Choice = Choice { io_uring: true, aio: true };
const AIO: Choice = Choice { io_uring: false, aio: true };
const SYNC: Choice = Choice { io_uring: false, aio: false };

fn drain(engine: &mut dyn Engine) -> BTreeMap<u64, io::Result<u32>> {
    let mut results = BTreeMap::new();
    engine
        .drain(&mut |token, result| {
            assert!(results.insert(token, result).is_none(), "token {token} was reported twice");
        })
        .unwrap();
    assert_eq!(engine.in_flight(), 0);
    results
}

fn one(engine: &mut dyn Engine) -> io::Result<u32> {
    let mut results = drain(engine);
    assert_eq!(results.len(), 1);
    results.remove(&7).expect("the token that was given")
}

fn segment(memory: &mut [u8]) -> Segment {
    Segment::new(memory.as_mut_ptr(), memory.len())
}

/// Cuts `memory` at random places, with an empty piece now and then.
fn cut(random: &mut Random, memory: &mut [u8], unit: usize) -> Vec<Segment> {
    let (base, len) = (memory.as_mut_ptr(), memory.len());
    let mut segments = Vec::new();
    let mut at = 0;
    while at < len {
        let step = (random.below(8) * unit).min(len - at);
        // SAFETY: within `memory`.
        segments.push(Segment::new(unsafe { base.add(at) }, step));
        at += step;
    }
    segments
}

/// Random requests in random batches; ranges in flight never overlap, so the model knows the outcome.
fn against_the_model(choice: Choice, direct: bool, unit: usize, misalign: usize, seed: u64) {
    let dir = if direct { directory() } else { memory_directory() };
    let mut random = Random(seed);
    let mut model: Vec<u8> = (0..SIZE).map(|_| random.next() as u8).collect();
    let image = image(&file(&dir, &model), direct);
    let mut engine = image.engine(16, choice);
    for round in 0..ROUNDS {
        let mut buffers: Vec<(usize, bool, Vec<u8>, usize)> = Vec::new();
        // Each request has a slice of the image to itself.
        let slice = SIZE / 16;
        for place in 0..16usize {
            let start = place * slice + random.below(slice / 2 / unit) * unit;
            let len = (1 + random.below(slice / 2 / unit)) * unit;
            let token = place as u64;
            match random.below(8) {
                // Making things durable takes real time on real disks.
                0 if round == 0 => engine.flush(token).unwrap(),
                1 if unit >= 512 => {
                    engine.zero(start as u64, len as u64, random.below(2) == 0, token).unwrap();
                    model[start..start + len].fill(0);
                }
                2 if unit >= 512 && image.sparse().punch => {
                    engine.discard(start as u64, len as u64, token).unwrap();
                    model[start..start + len].fill(0);
                }
                kind => {
                    let write = kind % 2 == 0;
                    let mut memory: Vec<u8> = (0..len + 8192).map(|_| random.next() as u8).collect();
                    let skip = memory.as_ptr().align_offset(4096) + misalign;
                    let pieces = cut(&mut random, &mut memory[skip..skip + len], unit);
                    // SAFETY: `buffers` keeps the memory, whose place on the heap does not change, until after `drain`.
                    unsafe {
                        if write {
                            engine.write(start as u64, &pieces, token).unwrap();
                            model[start..start + len].copy_from_slice(&memory[skip..skip + len]);
                        } else {
                            engine.read(start as u64, &pieces, token).unwrap();
                        }
                    }
                    buffers.push((start, write, memory, skip));
                    // Look again at what is read by its length, kept in the token's place.
                    let last = buffers.last_mut().unwrap();
                    last.2.truncate(skip + len);
                }
            }
            if random.below(4) == 0 {
                engine.submit().unwrap();
            }
        }
        assert_eq!(engine.flush(99), Err(Refused), "sixteen are under way");
        let results = drain(engine.as_mut());
        assert_eq!(results.len(), 16);
        for (token, result) in results {
            result.unwrap_or_else(|error| panic!("round {round}, request {token}: {error}"));
        }
        for (start, write, memory, skip) in buffers {
            if !write {
                let got = &memory[skip..];
                assert!(got == &model[start..start + got.len()], "round {round}: wrong data at {start}");
            }
        }
    }
    drop(engine);
    assert!(fs::read(image.path()).unwrap() == model, "the file differs from the model");
}

#[test]
fn buffered_io_matches_the_model() {
    for (index, choice) in choices().iter().enumerate() {
        against_the_model(*choice, false, 512, 0, 0x1234_5678 + index as u64);
        against_the_model(*choice, false, 1, 3, 0x9876_5432 + index as u64);
    }
}

#[test]
fn direct_io_matches_the_model() {
    for (index, choice) in choices().iter().enumerate() {
        against_the_model(*choice, true, 4096, 0, 0xabcd_0001 + index as u64);
        against_the_model(*choice, true, 512, 0, 0xabcd_1001 + index as u64);
    }
}

#[test]
fn direct_io_makes_a_detour_for_misaligned_memory_and_positions() {
    for (index, choice) in choices().iter().enumerate() {
        against_the_model(*choice, true, 512, 1, 0xabcd_2001 + index as u64);
        against_the_model(*choice, true, 1, 5, 0xabcd_3001 + index as u64);
    }
}

#[test]
fn a_file_system_without_zero_range_punches_instead() {
    let Ok(dir) = TempDir::new_in(Path::new("/dev/shm")) else {
        return eprintln!("no /dev/shm: not tested");
    };
    for choice in choices() {
        let image = image(&file(&dir, &[0xaa; 64 << 10]), false);
        assert!(image.sparse().punch, "tmpfs can punch holes");
        let mut engine = image.engine(4, *choice);
        for may_free in [false, true] {
            engine.zero(4096, 8192, may_free, 7).unwrap();
            one(engine.as_mut()).unwrap();
        }
        let content = fs::read(image.path()).unwrap();
        assert!(content[4096..12288].iter().all(|byte| *byte == 0));
        assert!(content[..4096].iter().chain(&content[12288..]).all(|byte| *byte == 0xaa));
    }
}

#[test]
fn discarding_frees_space() {
    use std::os::unix::fs::MetadataExt;
    for choice in choices() {
        let dir = directory();
        let image = image(&file(&dir, &[0xaa; SIZE]), false);
        if !image.sparse().punch {
            return eprintln!("the file system cannot punch holes: not tested");
        }
        let blocks = || fs::metadata(image.path()).unwrap().blocks();
        let mut engine = image.engine(4, *choice);
        engine.flush(7).unwrap();
        one(engine.as_mut()).unwrap();
        let before = blocks();
        engine.discard(0, SIZE as u64 / 2, 7).unwrap();
        one(engine.as_mut()).unwrap();
        assert!(blocks() < before);
        assert_eq!(fs::metadata(image.path()).unwrap().len(), SIZE as u64);
    }
}

#[test]
fn requests_that_move_nothing_are_reported() {
    for choice in choices() {
        let dir = directory();
        let image = image(&file(&dir, &[0; 4096]), false);
        let mut engine = image.engine(4, *choice);
        // SAFETY: no memory is named.
        unsafe { engine.read(0, &[], 7).unwrap() };
        assert_eq!(one(engine.as_mut()).unwrap(), 0);
        engine.discard(0, 0, 7).unwrap();
        assert_eq!(one(engine.as_mut()).unwrap(), 0);
        engine.zero(0, 0, true, 7).unwrap();
        assert_eq!(one(engine.as_mut()).unwrap(), 0);
    }
}

#[test]
fn failures_are_reported_with_their_request() {
    for choice in choices() {
        let dir = directory();
        let path = file(&dir, &[1; 8192]);
        let image = image(&path, false);
        let mut engine = image.engine(4, *choice);
        let mut memory = vec![0u8; 8192];

        // Somebody cuts the file short under us.
        OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        // SAFETY: `memory` outlives the request.
        unsafe { engine.read(0, &[segment(&mut memory)], 7).unwrap() };
        assert_eq!(one(engine.as_mut()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let huge = Segment::new(memory.as_mut_ptr(), MAX_REQUEST_BYTES as usize + 1);
        // SAFETY: refused before the memory is looked at.
        unsafe { engine.read(0, &[huge], 7).unwrap() };
        assert_eq!(one(engine.as_mut()).unwrap_err().kind(), io::ErrorKind::InvalidInput);

        // SAFETY: the kernel refuses an address that is not ours.
        unsafe { engine.read(0, &[Segment::new(std::ptr::without_provenance_mut(4096), 512)], 7).unwrap() };
        assert_eq!(one(engine.as_mut()).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }
}

/// Small writes that follow each other may be done as one.
#[test]
fn a_write_that_fails_does_not_fail_those_beside_it() {
    for (choice, dir) in
        choices().iter().flat_map(|choice| [(choice, directory()), (choice, memory_directory())])
    {
        let image = image(&file(&dir, &[0; SIZE]), false);
        let mut engine = image.engine(16, *choice);
        let mut memory = vec![0x77u8; 4096];
        for round in 0..4u64 {
            for n in 0..8 {
                let good = segment(&mut memory);
                let bad = Segment::new(std::ptr::without_provenance_mut(4096), 4096);
                let one = if n == 3 { bad } else { good };
                // SAFETY: `memory` outlives the requests; the kernel refuses an address that is not ours.
                unsafe { engine.write((round * 8 + n) * 4096, &[one], n).unwrap() };
            }
            let results = drain(engine.as_mut());
            assert_eq!(results.len(), 8);
            for (n, result) in results {
                match result {
                    Ok(bytes) => assert_eq!((bytes, n == 3), (4096, false)),
                    Err(error) => assert_eq!((n, error.raw_os_error()), (3, Some(libc::EFAULT))),
                }
            }
        }
        let content = fs::read(image.path()).unwrap();
        for (n, page) in content.chunks(4096).take(32).enumerate() {
            let expected = if n % 8 == 3 { 0 } else { 0x77 };
            assert!(page.iter().all(|byte| *byte == expected), "page {n}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error_of_the_request() {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 || !Path::new("/dev/full").exists() {
        return eprintln!("not root: not tested");
    }
    // RLIMIT_FSIZE gives EFBIG instead of ENOSPC; the path through the engines is the same. A child has the limit.
    if std::env::var_os("BLOCK_TEST_LIMIT").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_full_disk_is_an_error_of_the_request"])
            .env("BLOCK_TEST_LIMIT", "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let dir = directory();
    let path = file(&dir, &[]);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(SIZE as u64).unwrap();
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: a valid structure, and a signal that is only ignored.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    for choice in choices() {
        let image = image(&path, false);
        let mut engine = image.engine(4, *choice);
        let mut memory = vec![1u8; 8192];
        // SAFETY: `memory` outlives the request.
        unsafe { engine.write(8192, &[segment(&mut memory)], 7).unwrap() };
        assert_eq!(one(engine.as_mut()).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    }
}

#[test]
fn more_segments_than_one_call_takes() {
    for choice in choices() {
        let dir = directory();
        let content: Vec<u8> = (0..512 * 2500usize).map(|n| (n / 512) as u8).collect();
        let image = image(&file(&dir, &content), false);
        let mut engine = image.engine(4, *choice);
        let mut memory = vec![0u8; content.len()];
        let pieces: Vec<Segment> = memory.chunks_mut(512).map(segment).collect();
        // SAFETY: `memory` outlives the request.
        unsafe { engine.read(0, &pieces, 7).unwrap() };
        assert_eq!(one(engine.as_mut()).unwrap(), content.len() as u32);
        assert!(memory == content);
    }
}

/// Made here, used there, dropped here again, as a queue that is started and stopped does.
#[test]
fn an_engine_belongs_to_the_thread_that_uses_it() {
    for choice in choices() {
        let dir = directory();
        let image = image(&file(&dir, &[5; 4096]), false);
        for _ in 0..3 {
            let mut engine = image.engine(4, *choice);
            let engine = std::thread::scope(|scope| {
                scope
                    .spawn(move || {
                        let mut memory = vec![0u8; 4096];
                        // SAFETY: `memory` outlives the request.
                        unsafe { engine.read(0, &[segment(&mut memory)], 7).unwrap() };
                        assert_eq!(one(engine.as_mut()).unwrap(), 4096);
                        assert!(memory.iter().all(|byte| *byte == 5));
                        engine
                    })
                    .join()
                    .unwrap()
            });
            drop(engine);
        }
    }
}

/// The event descriptor wakes a poller for requests that are not finished at submission, and falls silent afterwards.
#[test]
fn the_event_descriptor_tells_of_completions() {
    if !block::io_uring_available() {
        return eprintln!("io_uring is not available: not tested");
    }
    let dir = directory();
    for direct in [false, true] {
        let image = image(&file(&dir, &[5; SIZE]), direct);
        let mut engine = image.engine(8, BEST);
        let fd = engine.event_fd().unwrap().as_raw_fd();
        let poll = |timeout| {
            let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid entry.
            unsafe { libc::poll(&raw mut entry, 1, timeout) }
        };
        let mut memory = vec![0u8; SIZE + 4096];
        let skip = memory.as_ptr().align_offset(4096);
        for _ in 0..10 {
            // SAFETY: `memory` outlives the requests.
            unsafe {
                engine.read(0, &[segment(&mut memory[skip..skip + SIZE])], 1).unwrap();
                engine.write(0, &[segment(&mut memory[skip..skip + 4096])], 3).unwrap();
            }
            engine.flush(2).unwrap();
            engine.submit().unwrap();
            let mut seen = 0;
            engine.completions(&mut |_, result| seen += result.map(|_| 1).unwrap()).unwrap();
            while seen < 3 {
                assert_eq!(poll(10_000), 1, "nothing came within ten seconds");
                engine.completions(&mut |_, result| seen += result.map(|_| 1).unwrap()).unwrap();
            }
            assert_eq!(poll(0), 0, "all is reported, so it must be silent");
        }
    }
}
