//! What can be opened as a disk, what cannot, and what is said about it.

#![allow(clippy::unwrap_used)]

use std::error::Error as _;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Error, Forbidden, Format, Granularity, Image, Options, Type};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempdir::TempDir;

fn directory() -> TempDir {
    TempDir::new().unwrap()
}

fn file(directory: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.as_path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn raw(path: &Path) -> Options {
    Options { path: path.to_owned(), format: Type::Stated(Format::Raw), ..Options::default() }
}

fn open(path: &Path) -> Result<Arc<Image>, Error> {
    Image::open(&raw(path))
}

/// The whole chain, as the user would see it.
fn message(result: Result<Arc<Image>, Error>) -> String {
    let error = result.expect_err("this must not open");
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn what_is_not_a_disk_is_named() {
    let dir = directory();
    let missing = dir.as_path().join("missing");
    assert_eq!(
        message(open(&missing)),
        format!("cannot open disk image {}: No such file or directory (os error 2)", missing.display())
    );

    for readonly in [false, true] {
        let options = Options { readonly, ..raw(dir.as_path()) };
        assert_eq!(
            message(Image::open(&options)),
            format!("disk image {} is a directory; give a file or a block device", dir.as_path().display())
        );
    }

    let fifo = dir.as_path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: a valid C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for readonly in [false, true] {
        // Must not wait for a writer either.
        let text = message(Image::open(&Options { readonly, ..raw(&fifo) }));
        assert_eq!(text, format!("disk image {} is a FIFO; give a file or a block device", fifo.display()));
    }

    let socket = dir.as_path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let text = message(open(&socket));
    assert_eq!(text, format!("disk image {} is a socket; give a file or a block device", socket.display()));

    let text = message(open(Path::new("/dev/null")));
    assert_eq!(text, "disk image /dev/null is a character device; give a file or a block device");
}

#[test]
fn an_unreadable_file_is_named() {
    let dir = directory();
    let path = file(&dir, "secret", &[0; 512]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    match open(&path) {
        // Root may read anything.
        // SAFETY: geteuid has no preconditions.
        Ok(_) => assert_eq!(unsafe { libc::geteuid() }, 0),
        error => assert_eq!(
            message(error),
            format!("cannot open disk image {}: Permission denied (os error 13)", path.display())
        ),
    }
}

#[test]
fn less_than_a_sector_is_refused_and_odd_tails_are_hidden() {
    let dir = directory();
    for size in [0, 1, 511] {
        let path = file(&dir, "small", &vec![0; size]);
        assert_eq!(
            message(open(&path)),
            format!(
                "disk image {} has {size} bytes; it must have at least one sector of 512 bytes",
                path.display()
            )
        );
    }
    for (size, visible) in [(512, 512), (513, 512), (1023, 512), (1024, 1024)] {
        assert_eq!(open(&file(&dir, "odd", &vec![0; size])).unwrap().size(), visible);
    }
}

#[test]
fn opening_leaves_the_image_as_it_was() {
    let dir = directory();
    let content: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    let path = file(&dir, "image", &content);
    let before = fs::metadata(&path).unwrap();
    let image = open(&path).unwrap();
    drop(image);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
    assert_eq!((before.len(), before.blocks(), before.mtime_nsec()), {
        (after.len(), after.blocks(), after.mtime_nsec())
    });
}

#[test]
fn what_is_no_usable_image_of_its_format_is_refused_unless_raw_is_stated() {
    let dir = directory();
    let with = |offset: usize, magic: &[u8]| {
        let mut content = vec![0u8; 8192];
        content[offset..offset + magic.len()].copy_from_slice(magic);
        content
    };
    let cases = [
        ("qcow2", "clusters", with(0, b"QFI\xfb\0\0\0\x03")),
        ("vhdx", "", with(0, b"vhdxfile")),
        ("vmdk", "say image_type=vmdk", with(0, b"KDMV")),
        ("vmdk", "say image_type=vmdk", with(0, b"# Disk DescriptorFile\nversion=1\n")),
        ("vhd", "no footer", with(0, b"conectix")),
        ("vhd", "checksum", with(8192 - 512, b"conectix")),
        ("vhd", "no footer", with(8192 - 511, b"conectix")),
    ];
    for (format, why, content) in cases {
        let path = file(&dir, "image", &content);
        let guess = Options { format: Type::Unknown, ..raw(&path) };
        let text = message(Image::open(&guess));
        assert!(
            text.contains(path.to_str().unwrap()) && text.contains(format) && text.contains(why),
            "{text}"
        );
        let image = open(&path).unwrap();
        assert!(!image.protects_sector0());
    }
}

#[test]
fn a_guessed_raw_image_has_its_first_sector_protected() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 4096]);
    let guess = Options { format: Type::Unknown, ..raw(&path) };
    let image = Image::open(&guess).unwrap();
    assert!(image.protects_sector0());
    assert_eq!(image.may_write(0, 512), Err(Forbidden::Sector0));
    assert_eq!(image.may_write(0, 4096), Err(Forbidden::Sector0));
    assert_eq!(image.may_write(511, 1), Err(Forbidden::Sector0));
    assert_eq!(image.may_write(512, 3584), Ok(()));
    assert_eq!(image.may_read(0, 4096), Ok(()));
}

