//! A file as memory. The host checks what is in it.

use super::Machine;
use super::blk::crc32;
use super::hotplug::{fill, verify};
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::SECTOR;
use crate::virtio::pmem::{FAILED, FLUSH, Memory, OK, UNANSWERED};
use crate::virtio::queue::Buffer;

fn open(machine: &mut Machine) -> Result<Memory, Stop> {
    match Memory::open(&machine.bus, &mut machine.arena, machine.clock) {
        Ok(Some(memory)) => Ok(memory),
        Ok(None) => Err(Stop::Skip(text!("there is no persistent memory"))),
        Err(why) => Err(Stop::Fail(why)),
    }
}

/// Flushes, and expects this answer.
fn flush(memory: &mut Memory, wanted: u32) -> Result<(), Stop> {
    let answer = memory.flush().map_err(Stop::Fail)?;
    check!(answer == wanted, "a flush is answered with {answer:#x}, not {wanted}");
    Ok(())
}

/// Reads all of it, and tells its CRC-32 for the host to compare.
pub(super) fn read(machine: &mut Machine) -> Outcome {
    let memory = open(machine)?;
    let content = memory.content;
    Ok(text!("start={:#x} len={:#x} crc32={:08x}", content.base(), content.len(), crc32(0, content)))
}

/// Writes the pattern `probe.seed` to all of it, flushes, and reads it back.
pub(super) fn write(machine: &mut Machine) -> Outcome {
    let mut memory = open(machine)?;
    let seed = machine.start.number("seed").unwrap_or(1);
    fill(memory.content, seed, 0);
    flush(&mut memory, OK)?;
    verify(memory.content, seed, 0)?;
    Ok(text!("len={:#x} seed={seed}", memory.content.len()))
}

/// Writes that go nowhere: what is read afterwards is what was there before, and a flush fails.
pub(super) fn read_only(machine: &mut Machine) -> Outcome {
    let mut memory = open(machine)?;
    let content = memory.content;
    let places = [0, 4096, 2 << 20, content.len() - 8].map(|at| at.min(content.len() - 8));
    let before = places.map(|at| content.read64(at));
    for at in places {
        content.write64(at, 0x0bad_0bad_0bad_0bad);
        content.write8(at + 1, 0x5a);
    }
    check!(places.map(|at| content.read64(at)) == before, "the memory has changed");
    flush(&mut memory, FAILED)?;
    Ok(text!(""))
}

/// Requests that are none, and buffers that are none, are answered or given back; the next flush is served as ever.
pub(super) fn hostile(machine: &mut Machine) -> Outcome {
    let mut memory = open(machine)?;
    let (request, answer) = (Buffer::readable(memory.request), Buffer::writable(memory.answer));
    let itself = memory.content.base();
    let at = |address, len, writable| Buffer { address, len, writable };
    let unanswered = UNANSWERED;
    let cases: &[(&str, u32, &[Buffer], u32)] = &[
        ("an unknown request", 1, &[request, answer], FAILED),
        ("another one", u32::MAX, &[request, answer], FAILED),
        ("half a request", FLUSH, &[at(request.address, 2, false), answer], FAILED),
        ("an empty request", FLUSH, &[at(request.address, 0, false), answer], FAILED),
        ("no request", FLUSH, &[answer], FAILED),
        ("a request outside of RAM", FLUSH, &[at(u64::MAX - 1, 4, false), answer], FAILED),
        ("a request in the memory itself", FLUSH, &[at(itself, 4, false), answer], FAILED),
        ("no room for the answer", FLUSH, &[request], unanswered),
        ("little room for the answer", FLUSH, &[request, at(answer.address, 3, true)], unanswered),
        ("an answer outside of RAM", FLUSH, &[request, at(1 << 45, 4, true)], unanswered),
        ("an answer in the memory itself", FLUSH, &[request, at(itself, 4, true)], unanswered),
        ("much room for the answer", FLUSH, &[request, at(answer.address, 1 << 30, true)], OK),
    ];
    let before = memory.content.read32(0);
    for (what, kind, chain, wanted) in cases {
        let (answer, _) = memory.ask(*kind, chain).map_err(Stop::Fail)?;
        check!(answer == *wanted, "{what}: {answer:#x}, not {wanted:#x}");
    }
    check!(memory.content.read32(0) == before, "the device has written to the memory");
    flush(&mut memory, OK)?;
    Ok(text!("cases={}", cases.len()))
}

/// Writes and flushes round after round, and looks whether all is there, until the host writes a word to the memory's end: things may happen
/// to the machine meanwhile.
pub(super) fn live(machine: &mut Machine) -> Outcome {
    let mut memory = open(machine)?;
    let last = memory.content.len() - 8;
    let pages = memory.content.part(0, 64 << 10);
    memory.content.write64(last, 0);
    let mut rounds = 0;
    while memory.content.read64(last) == 0 {
        fill(pages, rounds, 0);
        flush(&mut memory, OK)?;
        verify(pages, rounds, 0)?;
        rounds += 1;
        if rounds.is_power_of_two() || rounds.is_multiple_of(64) {
            println!("# round {rounds}");
        }
    }
    Ok(text!("rounds={rounds} bytes={}", pages.len() / SECTOR * SECTOR))
}
