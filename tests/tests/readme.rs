//! The examples of the README, run as they stand there: each block marked `sh example`, by a shell, with the programs on its path.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::stock::Stock;
use tests::{cpio, elsewhere, place, programs};

const KERNEL: &str = "6.12";
const LIMIT: Duration = Duration::from_secs(240);
/// What the guest of an example that waits for it does.
const SCRIPT: &[u8] = b"echo the guest says hello; ls /sys/block; nproc\n";

fn examples() -> Vec<String> {
    let readme = fs::read_to_string(programs::checkout().join("README.md")).expect("there is a README");
    let blocks = readme.split("```sh example\n").skip(1);
    blocks.map(|b| b.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Runs one example and returns what it wrote; it must end by itself, with status 0.
fn run(example: &str, initramfs: &Path, directory: &Path) -> String {
    let bin = programs::cloud_hypervisor();
    let path = format!(
        "{}:{}",
        bin.parent().expect("programs lie in a directory").display(),
        std::env::var("PATH").unwrap_or_default()
    );
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
    assert_eq!(examples.len(), 5, "the README promises five");
    for example in &examples {
        // A machine in the background is ended by the example; one in the foreground must end itself.
        let background = example.contains("&\n");
        let text = run(example, if background { &plain } else { &scripted }, &directory);
        if background {
            assert!(text.contains("build_version"), "{example}\n{text}");
        } else {
            assert!(text.contains("the guest says hello"), "{example}\n{text}");
        }
        if example.contains("--disk") {
            assert!(text.contains("vda") && text.contains("vdb"), "{text}");
        }
    }
}
