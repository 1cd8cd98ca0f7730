//! Jails that cannot be: one clear line each, and nothing is left.

use std::os::unix::process::ExitStatusExt;

use crate::bench::Bench;

#[track_caller]
fn refuses(jail: &str, chain: &[&str]) {
    Bench::new().refuses(&["--jail", jail], chain);
}

#[test]
fn keys_that_are_not_understood() {
    for (jail, inner) in [
        ("yes", &["Unknown option: yes"][..]),
        ("dir=/srv/jail", &["Unknown option: dir"]),
        ("uid=me", &["Unable to convert me for uid", "expected a decimal number from 0 to 4294967295"]),
        ("network=none", &["Unable to convert none for network", "expected one of empty|host"]),
        (
            "cpus=1.234",
            &[
                "Unable to convert 1.234 for cpus",
                "expected a number of CPUs from 0.01 to 100000, with two decimals at most",
            ],
        ),
    ] {
        let chain: Vec<&str> =
            ["Error parsing config", "Error parsing --jail"].iter().chain(inner).copied().collect();
        refuses(jail, &chain);
    }
    refuses(
        "cgroup=../other",
        &[
            "Error parsing config",
            "--jail cgroup=../other must be the name of a group, from the root of its hierarchy: no / before it, no ..",
        ],
    );
}

#[test]
fn what_is_not_there() {
    let bench = Bench::new();
    let missing = bench.path("missing").display().to_string();
    bench.refuses(
        &["--jail", "on", "--disk", &format!("path={missing},image_type=raw")],
        &[
            "Cannot enter the jail",
            &format!("cannot take {missing} into the jail"),
            "No such file or directory (os error 2)",
        ],
    );
    let rule = format!("path={missing},access=rw");
    bench.refuses(
        &["--jail", "on", "--landlock-rules", &rule],
        &[
            "Error parsing config",
            "Failed to validate config",
            &format!("Path {missing:?} provided in landlock-rules does not exist"),
        ],
    );
    let outcome = bench.run_unchanged(&mut bench.machine(&["--jail", "pids=9,cgroup=no/such"]));
    assert_eq!(outcome.status.code(), Some(1));
    let words = "no/such/virga-";
    assert!(
        outcome.messages.contains("cannot make the control group") && outcome.messages.contains(words)
            || outcome.messages.contains("cannot read") && outcome.messages.contains("no/such/"),
        "{}",
        outcome.messages
    );
}

#[test]
fn limits_that_are_too_small_to_begin_with() {
    let bench = Bench::new();
    let socket = bench.path("api").display().to_string();
    let run = |jail: &str| {
        let arguments = ["--cmdline", "probe.run=hello", "--api-socket", &socket, "--jail", jail];
        bench.run_unchanged(&mut bench.machine(&arguments))
    };
    for (jail, parts) in [
        ("files=10", [" with files=10\n", "Too many open files (os error 24)"]),
        ("pids=1", [" with pids=1\n", "Resource temporarily unavailable (os error 11)"]),
    ] {
        let outcome = run(jail);
        let told = &outcome.messages;
        assert!(
            told.contains("Cannot enter the jail") && parts.iter().all(|part| told.contains(part)),
            "{told}"
        );
        assert_eq!(outcome.status.code(), Some(1), "{told}");
        // Only one of the two processes clears away.
        assert!(!outcome.log.contains("cannot remove"), "{}", outcome.log);
    }
    let outcome = run("memory=64K");
    assert_eq!(outcome.status.signal(), Some(libc::SIGKILL), "{}", outcome.messages);
    let told = "it needed more memory than its control group may have (memory=65536)";
    assert!(outcome.messages.contains(told), "{}", outcome.messages);
    // The kernel may need a thread of its own for a machine, and says only "again" when it has none.
    for pids in 2..7 {
        let outcome = run(&format!("pids={pids}"));
        let told = outcome.messages.contains("thread") && outcome.messages.contains("unavailable")
            || outcome.log.contains("vCPU 0: KVM cannot run the vCPU");
        assert!(outcome.status.success() || told, "{pids}: {}\n{}", outcome.messages, outcome.log);
    }
}

#[test]
fn what_others_lie_above_through_a_link() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("rules")).unwrap();
    bench.file("image", vec![0; 1 << 20]);
    std::os::unix::fs::symlink("../image", bench.path("rules/link")).unwrap();
    let (rules, link) = (bench.path("rules"), bench.path("rules/link"));
    bench.refuses(
        &[
            "--jail",
            "on",
            "--landlock-rules",
            &format!("path={},access=r", rules.display()),
            "--disk",
            &format!("path={},image_type=raw", link.display()),
        ],
        &[
            "Cannot enter the jail",
            &format!(
                "cannot put {} into the jail: it leads through a link in a directory that is in the jail too; name the file itself",
                link.display()
            ),
        ],
    );
}

#[test]
fn rules_without_anything_that_they_could_be_for() {
    let bench = Bench::new();
    let socket = bench.path("api").display().to_string();
    let rule = ["--api-socket", &socket, "--jail", "off", "--landlock-rules", "path=/,access=r"];
    bench.refused(
        &mut bench.command(&rule),
        &["Error parsing config", "--landlock-rules needs --kernel, or --jail"],
    );
}
