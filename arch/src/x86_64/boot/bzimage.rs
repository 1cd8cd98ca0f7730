//! bzImage kernels: the setup header of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst).
//!
//! The real-mode part of the image is never loaded: only the protected-mode part is, at 0x100000, and the setup header
//! goes into the zero page.

use std::sync::Arc;

use device::Span;

use super::file::{BootFile, le16, le32, le64};
use super::{Placement, Source};
use crate::x86_64::layout::KERNEL_START;
use crate::{Error, Result};

/// Where the setup header starts, in the file and in the zero page alike.
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// Nothing of the header lies past the first two sectors, where its jump's 8-bit displacement can still reach.
const HEADER_SPACE: usize = 0x290;
/// Through `loadflags`, which every version from 2.00 has.
const SMALLEST: u64 = 0x212;
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: initramfs and command line may lie anywhere.
const CAN_BE_LOADED_ABOVE_4G: u16 = 2;

/// What was learnt from the setup header.
#[derive(Debug)]
pub(super) struct Image {
    /// The setup header, from [`SETUP_HEADER`] on.
    pub(super) header: Vec<u8>,
    version: u16,
    offset: u64,
    size: u64,
}

impl Image {
    /// Reads the headers; anything that is no bzImage is refused with the best guess at what it is instead.
    pub(super) fn read(file: &BootFile) -> Result<Self> {
        let len = file.len().min(HEADER_SPACE as u64);
        let head = file.read_part("setup header", 0, len as usize)?;
        if file.is_empty() {
            return Err(Error::EmptyFile { what: "kernel", path: file.path().into() });
        }
        if let Some(machine) = other_machine(&head) {
            return Err(Error::KernelWrongMachine { path: file.path().into(), machine: machine.into() });
        }
        if head.len() < 0x206 || le16(&head, 0x1fe) != 0xaa55 || head[0x202..0x206] != *b"HdrS" {
            return Err(Error::NotAKernel { path: file.path().into() });
        }
        file.require("setup header", 0, SMALLEST)?;
        let version = le16(&head, 0x206);
        if version < 0x200 || head[0x211] & LOADED_HIGH == 0 {
            return Err(file.malformed("an old zImage, which loads below 1 MiB"));
        }
        // The jump instruction at 0x200 skips the rest of the header: its displacement says how long the header is.
        let end = 0x202 + usize::from(head[0x201]);
        if end < SMALLEST as usize || end > HEADER_SPACE {
            return Err(file.malformed(format!("setup header ends at {end:#x}")));
        }
        file.require("setup header", 0, end as u64)?;

        let sectors = match head[SETUP_HEADER] {
            0 => 4,
            n => u64::from(n),
        };
        let offset = (sectors + 1) * 512;
        // Before 2.04 the upper half of this field does not count.
        let paragraphs = if version >= 0x204 { le32(&head, 0x1f4) } else { u32::from(le16(&head, 0x1f4)) };
        let full = u64::from(paragraphs) * 16;
        if full == 0 {
            return Err(file.malformed("it has no protected-mode part"));
        }
        // The size is rounded up to paragraphs, the file need not be. What follows it (a signature) is not loaded.
        file.require("protected-mode part", offset, full - 15)?;
        let size = full.min(file.len() - offset);
        Ok(Image { header: head[SETUP_HEADER..end].to_vec(), version, offset, size })
    }

    /// The header's bytes from `at` (an offset in the file), if this version of the protocol has all `N` of them.
    fn field<const N: usize>(&self, since: u16, at: usize) -> Option<[u8; N]> {
        if self.version < since {
            return None;
        }
        self.header.get(at - SETUP_HEADER..)?.first_chunk::<N>().copied()
    }

    /// What is loaded, and where the kernel unpacks itself before it has a memory map.
    pub(super) fn footprint(&self) -> Vec<Span> {
        let mut spans = vec![Span { base: KERNEL_START, length: self.size }];
        let preferred = self.field::<8>(0x20a, 0x258).map(|b| le64(&b, 0));
        let init_size = self.field::<4>(0x20a, 0x260).map(|b| le32(&b, 0));
        if let (Some(start), Some(size)) = (preferred, init_size) {
            spans.push(Span { base: start, length: u64::from(size) });
        }
        spans
    }

    /// One past the highest address that the initramfs may take (`initrd_addr_max`).
    pub(super) fn initramfs_end(&self) -> u64 {
        let flags = self.field::<2>(0x20c, 0x236).map_or(0, |b| le16(&b, 0));
        if flags & CAN_BE_LOADED_ABOVE_4G != 0 {
            return u64::MAX;
        }
        self.field::<4>(0x203, 0x22c).map_or(0x3800_0000, |b| u64::from(le32(&b, 0)) + 1)
    }

    pub(super) fn placement(&self, file: &Arc<BootFile>) -> Placement {
        let source = Source::File { file: file.clone(), offset: self.offset };
        Placement { gpa: KERNEL_START, len: self.size, source }
    }
}

/// Kernels for other processors, known by the magic numbers of their image headers.
fn other_machine(head: &[u8]) -> Option<&'static str> {
    match head.get(0x38..0x3c)? {
        b"ARM\x64" => Some("aarch64"),
        b"RSC\x05" => Some("riscv"),
        _ => None,
    }
}
