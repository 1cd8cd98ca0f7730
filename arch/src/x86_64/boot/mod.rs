//! Getting a kernel into a machine that has not run yet.
//!
//! Two protocols: PVH (an ELF file with the Xen note of type 18) and Linux's own (bzImage), both entered in flat 32-bit
//! protected mode. Boot has three steps, so that the caller can do other work between them:
//!
//! 1. [`Kernel::open`] and [`Initramfs::open`] read headers and refuse what is no kernel;
//! 2. [`plan`] decides what goes where: a list of [`Placement`]s, no memory touched;
//! 3. [`Plan::load`] maps the files' pages over guest RAM where that can be done, and copies the rest.
//!
//! Kernel images are untrusted: every sum of header fields is checked, every size is bounded by the file, and only
//! headers are read before the plan is accepted. Nothing here decompresses, verifies signatures, or changes the command
//! line.

mod bzimage;
mod elf;
mod file;
mod load;
mod pvh;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_kvm;
mod zero_page;

use std::path::Path;
use std::sync::Arc;

use device::Span;

use crate::x86_64::layout::{self, MemoryMap, PAGE_SIZE};
use crate::x86_64::registers;
use crate::{Error, Result};

pub use file::BootFile;
pub use load::{Backing, Loaded};

/// How the boot processor enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// PVH: EBX points to the start info.
    Pvh {
        /// Physical address of the first instruction.
        address: u64,
    },
    /// Linux 32-bit boot protocol: ESI points to the zero page.
    Linux {
        /// Physical address of the first instruction.
        address: u64,
    },
}

/// Where the bytes of a [`Placement`] come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From a file, starting at `offset`.
    File {
        /// Which file.
        file: Arc<BootFile>,
        /// Where in it.
        offset: u64,
    },
    /// Made here.
    Bytes(Vec<u8>),
}

/// Bytes with a place in guest memory.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Number of bytes; never 0.
    pub len: u64,
    /// Where they come from; a file is at least `offset + len` long when the plan is made.
    pub source: Source,
}

impl Placement {
    fn bytes(gpa: u64, bytes: Vec<u8>) -> Self {
        Placement { gpa, len: bytes.len() as u64, source: Source::Bytes(bytes) }
    }

    /// Whether pages of the file line up with pages of the guest, and there is a whole one.
    pub fn mappable(&self) -> bool {
        match &self.source {
            Source::File { offset, .. } => {
                let first = self.gpa.next_multiple_of(PAGE_SIZE);
                self.gpa % PAGE_SIZE == offset % PAGE_SIZE && first + PAGE_SIZE <= self.gpa + self.len
            }
            Source::Bytes(_) => false,
        }
    }
}

/// A kernel (or firmware) whose headers make sense.
#[derive(Debug)]
pub struct Kernel {
    file: Arc<BootFile>,
    image: Image,
}

#[derive(Debug)]
enum Image {
    Elf(elf::Image),
    BzImage(bzimage::Image),
}

impl Kernel {
    /// Opens `path` and reads its headers.
    ///
    /// # Errors
    /// Every `Error` whose text begins with "kernel", and those of opening a file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(BootFile::open("kernel", path)?);
        let mut magic = [0; 4];
        let image = if file.len() >= 4 && file.read_at(0, &mut magic).map(|()| magic == *b"\x7fELF")? {
            Image::Elf(elf::Image::read(&file)?)
        } else {
            Image::BzImage(bzimage::Image::read(&file)?)
        };
        Ok(Kernel { file, image })
    }

    /// Where execution starts, and by which protocol.
    pub fn entry(&self) -> Entry {
        match &self.image {
            Image::Elf(elf) => Entry::Pvh { address: elf.entry },
            Image::BzImage(_) => Entry::Linux { address: layout::KERNEL_START },
        }
    }

    /// The memory that the kernel needs before it manages memory itself.
    fn footprint(&self) -> Vec<Span> {
        match &self.image {
            Image::Elf(elf) => elf.segments.iter().map(elf::Segment::memory).collect(),
            Image::BzImage(image) => image.footprint(),
        }
    }
}

/// An initial RAM file system: any file, not looked into.
#[derive(Debug)]
pub struct Initramfs {
    file: Arc<BootFile>,
}

