//! The host's side of the TCP streams, and the taps that lead to it.
//!
//! Each stream has an address of the host's of its own. A connection goes on in the one restored machine whose tap has the
//! address; in the others it finds nobody, as if a cable were out.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tests::linux::{PATIENCE, Running};
use tests::tap::Tap;

/// The same for all taps, since the guest remembers it.
const HOST_MAC: &str = "02:00:00:00:00:01";

/// The host's address in the network of this number.
pub(super) fn host(number: usize) -> String {
    format!("192.168.{}.1", 200 + number)
}

/// The guest's address in that network.
pub(super) fn guest(number: usize) -> String {
    format!("192.168.{}.2", 200 + number)
}

/// A tap on which the host has these addresses.
pub(super) fn tap(name: &str, numbers: &[usize]) -> Tap {
    let tap = Tap::new(name).expect("the story may make taps");
    ip(&["link", "set", name, "address", HOST_MAC]);
    for number in numbers {
        ip(&["addr", "add", &format!("{}/24", host(*number)), "dev", name]);
    }
    tap
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Who sits at the host's end of a stream: checks that every number comes once and in order, and sends it back if asked to.
pub(super) struct Partner {
    thread: Option<JoinHandle<u64>>,
    came: Arc<AtomicU64>,
    log: String,
}

impl Partner {
    /// Has the guest start a stream in the network of this number.
    pub(super) fn meet(machine: &mut Running, number: usize, both: bool) -> Partner {
        let listener = TcpListener::bind((host(number), 0)).expect("a tap has the address");
        let port = listener.local_addr().expect("a listener has an address").port();
        let way = if both { "both" } else { "there" };
        let log = format!("/run/stream-{number}-{port}");
        machine.sh(&format!(
            "(python3 /run/stream.py {} {port} {way} > {log} 2>&1; echo status $? >> {log}) &",
            host(number)
        ));
        listener.set_nonblocking(true).expect("a listener can be asked not to wait");
        let begun = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => machine.fail(&format!("the guest does not connect: {e}")),
            }
        };
        stream.set_nonblocking(false).expect("a stream can be asked to wait");
        let came = Arc::<AtomicU64>::default();
        let theirs = Arc::clone(&came);
        let thread = std::thread::Builder::new()
            .name("partner".to_string())
            .spawn(move || serve(stream, both, &theirs))
            .expect("a thread can be started");
        Partner { thread: Some(thread), came, log }
    }

    /// Waits until more has come.
    #[track_caller]
    pub(super) fn goes_on(&mut self, machine: &mut Running) {
        // More than can have been in the host's buffers.
        let (before, begun) = (self.came.load(Ordering::Relaxed), Instant::now());
        while self.came.load(Ordering::Relaxed) < before + (64 << 10) / 8 {
            let over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if over || begun.elapsed() > PATIENCE {
                let said = machine.sh(&format!("cat {}; ss -tnoi || true", self.log));
                machine.fail(&format!("the stream stands still at number {before}: {said}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end of the stream; the guest was told to end it.
    #[track_caller]
    pub(super) fn end(mut self, machine: &mut Running) {
        machine.sh(&format!("for i in $(seq 600); do grep -q status {} && break; sleep 0.5; done", self.log));
        let said = machine.sh(&format!("cat {}", self.log));
        let came = self.thread.take().expect("it ends once").join().expect("the stream is right");
        assert_eq!(said, format!("sent {came}\nstatus 0"));
        println!("stream: {came} numbers");
    }
}

/// Serves a stream to its end; the count of numbers.
fn serve(mut stream: TcpStream, both: bool, came: &AtomicU64) -> u64 {
    let mut buffer = vec![0; 1 << 16];
    let mut position = 0_u64; // in bytes
    loop {
        let length = stream.read(&mut buffer).expect("the connection lasts");
        if length == 0 {
            assert_eq!(position % 8, 0, "a part of a number");
            return position / 8;
        }
        for byte in &buffer[..length] {
            let right = (position / 8).to_le_bytes()[(position % 8) as usize];
            assert_eq!(*byte, right, "what came is wrong at byte {position}");
            position += 1;
        }
        came.store(position / 8, Ordering::Relaxed);
        if both {
            stream.write_all(&buffer[..length]).expect("the guest takes it back");
        }
    }
}
