//! Back ends that do what they must not, at each step of a device's life.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Instant;

use device::fake::{FakeEvents, FakeLink};
use device::ram::RamMap;
use device::virtio::feature;
use device::{Ram, Workers};
use virtio_queue::Queue;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::wire::{CONFIG_CHANGE, F_PROTOCOL_FEATURES, NO_DESCRIPTOR, expects_answer, flag, header, name};

mod handover;
mod order;

const OWN: u64 = 1 << 3;
const QUEUES: usize = 2;
const SIZE: u16 = 16;

fn memfd(bytes: u64) -> File {
    // SAFETY: the name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(bytes).unwrap();
    file
}

fn wish(socket: std::path::PathBuf) -> Wish {
    Wish {
        features: OWN,
        names: &[(OWN, "OWN")],
        few_queues: 1,
        config: ConfigWish {
            bytes: vec![0; 8],
            told: Told::ByBackEnd,
            adjust: Box::new(|bytes| bytes[7] = 7),
            changes: 0..4,
            fits: |then, now| (then[..4] == now[..4]).then_some(()).ok_or_else(|| "other".to_owned()),
            writable: 4..6,
            writable_with: OWN,
        },
        ..Wish::new("far", Way::Connect(socket), VirtioKind::Block as u16, vec![SIZE; QUEUES])
    }
}

/// What a peer does instead of what it must, once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Nothing,
    HangUp,
    /// Half an answer, and a hang-up.
    Cut,
    /// Another request's answer.
    Other,
    /// An answer that is too short.
    Short,
    /// One that is too long.
    Long,
    /// One that says it is longer than can be.
    Huge,
    /// One that is a request.
    Request,
    /// One of another version.
    Version,
    /// One that says no, or tells impossible numbers.
    No,
}

const DEEDS: [Deed; 9] = [
    Deed::HangUp,
    Deed::Cut,
    Deed::Other,
    Deed::Short,
    Deed::Long,
    Deed::Huge,
    Deed::Request,
    Deed::Version,
    Deed::No,
];

/// A peer that behaves but for one deed, when it is asked `at` for the first time.
struct Peer {
    listener: UnixListener,
    at: u32,
    deed: Deed,
    done: AtomicUsize,
    /// First byte of its configuration space.
    first: u8,
    /// Protocol features that it does not have.
    lacks: u64,
    /// What it knows of a driver.
    known: Arc<Mutex<Vec<u8>>>,
}

impl Peer {
    fn serve(&self) {
        for stream in self.listener.incoming().flatten() {
            let _ = self.talk(stream);
        }
    }

