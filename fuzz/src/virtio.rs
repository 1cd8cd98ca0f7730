//! Virtio devices behind the PCI transport, and a driver that writes any register at any time, describes any memory as buffers, moves
//! BARs, saves, restores, and is not alone: the host's side does as it pleases too.
//!
//! An input is a list of such acts. Afterwards the device must be one that a well-behaved driver can reset and set up.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use device::{Build, Built, Device, Host, Kept, Virtio};
use spec::Facts;
use virtio_devices::block::DiskSpec;
use virtio_devices::console::ConsoleSpec;
use virtio_devices::net::NetSpec;
use virtio_devices::rng::RngSpec;
use virtio_devices::vsock::VsockSpec;

use crate::guest::{BUFFERS, Guest, REGIONS, SIZE, queue_base};
use crate::input::Input;
use crate::{Target, scratch};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Most acts of an input.
const ACTS: usize = 48;

/// A device and what is around it on the host.
pub trait Scene {
    /// The device, anew: what is kept over a reboot is kept.
    fn make(&self) -> Box<dyn Virtio>;

    /// The host does something.
    fn stir(&mut self, _guest: &Guest, _input: &mut Input<'_>) {}

    /// Bytes of a request that means something to this device, for the chain's readable buffers.
    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let length = usize::from(input.u8());
        input.bytes(length).to_vec()
    }
}

/// Builds a device of what a user writes after a flag.
pub fn build<S: Build>(text: &str, id: &str, kept: &Kept) -> Box<dyn Virtio> {
    let mut spec = S::parse(text).unwrap();
    match spec.build(&Host { id, facts: &Facts::default(), kept }) {
        Ok(Built::Virtio(device)) => device,
        Ok(_) => panic!("{text} is no virtio device"),
        Err(e) => panic!("{text}: {:?}", e.chain()),
    }
}

/// A place in memory: in a buffer, at an edge, or anywhere.
fn address(queue: u16, input: &mut Input<'_>) -> u64 {
    match input.u8() & 7 {
        0..=3 => queue_base(queue) + BUFFERS + 64 * u64::from(input.u8()),
        4 => queue_base(queue) + u64::from(input.u16()),
        5 => REGIONS[usize::from(input.flag())].0.wrapping_add(u64::from(input.u8())),
        6 => {
            let (base, length) = REGIONS[usize::from(input.flag())];
            base + length - u64::from(input.u8())
        }
        _ => input.value(),
    }
}

/// A chain that is mostly in order: readable buffers with a request, then writable ones.
fn chain(guest: &mut Guest, scene: &impl Scene, input: &mut Input<'_>) {
    let queue = input.below(guest.queues().into()) as u16;
    let (head, shape) = (input.u8() as u16 % SIZE, input.u8());
    let request = scene.request(input);
    let (readable, writable) = (usize::from(shape & 3), usize::from(shape >> 2 & 3));
    let mut buffers = Vec::new();
    let mut rest = &request[..];
    for n in 0..readable {
        let address = address(queue, input);
        let length = if n + 1 == readable { rest.len() } else { usize::from(input.u8()).min(rest.len()) };
        let (now, later) = rest.split_at(length);
        guest.put(address, now);
        rest = later;
        buffers.push((address, length as u32, 0));
    }
    for _ in 0..writable {
        let length = if shape & 0x10 != 0 { input.value() as u32 } else { 16 * u32::from(input.u8()) + 1 };
        buffers.push((address(queue, input), length, WRITE));
    }
    if shape & 0x20 != 0 {
        // The same in a table of its own.
        let table = queue_base(queue) + BUFFERS + 0x4000;
        for (n, (address, length, flags)) in (0..).zip(&buffers) {
            let more = if n as usize + 1 == buffers.len() { 0 } else { NEXT };
            let bytes = [
                &address.to_le_bytes()[..],
                &length.to_le_bytes(),
                &(flags | more).to_le_bytes(),
                &(n + 1u16).to_le_bytes(),
            ];
            guest.put(table + 16 * u64::from(n), &bytes.concat());
        }
        guest.describe(queue, head, table, 16 * buffers.len() as u32, INDIRECT, 0);
    } else {
        for (n, (address, length, flags)) in (0..).zip(&buffers) {
            let more = if n as usize + 1 == buffers.len() { 0 } else { NEXT };
            guest.describe(queue, (head + n) % SIZE, *address, *length, flags | more, (head + n + 1) % SIZE);
        }
    }
    guest.offer(queue, head);
    if shape & 0x40 != 0 {
        guest.kick(queue);
    }
}

