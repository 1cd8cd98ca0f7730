//! A VMM in a jail (`--jail`): it does all that one outside does, and has nothing that it does not need.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::image;
use tests::jailed::{Jailed, alive, give, no_group_is_left, status};
use tests::living::Living;
use tests::probe::Guest;
use tests::scratch::Scratch;
use tests::tap::Tap;
use tests::{ask, programs, remote};

use crate::landlock::without;
use crate::loaded::{Loaded, MAC};

/// A user of no importance, for tests.
const USER: u32 = 12345;

/// The directory that rules name, with an image to be added and room for a snapshot.
fn rules(scratch: &Scratch) -> PathBuf {
    let rules = scratch.file("rules");
    fs::create_dir_all(rules.join("snapshot")).expect("the scratch directory takes another");
    fs::write(rules.join("late"), vec![0; 1 << 20]).expect("the scratch directory has room");
    rules
}

fn disk(path: &Path) -> Value {
    json!({ "path": path, "image_type": "Raw", "id": "late" })
}

/// The probe, where the jail has it: without `..`.
fn kernel() -> PathBuf {
    programs::probe().canonicalize().expect("the probe is there")
}

/// A child, killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only if it has ended, and has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pauses, takes a snapshot, and ends.
fn save(machine: Living, directory: &Path) {
    machine.put("vm.pause", &Value::Null);
    machine.put("vm.snapshot", &json!({ "destination_url": format!("file://{}", directory.display()) }));
    machine.shut_down().ended_well();
}