    fn talk(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut back = None;
        let mut transfer = None;
        loop {
            let mut head = [0; 12];
            let mut fds = [-1; 8];
            let mut parts = [libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() }];
            // SAFETY: the vector names a buffer of ours.
            let (count, descriptors) = unsafe { stream.recv_with_fds(&mut parts, &mut fds) }?;
            if count == 0 {
                return Ok(());
            }
            stream.read_exact(&mut head[count..])?;
            // SAFETY: the kernel made them just now.
            let mut files: Vec<File> =
                fds[..descriptors].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
            let word = |n: usize| u32::from_ne_bytes(head[4 * n..4 * n + 4].try_into().unwrap());
            let (number, need_reply) = (word(0), word(1) & flag::NEED_REPLY != 0);
            let mut body = vec![0; word(2) as usize];
            stream.read_exact(&mut body)?;
            if number == request::SET_BACKEND_REQ_FD {
                back = files.pop();
            }
            if number == request::SET_DEVICE_STATE_FD {
                transfer = files.pop().map(|file| self.transfer(body[0] == 0, file));
            }
            if let Some(transfer) = transfer.take_if(|_| number == request::CHECK_DEVICE_STATE) {
                transfer.join().expect("the transfer ends");
            }
            if number == request::SET_CONFIG
                && let Some(back) = &mut back
            {
                // One that is not known, and one that is, which want to be answered.
                back.write_all(&header(77, flag::NEED_REPLY, 0))?;
                back.write_all(&header(CONFIG_CHANGE, flag::NEED_REPLY, 0))?;
            }
            let bad = number == self.at
                && self.done.fetch_add(1, Ordering::SeqCst) == 0
                && self.deed != Deed::Nothing;
            if bad && self.deed == Deed::HangUp {
                return Ok(());
            }
            if !expects_answer(number) && !need_reply {
                continue;
            }
            let (mut answer, mut with) = self.answer(number, &body);
            if bad && self.deed == Deed::No {
                with = None;
                match number {
                    // Ring and index.
                    request::GET_VRING_BASE => answer = [0u32, 0x8000].map(u32::to_ne_bytes).concat(),
                    // An area without a descriptor; a configuration space of nothing.
                    request::GET_INFLIGHT_FD => {}
                    request::GET_CONFIG => answer.truncate(12),
                    request::GET_FEATURES | request::GET_PROTOCOL_FEATURES | request::GET_QUEUE_NUM => {
                        answer.fill(0);
                    }
                    _ => answer = 1u64.to_ne_bytes().to_vec(),
                }
            }
            let (mut number, mut flags, mut size) = (number, flag::REPLY, answer.len());
            match self.deed {
                Deed::Other if bad => number += 1,
                Deed::Short if bad => size = answer.len() - 1,
                Deed::Long if bad => size = answer.len() + 1,
                Deed::Huge if bad => size = 1 << 30,
                Deed::Request if bad => flags = 0,
                Deed::Version if bad => flags |= 2,
                _ => {}
            }
            let mut bytes = header(number, flags, size).to_vec();
            answer.resize(size.min(64), 0);
            bytes.extend_from_slice(&answer);
            if bad && self.deed == Deed::Cut {
                bytes.truncate(bytes.len() - 3);
            }
            let fds: Vec<_> = with.iter().map(AsRawFd::as_raw_fd).collect();
            stream.send_with_fds(&[&bytes[..]], &fds).map_err(std::io::Error::from)?;
            if bad && self.deed == Deed::Cut {
                return Ok(());
            }
        }
    }

    /// Says what it knows, or hears what it is to know, until the other end of the pipe is closed.
    fn transfer(&self, says: bool, mut file: File) -> JoinHandle<()> {
        let known = self.known.clone();
        let work = move || {
            let mut known = known.lock().unwrap();
            // Whoever is at the other end may have enough.
            let _ = if says { file.write_all(&known) } else { file.read_to_end(&mut known).map(|_| ()) };
        };
        std::thread::Builder::new().name("transfer".into()).spawn(work).unwrap()
    }

    fn answer(&self, number: u32, body: &[u8]) -> (Vec<u8>, Option<File>) {
        let value = match number {
            request::GET_FEATURES => F_PROTOCOL_FEATURES | feature::VERSION_1 | OWN | 1 << 60,
            request::GET_PROTOCOL_FEATURES => !self.lacks,
            request::GET_QUEUE_NUM => QUEUES as u64,
            request::SET_DEVICE_STATE_FD => NO_DESCRIPTOR,
            request::GET_CONFIG => {
                return ([&body[..12], &[self.first, 1, 2, 3, 4, 5, 6, 6]].concat(), None);
            }
            request::GET_VRING_BASE => return (body.to_vec(), None),
            request::GET_INFLIGHT_FD => {
                let mut answer = body.to_vec();
                answer[..8].copy_from_slice(&4096u64.to_ne_bytes());
                return (answer, Some(memfd(4096)));
            }
            _ => 0,
        };
        (value.to_ne_bytes().to_vec(), None)
    }
}

/// A driver, its memory and what it was told.
struct Machine {
    ram: Ram,
    link: Arc<FakeLink>,
    device: Remote,
}

impl Machine {
    fn new(socket: &std::path::Path) -> Result<Machine, BackError> {
        Machine::of(wish(socket.to_path_buf()))
    }

    fn of(wish: Wish) -> Result<Machine, BackError> {
        let mut device = Remote::find(wish, Duration::ZERO)?;
        let mapping = MmapRegion::from_file(FileOffset::new(memfd(1 << 20), 0), 1 << 20).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let ram = Ram::new(RamMap::from_regions(vec![region]).unwrap());
        let (link, events) = (Arc::new(FakeLink::default()), Arc::new(FakeEvents::default()));
        let workers = Workers::new(events.clone());
        device.connect(VirtioGrant { ram: ram.clone(), link: link.clone(), workers, events });
        Ok(Machine { ram, link, device })
    }

