//! Sockets, and the programs of the host's at their other ends.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use device::Virtio;
use virtio_devices::vsock::VsockSpec;

use crate::devices::with_kept;
use crate::guest::Guest;
use crate::input::Input;
use crate::scratch;
use crate::virtio::{self, Scene, build, offers};

/// Sockets, with a program of the host's that listens on one port.
pub struct Sockets {
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl Sockets {
    /// Conversations: what is said on a connection once there is one, from either side.
    pub fn seeds() -> Vec<Vec<u8>> {
        const QUIET: &[u8] = &[0, 0, 0, 10];
        let buffers = |heads: std::ops::Range<u8>| {
            heads.flat_map(|head| offers(0, head, 0x04, QUIET)).collect::<Vec<_>>()
        };
        let says = |head, op, length| offers(1, head, 0x01, &[0, op, length, 20]);
        let serve = vec![12];
        let mut seeds = virtio::seeds(3, &[&[0, 1, 0, 20], &[0, 5, 16, 20], &[4, 1, 0, 9, 20]]);
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

    pub fn run(bytes: &[u8]) {
        let path = scratch::file("vsock_1024");
        let _absent = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        virtio::run(Sockets { listener, streams: Vec::new() }, bytes);
    }
}

impl Scene for Sockets {
    fn make(&self) -> Box<dyn Virtio> {
        make()
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

/// The device.
pub fn make() -> Box<dyn Virtio> {
    let text = format!("cid=52,socket={}", scratch::file("vsock").display());
    with_kept(|kept| build::<VsockSpec>(&text, "_vsock0", kept))
}
