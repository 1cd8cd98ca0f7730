//! Files of a snapshot that lost or gained bytes, had some changed, or are of another snapshot, or no files at all.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use crate::bench::root;
use crate::hostile::seed;
use crate::mutation::Random;
use crate::namespace::with_network;
use crate::saved::{FILES, Story};

#[test]
fn files_that_are_damaged_or_of_another_snapshot() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        // Another of the same machine, some moments later, whose console leads elsewhere.
        let other = json!({"source_url": "file://good", "console": {"mode": "Null"}});
        story.server.does("vm.restore", &other);
        story.server.does("vm.resume", &Value::Null);
        story.server.goes_on();
        let later = story.server.snapshot("later");
        story.server.does("vm.delete", &Value::Null);

        let refused = |modes: &[&str], what: &str| {
            for mode in modes {
                let body = json!({"source_url": "file://bad", "memory_restore_mode": mode}).to_string();
                let (status, text) = story.server.ask("PUT", "vm.restore", body.as_bytes());
                assert!(status == 400 && text.contains("bad/"), "{what} by {mode}: {status} {text}");
            }
        };
        let (all, whole) = (&["Copy", "OnDemand", "Mmap"][..], &["Copy"][..]);
        let seed = seed();
        println!("VIRGA_HOSTILE_SEED={seed}");
        let mut random = Random(seed);
        for name in FILES {
            let bad = story.good.copy(story.server.bench.path("bad"), true);
            let path = bad.directory.join(name);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            for bytes in [1, 2, 512, 4096, length] {
                file.set_len(length + bytes).unwrap();
                refused(all, &format!("{name} with {bytes} bytes more"));
            }
            let flips = if name == "memory-ranges" { 20 } else { 150 };
            file.set_len(length).unwrap();
            for _ in 0..flips {
                let (at, bit) = (random.next() % length, random.below(8));
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
                refused(
                    if name == "memory-ranges" { whole } else { all },
                    &format!("{name} with bit {bit} of {at}"),
                );
                file.write_all_at(&byte, at).unwrap();
            }
            for _ in 0..flips {
                let copy = fs::read(&path).unwrap();
                let shorter = random.next() % length;
                file.set_len(shorter).unwrap();
                refused(all, &format!("{name} of {shorter} bytes"));
                fs::write(&path, copy).unwrap();
            }
            for other in ["later", "bad/none"] {
                fs::remove_file(&path).unwrap();
                if other == "later" {
                    fs::copy(later.directory.join(name), &path).unwrap();
                    refused(
                        if name == "memory-ranges" { whole } else { all },
                        &format!("{name} of another snapshot"),
                    );
                } else {
                    let (status, text) =
                        story.server.ask("PUT", "vm.restore", br#"{"source_url":"file://bad"}"#);
                    assert!(status == 400, "{name} missing: {status} {text}");
                }
            }
        }
        story.nothing_is_left();
        story.ends_well();
    });
}

#[test]
fn files_that_are_no_files() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        for name in FILES {
            let message = format!("\"bad/{name}\" is not a regular file");
            let chain = ["The snapshot cannot be read", &message];
            let request = json!({"source_url": "file://bad"});
            let fresh = || {
                let bad = story.bad();
                fs::remove_file(bad.directory.join(name)).unwrap();
                bad.directory.join(name)
            };
            fs::create_dir(fresh()).unwrap();
            story.refuses(&request, 400, &chain);
            fresh();
            story.server.bench.fifo(&format!("bad/{name}"));
            story.refuses(&request, 400, &chain);
            std::os::unix::fs::symlink(format!("../good/{name}"), fresh()).unwrap();
            story.refuses(&request, 400, &chain);
            drop(std::os::unix::net::UnixListener::bind(fresh()).unwrap());
            story.refuses(&request, 400, &chain);
        }
        story.ends_well();
    });
}
