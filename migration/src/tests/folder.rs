//! The directory of a snapshot: which are taken, and what is left of one that does not come to its end.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use device::fake::random::Random;

use super::alone;
use super::machine::{CONFIG_TEXT, Kind, copied, devices, fill, memory, save, save_at};
use super::scratch::Scratch;
use crate::{CONFIG, Directory, Error, MEMORY, Memory, PAGE, Progress, STATE, Source};

const MIB: u64 = 1 << 20;

fn entries(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn plain(ram: &device::ram::RamMap) -> Memory<'_> {
    Memory { ram, behind: None, marks: &[] }
}

#[test]
fn only_an_empty_directory_is_taken() {
    let scratch = Scratch::new();
    let none = scratch.path().join("none");
    assert!(matches!(Directory::create(&none), Err(Error::Missing(_))));
    let file = scratch.path().join("file");
    File::create(&file).unwrap();
    assert!(matches!(Directory::create(&file), Err(Error::NotADirectory(_))));
    let refused = Directory::create(scratch.path());
    assert!(matches!(&refused, Err(Error::NotEmpty { entry, .. }) if entry == "file"), "{refused:?}");

    let folder = scratch.folder("folder");
    fs::create_dir(folder.join("lost+found")).unwrap();
    let source = save(&folder, &memory(Kind::Private, &[(0, MIB)]));
    assert_eq!(source.config(), CONFIG_TEXT);
    assert_eq!(entries(&folder), [CONFIG, "lost+found", MEMORY, STATE]);
    for name in [CONFIG, MEMORY, STATE] {
        assert_eq!(fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // There is one now.
    assert!(matches!(Directory::create(&folder), Err(Error::NotEmpty { .. })));
}

#[test]
fn what_does_not_come_to_its_end_is_removed_and_nothing_else() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, MIB)]);
    let mut directory = Directory::create(scratch.path()).unwrap();
    directory.write_memory(&plain(&ram), &Progress::new()).unwrap();
    assert_eq!(entries(scratch.path()), [MEMORY]);
    fs::write(scratch.path().join("another"), "'s").unwrap();
    // In the way of one file, and in the place of another.
    fs::write(scratch.path().join(CONFIG), "another's").unwrap();
    fs::remove_file(scratch.path().join(MEMORY)).unwrap();
    fs::write(scratch.path().join(MEMORY), "another's").unwrap();
    let refused = directory.finish(CONFIG_TEXT, &devices());
    assert!(matches!(refused, Err(Error::File { .. })), "{refused:?}");
    assert_eq!(entries(scratch.path()), ["another", CONFIG, MEMORY]);
    assert_eq!(fs::read(scratch.path().join(CONFIG)).unwrap(), b"another's");

    let folder = scratch.folder("folder");
    let mut directory = Directory::create(&folder).unwrap();
    directory.write_memory(&plain(&ram), &Progress::new()).unwrap();
    // The path leads elsewhere now; we do not.
    let moved = scratch.path().join("moved");
    fs::rename(&folder, &moved).unwrap();
    fs::create_dir(&folder).unwrap();
    directory.finish(CONFIG_TEXT, &devices()).unwrap();
    assert_eq!(entries(&folder), [""; 0]);
    Source::open(&moved).unwrap();

    let early = Directory::create(&folder).unwrap().finish(CONFIG_TEXT, &devices());
    assert!(matches!(early, Err(Error::Layout(_))), "{early:?}");
}

#[test]
fn a_memory_file_is_locked_while_it_is_written_and_while_it_is_read() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, MIB)]);
    let source = save(scratch.path(), &ram);
    let path = scratch.path().join(MEMORY);
    let writer = File::options().write(true).read(true).open(&path).unwrap();
    let busy = |exclusive| matches!(crate::files::lock(&writer, &path, exclusive), Err(Error::Busy(_)));
    assert!(busy(true));
    // Memory that came from it holds it too, as long as the owner keeps what is behind it.
    let backing = source.backing().clone();
    drop(source);
    assert!(busy(true));
    drop(backing);
    assert!(!busy(true));
    assert!(matches!(Source::open(scratch.path()), Err(Error::Busy(_))));
}

