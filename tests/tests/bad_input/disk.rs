//! Disks that cannot be used. What is in them stays as it was: the bench compares every byte.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use tests::small::Small;

use crate::bench::{Bench, heeding_permissions, root};

const BOOT: &str = "Error booting VM";

/// The chain of errors about the disk `id`.
fn about<'a>(id: &'a str, inner: &[&'a str]) -> Vec<String> {
    let device = [format!("Cannot create device {id:?} (--disk)"), format!("cannot add disk {id:?}")];
    [BOOT.to_owned()].into_iter().chain(device).chain(inner.iter().map(ToString::to_string)).collect()
}

#[track_caller]
fn refuses(bench: &Bench, args: &[&str], id: &str, inner: &[&str]) {
    let chain = about(id, inner);
    bench.refuses(args, &chain.iter().map(String::as_str).collect::<Vec<_>>());
}

/// An image with something in it.
fn image(bench: &Bench, name: &str, bytes: usize) {
    bench.file(name, (0..bytes).map(|i| (i / 7) as u8).collect::<Vec<_>>());
}

#[test]
fn images_that_are_none() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    bench.fifo("fifo");
    drop(std::os::unix::net::UnixListener::bind(bench.path("socket")).unwrap());
    image(&bench, "empty", 0);
    image(&bench, "small", 511);
    image(&bench, "qcow2", 4096);
    let mut qcow2 = fs::read(bench.path("qcow2")).unwrap();
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    bench.file("qcow2", qcow2);
    for (path, inner) in [
        ("none", &["cannot open disk image none", "No such file or directory (os error 2)"][..]),
        ("none/none", &["cannot open disk image none/none", "No such file or directory (os error 2)"]),
        ("dir", &["disk image dir is a directory; give a file or a block device"]),
        ("fifo", &["disk image fifo is a FIFO; give a file or a block device"]),
        ("socket", &["disk image socket is a socket; give a file or a block device"]),
        ("/dev/null", &["disk image /dev/null is a character device; give a file or a block device"]),
        ("empty", &["disk image empty has 0 bytes; it must have at least one sector of 512 bytes"]),
        ("small", &["disk image small has 511 bytes; it must have at least one sector of 512 bytes"]),
        (
            "qcow2",
            &[
                "disk image qcow2 is not a usable qcow2 image: it uses features that are not known: 0xa0a0a0a0a0b0b00",
            ],
        ),
    ] {
        refuses(&bench, &["--disk", &format!("path={path}")], "_disk0", inner);
        if path != "qcow2" {
            let keys = format!("path={path},image_type=raw,readonly=on,id=root");
            refuses(&bench, &["--disk", &keys], "root", inner);
        }
    }
}

#[test]
fn an_image_without_permission() {
    if !root("an image without permission") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    image(&bench, "image", 4096);
    for (mode, keys) in [(0, "path=image"), (0, "path=image,readonly=on"), (0o400, "path=image")] {
        fs::set_permissions(bench.path("image"), fs::Permissions::from_mode(mode)).unwrap();
        let mut command = bench.machine(&["--disk", keys]);
        let chain = about("_disk0", &["cannot open disk image image", "Permission denied (os error 13)"]);
        let chain: Vec<_> = chain.iter().map(String::as_str).collect();
        bench.refused(heeding_permissions(&mut command), &chain);
    }
}

#[test]
fn an_image_that_another_process_has_locked() {
    let bench = Bench::new();
    image(&bench, "image", 8192);
    let file = fs::File::options().read(true).write(true).open(bench.path("image")).unwrap();
    let me = fs::read_to_string("/proc/self/comm").unwrap();
    let holder = format!("process {} ({})", std::process::id(), me.trim_end());
    let lock = |kind: libc::c_int| {
        let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        // SAFETY: an open descriptor and a lock to read.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }, 0);
    };
    lock(libc::F_WRLCK);
    let message = |theirs, remedy| format!("disk image image is locked for {theirs} by {holder}; {remedy}");
    for (keys, theirs, remedy) in [
        ("path=image", "writing", "stop it, or use readonly=on in both"),
        ("path=image,readonly=on", "writing", "stop it, or open it there with readonly=on"),
        ("path=image,lock_granularity=full", "writing", "stop it, or use readonly=on in both"),
    ] {
        refuses(&bench, &["--disk", keys], "_disk0", &[&message(theirs, remedy)]);
    }
    lock(libc::F_RDLCK);
    let wanted = message("reading", "stop it, or use readonly=on in both");
    refuses(&bench, &["--disk", "path=image"], "_disk0", &[&wanted]);
    // Two readers do not mind each other.
    let outcome = bench.run_unchanged(&mut bench.machine(&["--disk", "path=image,readonly=on"]));
    assert!(outcome.status.success(), "{}", outcome.messages);
}

