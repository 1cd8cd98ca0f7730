//! Folders of the host in a stock Debian: a project is cloned and built there, a file is compared with a model, one folder comes and goes, the
//! machine is saved with files open, and virtiofsd dies.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tests::linux::{BzImage, Linux, Running};
use tests::place;
use tests::stock::Stock;
use tests::virtiofsd::{self, Virtiofsd};

/// Seconds that a guest may take to its part.
const WAIT: &str = "200";
/// The socket behind which the folder is after the restore.
const AFTER: &str = "after";
/// Random steps of the comparison, and what they are drawn from.
const STEPS: u32 = 1500;
const SEED: u64 = 20_261_126;

/// Runs a program of the host's; what it writes.
fn host(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|e| panic!("{program} does not start: {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// One checksum of all files below a directory.
const SUM: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum";

/// Does something in the workshop, where the shared folder is `/home`.
fn work(guest: &mut Running, what: &str, script: &str) {
    let begun = Instant::now();
    guest.sh(&format!("chroot /run/tools /bin/bash -ec 'export HOME=/tmp; cd /home; {script}' 2>&1"));
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f32());
}

#[test]
fn a_project_is_built_in_a_shared_folder() {
    tests::elsewhere!();
    if virtiofsd::is_missing() {
        return;
    }
    let scratch = place::scratch();
    let folder = scratch.join("folder");
    fs::create_dir(&folder).expect("the scratch directory takes another");
    let archive = Stock::get().project();
    let source = folder.join("source");
    fs::create_dir(&source).expect("the folder takes a directory");
    host("tar", &["-xf", &archive.display().to_string(), "--strip-components=1"], &source);
    fs::write(folder.join("folders.c"), include_str!("folders.c")).expect("the folder takes a file");

    let socket = scratch.join("work");
    let daemon = Virtiofsd::start(&folder, &socket, &[]);
    let mut guest = Linux::new("6.1", BzImage)
        .debian()
        .console_pty()
        .memory("size=768M,shared=on")
        .with(&["--fs", &format!("id=work,tag=work,socket={}", socket.display())])
        .boot();
    guest.sh("mount -t virtiofs work /mnt");

    // A second folder comes, with a compiler in it.
    let tools_socket = scratch.join("tools");
    let tools =
        Virtiofsd::start(&Stock::get().workshop(), &tools_socket, &["--readonly", "--cache", "always"]);
    guest.ask(&["add-fs", &format!("id=tools,tag=tools,socket={}", tools_socket.display()), "--wait", WAIT]);
    guest.sh("mkdir /run/tools && mount -t virtiofs tools /run/tools && mount --bind /mnt /run/tools/home && \
              mount --bind /dev /run/tools/dev && mount -t proc proc /run/tools/proc && mount -t tmpfs tmp /run/tools/tmp");

    work(
        &mut guest,
        "a repository",
        "git config --global user.email guest@example.org; git config --global user.name guest; \
         git config --global --add safe.directory \"*\"; \
         cd source; git init -q; git add .; git commit -q -m first",
    );
    work(
        &mut guest,
        "git clone",
        "git clone -q --no-hardlinks source clone; cd clone; git fsck; git diff --quiet HEAD",
    );
    work(
        &mut guest,
        "make",
        "make -s -C clone/src generic CC=tcc CFLAGS=-DLUA_USE_POSIX AR=\"tcc -ar rcs\" RANLIB=true; \
                              test $(clone/src/lua -e \"print(6 * 7)\") = 42",
    );
    work(&mut guest, "random steps", &format!("tcc -o steps folders.c; ./steps random {SEED} {STEPS}"));
    let seen = guest.sh(&format!("cd /mnt && {SUM}"));
    assert_eq!(host("sh", &["-c", SUM], &folder), seen, "guest and host see different things");
    assert_eq!(
        host("sh", &["-c", "cd source && find src doc -type f | sort | xargs sha256sum"], &folder),
        host(
            "sh",
            &[
                "-c",
                "cd clone && find src doc -type f ! -name '*.o' ! -name '*.a' ! -name lua ! -name luac | sort | xargs sha256sum"
            ],
            &folder
        ),
        "the clone is another"
    );

    // And goes.
    guest.sh("umount /run/tools/tmp /run/tools/proc /run/tools/dev /run/tools/home /run/tools");
    guest.ask(&["remove-device", "tools", "--wait", WAIT]);
    drop(tools);

    let (mut guest, daemon) = goes_on(guest, daemon, &folder);
    dies(&mut guest, daemon, &folder);
    let complaints = guest.sh("dmesg | grep -E 'BUG:|WARNING:|blocked for more' || true");
    assert_eq!(complaints, "");
    guest.power_off();
}

/// The machine is saved while a file is open, and goes on with another virtiofsd.
fn goes_on(mut guest: Running, daemon: Virtiofsd, folder: &Path) -> (Running, Virtiofsd) {
    guest.sh("exec 9>> /mnt/diary; echo before >&9; cd /mnt/clone/src");
    let saved = guest.save();
    drop(daemon);
    let socket = place::scratch().join(AFTER);
    let daemon = Virtiofsd::start(folder, &socket, &[]);
    let mut guest = saved.restore("copy", &["--fs", &format!("id=work,socket={}", socket.display())]);
    guest.sh("echo after >&9; exec 9>&-; test $(./lua -e 'print(6 * 7)') = 42; cd /");
    let diary = fs::read_to_string(folder.join("diary")).expect("the guest wrote it");
    assert_eq!(diary, "before\nafter\n");
    (guest, daemon)
}

/// Without virtiofsd who wants something of the folder waits, and nobody else; the next one refuses what it does not know, and serves those who
/// mount the folder again.
fn dies(guest: &mut Running, daemon: Virtiofsd, folder: &Path) {
    drop(daemon);
    guest.sh("(cat /mnt/diary > /run/said 2>&1; echo $? > /run/status) & sleep 1; [ ! -e /run/status ]");
    assert!(guest.messages().contains("lost the back end at"), "{}", guest.messages());
    let _daemon = Virtiofsd::start(folder, &place::scratch().join(AFTER), &[]);
    guest.until("[ -e /run/status ]");
    let said = guest.sh("cat /run/status /run/said");
    assert!(!said.starts_with('0') && said.contains("/mnt/diary: "), "{said}");
    assert_eq!(guest.sh("umount /mnt && mount -t virtiofs work /mnt && cat /mnt/diary"), "before\nafter");
    guest.sh("umount /mnt");
}
