//! A front end that says anything to a vhost-user server: messages in any order with any fields and descriptors, rings of any content,
//! memory that it takes away.
//!
//! One server lives through all inputs, as a daemon does. After each it has to have hung up and to be there for the next.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use device::fake::FakeEvents;
use device::{Kept, Request};
use terminal::Listener;
use vhost_user::{Door, Server};
use virtio_devices::block::DiskSpec;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::input::Input;
use crate::{Target, scratch};

const QUEUES: u32 = 2;
const SIZE: u16 = 16;
/// Guest memory, at guest address 0.
const MEMORY: u64 = 0x4_0000;
/// Where the front end says it has it.
const USER: u64 = 0x7f00_0000_0000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Victim {
    server: Server,
    events: Arc<FakeEvents>,
}

static VICTIM: LazyLock<Victim> = LazyLock::new(|| {
    let path = scratch::file("disk");
    File::create(&path).unwrap().set_len(0x1_0000).unwrap();
    let text = format!(
        "path={},image_type=raw,num_queues={QUEUES},queue_size=64,_disable_io_uring=on,_disable_aio=on",
        path.display()
    );
    let facts = spec::Facts { boot_vcpus: 8, ..spec::Facts::default() };
    let mut spec = <DiskSpec as spec::Spec>::parse(&text).unwrap();
    let host = device::Host { id: "_disk0", facts: &facts, kept: &Kept::default() };
    let Ok(device::Built::Virtio(disk)) = device::Build::build(&mut spec, &host) else { panic!("no disk") };
    let events = Arc::new(FakeEvents::default());
    let door = Door::Ours(Listener::bind(&scratch::file("vhost")).unwrap());
    // Nothing is filtered: sanitizers have calls of their own.
    let calls = device::Calls::NONE;
    Victim { server: Server::start("vhost", door, disk, events.clone(), calls).unwrap(), events }
});

fn memfd(length: u64) -> File {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(length).unwrap();
    file
}

struct Peer {
    stream: UnixStream,
    memory: File,
    kicks: Vec<EventFd>,
    available: [u16; QUEUES as usize],
}

/// What comes with a message.
#[derive(Clone, Copy)]
enum With {
    Nothing,
    Memory,
    Event,
    Socket,
    Area,
}

impl Peer {
    fn send(&self, request: u32, flags: u32, body: &[u8], descriptors: &[OwnedFd]) {
        let mut bytes = [request, flags, body.len() as u32].map(u32::to_ne_bytes).concat();
        bytes.extend_from_slice(body);
        let numbers: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let _gone = self.stream.send_with_fds(&[&bytes[..]], &numbers);
    }

    fn descriptor(&self, with: With, ring: u32) -> Option<OwnedFd> {
        let event = || {
            let kick = &self.kicks[(ring % QUEUES) as usize];
            // SAFETY: a new descriptor of an eventfd that is open.
            unsafe { OwnedFd::from_raw_fd(libc::dup(kick.as_raw_fd())) }
        };
        match with {
            With::Nothing => None,
            With::Memory => Some(self.memory.try_clone().unwrap().into()),
            With::Event => Some(event()),
            With::Socket => Some(UnixStream::pair().unwrap().0.into()),
            With::Area => Some(memfd(4096).into()),
        }
    }

    /// A message: what it usually is, with some fields as the input has them.
    fn message(&self, request: u32, ring: u32, input: &mut Input<'_>) {
        let at = u64::from(ring) * 0x8000;
        let (fields, with): (Vec<(u64, u8)>, With) = match request {
            2 => (vec![(1 << 32 | 1 << 30 | 1 << 29 | 1 << 28, 8)], With::Nothing),
            5 => (vec![(1, 4), (0, 4), (0, 8), (MEMORY, 8), (USER, 8), (0, 8)], With::Memory),
            37 | 38 => (
                vec![(0, 8), (0, 8), (MEMORY, 8), (USER, 8), (0, 8)],
                if request == 37 { With::Memory } else { With::Nothing },
            ),
            8 => (vec![(ring.into(), 4), (SIZE.into(), 4)], With::Nothing),
            9 => (
                vec![
                    (ring.into(), 4),
                    (0, 4),
                    (USER + at, 8),
                    (USER + at + 0x2000, 8),
                    (USER + at + 0x1000, 8),
                    (0, 8),
                ],
                With::Nothing,
            ),
            10 | 11 => (vec![(ring.into(), 4), (0, 4)], With::Nothing),
            12..=14 => (vec![(ring.into(), 8)], With::Event),
            16 => (vec![(0xb229, 8)], With::Nothing),
            18 => (vec![(ring.into(), 4), (1, 4)], With::Nothing),
            21 => (vec![], With::Socket),
            24 => (vec![(0, 4), (8, 4), (0, 4), (0, 8)], With::Nothing),
            25 => (vec![(32, 4), (1, 4), (0, 4), (1, 1)], With::Nothing),
            31 => (vec![(0, 8), (0, 8), (QUEUES.into(), 2), (SIZE.into(), 2), (0, 4)], With::Nothing),
            32 => (vec![(1024, 8), (0, 8), (QUEUES.into(), 2), (SIZE.into(), 2), (0, 4)], With::Area),
            _ => (vec![], With::Nothing),
        };
        let odd = input.u8();
        let mut body = Vec::new();
        for (n, (usual, width)) in fields.into_iter().enumerate() {
            let value = if odd >> (n & 7) & 1 == 1 { input.value() } else { usual };
            body.extend_from_slice(&value.to_le_bytes()[..usize::from(width)]);
        }
        let how = input.u8();
        let with = match how & 0x1f {
            1 => With::Nothing,
            2 => With::Memory,
            3 => With::Event,
            4 => With::Area,
            5 => With::Socket,
            _ => with,
        };
        let mut descriptors: Vec<OwnedFd> = self.descriptor(with, ring).into_iter().collect();
        if how & 0x1f == 6 {
            descriptors.extend((0..input.u8() & 0x3f).filter_map(|_| self.descriptor(With::Event, ring)));
        }
        if how & 0x1f == 7 {
            body.resize(usize::from(input.u16()) % 5000, 0x61);
        }
        let flags = match how >> 5 {
            0..=3 => 1,
            4..=6 => 9,
            _ => input.value() as u32,
        };
        self.send(request, flags, &body, &descriptors);
    }

