//! The virtio devices that are driven, and what the host does to them meanwhile.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use device::{Device, Kept, Virtio};
use virtio_devices::block::DiskSpec;
use virtio_devices::console::ConsoleSpec;
use virtio_devices::net::NetSpec;
use virtio_devices::rng::RngSpec;

use crate::guest::Guest;
use crate::input::Input;
use crate::sockets::{self, Sockets};
use crate::virtio::{Scene, build, run, seeds};
use crate::{Target, scratch};

thread_local! {
    static KEPT: OnceCell<Kept> = const { OnceCell::new() };
}

/// What devices of this thread keep over a reboot.
pub fn with_kept<R>(work: impl FnOnce(&Kept) -> R) -> R {
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
        sockets::make,
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