#[test]
fn a_machine_in_a_jail_does_all_that_one_outside_does() {
    let mut loaded = Loaded::new();
    let scratch = &loaded.scratch;
    let file = |name: &str| scratch.file(name).display().to_string();
    let rules = rules(scratch);
    fs::create_dir(scratch.file("sockets")).expect("the scratch directory takes another");
    let rule = format!("path={},access=rw", rules.display());
    let (vsock, debug) =
        (format!("cid=3,socket={}", file("sockets/vsock")), format!("file={}", file("debug")));
    let limits = "memory=2G,pids=100,cpus=1.5,files=500";
    let arguments =
        ["--jail", limits, "--landlock-rules", &rule, "--vsock", &vsock, "--debug-console", &debug];
    let mut machine = loaded.boot_with("probe.run=load probe.interrupts=on", &arguments);
    machine.progress(200, 50);

    let jail = Jailed::find(machine.id());
    jail.is_confined();
    jail.first_forgets();
    let ids = status(&jail.inner.to_string(), "Uid");
    assert!(ids.iter().all(|id| id.parse::<u32>().is_ok_and(|id| id == 1 << 30 | machine.id())), "{ids:?}");
    assert_eq!(status(&jail.inner.to_string(), "Groups"), [""; 0]);
    let kernel = kernel().display().to_string();
    let paths =
        [kernel.as_str(), &file("disk0"), &file("disk1"), &file("debug"), &file("rules"), &file("sockets")];
    let root = jail.root();
    // The device of random numbers reads the one node.
    let expected = paths.iter().chain(&["/", "/proc", "/dev/urandom"]).map(PathBuf::from);
    assert_eq!(root.keys().cloned().collect::<BTreeSet<_>>(), expected.collect());
    for (path, first) in
        [("/", "ro"), ("/proc", "ro"), (&kernel, "ro"), (&file("disk0"), "rw"), ("/dev/urandom", "node")]
    {
        assert!(root[Path::new(path)].starts_with(first), "{path}: {}", root[Path::new(path)]);
    }
    let open = Jailed::files(jail.inner);
    let known = |name: &String| {
        let files = [&file("boot.messages"), &file("disk0"), &file("disk1"), &file("debug")];
        files.contains(&name)
            || name.starts_with("/dev/pts/")
            || ["/dev/kvm", "/dev/net/tun", "/dev/urandom"].contains(&name.as_str())
    };
    assert!(open.iter().all(known), "{open:?}");
    assert!(
        Jailed::files(jail.first)
            .iter()
            .all(|name| name.starts_with("/dev/pts/") || *name == file("boot.messages"))
    );
    let outer = Jailed::files(jail.outer);
    assert!(
        !outer.iter().any(|name| name.contains("disk") || name.contains("kvm") || name.contains("tun")),
        "{outer:?}"
    );
    assert_eq!(jail.limit("memory", ["memory.max", "memory.limit_in_bytes"]), (2u64 << 30).to_string());
    assert_eq!(jail.limit("pids", ["pids.max", "pids.max"]), "100");
    assert!(jail.limit("cpu", ["cpu.max", "cpu.cfs_quota_us"]).starts_with("150000"));

    let told = remote::ask(&scratch.file("boot.api"), &["confinement"]).expect("it is told");
    let told: Value = serde_json::from_str(&told).expect("it is JSON");
    assert_eq!(told["jail"], true);
    for name in ["ipc", "mnt", "net", "pid", "user", "uts"] {
        assert_eq!(told["namespaces"][name]["own"], true, "{name}");
    }
    assert_eq!(told["limits"]["Max open files"], json!({ "soft": 500, "hard": 500 }));
    assert_eq!(told["limits"]["Max core file size"], json!({ "soft": 0, "hard": 0 }));
    let threads = told["threads"].as_array().expect("there are threads");
    let of = |name: &str| {
        threads.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}: {told}"))
    };
    assert_eq!(of("vcpu0")["asked_by"], json!(["vCPU 0"]));
    assert_eq!(of("disk0_q0")["asked_by"], json!(["device disk0"]));
    assert!(threads.iter().all(|t| t["seccomp"] == 2 && t["capabilities"]["bounding"] == "0000000000000000"));

    // Which process is meant when it is asked for one: that which was started.
    let (_, ping) = machine.ask("GET", "vmm.ping", &Value::Null);
    assert_eq!(serde_json::from_str::<Value>(&ping).expect("it is JSON")["pid"], machine.id());
    machine.put("vm.add-disk", &disk(&rules.join("late")));
    let (status, text) = machine.ask("PUT", "vm.add-disk", &json!({ "path": "/etc/passwd" }));
    assert!(status == 400 && text.contains("/etc/passwd is not in the jail"), "{status} {text}");
    let (status, text) = machine.ask("PUT", "vm.add-net", &json!({ "tap": "load9" }));
    assert!(status == 400 && text.contains("as a descriptor"), "{status} {text}");
    let tap = Tap::new("late0").expect("a tap can be made");
    let open = tap.open().expect("nobody else has it");
    let request = ask::request("PUT", "vm.add-net", br#"{"id":"card"}"#);
    let answer = ask::exchange_with(&scratch.file("boot.api"), &request, &[open.as_raw_fd()]);
    assert_eq!(answer.as_ref().map(|(status, _)| *status), Some(200), "{answer:?}");
    drop(open);
    // The card goes again: a snapshot would need its tap.
    machine.put("vm.remove-device", &json!({ "id": "card" }));
    machine.put("vm.reboot", &Value::Null);
    machine.wait_for("# loading ");
    machine.progress(100, 20);
    let outer = machine.id();
    save(machine, &rules.join("snapshot"));
    jail.all_end();
    no_group_is_left(outer);
    for name in ["sockets/vsock", "boot.api", "boot.api.lock"] {
        assert!(!scratch.file(name).exists(), "{name} is left");
    }

    let source = format!("source_url=file://{},resume=on", rules.join("snapshot").display());
    loaded.partner = Loaded::partner(1);
    let mut machine = Living::restore(scratch.path(), "restored", &source, &["--jail", "on"]);
    machine.progress(100, 20);
    Jailed::find(machine.id()).is_confined();
    machine.shut_down().ended_well();
    loaded.images_are_whole();
}

/// Has a command run as [`USER`], in a mount namespace whose `/dev/kvm` that user may use.
fn as_user(command: &mut Command, scratch: &Scratch) {
    let place =
        |name: &str| CString::new(scratch.file(name).as_os_str().as_bytes()).expect("there is no NUL");
    fs::write(scratch.file("kvm"), "").expect("the scratch directory takes a file");
    fs::create_dir(scratch.file("devices")).expect("the scratch directory takes another");
    let (devices, node) = (place("devices"), place("devices/kvm"));
    let checked =
        |result: libc::c_int| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    let enter = move || {
        let none = std::ptr::null();
        let kvm = c"/dev/kvm".as_ptr();
        // SAFETY: plain system calls, safe between fork and exec; all paths end in NUL.
        unsafe {
            checked(libc::unshare(libc::CLONE_NEWNS))?;
            checked(libc::mount(
                none,
                c"/".as_ptr(),
                none.cast(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ))?;
            checked(libc::mount(c"none".as_ptr(), devices.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()))?;
            checked(libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(10, 232)))?;
            checked(libc::chmod(node.as_ptr(), 0o666))?;
            checked(libc::mount(node.as_ptr(), kvm, none, libc::MS_BIND, std::ptr::null()))?;
            checked(libc::setgroups(0, std::ptr::null()))?;
            checked(libc::setresgid(USER, USER, USER))?;
            checked(libc::setresuid(USER, USER, USER))
        }
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(enter) };
}