/// Files of the same number on two file systems are two files.
#[test]
fn an_image_whose_namesake_by_number_is_locked_too() {
    if !root("images on two file systems") {
        return;
    }
    let bench = Bench::new();
    let places = [(); 2].map(|()| Small::mount(1 << 20));
    let files = places.each_ref().map(|place| {
        let file = fs::File::create_new(place.file("image")).unwrap();
        file.set_len(8192).unwrap();
        file
    });
    assert_eq!(files[0].metadata().unwrap().ino(), files[1].metadata().unwrap().ino());
    // We hold the one, and a process that started after us the other. F_OFD_SETLK is 37, F_WRLCK 1.
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: an open descriptor and a lock to read.
    assert_eq!(unsafe { libc::fcntl(files[0].as_raw_fd(), libc::F_OFD_SETLK, &lock) }, 0);
    let image = places[1].file("image");
    let program = "import fcntl, struct, sys; f = open(sys.argv[1], 'r+'); \
                   fcntl.fcntl(f, 37, struct.pack('hhqqi', 1, 0, 0, 0, 0)); print(flush=True); sys.stdin.read()";
    let mut holder = Command::new("python3");
    holder.args(["-c", program]).arg(&image).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    holder.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let name = fs::read_to_string(format!("/proc/{}/comm", holder.id())).unwrap();
    let wanted = format!(
        "disk image {} is locked for writing by process {} ({}); stop it, or use readonly=on in both",
        image.display(),
        holder.id(),
        name.trim_end()
    );
    refuses(&bench, &["--disk", &format!("path={}", image.display())], "_disk0", &[&wanted]);
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}

#[test]
fn an_image_given_twice() {
    let bench = Bench::new();
    image(&bench, "image", 8192);
    let message = "disk image image is locked for writing by this program itself (is it given twice?); \
                   stop it, or use readonly=on in both";
    refuses(&bench, &["--disk", "path=image", "path=image"], "_disk1", &[message]);
}

#[test]
fn settings_of_a_disk_that_cannot_work() {
    let bench = Bench::new();
    image(&bench, "image", 8192);
    let invalid = |args: &[&str], device: &str, message: &str| {
        let inner: Vec<_> = [device, message].into_iter().filter(|m| !m.is_empty()).collect();
        let chain = [&["Error parsing config", "Failed to validate config"][..], &inner].concat();
        bench.refuses(&[&["--disk"], args].concat(), &chain);
    };
    let first = "Invalid --disk number 1";
    invalid(&["readonly=on"], first, "Disk path missing");
    invalid(&["path=image", "path="], "Invalid --disk number 2", "Disk path missing");
    invalid(&["path=image,num_queues=2"], first, "Queue count (2) must not exceed boot vCPUs (1)");
    invalid(&["path=image,num_queues=0"], first, "Number of queues (0) of a disk must be at least 1");
    invalid(
        &["path=image,queue_size=100"],
        first,
        "Queue size must be a power of 2 no greater than 32768: 100",
    );
    invalid(
        &["path=image,queue_size=2,id=d"],
        "Invalid --disk with id \"d\"",
        "Block queue size must be greater than 2: 2",
    );
    invalid(
        &["path=image,serial=123456789012345678901"],
        first,
        "Block device serial length (21) exceeds maximum allowed length (20)",
    );
    invalid(&["path=image,id=__d"], "Invalid --disk with id \"__d\"", "Identifier __d is not valid");
    invalid(
        &["path=image,pci_device_id=32"],
        first,
        "Given PCI device ID (32) is out of the supported range of 0..32",
    );
    invalid(&["path=image,pci_device_id=0"], first, "Given PCI device ID (0) is reserved");
    invalid(&["path=image,pci_segment=1"], first, "Invalid PCI segment id: 1");
    invalid(&["path=image,id=d", "path=other,id=d"], "", "Identifier d is not unique");
    invalid(&["path=image,id=n", "--net", "id=n"], "", "Identifier n is not unique");
    invalid(
        &["path=image,pci_device_id=9", "--net", "pci_device_id=9"],
        "",
        "PCI device ID 9 on segment 0 is given to two devices",
    );
    invalid(&["path=image,rate_limit_group=none"], first, "Invalid rate-limiter group");
}