#[test]
fn a_killed_one_is_never_taken_for_a_good_one() {
    const NAME: &str = "tests::folder::a_killed_one_is_never_taken_for_a_good_one";
    let ram = memory(Kind::Private, &[(0, 8 * MIB)]);
    fill(&ram, 3, 10);
    if let Some(path) = alone::given() {
        for number in 0.. {
            let path = Path::new(&path).join(number.to_string());
            fs::create_dir(&path).unwrap();
            save_at(&path, &plain(&ram)).unwrap();
        }
    }
    let mut random = Random(4);
    let (mut good, mut killed) = (0, 0);
    for _ in 0..12 {
        let scratch = Scratch::within(Path::new("/dev/shm"));
        let mut child =
            alone::command(NAME, scratch.path()).stdout(std::process::Stdio::null()).spawn().unwrap();
        while entries(scratch.path()).len() < 2 {
            assert!(child.try_wait().unwrap().is_none());
        }
        thread::sleep(Duration::from_micros(random.below(20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in fs::read_dir(scratch.path()).unwrap() {
            match Source::open(&entry.unwrap().path()) {
                Ok(source) => {
                    super::machine::assert_same(&ram, &copied(&source, Kind::Private));
                    good += 1;
                }
                Err(Error::Incomplete(_)) => killed += 1,
                Err(e) => panic!("{e}"),
            }
        }
    }
    assert!(good > 0 && killed > 0, "{good} and {killed}");
}

#[test]
fn cancelling_ends_it_soon_and_leaves_nothing() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, 256 * MIB)]);
    fill(&ram, 3, 1);
    let progress = Arc::new(Progress::new());
    assert_eq!((progress.done(), progress.total(), progress.rate()), (0, 0, 0));
    let mut directory = Directory::create(scratch.path()).unwrap();
    let ended = thread::scope(|scope| {
        let writing = scope.spawn(|| directory.write_memory(&plain(&ram), &progress));
        while progress.done() < 8 * MIB {
            assert!(!writing.is_finished());
            thread::yield_now();
        }
        assert!(progress.total() > 64 * MIB && progress.rate() > MIB);
        progress.cancel();
        let begun = Instant::now();
        let ended = writing.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        ended
    });
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    assert!(progress.done() < progress.total());
    drop(directory);
    assert_eq!(entries(scratch.path()), [""; 0]);

    // Reading as well.
    let source = save(scratch.path(), &ram);
    let ended = source.copy(&super::machine::empty_like(&source, Kind::Private), &progress);
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
}

fn mount(path: &Path, flags: libc::c_ulong, options: &str) {
    let (path, options) =
        (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(options).unwrap());
    let kind = c"tmpfs";
    // SAFETY: all are NUL-terminated strings.
    let mounted =
        unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
}

/// Needs root, as all tests of a machine do: a file system of its own, which nobody else sees.
#[test]
fn a_full_or_read_only_file_system_is_said() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, 8 * MIB)]);
    fill(&ram, 3, 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: affects this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
            mount(Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "");
            mount(scratch.path(), 0, "size=2m");
            let mut directory = Directory::create(scratch.path()).unwrap();
            let refused = directory.write_memory(&plain(&ram), &Progress::new());
            match &refused {
                Err(Error::NoSpace { path, bytes, .. }) => {
                    assert_eq!(path, &scratch.path().join(MEMORY));
                    assert!(*bytes <= 2 * MIB);
                }
                other => panic!("{other:?}"),
            }
            drop(directory);
            assert_eq!(entries(scratch.path()), [""; 0]);
            // Room for memory, but not for the rest.
            let small = memory(Kind::Private, &[(0, MIB)]);
            let mut directory = Directory::create(scratch.path()).unwrap();
            directory.write_memory(&plain(&small), &Progress::new()).unwrap();
            let refused = directory.finish(&" ".repeat(3 << 20), &devices());
            assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
            assert_eq!(entries(scratch.path()), [""; 0]);
            // And now there is.
            save(scratch.path(), &small);

            mount(scratch.path(), libc::MS_RDONLY, "size=2m");
            let refused = Directory::create(scratch.path());
            assert!(matches!(refused, Err(Error::ReadOnly(_))), "{refused:?}");
        });
    });
}

#[test]
fn files_that_are_too_long_to_be_read_are_not_written() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, PAGE)]);
    let limit = usize::try_from(crate::TEXT_LIMIT).unwrap();
    for (config, machine) in [(limit + 1, 0), (0, limit)] {
        let mut directory = Directory::create(scratch.path()).unwrap();
        directory.write_memory(&plain(&ram), &Progress::new()).unwrap();
        let refused = directory.finish(&" ".repeat(config), &"x".repeat(machine));
        assert!(matches!(refused, Err(Error::TooLong { .. })), "{refused:?}");
        assert_eq!(entries(scratch.path()), [""; 0]);
    }
}