    /// What a front end says to have a device that runs.
    fn set_up(&self) {
        let quiet = &mut Input::new(&[]);
        for request in [3, 16, 2, 5] {
            self.message(request, 0, quiet);
        }
        for ring in 0..QUEUES {
            for request in [8, 10, 9, 13, 12, 18] {
                self.message(request, ring, quiet);
            }
        }
    }

    /// A chain in a ring.
    fn offer(&mut self, ring: u32, input: &mut Input<'_>) {
        let base = u64::from(ring) * 0x8000;
        let put = |at: u64, bytes: &[u8]| drop(self.memory.write_at(bytes, at));
        if self.memory.metadata().unwrap().len() < MEMORY {
            return;
        }
        let (kind, sector) = (u32::from(input.u8() % 16), input.value());
        put(base + 0x4000, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        let head = u16::from(input.u8()) % SIZE;
        let data = (base + 0x5000, u32::from(input.u8()) * 64, if kind == 0 { 2u16 } else { 0 });
        let mut descriptors = [(base + 0x4000, 16, 0), data, (base + 0x4800, 1, 2)];
        if input.u8() & 3 == 3 {
            descriptors[usize::from(input.u8() % 3)] =
                (input.value(), input.value() as u32, u16::from(input.u8() & 7));
        }
        for (n, (address, length, flags)) in (0..).zip(descriptors) {
            let (index, next) = ((head + n) % SIZE, (head + n + 1) % SIZE);
            let flags = flags | u16::from(n < 2);
            let bytes = [
                &address.to_le_bytes()[..],
                &length.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.to_le_bytes(),
            ];
            put(base + 16 * u64::from(index), &bytes.concat());
        }
        let available = &mut self.available[ring as usize];
        put(base + 0x1004 + 2 * u64::from(*available % SIZE), &head.to_le_bytes());
        *available = available.wrapping_add(1);
        put(base + 0x1002, &available.to_le_bytes());
    }

    /// Throws away what was answered.
    fn hear(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        while matches!(self.stream.read(&mut bytes), Ok(1..)) {}
        self.stream.set_nonblocking(false).unwrap();
    }
}

const REQUESTS: [u32; 26] =
    [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 31, 32, 34, 36, 37, 38, 99];

fn run(bytes: &[u8]) {
    let victim = &*VICTIM;
    let mut input = Input::new(bytes);
    let stream = UnixStream::connect(scratch::file("vhost")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let kicks = (0..QUEUES).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    let mut peer = Peer { stream, memory: memfd(MEMORY), kicks, available: [0; QUEUES as usize] };
    if input.flag() {
        peer.set_up();
    }
    for _ in 0..48 {
        if input.is_empty() {
            break;
        }
        let kind = input.u8();
        let ring = u32::from(kind >> 7) % QUEUES;
        match kind & 15 {
            0..=6 => {
                let request = input.one_of(&REQUESTS);
                peer.message(request, ring, &mut input);
            }
            7..=9 => peer.offer(ring, &mut input),
            10 | 11 => drop(peer.kicks[ring as usize].write(1)),
            12 => {
                let length = u64::from(input.u8()) << 10;
                peer.memory.set_len(length).unwrap();
            }
            13 => std::thread::sleep(Duration::from_micros(200)),
            14 => {
                let (at, length) = (u64::from(input.u16()), input.u8().into());
                let _gone = peer.memory.write_at(input.bytes(length), at);
            }
            _ => peer.hear(),
        }
    }
    let _gone = peer.stream.shutdown(std::net::Shutdown::Write);
    let mut rest = [0; 4096];
    loop {
        match peer.stream.read(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            // libFuzzer's alarm.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => panic!("the server does not hang up: {e}"),
        }
    }
    drop(peer);
    victim.server.with(|device| device.features()).expect("the server goes on");
    assert!(!victim.events.requests().contains(&Request::Fault), "a thread ended");
}

pub fn target() -> Target {
    Target {
        name: "vhost_user",
        about: "a vhost-user front end that says anything",
        length: 512,
        // Memory that is cut short is the server's to mend.
        options: &["-handle_bus=0"],
        words: Vec::new,
        seeds: || {
            let mut seeds = vec![
                vec![1, 7, 0, 0, 0, 8, 0, 10, 13, 8, 1, 1, 4, 8, 0, 10, 13, 15],
                vec![1, 7, 0, 0, 0, 8, 0, 10, 12, 0, 13, 7, 0, 0, 0, 8, 0, 10],
            ];
            for request in 0..REQUESTS.len() as u8 {
                for odd in [0, 1, 2, 4, 8] {
                    seeds.push(vec![request & 1, 0, 13, 0, 0, 0, request, odd, 12, 0, 0, 13]);
                    seeds.push(vec![1, 7, 0, 0, 0, 8, 0, 10, 13, 0x80, request, odd, 12, 0x80, 15]);
                }
            }
            seeds
        },
        run,
    }
}