/// Offsets in BAR 0 at which something is.
fn offset(input: &mut Input<'_>) -> u64 {
    match input.u8() & 7 {
        0..=2 => u64::from(input.u8() % 64),
        3 => 0x2000 + u64::from(input.u8() & 1),
        4 => 0x4000 + u64::from(input.u8()),
        5 => 0x6000 + u64::from(input.u8()),
        6 => 0x8000 + u64::from(input.u8()),
        _ => input.value() & 0xf_ffff,
    }
}

/// One act of the guest or the host.
fn act(guest: &mut Guest, scene: &mut impl Scene, input: &mut Input<'_>) -> bool {
    let queue = |guest: &Guest, input: &mut Input<'_>| input.below(guest.queues().into()) as u16;
    match input.u8() % 20 {
        0 => {
            let wanted = if input.flag() { u64::MAX } else { input.value() };
            guest.bring_up(wanted);
        }
        1..=5 => chain(guest, scene, input),
        6 => {
            let (offset, value, width) = (offset(input), input.value(), input.one_of(&[1, 2, 4, 8]));
            guest.write(offset, &value.to_le_bytes()[..width]);
        }
        7 => {
            let (offset, width) = (offset(input), input.one_of(&[1, 2, 4, 8]));
            guest.read(offset, &mut [0; 8][..width]);
        }
        8 => {
            let queue = queue(guest, input);
            let (index, address) = (input.u16() % (2 * SIZE), address(queue, input));
            guest.describe(
                queue,
                index,
                address,
                input.value() as u32,
                input.u8().into(),
                input.value() as u16,
            );
        }
        9 => {
            let (queue, head) = (queue(guest, input), input.value() as u16);
            guest.offer(queue, head);
        }
        10 => {
            let (queue, index) = (queue(guest, input), input.value() as u16);
            guest.jump(queue, index);
        }
        11 => guest.kick(queue(guest, input)),
        12 | 13 => guest.serve(),
        14 => {
            let queue = queue(guest, input);
            let (address, length) = (address(queue, input), usize::from(input.u8()));
            guest.put(address, input.bytes(length));
        }
        15 => {
            let (offset, value, width) =
                (input.value() as usize & 0xfff, input.value(), input.one_of(&[1, 2, 4]));
            guest.config_write(offset, &value.to_le_bytes()[..width]);
            guest.config_read(offset, &mut [0; 4][..width]);
        }
        16 | 17 => scene.stir(guest, input),
        18 => std::thread::sleep(Duration::from_micros(200)),
        _ => return false,
    }
    true
}

/// Goes on in another process, so to speak: what a device saves, another one can load.
fn move_on(guest: Guest, scene: &impl Scene) -> Guest {
    let (saved, placed, ram) = (guest.save(), guest.placed(), guest.board.ram.clone());
    guest.board.assert_well();
    drop(guest);
    Guest::load(scene.make(), ram, &placed, saved)
        .unwrap_or_else(|e| panic!("a state is not taken back: {e}"))
}

