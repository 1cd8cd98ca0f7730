//! A network card under load, by `probe.op`:
//!
//! * `send`: frames of `probe.size` bytes (1514) as fast as they go; above 1514 they are TCP segments that the host is to cut;
//! * `receive`: frames counted as they come, merged ones as well;
//! * `ask`: `probe.depth` (1) questions by ARP under way, who has `probe.host`; the host's network stack answers without a process of its own.
//!
//! `probe.pairs` (1) queue pairs take part in the first two.

use super::{begin, end, millis};
use crate::clock::{Clock, ticks};
use crate::histogram::Histogram;
use crate::io::Region;
use crate::tests::Machine;
use crate::verdict::{Outcome, Stop};
use crate::virtio::net::{self, HEADER, address, ethernet, get16, ipv4, put16};
use crate::virtio::queue::{Buffer, Queue};
use crate::virtio::{Device, F_EVENT_IDX, NO_VECTOR, kind};

const MOST_PAIRS: u16 = 2;
const ENTRIES: u16 = 256;
/// Bytes of a receive buffer.
const SLOT: u64 = 4096;
/// Bytes of the largest frame and its header.
const FRAME: u64 = HEADER + 65550;
/// Bytes of the largest frame that is not to be cut, and of TCP's data in one.
const WHOLE: u64 = 1514;
const SEGMENT: u16 = 1448;
const ARP: u16 = 0x0806;
/// Milliseconds after which a question counts as lost.
const PATIENCE: u64 = 100;

/// Milliseconds after which a tap must be up.
const UP: u64 = 10_000;

/// Fields of `virtio_net_hdr`, and what they hold for TCP over IPv4 (virtio 1.3, 5.1.6).
const FLAGS: u64 = 0;
const GSO_TYPE: u64 = 1;
const HEADERS: u64 = 2;
const GSO_SIZE: u64 = 4;
const CSUM_START: u64 = 6;
const CSUM_OFFSET: u64 = 8;
const BUFFERS: u64 = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

struct Pair {
    receive: Queue,
    transmit: Queue,
    slots: Region,
    /// Buffers that still belong to the frame whose first came last.
    rest: u16,
}

impl Pair {
    fn open(device: &Device, machine: &mut Machine, index: u16) -> Result<Pair, Stop> {
        let arena = &mut machine.arena;
        let mut receive = device.queue(arena, 2 * index, ENTRIES, NO_VECTOR).map_err(Stop::Fail)?;
        let transmit = device.queue(arena, 2 * index + 1, ENTRIES, NO_VECTOR).map_err(Stop::Fail)?;
        let slots = arena.take(u64::from(receive.size) * SLOT, 4096);
        for slot in 0..u64::from(receive.size) {
            let added = receive.add(&[Buffer::writable(slots.part(slot * SLOT, SLOT))]);
            check!(added.is_some(), "the queue is full");
        }
        Ok(Pair { receive, transmit, slots, rest: 0 })
    }

    /// Takes what has come: frames and bytes. `then` sees the first buffer of each. Every buffer goes back.
    fn drain(&mut self, mut then: impl FnMut(Region)) -> (u64, u64) {
        let (mut frames, mut bytes) = (0, 0);
        while let Some((head, len)) = self.receive.pop() {
            let at = self.receive.descriptors.read64(u64::from(head) * 16);
            let buffer = self.slots.part(at - self.slots.base(), SLOT);
            bytes += u64::from(len);
            if self.rest == 0 {
                self.rest = buffer.read16(BUFFERS).max(1);
                frames += 1;
                bytes = bytes.saturating_sub(HEADER);
                then(buffer.part(HEADER, SLOT - HEADER));
            }
            self.rest -= 1;
            let _ = self.receive.add(&[Buffer::writable(buffer)]);
        }
        if bytes > 0 {
            self.receive.kick();
        }
        (frames, bytes)
    }
}

