//! Virtio devices behind the PCI transport, and a driver that writes any register at any time, describes any memory as buffers, moves
//! BARs, saves, restores, and is not alone: the host's side does as it pleases too.
//!
//! An input is a list of such acts. Afterwards the device must be one that a well-behaved driver can reset and set up.

use std::time::Duration;

use device::{Build, Built, Device, Host, Kept, Virtio};
use spec::Facts;

use crate::guest::{BUFFERS, Guest, REGIONS, SIZE, queue_base};
use crate::input::Input;

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

/// Carries a program out on a device.
pub fn run(mut scene: impl Scene, bytes: &[u8]) {
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
pub fn offers(queue: u8, head: u8, shape: u8, request: &[u8]) -> Vec<u8> {
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
pub fn seeds(queues: u8, requests: &[&[u8]]) -> Vec<Vec<u8>> {
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
