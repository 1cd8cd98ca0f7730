//! Replaying the log ([MS-VHDX] §2.3): what somebody wrote to it and perhaps not to its place.

use std::collections::BTreeMap;
use std::io;

use super::SECTOR;
use super::tables::{Headers, checksum, le32, le64, wrong};
use crate::storage::Storage;

/// The most entries that are tried as the newest of a sequence: a writer that was stopped leaves one that is not whole, or a few.
const HEADS: usize = 64;

/// An entry of the log that is whole.
struct Entry {
    bytes: Vec<u8>,
    sequence: u64,
    tail: u64,
}

/// Writes what the log has to its place, and makes it durable.
pub(super) fn replay(storage: &Storage, headers: &Headers) -> io::Result<()> {
    let (at, length) = headers.log_range();
    let mut ring = vec![0; length as usize];
    storage.read_at(at, &mut ring)?;
    let entries = entries(&ring, headers.log_guid())?;
    if entries.is_empty() {
        // A writer announced its log and ended before the first entry was whole: nothing can have followed from it.
        return Ok(());
    }
    // The active sequence is the one that ends with the newest entry whose predecessors are all there.
    let mut heads: Vec<(&u64, &Entry)> = entries.iter().collect();
    heads.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.sequence));
    let sequence = heads.into_iter().take(HEADS).find_map(|(at, head)| sequence(&entries, *at, head, length));
    let sequence = sequence.ok_or_else(|| wrong("its log cannot be replayed"))?;
    if let Some(last) = sequence.last()
        && le64(&last.bytes, 48) > storage.length()
    {
        return Err(wrong("it is shorter than its log says"));
    }
    for entry in sequence {
        apply(storage, &entry.bytes)?;
        let end = le64(&entry.bytes, 56);
        // A file that grows by more than the log could have asked for is a lie.
        if end > storage.length() && end - storage.length() <= 1 << 32 {
            storage.set_length(end)?;
        }
    }
    storage.sync()
}

/// All entries, by their positions.
///
/// Writers go around in the ring, so that what is left of their entries fills it once at most. Entries that lie in each other would take
/// the square of the log's length to look at, and to keep.
fn entries(ring: &[u8], guid: &[u8]) -> io::Result<BTreeMap<u64, Entry>> {
    let whole = ring.len() as u64;
    let mut entries = BTreeMap::new();
    let mut sum = 0;
    for at in (0..whole).step_by(SECTOR as usize) {
        let Some(length) = claim(ring, at, guid) else { continue };
        sum += length;
        if sum > 2 * whole {
            return Err(wrong("entries of its log overlap"));
        }
        if let Some(entry) = entry(ring, at, length) {
            entries.insert(at, entry);
        }
    }
    Ok(entries)
}

/// The length of the entry at a position of the ring, if there seems to be one.
fn claim(ring: &[u8], at: u64, guid: &[u8]) -> Option<u64> {
    let header = ring.get(at as usize..at as usize + 64)?;
    let (length, tail, sequence) =
        (u64::from(le32(header, 8)), u64::from(le32(header, 12)), le64(header, 16));
    let whole = ring.len() as u64;
    let sane = header.starts_with(b"loge")
        && header[32..48] == *guid
        && sequence != 0
        && (SECTOR..=whole).contains(&length)
        && length.is_multiple_of(SECTOR)
        && tail.is_multiple_of(SECTOR)
        && tail < whole;
    sane.then_some(length)
}

/// The entry of this length at a position of the ring, if it is whole.
fn entry(ring: &[u8], at: u64, length: u64) -> Option<Entry> {
    let whole = ring.len() as u64;
    let mut bytes = ring.get(at as usize..(at + length).min(whole) as usize)?.to_vec();
    bytes.extend(&ring[..(length as usize).checked_sub(bytes.len())?]);
    let (tail, sequence) = (u64::from(le32(&bytes, 12)), le64(&bytes, 16));
    (le32(&bytes, 4) == checksum(&bytes)).then_some(Entry { bytes, sequence, tail })
}

/// The entries from the tail of `head` to itself, if all of them are there.
fn sequence<'a>(
    entries: &'a BTreeMap<u64, Entry>,
    at: u64,
    head: &Entry,
    length: u64,
) -> Option<Vec<&'a Entry>> {
    let mut position = head.tail;
    let mut list = Vec::new();
    while list.len() <= entries.len() {
        let entry = entries.get(&position)?;
        if list.last().is_some_and(|last: &&Entry| last.sequence.wrapping_add(1) != entry.sequence) {
            return None;
        }
        list.push(entry);
        if position == at {
            return Some(list);
        }
        position = (position + entry.bytes.len() as u64) % length;
    }
    None
}

/// Carries out the descriptors of an entry (§2.3.1.2, §2.3.1.3).
fn apply(storage: &Storage, entry: &[u8]) -> io::Result<()> {
    let count = le32(entry, 24) as usize;
    let sequence = le64(entry, 16);
    // Descriptors fill whole sectors; those with data are followed by one sector each, in their order.
    let mut data = (64 + count.saturating_mul(32)).next_multiple_of(SECTOR as usize);
    for n in 0..count {
        let descriptor = entry.get(64 + n * 32..96 + n * 32).ok_or_else(|| wrong("its log is cut off"))?;
        let at = le64(descriptor, 16);
        let limit = storage.length().saturating_add(1 << 32);
        if le64(descriptor, 24) != sequence || !at.is_multiple_of(SECTOR) || at >= limit {
            return Err(wrong("a descriptor of its log is not valid"));
        }
        if descriptor.starts_with(b"zero") {
            let end = at.checked_add(le64(descriptor, 8)).filter(|end| *end <= limit);
            let end = end.ok_or_else(|| wrong("a descriptor of its log reaches too far"))?;
            // Past the end there are zeros.
            storage.zero_at(at, end.min(storage.length()).saturating_sub(at))?;
            continue;
        }
        let sector = entry.get(data..data + SECTOR as usize).ok_or_else(|| wrong("its log is cut off"))?;
        let stamp = u64::from(le32(sector, 4)) << 32 | u64::from(le32(sector, 4092));
        if !descriptor.starts_with(b"desc") || !sector.starts_with(b"data") || stamp != sequence {
            return Err(wrong("a sector of its log is not valid"));
        }
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(&descriptor[8..16]);
        bytes[8..4092].copy_from_slice(&sector[8..4092]);
        bytes[4092..].copy_from_slice(&descriptor[4..8]);
        storage.write_at(at, &bytes)?;
        data += SECTOR as usize;
    }
    Ok(())
}
