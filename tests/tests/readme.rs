//! The examples of the README, run as they stand there: each block marked `sh example`, by a shell, with the programs on its path.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::outside::Outside;
use tests::permissions::{own_mounts, own_root};
use tests::stock::Stock;
use tests::{cpio, elsewhere, place, programs};

const KERNEL: &str = "6.12";
const LIMIT: Duration = Duration::from_secs(240);
/// What the guest of an example that waits for it does.
const SCRIPT: &[u8] = b"echo the guest says hello; ls /sys/block /sys/class/net; nproc\n";

fn examples() -> Vec<String> {
    let readme = fs::read_to_string(programs::checkout().join("README.md")).expect("there is a README");
    let blocks = readme.split("```sh example\n").skip(1);
    blocks.map(|b| b.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Where the programs of the examples are found.
fn path() -> OsString {
    let programs = [Some(programs::cloud_hypervisor()), programs::passt()].into_iter().flatten();
    let places = programs.map(|program| program.parent().expect("programs lie in a directory").to_owned());
    let others = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(places.chain(std::env::split_paths(&others))).expect("a path of paths")
}

/// Runs one example and returns what it wrote; it must end by itself, with status 0.
fn run(example: &str, initramfs: &Path, directory: &Path, path: &OsStr) -> String {
    // Descendants, which an example may leave in the background, are ended with the process group by timeout.
    let output = Command::new("timeout")
        .args(["--kill-after=5", &LIMIT.as_secs().to_string(), "bash", "-euc", example])
        .env("PATH", path)
        .env("KERNEL", Stock::get().vmlinux(KERNEL))
        .env("INITRAMFS", initramfs)
        .env("DISK", directory.join("disk.img"))
        .env("DATA", directory.join("data.img"))
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{example}\nended with {}:\n{text}", output.status);
    text
}

#[test]
fn the_examples_of_the_readme_do_what_it_says() {
    elsewhere!();
    let path = path();
    // passt takes a root of its own, and leads from somewhere to somewhere.
    own_mounts();
    own_root();
    let _outside = Outside::new();
    let directory = place::scratch();
    for name in ["disk.img", "data.img"] {
        let file = fs::File::create(directory.join(name)).expect("a scratch file");
        file.set_len(16 << 20).expect("room for it");
    }
    let plain = Stock::get().initramfs(KERNEL);
    let mut archive = fs::read(&plain).expect("an initramfs");
    archive.extend(cpio::archive(&[("script", SCRIPT)]));
    let scripted = directory.join("scripted.cpio");
    fs::write(&scripted, archive).expect("room for it");

    let examples = examples();
    assert_eq!(examples.len(), 6, "the README promises six");
    for example in &examples {
        if example.contains("user=on") && programs::passt().is_none() {
            continue;
        }
        // A machine in the background is ended by the example; one in the foreground must end itself.
        let background = example.contains("&\n");
        let text = run(example, if background { &plain } else { &scripted }, &directory, &path);
        if background {
            assert!(text.contains("build_version"), "{example}\n{text}");
        } else {
            assert!(text.contains("the guest says hello"), "{example}\n{text}");
        }
        if example.contains("--net") {
            assert!(text.contains("eth0"), "{text}");
        }
        if example.contains("--disk") {
            assert!(text.contains("vda") && text.contains("vdb"), "{text}");
        }
    }
}