fn run(mut scene: impl Scene, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut guest = Guest::new(scene.make());
    if input.flag() {
        assert_eq!(guest.bring_up(u64::MAX), 0xf);
    }
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        if !act(&mut guest, &mut scene, &mut input) {
            guest = move_on(guest, &scene);
        }
    }
    guest.serve();
    // Whatever was done to it, it can be used again.
    assert_eq!(guest.bring_up(u64::MAX), 0xf, "the device cannot be set up any more");
    guest.device.stop().unwrap();
    guest.board.assert_well();
}

/// The act of offering a chain: `request` goes into the readable buffers, if there are any.
fn offers(queue: u8, head: u8, shape: u8, request: &[u8]) -> Vec<u8> {
    let mut act = [&[1, queue, head, shape][..], request].concat();
    for n in 0..shape & 3 {
        if n + 1 != shape & 3 {
            act.push(16);
        }
        act.extend([0, 8 * head + n]);
    }
    for n in 0..shape >> 2 & 3 {
        act.extend([if n == 0 { 64 } else { 1 }, 0, 128 + 8 * head + 64 * n]);
    }
    act
}

/// Programs that set the device up, offer chains of all shapes and serve them.
fn seeds(queues: u8, requests: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for request in requests {
        for shape in [0x01u8, 0x04, 0x05, 0x06, 0x09, 0x46, 0x49, 0x25, 0x1a] {
            for queue in 0..queues {
                let mut seed = vec![1];
                for head in [0, 4] {
                    seed.extend(offers(queue, head, shape, request));
                }
                seed.extend([12, 16, 1, 2, 3, 4, 18, 19, 12, 0, 1, 12]);
                all.push(seed);
            }
        }
    }
    all
}

thread_local! {
    static KEPT: OnceCell<Kept> = const { OnceCell::new() };
}

fn with_kept<R>(work: impl FnOnce(&Kept) -> R) -> R {
    KEPT.with(|kept| work(kept.get_or_init(Kept::default)))
}

/// A disk of 64 KiB; its configuration depends on the input.
struct Disk(String);

impl Disk {
    fn run(bytes: &[u8]) {
        let (how, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let path = scratch::file("disk");
        let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
        file.set_len(0x1_0000).unwrap();
        let mut text = format!("path={},queue_size=64,image_type=raw", path.display());
        for (bit, option) in [
            (0, ",readonly=on"),
            (1, ",_disable_io_uring=on,_disable_aio=on"),
            (2, ",serial=fuzz"),
            (3, ",sparse=off"),
            (4, ",bw_size=4096,bw_refill_time=1"),
        ] {
            // Rings are slow to make: most inputs go without.
            if (how ^ 2) >> bit & 1 == 1 {
                text.push_str(option);
            }
        }
        run(Disk(text), rest);
        drop(file);
        assert!(fs::metadata(&path).unwrap().len() <= 1 << 20, "the image grew");
    }
}

impl Scene for Disk {
    fn make(&self) -> Box<dyn Virtio> {
        build::<DiskSpec>(&self.0, "_disk0", &Kept::default())
    }

    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let kind: u32 = match input.u8() {
            n @ 0..16 => n.into(),
            _ => input.value() as u32,
        };
        let sector = input.value();
        let mut bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        if matches!(kind, 0 | 4 | 8) {
            return bytes;
        }
        // Data, or the ranges of a discard.
        let (first, count, flags) = (input.value(), input.value() as u32, input.u8());
        bytes.extend(
            [&first.to_le_bytes()[..], &count.to_le_bytes(), &u32::from(flags & 3).to_le_bytes()].concat(),
        );
        bytes.resize(bytes.len() + 16 * usize::from(input.u8() & 0x3f), flags);
        bytes
    }

    fn stir(&mut self, guest: &Guest, input: &mut Input<'_>) {
        if let Some(disk) = guest.device.resize() {
            let bytes = 512 * u64::from(input.u8());
            guest.device.stop().unwrap();
            let _refused = disk.resize(bytes);
            let _asked = guest.device.start();
        }
    }
}

/// Entropy.
struct Entropy;

