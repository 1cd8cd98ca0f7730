//! VHDX (Microsoft, [MS-VHDX]): blocks of 1 to 256 MiB, found through a table (the BAT). All numbers are little-endian.
//!
//! New blocks are put at the end of the file and zero at first. Their entries go to the table when the guest flushes, after the
//! blocks themselves; each is eight bytes and independent of the others, so that what is there at any time is a valid image. The log
//! is therefore only ever replayed, not written. Space that the guest gives back becomes holes within its block.
//!
//! Never done: differencing disks, resizing, changes of anything but the table, the headers and the blocks.

mod log;
mod tables;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::Format;
use crate::image::Opened;
use crate::map::{Generation, Map, Place};
use crate::storage::Storage;
use crate::{Error, Result};

use tables::{Headers, Parameters};

const MIB: u64 = 1 << 20;

/// Bits of a BAT entry ([MS-VHDX] §2.5.1).
const STATE: u64 = 7;
const OFFSET: u64 = !(MIB - 1);
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

/// Bytes of the table that are written at once.
const SECTOR: u64 = 4096;

/// What changes.
#[derive(Debug)]
struct State {
    bat: Vec<u64>,
    /// Sectors of the table that are not in the file yet.
    dirty: BTreeSet<u64>,
    /// The headers say that the file is being written.
    marked: bool,
    headers: Headers,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Vhdx {
    storage: Arc<Storage>,
    parameters: Parameters,
    bat_at: u64,
    state: Mutex<State>,
}

impl Vhdx {
    /// Opens an image.
    pub(crate) fn open(storage: Arc<Storage>) -> Result<Opened> {
        let malformed = |what: String| Error::malformed(storage.path(), Format::Vhdx, what);
        let read = |error: io::Error| malformed(error.to_string());
        let mut headers = Headers::read(&storage).map_err(read)?;
        if headers.has_log() {
            if storage.readonly() {
                return Err(malformed("its log has to be replayed: open it for writing once".into()));
            }
            log::replay(&storage, &headers).map_err(read)?;
            headers.forget_log(&storage).map_err(read)?;
        }
        let regions = tables::regions(&storage).map_err(read)?;
        let parameters = Parameters::read(&storage, regions.metadata).map_err(read)?;
        let bat = parameters.bat(&storage, regions.bat).map_err(read)?;
        if !storage.readonly() {
            check_blocks(&bat, &parameters, &regions.taken(&headers), storage.length()).map_err(malformed)?;
        }
        let size = parameters.size;
        let state = State { bat, dirty: BTreeSet::new(), marked: false, headers };
        let map =
            Vhdx { storage: storage.clone(), parameters, bat_at: regions.bat.0, state: Mutex::new(state) };
        Ok(Opened { storage, map: Some(Arc::new(map)), size })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn corrupt(&self, what: &str) -> io::Error {
        let path = self.storage.path().display();
        io::Error::new(io::ErrorKind::InvalidData, format!("{path} is corrupt: {what}"))
    }

    /// Where a position is in the file, and how many bytes its block goes on.
    fn place(&self, state: &State, offset: u64) -> io::Result<(Option<u64>, u64)> {
        let block = u64::from(self.parameters.block);
        let within = offset % block;
        let index = self.parameters.entry_of(offset / block);
        let entry = state.bat.get(index).ok_or_else(|| self.corrupt("its BAT is too short"))?;
        match entry & STATE {
            FULLY_PRESENT => Ok((Some((entry & OFFSET) + within), block - within)),
            PARTIALLY_PRESENT => Err(self.corrupt("a block is partially present, and there is no parent")),
            _ => Ok((None, block - within)),
        }
    }
}

/// An error unless every block has a place of its own.
fn check_blocks(
    bat: &[u64],
    parameters: &Parameters,
    taken: &[(u64, u64)],
    length: u64,
) -> std::result::Result<(), String> {
    let block = u64::from(parameters.block);
    let present = (0..parameters.blocks()).map(|n| bat.get(parameters.entry_of(n)).copied().unwrap_or(0));
    let present = present.filter(|entry| entry & STATE == FULLY_PRESENT).map(|entry| (entry & OFFSET, block));
    let mut all: Vec<(u64, u64)> = present.chain(taken.iter().copied()).collect();
    all.sort_unstable();
    if all.windows(2).any(|pair| pair[0].0.saturating_add(pair[0].1) > pair[1].0) {
        return Err("blocks or regions overlap".into());
    }
    match all.last() {
        Some((at, _)) if *at >= length => Err("a block is past the end of the file".into()),
        _ => Ok(()),
    }
}

impl Map for Vhdx {
    fn find(&self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let (at, rest) = self.place(&self.state(), offset)?;
        let run = rest.min(length);
        Ok(match at.map(|at| (at, self.storage.length().saturating_sub(at))) {
            None | Some((_, 0)) => (Place::Zeros, run),
            Some((at, there)) => (Place::File { file: 0, at }, run.min(there)),
        })
    }

    fn make_place(&self, offset: u64, length: u64) -> io::Result<(u64, u64, Generation)> {
        let mut state = self.state();
        if !state.marked {
            state.headers.mark(&self.storage)?;
            state.marked = true;
        }
        let block = u64::from(self.parameters.block);
        let (at, rest) = self.place(&state, offset)?;
        let within = offset % block;
        let at = match at {
            Some(at) => at,
            None => {
                let index = self.parameters.entry_of(offset / block);
                let start = self.storage.length().next_multiple_of(MIB);
                state.bat[index] = start | FULLY_PRESENT;
                state.dirty.insert(index as u64 * 8 / SECTOR);
                if let Err(error) = self.storage.set_length(start + block) {
                    state.bat[index] = 0;
                    return Err(error);
                }
                start + within
            }
        };
        if self.storage.length() < at - within + block {
            self.storage.set_length(at - within + block)?;
        }
        Ok((at, rest.min(length), Generation(0)))
    }

    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> io::Result<()> {
        // Nothing is ever elsewhere.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn zero(&self, offset: u64, length: u64, _may_free: bool) -> io::Result<()> {
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let (place, run) = self.find(at, end - at)?;
            if let Place::File { .. } = place {
                let (position, run, _) = self.make_place(at, run)?;
                self.storage.zero_at(position, run)?;
            }
            at += run;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.dirty.is_empty() {
            return Ok(());
        }
        // The blocks, and the file's length, before anything refers to them.
        self.storage.sync()?;
        while let Some(sector) = state.dirty.first().copied() {
            let first = (sector * SECTOR / 8) as usize;
            let entries = state.bat.iter().skip(first).take((SECTOR / 8) as usize);
            let bytes: Vec<u8> = entries.flat_map(|entry| entry.to_le_bytes()).collect();
            self.storage.write_at(self.bat_at + sector * SECTOR, &bytes)?;
            state.dirty.remove(&sector);
        }
        Ok(())
    }

    fn written(&self, _generation: Generation) {
        // A block's place is never given to another.
    }

    fn grow(&self, _size: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a vhdx image cannot change its size"))
    }
}

impl Drop for Vhdx {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            ::log::warn!("cannot write the BAT of disk image {}: {error}", self.storage.path().display());
        }
    }
}
