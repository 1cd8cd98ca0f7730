//! A host's network, with somebody in it: both in namespaces of our own, gone when we are.
//!
//! The calling thread becomes the host, with one card, `up0`. At the other end of the cable sits a machine that echoes what it gets and answers as a
//! name server.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::tap;

/// The host's addresses: guests take the first over.
pub const HOST: [&str; 4] = ["198.51.100.2", "198.51.100.9", "2001:db8::2", "2001:db8::9"];
/// The other machine's, which is the gateway.
pub const FAR: [&str; 2] = ["198.51.100.1", "2001:db8::1"];
/// Where it echoes.
pub const PORT: u16 = 7777;
/// What the name server says of every name.
pub const ANSWER: [u8; 4] = [203, 0, 113, 53];

/// See the module.
#[derive(Debug)]
pub struct Outside {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip (iproute2) runs");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn addresses(card: &str, all: &[&str]) {
    for address in all {
        let (bits, more) = if address.contains(':') { (64, " nodad") } else { (24, "") };
        ip(&format!("addr add {address}/{bits} dev {card}{more}"));
    }
    ip(&format!("link set {card} up"));
    ip("link set lo up");
}

impl Outside {
    /// Makes both.
    ///
    /// # Panics
    /// Without root, or iproute2.
    pub fn new() -> Outside {
        tap::enter_private_network().expect("these tests run as root");
        ip("link add name up0 type veth peer name far0");
        let (tell, hear) = channel();
        let (go, gone) = channel::<()>();
        let end = Arc::<AtomicBool>::default();
        let theirs = end.clone();
        let work = move || {
            tap::enter_private_network().expect("these tests run as root");
            // SAFETY: a plain system call.
            tell.send(unsafe { libc::gettid() }).expect("somebody listens");
            gone.recv().expect("the cable is plugged in");
            addresses("far0", &FAR);
            let mut echo = Echo::at(&FAR.map(|a| a.parse().expect("an address")), PORT);
            echo.name_server(SocketAddr::new(FAR[0].parse().expect("an address"), 53));
            tell.send(0).expect("somebody listens");
            echo.serve(&theirs);
        };
        let thread = std::thread::Builder::new().name("outside".into()).spawn(work).expect("a thread");
        let id = hear.recv().expect("the other machine is there");
        ip(&format!("link set far0 netns {id}"));
        go.send(()).expect("the other machine is there");
        hear.recv().expect("the other machine is up");
        addresses("up0", &HOST);
        FAR.iter().for_each(|gateway| ip(&format!("route add default via {gateway}")));
        Outside { end, thread: Some(thread) }
    }
}

impl Default for Outside {
    fn default() -> Outside {
        Outside::new()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has said why.
            let _ = thread.join();
        }
    }
}

/// Somebody who echoes, in the calling thread's network.
#[derive(Debug, Default)]
pub struct Echo {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    names: Option<UdpSocket>,
    streams: Vec<TcpStream>,
}

impl Echo {
    /// Listens at these addresses.
    ///
    /// # Panics
    /// If one is not ours.
    pub fn at(addresses: &[IpAddr], port: u16) -> Echo {
        let mut echo = Echo::default();
        for address in addresses.iter().map(|ip| SocketAddr::new(*ip, port)) {
            let listener = TcpListener::bind(address).expect("the address is ours");
            let socket = UdpSocket::bind(address).expect("the address is ours");
            listener.set_nonblocking(true).and_then(|()| socket.set_nonblocking(true)).expect("sockets");
            echo.listeners.push(listener);
            echo.datagrams.push(socket);
        }
        echo
    }

    /// Answers questions for names there.
    ///
    /// # Panics
    /// If the address is not ours.
    pub fn name_server(&mut self, address: SocketAddr) {
        let socket = UdpSocket::bind(address).expect("the address is ours");
        socket.set_nonblocking(true).expect("a socket");
        self.names = Some(socket);
    }

    /// Works until it is told to end.
    pub fn serve(mut self, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            if !self.turn() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Whether there was anything to do.
    fn turn(&mut self) -> bool {
        let mut bytes = [0; 65_536];
        let mut any = false;
        for (stream, _) in self.listeners.iter().filter_map(|listener| listener.accept().ok()) {
            stream.set_nonblocking(true).expect("a socket");
            self.streams.push(stream);
            any = true;
        }
        self.streams.retain_mut(|stream| match stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                any = true;
                write_all(stream, &bytes[..length])
            }
            Err(e) => e.kind() == ErrorKind::WouldBlock,
        });
        for socket in &self.datagrams {
            if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                // Whether it arrives is what the tests look at.
                let _ = socket.send_to(&bytes[..length], from);
                any = true;
            }
        }
        if let Some(socket) = &self.names
            && let Ok((length, from)) = socket.recv_from(&mut bytes[..512])
            && length > 12
        {
            let answer = [&bytes[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], &bytes[12..length]].concat();
            let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &ANSWER].concat();
            // As above.
            let _ = socket.send_to(&[answer, record].concat(), from);
            any = true;
        }
        any
    }
}

/// Writes all to a socket that does not wait; `false` if nobody takes it.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
    let begun = Instant::now();
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < Duration::from_secs(5) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return false,
        }
    }
    true
}

/// Somebody who echoes on a thread; ends on drop.
#[derive(Debug)]
pub struct Echoing {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echoing {
    /// Has `echo` work.
    ///
    /// # Panics
    /// If there is no thread left.
    pub fn new(echo: Echo) -> Echoing {
        let end = Arc::<AtomicBool>::default();
        let theirs = end.clone();
        let thread = std::thread::Builder::new().name("echo".into()).spawn(move || echo.serve(&theirs));
        Echoing { end, thread: Some(thread.expect("a thread")) }
    }
}

impl Drop for Echoing {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has said why.
            let _ = thread.join();
        }
    }
}

/// The command lines of other processes in the calling thread's network.
pub fn company() -> Vec<String> {
    let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("a thread has a network");
    let inside = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let theirs = std::fs::read_link(entry.path().join("ns/net")).ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let line = format!("{id} {} {}", name.trim(), String::from_utf8_lossy(&line).replace('\0', " "));
        (id != std::process::id() && theirs == ours).then_some(line)
    };
    std::fs::read_dir("/proc").expect("there is a /proc").filter_map(inside).collect()
}