impl Scene for Entropy {
    fn make(&self) -> Box<dyn Virtio> {
        build::<RngSpec>("src=/dev/urandom", "__rng", &Kept::default())
    }
}

/// A console on a socket.
#[derive(Default)]
struct Console(Option<UnixStream>);

impl Scene for Console {
    fn make(&self) -> Box<dyn Virtio> {
        with_kept(|kept| {
            build::<ConsoleSpec>(&format!("socket={}", scratch::file("console").display()), "__console", kept)
        })
    }

    fn stir(&mut self, guest: &Guest, input: &mut Input<'_>) {
        match input.u8() & 3 {
            0 => self.0 = UnixStream::connect(scratch::file("console")).ok(),
            1 => self.0 = None,
            2 => guest.device.virtio().resized(),
            _ => {
                let length = input.u8().into();
                if let Some(stream) = &mut self.0 {
                    stream.set_nonblocking(true).unwrap();
                    let _full = stream.write(input.bytes(length));
                    let _empty = stream.read(&mut [0; 512]);
                }
            }
        }
    }
}

/// A network card on a tap of a namespace of its own.
struct Net;

impl Net {
    fn run(bytes: &[u8]) {
        Net::alone();
        run(Net, bytes);
    }

    /// Moves the thread into a network namespace of its own, once: inputs cannot reach anybody.
    fn alone() {
        thread_local!(static ALONE: OnceCell<()> = const { OnceCell::new() });
        ALONE.with(|alone| {
            alone.get_or_init(|| {
                // SAFETY: no pointers are passed.
                let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                assert_eq!(done, 0, "network namespaces need root: {}", std::io::Error::last_os_error());
            });
        });
    }
}

impl Scene for Net {
    fn make(&self) -> Box<dyn Virtio> {
        let text =
            "tap=fuzz0,ip=192.168.249.1,mask=255.255.255.0,mac=2e:00:00:00:00:02,queue_size=64,num_queues=2";
        with_kept(|kept| build::<NetSpec>(text, "_net0", kept))
    }

    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let shape = input.u8();
        if shape & 1 == 0 {
            // A command of the control queue, or anything.
            let length = usize::from(input.u8() & 0x3f);
            return input.bytes(length).to_vec();
        }
        let header =
            [input.u8() & 7, input.u8() & 0x83, 0, 0, 0, 0, input.u8(), 0, input.u8() & 63, 0, input.u8(), 0];
        let mut frame = header.to_vec();
        frame[2..4].copy_from_slice(&u16::from(input.u8()).to_le_bytes());
        frame[4..6].copy_from_slice(&(input.value() as u16).to_le_bytes());
        frame.extend(if shape & 2 == 0 { [0xff; 6] } else { [0x2e, 0, 0, 0, 0, 1] });
        frame.extend([0x2e, 0, 0, 0, 0, 2, 8, if shape & 4 == 0 { 6 } else { 0 }]);
        let length = input.u8().into();
        frame.extend(input.bytes(length));
        frame
    }

    fn stir(&mut self, _guest: &Guest, input: &mut Input<'_>) {
        // A frame for the guest, by way of the host's own network stack.
        if let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") {
            socket.set_nonblocking(true).unwrap();
            let length = 4 * usize::from(input.u8());
            let _nobody = socket.set_broadcast(true);
            let _sent = socket.send_to(&vec![7; length], "192.168.249.255:9");
        }
    }
}

