//! Disks, taps and consoles that a saved machine cannot have, or not as they are.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};
use tests::{image, programs};

use crate::bench::{Bench, heeding_permissions, read, root};
use crate::namespace::{has_interfaces, interfaces, with_network};
use crate::network::{passing, tap};
use crate::restore::story;
use crate::saved::{GOOD, Story};
use crate::server::Server;

#[test]
fn disks_that_are_not_what_the_guest_knows() {
    story(|story| {
        let path = |name: &str| story.server.bench.path(name);
        let with = |name: &str| json!({"source_url": GOOD, "disks": [{"id": "disk", "path": name}]});
        let device = ["Cannot create device \"disk\" (--disk)", "cannot add disk \"disk\""];
        let absent = ["cannot open disk image none", "No such file or directory (os error 2)"];
        story.refuses(&with("none"), 400, &[device[0], device[1], absent[0], absent[1]]);
        image::make(&path("small"), 7, 64);
        let size = "state \"virtio-blk\": disk \"disk\" had 256 sectors of 512 bytes, and image small has 64";
        story.refuses(&with("small"), 400, &["Cannot restore device \"disk\"", size]);
        // One that another machine writes to.
        image::make(&path("other"), 7, 256);
        let holder = Server::with(&json!({
            "payload": {"kernel": programs::probe(), "cmdline": "probe.run=load probe.sectors=256 probe.beat=100"},
            "memory": {"size": 64 << 20}, "console": {"mode": "Off"},
            "serial": {"mode": "File", "file": "serial"},
            "disks": [{"path": "disk", "image_type": "Raw"}],
        }));
        let locked = holder.bench.path("disk").display().to_string();
        let message = format!(
            "disk image {locked} is locked for writing by process {} ({}); stop it, or use readonly=on in both",
            holder.id(),
            read(format!("/proc/{}/comm", holder.id()).as_ref()).trim_end()
        );
        story.refuses(&with(&locked), 409, &[device[0], device[1], &message]);
        holder.ends_well();
    });
}

#[test]
fn a_disk_that_may_not_be_written() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        let bench = Bench::new();
        fs::copy(story.server.bench.path("disk"), bench.path("disk")).unwrap();
        fs::set_permissions(bench.path("disk"), fs::Permissions::from_mode(0o444)).unwrap();
        story.good.copy(bench.path("good"), false);
        let mut command = bench.command(&["--restore", "source_url=file://good"]);
        let denied = ["cannot open disk image disk", "Permission denied (os error 13)"];
        let device = ["Cannot create device \"disk\" (--disk)", "cannot add disk \"disk\""];
        bench.refused(
            heeding_permissions(&mut command),
            &["Error restoring VM", device[0], device[1], denied[0], denied[1]],
        );
        story.ends_well();
    });
}

#[test]
fn taps_that_cannot_be_had() {
    story(|story| {
        let device = ["Cannot create device \"net\" (--net)", "cannot set up the tap of \"net\""];
        let with = |net: Value| json!({"source_url": GOOD, "net": [net]});
        let held = tap("busy", libc::IFF_VNET_HDR);
        let busy = "tap \"busy\" is in use: another process has it open (only one at a time can)";
        let request = with(json!({"id": "net", "tap": "busy"}));
        let body = request.to_string();
        let all = ["Error from API", "The VM could not be restored", device[0], device[1], busy];
        story.server.refuses("PUT", "vm.restore", body.as_bytes(), 500, &all);
        drop(held);
        story.nothing_is_left();
        story.refuses(
            &with(json!({"id": "net", "tap": "lo"})),
            500,
            &[device[0], device[1], "interface \"lo\" exists and is not a tap"],
        );
        // A later device fails: the tap goes.
        let late = json!({"source_url": GOOD, "net": [{"id": "net", "tap": "late"}], "debug_console": {"file": "none/debug"}});
        let chain = [
            "Cannot create device \"__debug_console\" (--debug-console)",
            "cannot open the console of the debug console",
            "cannot create none/debug",
            "No such file or directory (os error 2)",
        ];
        story.refuses(&late, 500, &chain);
        let gone = "No such file or directory (os error 2)";
        let serial =
            ["Cannot create device \"__serial\" (--serial)", "cannot open the console of the serial port"];
        let console = ["Cannot create device \"__console\" (--console)", "cannot set up the console"];
        for (request, outer, message) in [
            (json!({"serial": {"mode": "File", "file": "none/serial"}}), serial, "cannot create none/serial"),
            (json!({"console": {"mode": "File", "file": "none/con"}}), console, "cannot create none/con"),
            (json!({"serial": {"mode": "Socket", "socket": "none/s"}}), serial, "cannot listen on none/s"),
        ] {
            let mut request = request;
            request["source_url"] = GOOD.into();
            story.refuses(&request, 500, &[outer[0], outer[1], message, gone]);
        }
    });
}

