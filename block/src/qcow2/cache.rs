//! Tables of the image that are in memory: L2 tables, and blocks of reference counts. Bounded, written back.

use std::collections::HashMap;
use std::io;

use crate::storage::Storage;

/// Memory for one kind of table, in bytes; at least [`LEAST`] tables are kept.
const MEMORY: usize = 8 << 20;
const LEAST: usize = 16;

#[derive(Debug)]
struct Table {
    bytes: Box<[u8]>,
    dirty: bool,
    used: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    tables: HashMap<u64, Table>,
    /// Bytes of one table.
    size: usize,
    most: usize,
    dirty: usize,
    clock: u64,
}

impl Cache {
    pub(super) fn new(size: usize) -> Self {
        Cache { tables: HashMap::new(), size, most: (MEMORY / size).max(LEAST), dirty: 0, clock: 0 }
    }

    /// Whether so many tables are changed that they should be written before others are.
    pub(super) fn is_full(&self) -> bool {
        self.dirty * 4 >= self.most * 3
    }

    /// The table at this position of the file.
    pub(super) fn get(&mut self, storage: &Storage, at: u64) -> io::Result<&[u8]> {
        self.load(storage, at).map(|table| &*table.bytes)
    }

    /// The same, to be changed.
    pub(super) fn change(&mut self, storage: &Storage, at: u64) -> io::Result<&mut [u8]> {
        let table = self.load(storage, at)?;
        let first = !std::mem::replace(&mut table.dirty, true);
        self.dirty += usize::from(first);
        self.tables.get_mut(&at).map(|table| &mut *table.bytes).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Puts a new table in.
    pub(super) fn insert(&mut self, at: u64, bytes: Box<[u8]>) {
        self.evict();
        self.clock += 1;
        self.forget(at);
        self.tables.insert(at, Table { bytes, dirty: true, used: self.clock });
        self.dirty += 1;
    }

    /// Drops a table that is in use no more.
    pub(super) fn forget(&mut self, at: u64) {
        if self.tables.remove(&at).is_some_and(|table| table.dirty) {
            self.dirty -= 1;
        }
    }

    /// Writes what was changed. Returns whether there was anything.
    pub(super) fn write(&mut self, storage: &Storage) -> io::Result<bool> {
        let any = self.dirty > 0;
        if any {
            let mut dirty: Vec<_> = self.tables.iter_mut().filter(|(_, table)| table.dirty).collect();
            dirty.sort_unstable_by_key(|(at, _)| **at);
            for (at, table) in dirty {
                storage.write_at(*at, &table.bytes)?;
                table.dirty = false;
                self.dirty -= 1;
            }
        }
        Ok(any)
    }

    fn load(&mut self, storage: &Storage, at: u64) -> io::Result<&mut Table> {
        self.clock += 1;
        if !self.tables.contains_key(&at) {
            self.evict();
            let mut bytes = vec![0; self.size].into_boxed_slice();
            storage.read_at(at, &mut bytes)?;
            self.tables.insert(at, Table { bytes, dirty: false, used: 0 });
        }
        let table = self.tables.get_mut(&at).ok_or(io::ErrorKind::NotFound)?;
        table.used = self.clock;
        Ok(table)
    }

    /// Makes room for one table, among those that are as they are in the file. There are always some: see [`Cache::is_full`].
    fn evict(&mut self) {
        if self.tables.len() < self.most {
            return;
        }
        let clean = self.tables.iter().filter(|(_, table)| !table.dirty);
        if let Some(at) = clean.min_by_key(|(_, table)| table.used).map(|(at, _)| *at) {
            self.tables.remove(&at);
        }
    }
}