/// Sockets, with a program of the host's that listens on one port.
struct Sockets {
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl Sockets {
    /// Conversations: what is said on a connection once there is one, from either side.
    fn seeds() -> Vec<Vec<u8>> {
        const QUIET: &[u8] = &[0, 0, 0, 10];
        let buffers = |heads: std::ops::Range<u8>| {
            heads.flat_map(|head| offers(0, head, 0x04, QUIET)).collect::<Vec<_>>()
        };
        let says = |head, op, length| offers(1, head, 0x01, &[0, op, length, 20]);
        let serve = vec![12];
        let mut seeds = seeds(3, &[&[0, 1, 0, 20], &[0, 5, 16, 20], &[4, 1, 0, 9, 20]]);
        // The guest connects to the host, which accepts; each says something; then one of these.
        let ends: [Vec<u8>; 8] = [
            says(4, 4, 0),
            says(4, 3, 0),
            vec![16, 3],
            vec![16, 4, 0],
            vec![16, 4, 1],
            vec![19],
            vec![0, 1],
            [says(4, 6, 0), says(6, 7, 0), vec![16, 7, 200]].concat(),
        ];
        for end in ends {
            let begin = [vec![1], buffers(0..8), says(0, 1, 0), serve.clone(), vec![16, 0]].concat();
            let talk = [
                says(1, 5, 40),
                serve.clone(),
                vec![16, 7, 4],
                serve.clone(),
                says(2, 5, 200),
                vec![11, 1, 18],
            ]
            .concat();
            let then = [end, serve.clone(), buffers(8..12), vec![16, 7, 9, 18, 12, 16, 0, 12]].concat();
            seeds.push([begin, talk, then].concat());
        }
        // The host connects to the guest, which answers.
        for op in [2, 3, 5, 4] {
            let answer = |head, op, length| {
                offers(1, head, 0x01, &[0x0c, op, length, 3, 64, 0, 0, 0, 0, 0, 0, 0, 4, 30, 20])
            };
            let begin =
                [vec![1], buffers(0..8), vec![16, 1, 8], serve.clone(), vec![18], serve.clone()].concat();
            let talk = [
                answer(0, op, 0),
                serve.clone(),
                vec![16, 7, 4],
                serve.clone(),
                answer(1, 5, 9),
                serve.clone(),
            ]
            .concat();
            seeds.push([begin, talk, vec![16, 7, 4, 18, 12, 19, 12, 16, 3, 12]].concat());
        }
        seeds
    }

    fn run(bytes: &[u8]) {
        let path = scratch::file("vsock_1024");
        let _absent = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        run(Sockets { listener, streams: Vec::new() }, bytes);
    }
}

impl Scene for Sockets {
    fn make(&self) -> Box<dyn Virtio> {
        vsock()
    }

    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        // virtio 1.3 §5.10.6: source and destination, their ports, length, type, operation, flags, window.
        let odd = input.u8();
        let (op, length) = (u16::from(input.u8() % 10), u32::from(input.u8()));
        let pick = |bit: u8, usual: u64, input: &mut Input<'_>| {
            if odd >> bit & 1 == 1 { input.value() } else { usual }
        };
        let fields: [Vec<u8>; 10] = [
            pick(0, 52, input).to_le_bytes().to_vec(),
            pick(1, 2, input).to_le_bytes().to_vec(),
            (pick(2, 1000, input) as u32).to_le_bytes().to_vec(),
            (pick(3, 1024, input) as u32).to_le_bytes().to_vec(),
            (pick(4, length.into(), input) as u32).to_le_bytes().to_vec(),
            (pick(5, 1, input) as u16).to_le_bytes().to_vec(),
            op.to_le_bytes().to_vec(),
            (pick(6, u64::from(op & 3), input) as u32).to_le_bytes().to_vec(),
            (pick(7, 0x1000, input) as u32).to_le_bytes().to_vec(),
            (input.value() as u32).to_le_bytes().to_vec(),
        ];
        let mut packet = fields.concat();
        packet.resize(packet.len() + length as usize, 0x61);
        packet
    }

    fn stir(&mut self, _guest: &Guest, input: &mut Input<'_>) {
        match input.u8() & 7 {
            0 => self.streams.extend(self.listener.accept().map(|(stream, _)| stream)),
            1 => {
                if let Ok(mut stream) = UnixStream::connect(scratch::file("vsock")) {
                    let _sent = writeln!(stream, "CONNECT {}", u32::from(input.u8()) * 8);
                    self.streams.push(stream);
                }
            }
            2 => {
                if let Ok(mut stream) = UnixStream::connect(scratch::file("vsock")) {
                    let length = input.u8().into();
                    let _sent = stream.write(input.bytes(length));
                    self.streams.push(stream);
                }
            }
            3 => drop(self.streams.pop()),
            4 => {
                if let Some(stream) = self.streams.last() {
                    let how = if input.flag() { std::net::Shutdown::Read } else { std::net::Shutdown::Write };
                    let _gone = stream.shutdown(how);
                }
            }
            _ => {
                let length = 16 * usize::from(input.u8());
                if let Some(stream) = self.streams.last_mut() {
                    stream.set_nonblocking(true).unwrap();
                    let _full = stream.write(&vec![0x62; length]);
                    let _empty = stream.read(&mut vec![0; length]);
                }
            }
        }
        self.streams.truncate(16);
    }
}

