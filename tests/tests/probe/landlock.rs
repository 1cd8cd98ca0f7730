//! A process that is kept to the paths of its machine: the machine works, and nothing else can be reached.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::image::{self, SECTOR};
use tests::living::Living;
use tests::probe::Guest;
use tests::programs;
use tests::scratch::Scratch;

const SECTORS: u64 = 2048;

#[test]
fn a_machine_with_all_its_paths_works_and_starts_again() {
    let guest = Guest::new("hello,blk-info,blk-write");
    let disk = image::make(&guest.file("disk"), 7, SECTORS);
    let disk = format!("path={},image_type=raw", disk.display());
    let [vsock, debug, socket] = ["vsock", "debug", "console"].map(|name| guest.file(name));
    let (vsock_flag, debug) =
        (format!("cid=3,socket={}", vsock.display()), format!("file={}", debug.display()));
    let guest =
        guest.with(&["--landlock", "--disk", &disk, "--vsock", &vsock_flag, "--debug-console", &debug]);
    let mut running =
        guest.console(&format!("socket={}", socket.display())).option("probe.end=reset").start();
    // The second time everything is opened anew.
    running.wait_for("DONE pass=3 fail=0", 3);
    assert!(vsock.exists() && socket.exists());
    running.signal(libc::SIGTERM);
    let report = running.finish();
    report.ended_well();
    assert!(!vsock.exists() && !socket.exists(), "sockets were left: {report}");
    assert!(!report.messages.contains("cannot remove"), "{report}");
}

/// A machine that is kept to its paths, with a rule for a directory `inside`.
fn confined(scratch: &Scratch) -> Living {
    let inside = scratch.file("inside");
    std::fs::create_dir(&inside).expect("the scratch directory takes another");
    let rule = format!("path={},access=rw", inside.display());
    let mut machine = Living::boot(
        scratch.path(),
        "boot",
        "probe.run=hello,hang",
        &["--landlock", "--landlock-rules", &rule],
    );
    machine.wait_for("# hanging");
    machine
}

/// Asks for something that is refused for this path.
#[track_caller]
fn refused(machine: &Living, name: &str, body: &Value, path: &Path, access: &str) {
    let (status, text) = machine.ask("PUT", name, body);
    assert_eq!(status, 400, "{text}");
    let path = path.display();
    let rule = format!(
        "{path} is outside of what Landlock allows this process: it would need --landlock-rules path={path},access={access}"
    );
    assert!(text.contains(&rule), "{text}");
}

#[test]
fn what_is_added_must_lie_within_the_rules() {
    let scratch = Scratch::new();
    let machine = confined(&scratch);
    let disk = |path: &Path| json!({ "path": path, "image_type": "Raw" });
    let [outside, within] = ["outside", "inside/disk"].map(|name| scratch.file(name));
    for path in [&outside, &within] {
        std::fs::write(path, vec![0; (SECTORS * SECTOR) as usize]).expect("the scratch directory has room");
    }
    refused(&machine, "vm.add-disk", &disk(&outside), &outside, "rw");
    // A link from within leads out.
    let link = scratch.file("inside/link");
    std::os::unix::fs::symlink(&outside, &link).expect("a link can be made");
    refused(&machine, "vm.add-disk", &disk(&link), &link, "rw");
    // Where the API's socket is others may be as well, but not elsewhere.
    let elsewhere = Scratch::new();
    let vsock = json!({ "cid": 3, "socket": elsewhere.file("vsock") });
    let (status, text) = machine.ask("PUT", "vm.add-vsock", &vsock);
    let rule = format!("--landlock-rules path={},access=w", elsewhere.path().display());
    assert!(status == 400 && text.contains(&rule), "{status} {text}");
    let disks = machine.info()["config"]["disks"].clone();
    assert_eq!(disks, Value::Null, "what was refused is not part of the machine");
    machine.put("vm.add-disk", &disk(&within));
    machine.put("vm.add-vsock", &json!({ "cid": 3, "socket": scratch.file("inside/vsock") }));
    machine.shut_down().ended_well();
    assert!(!scratch.file("inside/vsock").exists());
}