    fn queue(&self, index: usize) -> LiveQueue {
        let base = 0x4000 * index as u64;
        let state = QueueState {
            max_size: SIZE,
            size: SIZE,
            ready: true,
            desc_table: base,
            avail_ring: base + 0x1000,
            used_ring: base + 0x2000,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
        };
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let queue = Queue::try_from(state).unwrap();
        LiveQueue::new(queue, self.ram.clone(), kick, self.link.clone(), index as u16)
    }

    /// A driver's life, from the first feature to the reset; whether it could begin.
    fn live(&self) -> bool {
        if self.device.activate(self.device.features()).is_err() {
            self.device.reset();
            return false;
        }
        for index in 0..QUEUES {
            self.device.start_queue(index, self.queue(index)).unwrap();
        }
        self.device.vector_changed(0);
        self.device.write_config(3, &[9; 5]);
        for index in 0..QUEUES {
            let state = self.device.stop_queue(index).expect("it was started");
            assert!(state.next_avail.wrapping_sub(state.next_used) <= SIZE);
        }
        self.device.reset();
        true
    }

    fn config(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        self.device.read_config(0, &mut bytes);
        bytes
    }
}

fn peer(dir: &TempDir, at: u32, deed: Deed, first: u8) -> std::path::PathBuf {
    peer_that_knows(dir, at, deed, first, 0, Arc::default())
}