impl Initramfs {
    /// Opens `path`.
    ///
    /// # Errors
    /// When it cannot be opened, is not a regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let file = BootFile::open("initramfs", path)?;
        if file.is_empty() {
            return Err(Error::EmptyFile { what: "initramfs", path: path.into() });
        }
        Ok(Initramfs { file: Arc::new(file) })
    }
}

/// All that has to be in memory before the boot processor starts, except ACPI and SMBIOS tables.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What goes where. No two overlap.
    pub placements: Vec<Placement>,
    /// Where to start.
    pub entry: Entry,
}

/// Decides where kernel, initramfs, command line and boot data go. `rsdp` is the address of the ACPI root pointer, if
/// the machine has tables.
///
/// # Errors
/// [`Error::DoesNotFit`], [`Error::CmdlineTooLong`], [`Error::CmdlineNul`].
pub fn plan(
    kernel: &Kernel,
    initramfs: Option<&Initramfs>,
    cmdline: &[u8],
    map: &MemoryMap,
    rsdp: Option<u64>,
) -> Result<Plan> {
    let low = Span { base: layout::KERNEL_START, length: map.low_ram.end() - layout::KERNEL_START };
    let mut kernel_end = low.base;
    for span in kernel.footprint() {
        if !low.contains(&span) {
            return Err(does_not_fit("kernel", &kernel.file, span, low));
        }
        kernel_end = kernel_end.max(span.end());
    }

    let initramfs = match initramfs {
        None => None,
        Some(initramfs) => {
            let limit = match &kernel.image {
                Image::Elf(_) => low.end(),
                Image::BzImage(image) => low.end().min(image.initramfs_end()),
            };
            Some((place_initramfs(initramfs, kernel_end, limit)?, initramfs))
        }
    };

    let mut placements: Vec<Placement> =
        registers::descriptor_tables().into_iter().map(|(gpa, bytes)| Placement::bytes(gpa, bytes)).collect();
    placements.push(Placement::bytes(layout::CMDLINE, nul_terminated(cmdline)?));
    let module = initramfs.map(|(span, _)| span);
    match &kernel.image {
        Image::Elf(image) => {
            pvh::describe(map, module, rsdp, &mut placements);
            placements.extend(image.segments.iter().filter_map(|s| s.placement(&kernel.file)));
        }
        Image::BzImage(image) => {
            placements.push(zero_page::build(image, map, module, rsdp));
            placements.push(image.placement(&kernel.file));
        }
    }
    if let Some((span, initramfs)) = initramfs {
        let source = Source::File { file: initramfs.file.clone(), offset: 0 };
        placements.push(Placement { gpa: span.base, len: span.length, source });
    }
    Ok(Plan { placements, entry: kernel.entry() })
}

/// Page aligned, as high as can be below `limit`.
fn place_initramfs(initramfs: &Initramfs, kernel_end: u64, limit: u64) -> Result<Span> {
    let size = initramfs.file.len();
    match limit.checked_sub(size).map(|start| start / PAGE_SIZE * PAGE_SIZE) {
        Some(start) if start >= kernel_end => Ok(Span { base: start, length: size }),
        start => {
            let needed = Span { base: start.unwrap_or(0), length: size };
            let free = Span { base: kernel_end, length: limit.saturating_sub(kernel_end) };
            Err(does_not_fit("initramfs", &initramfs.file, needed, free))
        }
    }
}

fn does_not_fit(what: &'static str, file: &BootFile, needed: Span, free: Span) -> Error {
    Error::DoesNotFit {
        what,
        path: file.path().into(),
        start: needed.base,
        end: needed.end(),
        low: free.base,
        high: free.end(),
    }
}

fn nul_terminated(cmdline: &[u8]) -> Result<Vec<u8>> {
    if let Some(at) = cmdline.iter().position(|&b| b == 0) {
        return Err(Error::CmdlineNul { at });
    }
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(Error::CmdlineTooLong { len: cmdline.len(), max: layout::CMDLINE_MAX - 1 });
    }
    let mut bytes = Vec::with_capacity(cmdline.len() + 1);
    bytes.extend_from_slice(cmdline);
    bytes.push(0);
    Ok(bytes)
}