#[test]
fn an_ordinary_user_s_machine_has_a_jail_too() {
    let scratch = Scratch::new();
    let rules = rules(&scratch);
    let rule = format!("path={},access=rw", rules.display());
    fs::write(scratch.file("disk"), vec![0; 1 << 20]).expect("the scratch directory has room");
    let disk0 = format!("path={},image_type=raw,readonly=on", scratch.file("disk").display());
    // Landlock's rules hold in the jail as well.
    let arguments = ["--jail", "on", "--landlock", "--landlock-rules", &rule, "--disk", &disk0];
    let mut command = Living::command("probe.run=hello,hang", &arguments);
    as_user(&mut command, &scratch);
    give(scratch.path(), USER);
    let mut machine = Living::start(scratch.path(), "boot", command);
    machine.wait_for("# hanging");
    let jail = Jailed::find(machine.id());
    jail.is_confined();
    assert!(status(&jail.inner.to_string(), "Uid").iter().all(|id| *id == USER.to_string()));
    let root = jail.root();
    let kernel = kernel();
    let expected = [
        Path::new("/"),
        Path::new("/proc"),
        Path::new("/dev/urandom"),
        &kernel,
        &scratch.file("disk"),
        &rules,
    ];
    assert_eq!(root.keys().map(PathBuf::as_path).collect::<BTreeSet<_>>(), BTreeSet::from(expected));
    assert!(root[&scratch.file("disk")].starts_with("ro"));
    let (_, told) = machine.ask("GET", "vmm.confinement", &Value::Null);
    let told: Value = serde_json::from_str(&told).expect("it is JSON");
    assert!(told["landlock"]["domains"] == 1 && told["landlock"]["denies_root"] == true, "{told}");
    machine.put("vm.add-disk", &disk(&rules.join("late")));
    machine.put("vm.reboot", &Value::Null);
    machine.wait_for("# hanging");
    save(machine, &rules.join("snapshot"));
    let source = format!("source_url=file://{},resume=on", rules.join("snapshot").display());
    // Its files are the user's; root's jail takes them as they are.
    let machine = Living::restore(scratch.path(), "restored", &source, &["--jail", "on"]);
    assert_eq!(machine.info()["state"], "Running");
    machine.shut_down().ended_well();
}

#[test]
fn what_an_ordinary_user_cannot_have_is_refused() {
    let refused = |jail: &str, change: fn(&mut Command), parts: &[&str]| {
        let scratch = Scratch::new();
        let mut command = Living::command("probe.run=hello", &["--jail", jail]);
        as_user(&mut command, &scratch);
        change(&mut command);
        give(scratch.path(), USER);
        let report = Living::start(scratch.path(), "boot", command).refused();
        for part in ["Cannot enter the jail"].iter().chain(parts) {
            assert!(report.messages.contains(part), "{report}");
        }
        assert!(!scratch.file("boot.api").exists() && !scratch.file("boot.api.lock").exists());
    };
    refused("uid=7", |_| (), &["uid= and gid= are for root"]);
    // A group needs somebody who may make it.
    refused("pids=9", |_| (), &["cannot make the control group", "Permission denied"]);
    let no_namespaces = |command: &mut Command| {
        without(command, libc::SYS_unshare);
    };
    refused("on", no_namespaces, &["cannot make a user namespace", "Function not implemented"]);
}

