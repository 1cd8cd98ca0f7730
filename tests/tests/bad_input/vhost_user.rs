//! Disks whose other process is none, or none that can be worked with.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use tests::daemon::Daemon;

use crate::bench::{Bench, machine};

const SHARED: &str = "size=64M,shared=on";

/// Boots with this disk, which must be refused with these errors behind those that name it.
#[track_caller]
fn refuses(bench: &Bench, disk: &str, inner: &[&str]) {
    let device =
        ["Error booting VM", "Cannot create device \"_disk0\" (--disk)", "cannot add disk \"_disk0\""];
    let args = ["--memory", SHARED, "--cpus", "boot=2", "--disk", &format!("vhost_user=on,{disk}")];
    bench.refuses(&args, &[&device[..], inner].concat());
}

#[test]
fn settings_that_cannot_work() {
    let bench = Bench::new();
    let invalid = |memory: &str, disk: &str, message: &str| {
        let chain = ["Error parsing config", "Failed to validate config", "Invalid --disk number 1", message];
        bench.refuses(&["--memory", memory, "--disk", disk], &chain);
    };
    let private =
        "Using vhost-user requires using shared memory or huge pages (--memory shared=on or hugepages=on)";
    invalid("size=64M", "vhost_user=on,socket=s", private);
    invalid(SHARED, "vhost_user=on", "No socket provided when using vhost-user");
    invalid(SHARED, "vhost_user=on,socket=s,path=p", "Disk path and vhost socket both provided");
    let limited = "vhost_user=on,socket=s,ops_size=1,ops_refill_time=1";
    invalid(SHARED, limited, "Rate limiting is not supported with vhost-user");
}

#[test]
fn what_is_no_socket() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    bench.file("file", "a file");
    bench.fifo("fifo");
    for name in ["dir", "file", "fifo"] {
        refuses(
            &bench,
            &format!("socket={name}"),
            &["no vhost-user back end", &format!("{name} is no socket")],
        );
    }
    let long = "x".repeat(200);
    let connect = format!("cannot connect to socket {long}");
    refuses(
        &bench,
        &format!("socket={long}"),
        &["no vhost-user back end", &connect, "the path has 200 bytes; that of a socket has at most 107"],
    );
}

/// A peer that does the same with everybody who comes.
fn peer(bench: &Bench, deed: impl Fn(std::os::unix::net::UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(bench.path("peer")).unwrap();
    let serve = move || listener.incoming().flatten().for_each(deed);
    thread::Builder::new().name("peer".into()).spawn(serve).unwrap();
}

#[test]
fn peers_that_are_none() {
    for (deed, message) in [
        ("hangs up", "it hung up"),
        ("says nonsense", "a message has flags 0xa5a5a5a5 and 2779096485 bytes"),
        ("stops", "it did not answer GET_FEATURES within 5 seconds"),
        ("dribbles", "it did not answer GET_FEATURES within 5 seconds"),
        ("answers something else", "it answered GET_FEATURES with GET_CONFIG"),
        ("has nothing", "it does not offer VHOST_USER_F_PROTOCOL_FEATURES"),
    ] {
        let bench = Bench::new();
        peer(&bench, move |mut stream| {
            // What is asked first: SET_OWNER and GET_FEATURES.
            let _ = stream.read_exact(&mut [0; 24]);
            let answer = |request: u8| [&[request, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0][..], &[0; 8]].concat();
            let _ = match deed {
                "hangs up" => Ok(()),
                "says nonsense" => stream.write_all(&[0xa5; 64]),
                "answers something else" => stream.write_all(&answer(24)),
                "has nothing" => stream.write_all(&answer(1)),
                "dribbles" => answer(1).iter().try_for_each(|byte| {
                    thread::sleep(Duration::from_secs(1));
                    stream.write_all(&[*byte])
                }),
                _ => {
                    thread::sleep(Duration::from_secs(20));
                    Ok(())
                }
            };
            // It is the other side's to hang up.
            if deed != "hangs up" {
                let _ = stream.read(&mut [0; 64]);
            }
        });
        refuses(&bench, "socket=peer", &["vhost-user back end at peer", message]);
    }
}

#[test]
fn a_daemon_that_serves_something_else() {
    let bench = Bench::new();
    bench.file("image", vec![0; 1 << 20]);
    let daemon = Daemon::start(&bench.path("image"), &bench.path("socket"), ",image_type=raw");
    let (at, few) = ("vhost-user back end at socket", "it serves 1 queues, and the device has 2");
    refuses(&bench, "socket=socket,num_queues=2", &[at, few]);
    let writable = "readonly=on, and the vhost-user back end serves the disk for writing";
    refuses(&bench, "socket=socket,readonly=on", &[writable]);
    drop(daemon);
}

#[test]
fn a_machine_that_waits_for_a_daemon_can_be_told_to_end() {
    let bench = Bench::new();
    let args = machine(&["--memory", SHARED, "--disk", "vhost_user=on,socket=nobody"]);
    let mut command = bench.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut messages = child.stderr.take().unwrap();
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("waiting up to 60 seconds") {
        let mut more = [0; 256];
        let count = messages.read(&mut more).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&more[..count]);
    }
    let begun = Instant::now();
    // SAFETY: a signal to our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn folders_and_devices_of_any_type_that_cannot_be() {
    let bench = Bench::new();
    let invalid = |flag: &str, text: &str, message: &str| {
        let number = format!("Invalid {flag} number 1");
        let chain = ["Error parsing config", "Failed to validate config", &number, message];
        bench.refuses(&["--memory", SHARED, flag, text], &chain);
    };
    let generic = "--generic-vhost-user";
    invalid("--fs", "socket=s", "Error parsing --fs: tag missing");
    invalid("--fs", "tag=t", "Error parsing --fs: socket missing");
    invalid(generic, "socket=s,queue_sizes=[1]", "Error parsing --generic-vhost-user: device_type missing");
    invalid(generic, "device_type=fs,queue_sizes=[1]", "Error parsing --generic-vhost-user: socket missing");
    invalid(generic, "device_type=fs,socket=s", "Error parsing --generic-vhost-user: queue size missing");
    bench.file("image", vec![0; 1 << 20]);
    let _daemon = Daemon::start(&bench.path("image"), &bench.path("socket"), ",image_type=raw");
    let few = ["vhost-user back end at socket", "it serves 1 queues, and the device has 2"];
    let device =
        ["Error booting VM", "Cannot create device \"_fs0\" (--fs)", "cannot add file system \"_fs0\""];
    bench.refuses(&["--memory", SHARED, "--fs", "tag=t,socket=socket"], &[&device[..], &few].concat());
}