#[test]
fn a_user_who_may_not_make_the_tap() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        let bench = &story.server.bench;
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-net_admin"]).arg(programs::cloud_hypervisor());
        command.args(["--restore", "source_url=file://good"]).current_dir(bench.directory());
        let chain = [
            "Error restoring VM",
            "Cannot create device \"net\" (--net)",
            "cannot set up the tap of \"net\"",
            "no permission for tap \"t0\": cannot create or open it without CAP_NET_ADMIN \
             (or give an existing tap of your own, or an open one by fd)",
        ];
        refused_beside(&story, &mut command, &chain);
        story.nothing_is_left();
        story.ends_well();
    });
}

/// Has a command refused in the directory of a program that goes on.
#[track_caller]
fn refused_beside(story: &Story, command: &mut Command, chain: &[&str]) {
    let outcome = story.server.bench.outcome(command);
    assert_eq!(outcome.messages, crate::bench::told(chain), "{command:?}");
    assert_eq!(outcome.status.code(), Some(1));
    story.server.has_no_machine();
}

#[test]
fn descriptors_in_the_wrong_number() {
    if !root("descriptors of taps") {
        return;
    }
    with_network(|| {
        let mut story = Story::new();
        // As if its tap had come as a descriptor.
        story.good.config["net"][0]["fds"] = json!([7]);
        story.good.config["net"][0].as_object_mut().unwrap().remove("tap");
        story.good.write();
        let required = "Net id net is associated with FDs and is required";
        story.refuses(&json!({"source_url": GOOD}), 400, &[required]);
        let body = json!({"source_url": GOOD, "net_fds": [{"id": "net", "num_fds": 1}]}).to_string();
        let count = ["0 descriptors came with the request, and net_fds speaks of 1"];
        story.server.refuses("PUT", "vm.restore", body.as_bytes(), 400, &count);
        let held = tap("held", libc::IFF_VNET_HDR);
        for (value, chain) in [
            ("", &[required][..]),
            (
                ",net_fds=[net@[77,78]]",
                &["Number of Net FDs passed for 'net' during Restore: 2. Expected: 1"],
            ),
            (
                ",net_fds=[net@[1]]",
                &["Cannot use the descriptors for network device \"net\"", "Reserved fd number (<= 2): 1"],
            ),
            (
                ",net_fds=[net@[79]]",
                &[
                    "Cannot use the descriptors for network device \"net\"",
                    "Bad file descriptor (os error 9)",
                ],
            ),
        ] {
            let mut command =
                story.server.bench.command(&["--restore", &format!("source_url=file://good{value}")]);
            passing(&mut command, &held, 77);
            passing(&mut command, &held, 78);
            let chain = [&["Error restoring VM"], chain].concat();
            refused_beside(&story, &mut command, &chain);
        }
        drop(held);
        // One that does come along is taken; another kind of file is not.
        let null = File::open("/dev/null").unwrap();
        let (status, text) = send_with(&story, &body, &[&null]);
        assert!(status == 400 && text.contains("is not a tap"), "{status} {text}");
        let (status, text) = send_with(&story, &body, &[&null, &null]);
        assert!(status == 400 && text.contains("2 descriptors came with the request"), "{status} {text}");
        story.nothing_is_left();
        let good = tap("given", libc::IFF_VNET_HDR);
        let before = interfaces();
        assert_eq!(send_with(&story, &body, &[&good]), (204, String::new()));
        story.server.does("vm.resume", &Value::Null);
        story.server.goes_on();
        story.server.does("vm.delete", &Value::Null);
        has_interfaces(&before);
        drop(good);
        story.nothing_is_left();
        story.server.ends_well();
    });
}

/// Sends a restore with descriptors.
fn send_with(story: &Story, body: &str, files: &[&File]) -> (u16, String) {
    let fds: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
    let head = format!("PUT /api/v1/vm.restore HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    tests::ask::exchange_with(&story.server.bench.path("s"), head.as_bytes(), &fds).expect("an answer")
}