/// Sectors of the disk that the guest sees after a reboot, before which the path was made to lead to another image.
fn sectors_after_a_swap(arguments: &[&str]) -> String {
    let guest = Guest::new("blk-info").option("probe.end=reset");
    for (name, sectors) in [("small", 2048), ("large", 4096)] {
        image::make(&guest.file(name), 1, sectors);
    }
    let link = guest.file("link");
    std::os::unix::fs::symlink(guest.file("small"), &link).expect("a link can be made");
    let disk = format!("path={},image_type=raw", link.display());
    let mut running = guest.with(&["--disk", &disk]).with(arguments).with_api().start();
    running.wait_for("DONE", 1);
    // As a rename does it: at no time is nothing there.
    std::os::unix::fs::symlink(running.file("large"), running.file("other")).expect("a link can be made");
    fs::rename(running.file("other"), running.file("link")).expect("a link can be replaced");
    let before = running.serial().matches("DONE").count();
    running.wait_for("DONE", before + 2);
    running.signal(libc::SIGTERM);
    let report = running.finish();
    report.ended_well();
    let last = report.serial.lines().rev().find(|line| line.starts_with("PASS blk-info"));
    let sectors = last.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("sectors=")));
    sectors.unwrap_or_else(|| panic!("{report}")).to_owned()
}

#[test]
fn a_path_leads_where_it_led_when_the_jail_was_made() {
    assert_eq!(sectors_after_a_swap(&[]), "4096");
    assert_eq!(sectors_after_a_swap(&["--jail", "on"]), "2048");
}

/// Kills one of the processes of a jail and waits for the end of all; how the outer one ended.
fn after_death_of(whom: fn(&Jailed) -> u32) -> std::process::ExitStatus {
    let scratch = Scratch::new();
    let mut command = Living::command("probe.run=hello,hang", &["--jail", "pids=50"]);
    let serial = File::create(scratch.file("serial")).expect("the scratch directory takes files");
    let child = command.stdin(Stdio::null()).stdout(serial).spawn().expect("the VMM starts");
    let mut child = Killed(child);
    let child = &mut child.0;
    let begun = Instant::now();
    while !fs::read_to_string(scratch.file("serial")).unwrap_or_default().contains("# hanging") {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().expect("it is ours").is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let jail = Jailed::find(child.id());
    // SAFETY: to a process of our own child's, which lives.
    assert_eq!(unsafe { libc::kill(whom(&jail).cast_signed(), libc::SIGKILL) }, 0);
    let status = child.wait().expect("it is ours");
    jail.all_end();
    assert!(!alive(jail.outer));
    if whom(&jail) != jail.outer {
        no_group_is_left(jail.outer);
    }
    status
}

#[test]
fn the_processes_of_a_jail_end_together() {
    for whom in [|jail: &Jailed| jail.outer, |jail: &Jailed| jail.inner, |jail: &Jailed| jail.first] {
        assert_eq!(after_death_of(whom).signal(), Some(libc::SIGKILL));
    }
}

/// Who is to clear away cannot, and nobody waits for the others' ends.
#[test]
fn after_a_kill_the_same_arguments_start_the_same_machine() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.file("sockets")).expect("the scratch directory takes another");
    let disk = format!("path={},image_type=raw", image::make(&scratch.file("disk"), 7, 2048).display());
    let vsock = format!("cid=3,socket={}", scratch.file("sockets/vsock").display());
    let serial = format!("socket={}", scratch.file("sockets/serial").display());
    let arguments = ["--jail", "pids=50", "--disk", &disk, "--vsock", &vsock, "--console", &serial];
    let start = || {
        let mut machine = Living::boot(scratch.path(), "boot", "probe.run=blk-read,hang", &arguments);
        machine.wait_for("PASS blk-read");
        machine.wait_for("# hanging");
        assert_eq!(machine.info()["state"], "Running");
        machine
    };
    for _ in 0..5 {
        let machine = start();
        let jail = Jailed::find(machine.id());
        assert_eq!(machine.killed(libc::SIGKILL).status.signal(), Some(libc::SIGKILL));
        // Its socket is in use until the process that serves it has gone as well.
        jail.all_end();
        assert!(scratch.file("boot.api").exists() && scratch.file("boot.api.lock").exists());
    }
    start().shut_down().ended_well();
    let left = ["boot.api", "sockets/vsock", "sockets/serial"].map(|name| scratch.file(name).exists());
    assert_eq!(left, [false; 3], "a socket is left");
}