#[test]
fn bounds_and_permissions_are_kept() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 4096]);
    let image = open(&path).unwrap();
    assert_eq!(image.may_write(0, 4096), Ok(()));
    for (offset, len) in [(0, 4097), (4096, 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        assert_eq!(image.may_read(offset, len), Err(Forbidden::PastEnd));
        assert_eq!(image.may_write(offset, len), Err(Forbidden::PastEnd));
    }
    drop(image);
    let image = Image::open(&Options { readonly: true, ..raw(&path) }).unwrap();
    assert_eq!(image.may_write(0, 512), Err(Forbidden::ReadOnly));
    assert!(!image.sparse().punch);
}

#[test]
fn one_writer_or_many_readers() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 4096]);
    for lock in [Granularity::ByteRange, Granularity::Full] {
        let write = Options { lock, ..raw(&path) };
        let read = Options { readonly: true, ..write.clone() };

        let writer = Image::open(&write).unwrap();
        let text = message(Image::open(&write));
        assert_eq!(
            text,
            format!(
                "disk image {} is locked for writing by this program itself (is it given twice?); \
                 stop it, or use readonly=on in both",
                path.display()
            )
        );
        assert!(matches!(Image::open(&read), Err(Error::Locked { theirs: "writing", .. })));
        drop(writer);

        let readers = [Image::open(&read).unwrap(), Image::open(&read).unwrap()];
        assert!(matches!(Image::open(&write), Err(Error::Locked { theirs: "reading", .. })));
        drop(readers);
        Image::open(&write).unwrap();
    }
}

#[test]
fn the_holder_of_a_lock_is_named() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 4096]);
    // A classic lock of another process, for which the kernel knows the owner.
    let mut child = std::process::Command::new("python3")
        .args(["-c", "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    let text = message(open(&path));
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(text.contains(&format!("is locked for writing by process {} (python3", child.id())), "{text}");
    open(&path).unwrap();
}

/// As a killed program's ring does while it is torn down: the file is open, but no process has it.
#[test]
fn a_lock_that_nobody_has_any_more_is_waited_for() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 4096]);
    let held = fs::File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: an open descriptor and a lock to read, of which all zeroes are one.
    unsafe {
        let lock = libc::flock { l_type: libc::F_WRLCK as i16, ..std::mem::zeroed() };
        assert_eq!(libc::fcntl(held.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock), 0);
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.send_with_fd(&b"."[..], held.as_raw_fd()).unwrap();
    drop(held);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            drop((ours, theirs));
        });
        open(&path).unwrap();
    });
}

#[test]
fn the_id_is_at_most_twenty_digits() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 4096]);
    let image = open(&path).unwrap();
    let meta = fs::metadata(&path).unwrap();
    let whole = format!("{}{}{}", meta.dev(), meta.rdev(), meta.ino());
    assert!(image.id().len() <= 20 && whole.starts_with(image.id()));
    assert!(image.id().len() == whole.len().min(20));
}

#[test]
fn block_sizes_make_sense() {
    let dir = directory();
    let path = file(&dir, "image", &[0; 1 << 20]);
    let topology = open(&path).unwrap().topology();
    assert_eq!(topology.logical_block, 512);
    assert!(topology.physical_block.is_power_of_two() && topology.physical_block >= 512);
}

#[test]
fn an_image_grows_and_shrinks_and_its_lock_follows() {
    let directory = directory();
    let path = file(&directory, "image", &[7; 4096]);
    let image = open(&path).unwrap();
    image.resize(1 << 20).unwrap();
    assert_eq!((image.size(), fs::metadata(&path).unwrap().len()), (1 << 20, 1 << 20));
    assert!(image.may_write((1 << 20) - 512, 512).is_ok());
    image.resize(1024).unwrap();
    assert_eq!((image.size(), fs::read(&path).unwrap()), (1024, vec![7; 1024]));
    assert_eq!(image.may_read(1024, 512), Err(Forbidden::PastEnd));
    // What was added is locked too.
    image.resize(8192).unwrap();
    assert!(matches!(open(&path), Err(Error::Locked { .. })));
    for bytes in [0, 511, 513] {
        assert!(matches!(image.resize(bytes), Err(Error::Resize { .. })), "{bytes}");
    }
    assert_eq!(image.size(), 8192);
    drop(image);
    let readonly = Image::open(&Options { readonly: true, ..raw(&path) }).unwrap();
    let error = readonly.resize(512).unwrap_err().to_string();
    assert!(error.contains("from 8192 to 512 bytes: the image is read-only"), "{error}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
}