fn peer_that_knows(
    dir: &TempDir,
    at: u32,
    deed: Deed,
    first: u8,
    lacks: u64,
    known: Arc<Mutex<Vec<u8>>>,
) -> std::path::PathBuf {
    let socket = dir.as_path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let peer = Peer { listener, at, deed, done: AtomicUsize::new(0), first, lacks, known };
    std::thread::Builder::new().name("peer".into()).spawn(move || peer.serve()).unwrap();
    socket
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_back_end_that_behaves_is_told_everything_and_nothing_is_broken() {
    let dir = TempDir::new().unwrap();
    let machine = Machine::new(&peer(&dir, 0, Deed::Nothing, 1)).unwrap();
    assert_eq!(machine.device.features(), feature::VERSION_1 | OWN);
    assert_eq!(machine.config(), [1, 1, 2, 3, 4, 5, 6, 7]);
    for _ in 0..3 {
        assert!(machine.live());
        // What the driver wrote is forgotten with the driver.
        assert_eq!(machine.config(), [1, 1, 2, 3, 4, 5, 6, 7]);
    }
    assert!(!machine.link.broken());
    let node = machine.device.save().unwrap();
    let other = TempDir::new().unwrap();
    assert!(Machine::new(&peer(&other, 0, Deed::Nothing, 1)).unwrap().device.load(node.clone()).is_ok());
    let different = TempDir::new().unwrap();
    let refused =
        Machine::new(&peer(&different, 0, Deed::Nothing, 2)).unwrap().device.load(node).unwrap_err();
    assert!(refused.to_string().contains("\"far\" with the back end at"), "{refused}");
}

/// What a driver's life says to a back end.
const SAID: [u32; 20] = [
    request::GET_FEATURES,
    request::GET_PROTOCOL_FEATURES,
    request::GET_QUEUE_NUM,
    request::SET_BACKEND_REQ_FD,
    request::GET_CONFIG,
    request::SET_FEATURES,
    request::GET_INFLIGHT_FD,
    request::SET_INFLIGHT_FD,
    request::SET_MEM_TABLE,
    request::SET_VRING_NUM,
    request::SET_VRING_BASE,
    request::SET_VRING_ADDR,
    request::SET_VRING_ERR,
    request::SET_VRING_CALL,
    request::SET_VRING_KICK,
    request::SET_VRING_ENABLE,
    request::SET_CONFIG,
    request::GET_VRING_BASE,
    request::RESET_DEVICE,
    request::SET_OWNER,
];

fn survives(at: u32, deed: Deed) {
    let dir = TempDir::new().unwrap();
    let socket = peer(&dir, at, deed, 1);
    let (machine, refused) = match Machine::new(&socket) {
        Ok(machine) => (machine, false),
        // The next one behaves.
        Err(_) => (Machine::new(&socket).unwrap(), true),
    };
    let begun = machine.live();
    let told = machine.link.broken() || !begun;
    if matches!(deed, Deed::HangUp | Deed::Cut) {
        assert!(!told, "{} {deed:?}: one that goes away is waited for", name(at));
    } else if !matches!(at, request::SET_OWNER | request::GET_VRING_BASE) {
        // The first is not answered, and behind the second nothing is under way.
        assert!(told || refused, "{} {deed:?}: nobody hears of it", name(at));
    }
    // Another one is found, and the driver can begin anew.
    until("a back end", || machine.device.shared.talk().client.is_some());
    assert!(machine.live(), "{} {deed:?}", name(at));
    assert_eq!(machine.config(), [1, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_back_ends_must_not_do_is_survived_at_every_step() {
    std::thread::scope(|scope| {
        for at in SAID {
            scope.spawn(move || DEEDS.into_iter().for_each(|deed| survives(at, deed)));
        }
    });
}

#[test]
fn another_configuration_is_shown_and_what_was_written_is_told_again() {
    let dir = TempDir::new().unwrap();
    let socket = peer(&dir, request::GET_VRING_BASE, Deed::HangUp, 1);
    let machine = Machine::new(&socket).unwrap();
    machine.device.activate(machine.device.features()).unwrap();
    machine.device.start_queue(0, machine.queue(0)).unwrap();
    machine.device.write_config(4, &[8]);
    assert_eq!(machine.config(), [1, 1, 2, 3, 8, 5, 6, 7]);
    // The next one is another.
    std::fs::remove_file(&socket).unwrap();
    let state = machine.device.stop_queue(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    peer(&dir, 0, Deed::Nothing, 9);
    until("a back end", || machine.device.shared.talk().client.is_some());
    until("its configuration", || machine.config()[0] == 9);
    assert_eq!(machine.config(), [9, 1, 2, 3, 8, 5, 6, 7]);
    assert!(machine.link.config() > 0 && !machine.link.broken());
}

#[test]
fn what_is_said_of_rings_of_the_driver_before_breaks_nothing() {
    let dir = TempDir::new().unwrap();
    let machine = Machine::new(&peer(&dir, 0, Deed::Nothing, 1)).unwrap();
    let device = &machine.device;
    let watching = device.watching.get().unwrap();
    device.shared.error.write(1).unwrap();
    (0..3).for_each(|_| watching.with(|_| ()).unwrap());
    assert!(!machine.link.broken(), "there is no driver that could be told");
    let (busy, is_busy) = std::sync::mpsc::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let held = watching.with(move |_| {
                busy.send(()).unwrap();
                ends.recv().unwrap();
            });
            held.unwrap();
        });
        // Whoever watches is late: the queue is given up, and the driver begins anew before that is seen.
        is_busy.recv().unwrap();
        device.shared.error.write(1).unwrap();
        device.reset();
        device.activate(device.features()).unwrap();
        end.send(()).unwrap();
    });
    (0..3).for_each(|_| watching.with(|_| ()).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    assert!(!machine.link.broken(), "the new driver is told of what the old one did");
    device.shared.error.write(1).unwrap();
    until("what is news", || machine.link.broken());
}

#[test]
fn memory_of_our_own_is_not_shown_to_anybody() {
    let dir = TempDir::new().unwrap();
    let socket = peer(&dir, 0, Deed::Nothing, 1);
    let mut device = Remote::find(wish(socket), Duration::ZERO).unwrap();
    let ram = Ram::new(RamMap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let (link, events) = (Arc::new(FakeLink::default()), Arc::new(FakeEvents::default()));
    let workers = Workers::new(events.clone());
    device.connect(VirtioGrant { ram, link, workers, events });
    let error = device.activate(device.features()).unwrap_err();
    assert!(error.to_string().contains("guest memory at 0x0 is not shared"), "{error}");
}