#[test]
fn signals_reach_the_program_and_its_end_is_told() {
    let run = |arguments: &[&str]| {
        let mut running = Guest::new("hello,hang").with(&["--jail", "on"]).with(arguments).start();
        running.wait_for("# hanging", 1);
        let jail = Jailed::find(running.id());
        running.signal(libc::SIGUSR1);
        let report = running.finish();
        jail.all_end();
        report.status
    };
    // Nothing handles it, with a jail as without, nor has whoever started us had it ignored, as nohup(1) has SIGHUP.
    assert_eq!(run(&[]).signal(), Some(libc::SIGUSR1));
    let report = Guest::new("hello").with(&["--jail", "on"]).run();
    report.all_passed();
    assert_eq!(report.status.code(), Some(0));
}

#[test]
fn what_was_open_before_is_closed_unless_it_is_named() {
    let scratch = Scratch::new();
    let secret = File::create(scratch.file("secret")).expect("the scratch directory takes files");
    let mut command = Living::command("probe.run=hello,hang", &["--jail", "on"]);
    let fd = secret.as_raw_fd();
    // SAFETY: dup2 is a plain system call, safe between fork and exec.
    unsafe {
        command.pre_exec(
            move || if libc::dup2(fd, 30) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) },
        )
    };
    let mut machine = Living::start(scratch.path(), "boot", command);
    machine.wait_for("# hanging");
    let jail = Jailed::find(machine.id());
    for process in [jail.outer, jail.first, jail.inner] {
        let files = Jailed::files(process);
        assert!(!files.iter().any(|name| name.ends_with("secret")), "{files:?}");
    }
    machine.shut_down().ended_well();
}

/// A daemon at work in a jail, when it listens.
fn serve(program: PathBuf, arguments: [&str; 2], socket: &Path) -> (Killed, Jailed) {
    let daemon = Command::new(program).args(["--jail", "on"]).args(arguments).spawn();
    let mut daemon = Killed(daemon.expect("the daemon starts"));
    let begun = Instant::now();
    while UnixStream::connect(socket).is_err() {
        let ended = daemon.0.try_wait().expect("it is ours");
        assert!(
            begun.elapsed() < Duration::from_secs(60) && ended.is_none(),
            "it does not listen: {ended:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let jail = Jailed::find(daemon.0.id());
    jail.is_confined();
    (daemon, jail)
}

/// Ends a daemon; nothing is left.
fn dismiss((mut daemon, jail): (Killed, Jailed), socket: &Path) {
    // SAFETY: to our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(daemon.0.id().cast_signed(), libc::SIGTERM) }, 0);
    assert!(daemon.0.wait().expect("it is ours").success());
    jail.all_end();
    assert!(!socket.exists(), "the socket is left");
}

#[test]
fn a_disk_is_served_from_one_jail_into_another() {
    let scratch = Scratch::new();
    let path = image::make(&scratch.file("disk"), 7, 2048);
    let socket = scratch.file("socket");
    let backend = format!("path={},socket={}", path.display(), socket.display());
    let served = serve(programs::vhost_user_block(), ["--block-backend", &backend], &socket);
    let root: Vec<_> = served.1.root().into_keys().collect();
    assert_eq!(root, [Path::new("/"), Path::new("/proc"), path.parent().expect("it has one"), &path]);
    let wanted = format!("{:08x}", image::crc32(&fs::read(&path).expect("the image is there")));
    let disk = format!("vhost_user=on,socket={}", socket.display());
    let guest = Guest::new("blk-info,blk-read").memory("size=256M,shared=on");
    let report = guest.with(&["--disk", &disk, "--jail", "on"]).run();
    report.all_passed();
    assert_eq!(report.fact("blk-read", "crc32"), wanted, "{report}");
    dismiss(served, &socket);
}

#[test]
fn a_card_is_served_from_one_jail_into_another() {
    let loaded = Loaded::new();
    let socket = loaded.scratch.file("socket");
    let backend = format!("tap=load0,socket={}", socket.display());
    let served = serve(programs::vhost_user_net(), ["--net-backend", &backend], &socket);
    let net = format!("vhost_user=on,socket={},mac={MAC},id=net0", socket.display());
    let arguments = ["--jail", "on", "--memory", "size=256M,shared=on", "--net", &net];
    let cmdline = "probe.run=load probe.interrupts=on";
    let mut machine = Living::boot(loaded.scratch.path(), "boot", cmdline, &arguments);
    assert_eq!(machine.wait_for("# loading "), "disks=0 cards=1");
    machine.progress(0, 500);
    machine.shut_down().ended_well();
    dismiss(served, &socket);
}
