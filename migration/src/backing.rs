//! The memory file of a snapshot, as what stands behind guest memory that came from it.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use device::Span;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::Error;
use crate::manifest::MemoryRange;
use device::ram::RamMap;

/// A memory file, open and locked against writers, and which guest addresses it holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    path: PathBuf,
    ranges: Vec<MemoryRange>,
}

impl Backing {
    pub(crate) fn new(file: File, path: PathBuf, ranges: Vec<MemoryRange>) -> Self {
        Backing(Arc::new(Inner { file, path, ranges }))
    }

    pub(crate) fn file(&self) -> &File {
        &self.0.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The ranges of guest addresses, each with where it begins in the file, in the order of both.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Span, u64)> + '_ {
        self.0.ranges.iter().scan(0, |offset, range| {
            let here = *offset;
            *offset += range.length;
            Some((Span::from(*range), here))
        })
    }

    /// Where in the file a stretch of guest memory is; `None` if no part of it is there.
    ///
    /// # Errors
    /// Only a part of it is there.
    pub(crate) fn place(&self, span: Span) -> Result<Option<Range<u64>>, Error> {
        let Some((range, offset)) = self.ranges().find(|(range, _)| range.overlaps(&span)) else {
            return Ok(None);
        };
        if !range.contains(&span) {
            let Span { base, length } = span;
            return Err(Error::Layout(format!(
                "{length:#x} bytes at {base:#x} are only partly in {:?}",
                self.path()
            )));
        }
        let start = offset + (span.base - range.base);
        Ok(Some(start..start + span.length))
    }

    /// That the file has its length (still): what is missing at its end would look like a hole.
    pub(crate) fn check_length(&self) -> Result<(), Error> {
        let path = self.path();
        let found = self.file().metadata().map_err(|e| Error::file("look at", path, e))?.len();
        let length = self.ranges().map(|(span, _)| span.length).sum::<u64>();
        if found == length {
            return Ok(());
        }
        Err(Error::damaged(path, format!("it has {found} bytes instead of {length}")))
    }

    /// That these are the ranges of `ram`, no more and no less.
    pub(crate) fn check_same(&self, ram: &RamMap) -> Result<(), Error> {
        let theirs: Vec<Span> = spans(ram).collect();
        let ours: Vec<Span> = self.ranges().map(|(span, _)| span).collect();
        if ours == theirs {
            return Ok(());
        }
        Err(Error::Layout(format!(
            "{:?} has the ranges {}, and the machine {}",
            self.path(),
            list(&ours),
            list(&theirs)
        )))
    }
}

/// The ranges of guest memory.
pub(crate) fn spans(ram: &RamMap) -> impl Iterator<Item = Span> + '_ {
    ram.iter().map(|r| Span { base: r.start_addr().raw_value(), length: r.len() })
}

fn list(spans: &[Span]) -> String {
    let some = spans.iter().take(8).map(|s| format!("{:#x}+{:#x}", s.base, s.length));
    let mut text = some.collect::<Vec<_>>().join(" ");
    if spans.len() > 8 {
        text.push_str(" …");
    }
    text
}