fn vsock() -> Box<dyn Virtio> {
    let text = format!("cid=52,socket={}", scratch::file("vsock").display());
    with_kept(|kept| build::<VsockSpec>(&text, "_vsock0", kept))
}

/// Makes a device.
pub type Make = fn() -> Box<dyn Virtio>;

/// All devices, for those who load states.
pub fn scenes() -> [Make; 5] {
    [
        || {
            let path = scratch::file("disk");
            let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
            file.set_len(0x1_0000).unwrap();
            let engine = "_disable_io_uring=on,_disable_aio=on";
            Disk(format!("path={},{engine},image_type=raw,queue_size=64", path.display())).make()
        },
        || Entropy.make(),
        || Console::default().make(),
        vsock,
        || {
            Net::alone();
            Net.make()
        },
    ]
}

pub fn targets() -> Vec<Target> {
    let target = |name, about, seeds, run| Target {
        name,
        about,
        length: 768,
        options: &[],
        words: Vec::new,
        seeds,
        run,
    };
    vec![
        target(
            "virtio_block",
            "a disk under a driver that lies",
            || {
                let requests: &[&[u8]] = &[
                    &[0, 10],
                    &[1, 12, 10, 10, 0x55, 32],
                    &[4, 10],
                    &[8, 10],
                    &[11, 10, 10, 18, 0, 0],
                    &[13, 10, 12, 18, 1, 1],
                ];
                let with =
                    |how: u8| seeds(1, requests).into_iter().map(move |seed| [vec![how], seed].concat());
                with(0).chain(with(2).step_by(9)).collect()
            },
            Disk::run,
        ),
        target(
            "virtio_rng",
            "the entropy device under a driver that lies",
            || seeds(1, &[&[0], &[4, 1, 2, 3, 4]]),
            |bytes| {
                run(Entropy, bytes);
            },
        ),
        target(
            "virtio_console",
            "the console under a driver that lies",
            || seeds(2, &[&[5, b'h', b'e', b'l', b'l', b'o'], &[0]]),
            |bytes| run(Console::default(), bytes),
        ),
        target(
            "virtio_net",
            "a network card under a driver that lies",
            || {
                seeds(
                    3,
                    &[
                        &[1, 0, 0, 0, 0, 0, 0, 10, 4, 1, 2, 3, 4],
                        &[5, 1, 1, 34, 16, 0, 54, 0, 200, 8, 0x45, 0, 0, 60, 0, 0, 0, 0],
                        &[0, 4, 4, 0, 1, 0],
                        &[0, 10, 5, 0, 0x83, 0, 0, 0, 0, 0, 0, 0],
                        &[0, 8, 1, 1, 2, 0, 0, 0, 0, 9],
                    ],
                )
            },
            Net::run,
        ),
        target("virtio_vsock", "sockets under a driver that lies", Sockets::seeds, Sockets::run),
    ]
}