/// Opens the card with `pairs` pairs in use.
fn open(machine: &mut Machine, pairs: u16, offload: bool) -> Result<(Device, [Option<Pair>; 2]), Stop> {
    let nth = machine.start.number("net").unwrap_or(0);
    let Some(device) = Device::find(&machine.bus, kind::NET, nth) else {
        skip!("there is no network card {nth}")
    };
    let mut device = device.map_err(Stop::Fail)?;
    let many = if pairs > 1 { net::F_MQ | net::F_CTRL_VQ } else { 0 };
    let segments = net::F_CSUM | net::F_HOST_TSO4 | net::F_GUEST_CSUM | net::F_GUEST_TSO4;
    let wanted = net::F_MRG_RXBUF | many | if offload { segments } else { 0 };
    device.negotiate(wanted | net::F_MAC | net::F_STATUS | F_EVENT_IDX).map_err(Stop::Fail)?;
    check!(device.features & wanted == wanted, "it has {:#x} of {wanted:#x}", device.features);
    let mut opened = [const { None }; MOST_PAIRS as usize];
    for index in 0..pairs {
        opened[usize::from(index)] = Some(Pair::open(&device, machine, index)?);
    }
    let control = if pairs > 1 {
        let last = device.queue_count() - 1;
        Some(device.queue(&mut machine.arena, last, 16, NO_VECTOR).map_err(Stop::Fail)?)
    } else {
        None
    };
    device.start().map_err(Stop::Fail)?;
    if let Some(mut control) = control {
        use_pairs(&device, machine, &mut control, pairs)?;
    }
    for pair in opened.iter_mut().flatten() {
        pair.receive.kick();
    }
    Ok((device, opened))
}

/// Has the device use that many pairs (5.1.6.5.5).
fn use_pairs(device: &Device, machine: &mut Machine, control: &mut Queue, pairs: u16) -> Result<(), Stop> {
    let room = machine.arena.take(16, 16);
    room.write8(0, 4);
    room.write8(1, 0);
    room.write16(2, pairs);
    let answer = room.part(8, 1);
    answer.write8(0, 0xee);
    let command =
        [Buffer::readable(room.part(0, 2)), Buffer::readable(room.part(2, 2)), Buffer::writable(answer)];
    check!(control.add(&command).is_some(), "the control queue is full");
    control.kick();
    device.complete(control, &machine.clock).map_err(Stop::Fail)?;
    check!(answer.read8(0) == 0, "{pairs} pairs are refused");
    Ok(())
}

/// Fills in a frame of `size` bytes to nobody: a unicast address that is not ours.
fn fill(whole: Region, mac: [u8; 6], size: u64) {
    let frame = whole.part(HEADER, size);
    if size <= WHOLE {
        // An experimental type.
        ethernet(frame, [2, 0, 0, 0, 0, 1], mac, 0x88b5);
        return;
    }
    ethernet(frame, [2, 0, 0, 0, 0, 1], mac, 0x0800);
    ipv4(frame, [10, 0, 0, 2], [10, 0, 0, 1], 6, (size - 34) as u16);
    let tcp = frame.part(34, 20);
    put16(tcp, 0, 1000);
    put16(tcp, 2, 2000);
    // Twenty bytes of header, and an acknowledgement.
    put16(tcp, 12, 0x5010);
    whole.write8(FLAGS, NEEDS_CSUM);
    whole.write8(GSO_TYPE, GSO_TCPV4);
    whole.write16(HEADERS, 54);
    whole.write16(GSO_SIZE, SEGMENT);
    whole.write16(CSUM_START, 34);
    whole.write16(CSUM_OFFSET, 16);
}

/// What a load came to.
#[derive(Debug, Default)]
struct Sums {
    frames: u64,
    bytes: u64,
}

fn send(pairs: &mut [Option<Pair>], clock: Clock, limit: u64, whole: Region) -> Sums {
    let mut sums = Sums::default();
    clock.wait(limit, || {
        for pair in pairs.iter_mut().flatten() {
            while pair.transmit.add(&[Buffer::readable(whole)]).is_some() {}
            pair.transmit.kick();
            while pair.transmit.pop().is_some() {
                sums.frames += 1;
                sums.bytes += whole.len() - HEADER;
            }
        }
        false
    });
    sums
}

fn receive(pairs: &mut [Option<Pair>], clock: Clock, limit: u64) -> Sums {
    let mut sums = Sums::default();
    clock.wait(limit, || {
        for pair in pairs.iter_mut().flatten() {
            let (frames, bytes) = pair.drain(|_| {});
            sums.frames += frames;
            sums.bytes += bytes;
        }
        false
    });
    sums
}

