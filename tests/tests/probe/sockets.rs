//! Streams over sockets while the machine is paused, saved and restored, again and again: a pause breaks none of them; a restore breaks all,
//! both sides learn of it, and who listened before listens still.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::living::{Living, Times};
use tests::remote;
use tests::scratch::Scratch;

/// How long a connection may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the guest says of itself.
#[derive(Clone, Copy, Debug)]
struct Talk {
    echoed: u64,
    streamed: u64,
    resets: u64,
    broken: u64,
}

/// The guest's next sign of life.
#[track_caller]
fn talk(machine: &mut Living) -> Talk {
    let line = machine.wait_for("TALK ");
    let number = |key: &str| {
        let word = line.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line:?}"))
    };
    assert_eq!(number("errors"), 0, "the guest found errors:\n{}", machine.serial());
    Talk {
        echoed: number("echoed"),
        streamed: number("streamed"),
        resets: number("resets"),
        broken: number("broken"),
    }
}

/// What the programs of the host have seen.
#[derive(Debug, Default)]
struct Seen {
    end: AtomicBool,
    /// Connections to the guest that were made, and those that broke.
    made: AtomicU64,
    broken: AtomicU64,
    /// Bytes that came back from it.
    bytes: AtomicU64,
    /// Connections of the guest to the service.
    served: AtomicU64,
}

/// Programs of the host: a service that says again what it hears, and two that speak to the guest's, one in large pieces and one in small ones.
struct Programs {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

fn thread(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name("program".to_string()).spawn(work).expect("a thread can be had")
}

impl Programs {
    fn start(socket: &Path) -> Programs {
        let seen = Arc::<Seen>::default();
        let service = PathBuf::from(format!("{}_2000", socket.display()));
        let service = UnixListener::bind(service).expect("the directory takes a socket");
        let theirs = Arc::clone(&seen);
        // It ends with the process: nothing tells it to.
        drop(thread(move || {
            for stream in service.incoming().flatten() {
                theirs.served.fetch_add(1, Ordering::SeqCst);
                drop(thread(move || echo(stream)));
            }
        }));
        let speak = |piece: usize| {
            let (seen, socket) = (Arc::clone(&seen), socket.to_path_buf());
            thread(move || {
                while !seen.end.load(Ordering::SeqCst) {
                    if let Some(stream) = connect(&socket, &seen) {
                        seen.made.fetch_add(1, Ordering::SeqCst);
                        converse(stream, piece, &seen);
                    }
                }
            })
        };
        let threads = vec![speak(32 << 10), speak(100)];
        Programs { seen, threads }
    }

    fn count(&self, what: fn(&Seen) -> &AtomicU64) -> u64 {
        what(&self.seen).load(Ordering::SeqCst)
    }

    /// Waits until something has been seen that often.
    #[track_caller]
    fn wait(&self, what: fn(&Seen) -> &AtomicU64, count: u64) {
        let begun = Instant::now();
        while self.count(what) < count {
            assert!(begun.elapsed() < PATIENCE, "{:?} is all, and {count} was to come", self.seen);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Ends the programs that speak; none may have found anything wrong.
    #[track_caller]
    fn end(self) {
        self.seen.end.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a program found nothing wrong");
        }
    }
}

fn echo(mut stream: UnixStream) {
    let mut bytes = [0; 8192];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// A connection to the guest's service; `None` if the VMM is not there at the moment, or goes before it says yes.
fn connect(socket: &Path, seen: &Seen) -> Option<UnixStream> {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        std::thread::sleep(Duration::from_millis(1));
        return None;
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit can be set");
    stream.write_all(b"CONNECT 1000\n").ok()?;
    let mut line = String::new();
    // Nothing follows before we speak, so nothing is lost with the reader.
    let answer = BufReader::new(&stream).read_line(&mut line);
    let slow = answer.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!slow, "no answer to CONNECT: {seen:?}");
    line.starts_with("OK ").then_some(stream)
}

/// Speaks and compares until the connection breaks, or there has been enough.
fn converse(mut stream: UnixStream, piece: usize, seen: &Seen) {
    let mut round = 0u8;
    let mut back = vec![0; piece];
    while !seen.end.load(Ordering::SeqCst) {
        round = round.wrapping_add(1);
        let bytes: Vec<u8> = (0..piece).map(|i| (i as u8).wrapping_mul(31) ^ round).collect();
        let done = stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut back));
        if let Err(e) = done {
            assert!(e.kind() != std::io::ErrorKind::WouldBlock, "a connection hangs: {seen:?}");
            seen.broken.fetch_add(1, Ordering::SeqCst);
            return;
        }
        assert!(back == bytes, "something else came back");
        seen.bytes.fetch_add(piece as u64, Ordering::SeqCst);
    }
}

fn boot(scratch: &Scratch, socket: &Path) -> Living {
    let vsock = format!("cid=5,socket={},id=talk", socket.display());
    let arguments = ["--vsock", &vsock, "--memory", "size=64M"];
    let mut machine = Living::boot(scratch.path(), "boot", "probe.run=talk probe.beat=65536", &arguments);
    assert_eq!(machine.wait_for("# talking "), "cid=5");
    machine
}

