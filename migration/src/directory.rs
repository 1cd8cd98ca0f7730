//! The directory of a snapshot, while it is written.
//!
//! Memory comes first, then the configuration, and last of all, under another name until it is safe on disk, `state.json`. Without that file
//! it is no snapshot, so one that failed or was killed is never taken for a good one.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::files::{CONFIG, Folder, MEMORY, STATE, lock};
use crate::manifest::{self, ConfigFacts, MemoryFacts, TEXT_LIMIT};
use crate::write::{self, Memory};
use crate::{Error, Progress};

/// `state.json` until it is complete.
const PART: &str = "state.json.part";

/// An entry that a new file system has at its root.
const LOST: &str = "lost+found";

/// A snapshot that is being written. Unless it comes to [`Directory::finish`], dropping it removes the files that it made.
#[derive(Debug)]
pub struct Directory {
    folder: Folder,
    /// What was made, by name.
    made: Vec<(&'static str, File)>,
    memory: Option<MemoryFacts>,
}

/// What was written of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length of the memory file in bytes, holes included.
    pub length: u64,
    /// Bytes of it that are data.
    pub data: u64,
}

impl Directory {
    /// Opens a directory that exists, can be written to, and is empty but for `lost+found`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotADirectory`], [`Error::NotEmpty`], [`Error::ReadOnly`], [`Error::Denied`], or the host refuses
    /// otherwise.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let folder = Folder::open(path)?;
        if let Some(entry) = folder.other_than(&[LOST])? {
            return Err(Error::NotEmpty { path: path.to_owned(), entry });
        }
        folder.check_writable()?;
        Ok(Directory { folder, made: Vec::new(), memory: None })
    }

    /// Writes guest memory, and waits until it is on disk. The machine stands still meanwhile. Done once.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; [`Error::Cancelled`] soon after `progress` was cancelled; memory that is not made of whole pages; the host
    /// refuses otherwise.
    pub fn write_memory(&mut self, memory: &Memory, progress: &Progress) -> Result<Written, Error> {
        let path = self.folder.join(MEMORY);
        let file = self.make(MEMORY)?;
        lock(file, &path, true)?;
        let facts = write::write(file, &path, memory, progress)?;
        let written = Written { length: facts.length, data: facts.data };
        self.memory = Some(facts);
        Ok(written)
    }

    /// Writes the rest, and makes a snapshot of it: `config` as it is, and `machine` into the manifest.
    ///
    /// # Errors
    /// No memory was written; [`Error::NoSpace`]; [`Error::TooLong`]; `machine` cannot be written as JSON; the host refuses otherwise.
    pub fn finish(mut self, config: &str, machine: &impl Serialize) -> Result<(), Error> {
        let Some(memory) = self.memory.take() else {
            return Err(Error::Layout("it was not written".into()));
        };
        let length = config.len() as u64;
        if length > TEXT_LIMIT {
            return Err(Error::TooLong { path: self.folder.join(CONFIG), length, limit: TEXT_LIMIT });
        }
        let facts = ConfigFacts::of(config.as_bytes());
        let text = manifest::write(&self.folder.join(STATE), &facts, &memory, machine)?;
        self.write_text(CONFIG, config)?;
        self.write_text(PART, &text)?;
        self.folder.rename(PART, STATE)?;
        if let Some((name, _)) = self.made.last_mut() {
            *name = STATE;
        }
        self.folder.sync()?;
        self.made.clear();
        Ok(())
    }

    fn make(&mut self, name: &'static str) -> Result<&mut File, Error> {
        let file = self.folder.create(name)?;
        self.made.push((name, file));
        let at = self.made.len() - 1;
        Ok(&mut self.made[at].1)
    }

    fn write_text(&mut self, name: &'static str, text: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        let file = self.make(name)?;
        file.write_all(text.as_bytes()).map_err(|e| Error::write(&path, 0, e))?;
        file.sync_all().map_err(|e| Error::write(&path, text.len() as u64, e))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The manifest goes first, so that there is no moment at which what is left looks like a snapshot.
        for (name, file) in self.made.drain(..).rev() {
            if let Err(e) = self.folder.remove(name, &file) {
                log::warn!("cannot remove {:?}: {e}", self.folder.join(name));
            }
        }
    }
}