#[test]
fn a_snapshot_must_lie_within_the_rules() {
    let scratch = Scratch::new();
    let machine = confined(&scratch);
    let [outside, within] = ["outside", "inside/snapshot"].map(|name| scratch.file(name));
    for path in [&outside, &within] {
        std::fs::create_dir(path).expect("the scratch directory takes another");
    }
    let place = |path: &Path| json!({ "destination_url": format!("file://{}", path.display()) });
    machine.put("vm.pause", &Value::Null);
    refused(&machine, "vm.snapshot", &place(&outside), &outside, "rw");
    assert!(std::fs::read_dir(&outside).expect("it is there").next().is_none());
    machine.put("vm.snapshot", &place(&within));
    // A description with the same paths needs no others to go on from there.
    machine.put("vm.delete", &Value::Null);
    machine.put("vm.restore", &json!({ "source_url": format!("file://{}", within.display()) }));
    machine.shut_down().ended_well();
    // The machine that goes on is kept to its paths as well: its description says so.
    let source = format!("source_url=file://{},resume=on", within.display());
    let restored = Living::restore(scratch.path(), "restored", &source, &[]);
    assert_eq!(restored.info()["config"]["landlock_enable"], true);
    refused(&restored, "vm.add-disk", &json!({ "path": outside, "image_type": "Raw" }), &outside, "rw");
    restored.shut_down().ended_well();
}

#[test]
fn a_machine_described_over_the_api_is_kept_to_its_paths() {
    let scratch = Scratch::new();
    let machine = Living::wait(scratch.path(), "api");
    let outside = scratch.file("outside");
    std::fs::write(&outside, vec![0; 1 << 20]).expect("the scratch directory has room");
    let described = json!({
        "payload": { "kernel": programs::probe(), "cmdline": "probe.run=hang" },
        "landlock_enable": true,
    });
    machine.put("vm.create", &described);
    machine.put("vm.boot", &Value::Null);
    refused(&machine, "vm.add-disk", &json!({ "path": outside, "image_type": "Raw" }), &outside, "rw");
    // It lasts as long as the process: another machine must do with the same paths.
    machine.put("vm.delete", &Value::Null);
    let other = json!({ "payload": { "kernel": outside } });
    refused(&machine, "vm.create", &other, &outside, "r");
    // A file that is not there yet would be made: a rule can only name the directory.
    let log = Scratch::new();
    let console = json!({ "mode": "File", "file": log.file("log") });
    let other = json!({ "payload": described["payload"], "console": console });
    let (status, text) = machine.ask("PUT", "vm.create", &other);
    let rule = format!("it would need --landlock-rules path={},access=w", log.path().display());
    assert!(status == 400 && text.contains(&rule), "{status} {text}");
    machine.put("vm.create", &described);
    machine.put("vm.boot", &Value::Null);
    machine.shut_down().ended_well();
}

/// Lets a program believe that the kernel does not know a system call: a filter answers for it.
pub(crate) fn without(command: &mut Command, call: libc::c_long) -> &mut Command {
    let step = |code: u32, jt, jf, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: plain system calls, safe between fork and exec; the kernel copies the program, which is valid for its length.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let filtered = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0;
            if filtered { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    }
}

#[test]
fn a_kernel_that_cannot_do_it_runs_no_machine() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(programs::cloud_hypervisor());
        command.arg("--kernel").arg(programs::probe()).args([
            "--cmdline",
            "probe.run=hello",
            "--console",
            "off",
        ]);
        command.args(["--serial", "tty", "--memory", "size=64M"]).args(arguments);
        without(&mut command, libc::SYS_landlock_create_ruleset).output().expect("the VMM starts")
    };
    let refused = run(&["--landlock"]);
    let messages = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{messages}");
    for part in
        ["Error creating VM", "Cannot confine the process by Landlock", "Landlock of Linux 6.2 is needed"]
    {
        assert!(messages.contains(part), "{messages}");
    }
    assert!(refused.stdout.is_empty(), "the guest was run");
    let unasked = run(&[]);
    assert!(unasked.status.success(), "{}", String::from_utf8_lossy(&unasked.stderr));
}