/// Waits until all streams have gone on for a while.
#[track_caller]
fn progress(machine: &mut Living, programs: &Programs) -> Talk {
    let first = talk(machine);
    programs.wait(|s| &s.bytes, programs.count(|s| &s.bytes) + 100_000);
    let begun = Instant::now();
    loop {
        let now = talk(machine);
        if now.echoed >= first.echoed + 100_000 && now.streamed >= first.streamed + 50_000 {
            return now;
        }
        assert!(begun.elapsed() < PATIENCE, "{now:?} is all that has come of {first:?}");
    }
}

#[test]
fn streams_outlive_three_hundred_pauses() {
    let scratch = Scratch::new();
    let socket = scratch.file("v");
    let programs = Programs::start(&socket);
    let mut machine = boot(&scratch, &socket);
    progress(&mut machine, &programs);
    let held = machine.settled();
    let (mut pauses, mut resumes) = (Times::default(), Times::default());
    for round in 0..300u32 {
        let (pause, resume) = machine.pause_and_resume(Duration::from_millis(u64::from(round % 3)));
        pauses.note(pause);
        resumes.note(resume);
        std::thread::sleep(Duration::from_micros(u64::from(round * 7919 % 5000)));
        if round % 50 == 49 {
            progress(&mut machine, &programs);
        }
    }
    let last = progress(&mut machine, &programs);
    println!("pause {pauses}; resume {resumes}; {last:?}");
    assert_eq!((last.resets, last.broken), (0, 0), "a pause broke the guest's connection");
    assert_eq!(programs.count(|s| &s.broken), 0, "a pause broke a connection of the host's");
    assert_eq!(programs.count(|s| &s.served), 1);
    machine.holds_no_more_than(held);
    programs.end();
    machine.end().all_passed();
}

#[test]
fn everybody_learns_of_a_hundred_restores_and_listens_still() {
    const ROUNDS: u64 = 100;
    let scratch = Scratch::new();
    let socket = scratch.file("v");
    let programs = Programs::start(&socket);
    let mut machine = boot(&scratch, &socket);
    progress(&mut machine, &programs);
    let mut times = Times::default();
    for round in 1..=ROUNDS {
        // Both programs are speaking.
        programs.wait(|s| &s.made, programs.count(|s| &s.broken) + 2);
        let (broken, made) = (programs.count(|s| &s.broken), programs.count(|s| &s.made));
        let (served, bytes) = (programs.count(|s| &s.served), programs.count(|s| &s.bytes));
        let saved = scratch.file(&format!("snapshot.{round}"));
        std::fs::create_dir(&saved).expect("the scratch directory takes another");
        let begun = Instant::now();
        machine.put("vm.pause", &Value::Null);
        let url = format!("file://{}", saved.display());
        machine.put("vm.snapshot", &json!({ "destination_url": url }));
        if round % 2 == 0 {
            machine.shut_down().ended_well();
        } else {
            // Killed: the socket's file is left behind.
            drop(machine);
        }
        // The connections ended with the VMM.
        programs.wait(|s| &s.broken, broken + 2);
        let value = format!("source_url={url},resume=on");
        machine = Living::restore(scratch.path(), &format!("restored.{round}"), &value, &[]);
        // The guest is told once, and speaks and listens again.
        let mut now = talk(&mut machine);
        let waited = Instant::now();
        while now.resets < round {
            assert!(waited.elapsed() < PATIENCE, "the guest is not told: {now:?} in round {round}");
            now = talk(&mut machine);
        }
        programs.wait(|s| &s.made, made + 2);
        programs.wait(|s| &s.served, served + 1);
        programs.wait(|s| &s.bytes, bytes + 50_000);
        let first = now.streamed;
        while now.streamed < first + 10_000 {
            now = talk(&mut machine);
        }
        assert_eq!(now.resets, round, "one reset for each restore");
        times.note(begun.elapsed());
        std::fs::remove_dir_all(&saved).expect("the snapshot is there");
    }
    let last = progress(&mut machine, &programs);
    println!("a round {times}; {last:?}");
    assert_eq!(last.broken, 0, "connections went with the resets, and in no other way");
    programs.end();
    machine.end().all_passed();
}

#[test]
fn a_program_is_connected_by_ch_remote() {
    let scratch = Scratch::new();
    let socket = scratch.file("v");
    let machine = boot(&scratch, &socket);
    let connect = |port: &str| {
        let mut command = remote::program();
        command.arg("--api-socket").arg(scratch.file("boot.api")).args(["vsock-connect", port]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("ch-remote starts")
    };
    let refused = connect("81").wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("Nobody in the guest listens on port 81"), "{said}");

    let mut child = connect("1000");
    let (mut input, mut output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    for piece in [&b"x"[..], b"no newline", &[0, 255, 10, 7]] {
        input.write_all(piece).expect("ch-remote reads");
        let mut back = vec![0; piece.len()];
        output.read_exact(&mut back).expect("the guest says it again");
        assert_eq!(back, piece);
    }
    // What it has not said yet comes when this side has said all.
    drop(input);
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("the guest says that this was all");
    assert_eq!((rest, child.wait().expect("it ends").success()), (Vec::new(), true));
    machine.end().all_passed();
}
