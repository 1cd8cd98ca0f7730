//! The devices that are streams of bytes: entropy, and the virtio console.

use super::Machine;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::queue::{Buffer, Queue};
use crate::virtio::{Device, NO_VECTOR, kind};

fn open(machine: &mut Machine, kind: u16, what: &str) -> Result<Device, Stop> {
    match Device::find(&machine.bus, kind, 0) {
        Some(Ok(mut device)) => {
            device.negotiate(0).map_err(Stop::Fail)?;
            Ok(device)
        }
        Some(Err(why)) => Err(Stop::Fail(why)),
        None => Err(Stop::Skip(text!("there is no {what}"))),
    }
}

/// Entropy in requests of many sizes: something comes, it fits, about half of the bits are ones, and no two are alike.
pub(super) fn rng(machine: &mut Machine) -> Outcome {
    let device = open(machine, kind::RNG, "rng")?;
    let mut queue = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
    device.start().map_err(Stop::Fail)?;
    let buffer = machine.arena.take(64 << 10, 4096);
    let (mut bytes, mut ones, mut previous) = (0u64, 0u64, 0);
    for len in [1u64, 7, 64, 256, 4096, 65536, 64, 4096] {
        buffer.fill(0);
        check!(queue.add(&[Buffer::writable(buffer.part(0, len))]).is_some(), "the queue is full");
        queue.kick();
        let (_, written) = device.complete(&mut queue, &machine.clock).map_err(Stop::Fail)?;
        let written = u64::from(written);
        check!(written > 0 && written <= len, "{written} bytes for a buffer of {len}");
        check!(
            (written..buffer.len()).all(|i| buffer.read8(i) == 0),
            "more was written than the device says"
        );
        ones += (0..written).map(|i| u64::from(buffer.read8(i).count_ones())).sum::<u64>();
        bytes += written;
        if written >= 8 {
            check!(buffer.read64(0) != previous, "the same bytes came twice");
            previous = buffer.read64(0);
        }
    }
    let share = ones * 1000 / (bytes * 8);
    check!(bytes < 1000 || (450..550).contains(&share), "{share} of 1000 bits are ones");
    Ok(text!("bytes={bytes} ones={share}/1000"))
}

/// A request that the device cannot answer as asked (nothing writable, a buffer of gigabytes) does not stop it.
pub(super) fn rng_hostile(machine: &mut Machine) -> Outcome {
    let device = open(machine, kind::RNG, "rng")?;
    let mut queue = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
    device.start().map_err(Stop::Fail)?;
    let buffer = machine.arena.take(4096, 4096);
    for lie in [
        Buffer::readable(buffer),
        Buffer { address: buffer.base(), len: 0, writable: true },
        Buffer { address: u64::MAX - 100, len: 4096, writable: true },
        Buffer { address: 1 << 45, len: u32::MAX, writable: true },
    ] {
        check!(queue.add(&[lie]).is_some(), "the queue is full");
        queue.kick();
        machine.clock.wait(20, || queue.pop().is_some());
    }
    check!(device.reset(), "the device does not reset");
    drop(device);
    machine.arena.reset();
    rng(machine)
}

struct Console {
    device: Device,
    input: Queue,
    output: Queue,
    buffer: Region,
}

fn console(machine: &mut Machine) -> Result<Console, Stop> {
    let device = open(machine, kind::CONSOLE, "virtio console")?;
    let input = device.queue(&mut machine.arena, 0, 64, NO_VECTOR).map_err(Stop::Fail)?;
    let output = device.queue(&mut machine.arena, 1, 64, NO_VECTOR).map_err(Stop::Fail)?;
    device.start().map_err(Stop::Fail)?;
    Ok(Console { device, input, output, buffer: machine.arena.take(8192, 4096) })
}

impl Console {
    fn write(&mut self, machine: &Machine, bytes: &[u8]) -> Result<(), Stop> {
        self.buffer.store(0, bytes);
        let buffer = Buffer::readable(self.buffer.part(0, bytes.len() as u64));
        self.output.add(&[buffer]).ok_or_else(|| Stop::Fail(text!("the queue is full")))?;
        self.output.kick();
        self.device.complete(&mut self.output, &machine.clock).map(|_| ()).map_err(Stop::Fail)
    }
}

/// Lines out: short, and one of 4000 bytes. The host compares.
pub(super) fn console_out(machine: &mut Machine) -> Outcome {
    let mut console = console(machine)?;
    console.write(machine, b"probe: virtio console\n")?;
    let mut long = [b'x'; 4000];
    long[3999] = b'\n';
    console.write(machine, &long)?;
    Ok(text!("bytes=4022"))
}

/// Waits for a line from the host, and sends it back in capitals. It says when it is ready.
pub(super) fn console_echo(machine: &mut Machine) -> Outcome {
    let mut console = console(machine)?;
    let into = machine.arena.take(64, 64);
    let mut line = [0; 256];
    let mut len = 0;
    println!("# console ready");
    while line[..len].last() != Some(&b'\n') && len < line.len() {
        check!(console.input.add(&[Buffer::writable(into)]).is_some(), "the queue is full");
        console.input.kick();
        let mut came = None;
        machine.clock.wait(20_000, || {
            came = console.input.pop();
            came.is_some()
        });
        let Some((_, written)) = came else { fail!("no line from the host, {len} bytes so far") };
        check!(u64::from(written) <= into.len(), "{written} bytes in a buffer of 64");
        let take = (written as usize).min(line.len() - len);
        into.load(0, &mut line[len..len + take]);
        len += take;
    }
    let came = &mut line[..len];
    came.make_ascii_uppercase();
    console.write(machine, came)?;
    Ok(text!("bytes={len}"))
}
