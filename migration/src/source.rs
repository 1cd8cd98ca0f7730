//! A snapshot, while it is read.
//!
//! Its files are opened once, and everything about them is checked before a machine is built of them, but for the content of memory:
//! that is read as a whole only by [`Source::copy`], and otherwise looked at in some places.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use device::Span;
use device::ram::RamMap;
use serde::de::DeserializeOwned;
use vm_memory::GuestRegionMmap;

use crate::backing::Backing;
use crate::checksum::Checksum;
use crate::files::{CONFIG, Folder, MEMORY, STATE, lock};
use crate::manifest::{ConfigFacts, Manifest, Sample, TEXT_LIMIT, check_values};
use crate::{Error, PAGE, Pager, Progress, copy, mapping};

/// A complete snapshot. What it says is untrusted all the same.
#[derive(Debug)]
pub struct Source {
    state: PathBuf,
    config: String,
    manifest: Manifest,
    memory: Backing,
}

impl Source {
    /// Opens and checks a snapshot. Its memory file is locked against writers that ask, for as long as the source, or memory that came from
    /// it, lives.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotADirectory`]; [`Error::Incomplete`]; [`Error::NotAFile`]; [`Error::TooLong`]; [`Error::TooLarge`]; [`Error::Unknown`] format, version
    /// or architecture; [`Error::Malformed`]; [`Error::Damaged`]; [`Error::Busy`]; the host refuses otherwise.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let folder = Folder::open(path)?;
        let state = folder.join(STATE);
        let text =
            folder.read_all(STATE, TEXT_LIMIT)?.ok_or_else(|| Error::Incomplete(folder.path().to_owned()))?;
        check_values(&state, &text)?;
        let manifest = Manifest::read(&state, text)?;

        let path = folder.join(CONFIG);
        let missing = |path: &Path| Error::damaged(path, "it does not exist");
        let text = folder.read_all(CONFIG, TEXT_LIMIT)?.ok_or_else(|| missing(&path))?;
        check_values(&path, &text)?;
        if ConfigFacts::of(&text) != manifest.config {
            return Err(Error::damaged(&path, "its length or checksum is not that in state.json"));
        }
        let config = String::from_utf8(text).map_err(|_| Error::damaged(&path, "it is not text"))?;

        let path = folder.join(MEMORY);
        let file = folder.read(MEMORY)?.ok_or_else(|| missing(&path))?;
        lock(&file, &path, false)?;
        let memory = Backing::new(file, path, manifest.memory.ranges.clone());
        memory.check_length()?;
        check_samples(&memory, &manifest.memory.samples)?;
        Ok(Source { state, config, manifest, memory })
    }

    /// The text of `config.json`.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Version of the program that wrote it.
    pub fn program(&self) -> &str {
        &self.manifest.program
    }

    /// What the caller of [`crate::Directory::finish`] wrote as the machine.
    ///
    /// # Errors
    /// It has another form.
    pub fn machine<M: DeserializeOwned>(&self) -> Result<M, Error> {
        self.manifest.machine(&self.state)
    }

    /// The ranges of guest memory: whole pages, ascending, not overlapping.
    pub fn spans(&self) -> Vec<Span> {
        self.memory.ranges().map(|(span, _)| span).collect()
    }

    /// Bytes of guest memory.
    pub fn length(&self) -> u64 {
        self.manifest.memory.length
    }

    /// Bytes of guest memory that are not in untouched pages.
    pub fn data(&self) -> u64 {
        self.manifest.memory.data
    }

    /// The memory file.
    pub fn backing(&self) -> &Backing {
        &self.memory
    }

    /// Reads all memory into `ram`, which has the ranges of [`Source::spans`] and holds zeros, and checks it as a whole.
    ///
    /// # Errors
    /// Other ranges; [`Error::Damaged`] content; [`Error::Cancelled`]; the host refuses. What is in `ram` then is of no use.
    pub fn copy(&self, ram: &RamMap, progress: &Progress) -> Result<(), Error> {
        copy::copy(&self.memory, self.manifest.memory.checksum, ram, progress)
    }

    /// Private memory whose pages come from the file when they are first touched, shared with everybody who has them from there, until they are
    /// written to. `reserve` lets the host refuse now what it may not have later.
    ///
    /// The file must stay as it is while memory lives: the host kills who touches memory behind the end of a file that became shorter.
    ///
    /// # Errors
    /// The host has not that much memory.
    pub fn map(&self, reserve: bool) -> Result<Vec<GuestRegionMmap<()>>, Error> {
        mapping::map(&self.memory, reserve)
    }

    /// Pages memory into `ram` when it is touched, and meanwhile; see [`Pager`] for its owner's duties. `ram` has the ranges of [`Source::spans`] and is
    /// private anonymous memory, or a memory file that no other process has, that nobody has touched.
    ///
    /// `on_error` is called at most once, on the pager's thread: the machine has to be stopped. It must not wait for that, nor drop the pager.
    ///
    /// # Errors
    /// Other ranges; [`Error::Userfault`] where the host has no such thing, or not for us.
    pub fn page_in(
        &self,
        ram: &RamMap,
        on_error: impl FnOnce(Error) + Send + 'static,
    ) -> Result<Pager, Error> {
        Pager::start(&self.memory, ram, on_error)
    }
}

/// Looks at memory in some places.
fn check_samples(memory: &Backing, samples: &[Sample]) -> Result<(), Error> {
    let path = memory.path();
    for sample in samples {
        let mut page = [0; PAGE as usize];
        memory.file().read_exact_at(&mut page, sample.offset).map_err(|e| Error::file("read", path, e))?;
        if Checksum::of(&page) != sample.checksum {
            return Err(Error::damaged(
                path,
                format!("the page at {:#x} has another checksum", sample.offset),
            ));
        }
    }
    Ok(())
}