/// Asks for that many milliseconds, or only until the first answer.
fn ask(
    pair: &mut Pair,
    (clock, limit, once): (Clock, u64, bool),
    depth: u64,
    whole: Region,
    times: &mut Histogram,
) -> Sums {
    let mut sums = Sums::default();
    let (mut out, mut last) = (0, ticks());
    clock.wait(limit, || {
        while pair.transmit.pop().is_some() {}
        if ticks() - last > PATIENCE * clock.khz {
            out = 0;
        }
        let before = out;
        while out < depth && pair.transmit.add(&[Buffer::readable(whole)]).is_some() {
            out += 1;
        }
        if out != before {
            last = ticks();
            pair.transmit.kick();
        }
        pair.drain(|frame| {
            // Others may come by here.
            if get16(frame, 12) == ARP && get16(frame, 20) == 2 {
                times.add(ticks() - last);
                out = out.saturating_sub(1);
                sums.frames += 1;
                sums.bytes += whole.len() - HEADER;
            }
        });
        once && sums.frames > 0
    });
    sums
}

/// See the module.
pub(in crate::tests) fn network(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let number = |name, default| machine.start.number(name).unwrap_or(default);
    let size = number("size", WHOLE).clamp(60, FRAME - HEADER);
    let (depth, pairs) = (number("depth", 1).max(1), number("pairs", 1).clamp(1, u64::from(MOST_PAIRS)));
    let addresses =
        machine.start.option("host").and_then(address).zip(machine.start.option("ip").and_then(address));
    let (op, clock, limit) = (machine.start.option("op").unwrap_or("send"), machine.clock, millis(machine));
    let (device, mut opened) = open(machine, pairs as u16, size > WHOLE)?;
    let Some(config) = device.config else { fail!("there is no device configuration") };
    let mac = [0, 1, 2, 3, 4, 5].map(|i| config.read8(i));
    let mut times = Histogram::new(&mut machine.arena);
    let room = machine.arena.take(FRAME, 4096);
    let start;
    let sums = match op {
        "receive" => {
            begin(clock);
            start = ticks();
            receive(&mut opened, clock, limit)
        }
        "ask" => {
            let Some((host, ip)) = addresses else { skip!("probe.ip and probe.host name no addresses") };
            let whole = room.part(0, HEADER + 60);
            question(whole.part(HEADER, 60), mac, host, ip);
            let Some(pair) = &mut opened[0] else { fail!("there is no pair") };
            // A tap is up some time after it has been opened.
            let mut first = Histogram::new(&mut machine.arena);
            let answered = ask(pair, (clock, UP, true), 1, whole, &mut first).frames;
            check!(answered > 0, "no answer in {UP} ms");
            begin(clock);
            start = ticks();
            ask(pair, (clock, limit, false), depth, whole, &mut times)
        }
        _ => {
            let whole = room.part(0, HEADER + size);
            fill(whole, mac, size);
            begin(clock);
            start = ticks();
            send(&mut opened, clock, limit, whole)
        }
    };
    let micros = clock.micros_since(start).max(1);
    check!(device.reset(), "the card does not reset");
    end(clock);
    let Sums { frames, bytes } = sums;
    check!(frames > 0, "no frame");
    Ok(text!(
        "op={op} size={size} pairs={pairs} requests={frames} frames/s={} mib/s={} p50-ns={} p99-ns={}",
        frames * 1_000_000 / micros,
        (bytes * 1_000_000 / micros) >> 20,
        times.nanos(50, clock),
        times.nanos(99, clock)
    ))
}

/// Asks everybody who has the address `host`.
fn question(frame: Region, mac: [u8; 6], host: [u8; 4], ip: [u8; 4]) {
    ethernet(frame, [0xff; 6], mac, ARP);
    // Ethernet, IPv4, lengths of their addresses, a question.
    for (at, value) in [(14, 1), (16, 0x0800), (18, 0x0604), (20, 1)] {
        put16(frame, at, value);
    }
    frame.store(22, &mac);
    frame.store(28, &ip);
    frame.store(32, &[0; 6]);
    frame.store(38, &host);
}
