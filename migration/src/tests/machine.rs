//! Guest memory to snapshot, with known content.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use device::fake::random::Random;
use device::ram::RamMap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use crate::{Directory, Error, Memory, PAGE, Progress, Source};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Private,
    Shared,
}

pub(crate) const KINDS: [Kind; 2] = [Kind::Private, Kind::Shared];

fn region(kind: Kind, base: u64, length: u64) -> GuestRegionMmap<()> {
    let builder = MmapRegionBuilder::new(usize::try_from(length).unwrap())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match kind {
        Kind::Private => {
            builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        }
        Kind::Shared => {
            // SAFETY: the name is a NUL-terminated string.
            let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: the descriptor is new and ours.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(length).unwrap();
            builder.with_file_offset(FileOffset::new(file, 0)).with_mmap_flags(libc::MAP_SHARED)
        }
    };
    GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(base)).unwrap()
}

/// Memory of these ranges, full of zeros.
pub(crate) fn memory(kind: Kind, ranges: &[(u64, u64)]) -> RamMap {
    RamMap::from_regions(ranges.iter().map(|(base, length)| region(kind, *base, *length)).collect()).unwrap()
}

/// A page that says where it is.
pub(crate) fn page(gpa: u64, seed: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    let mut random = Random(gpa ^ seed);
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.bits().to_ne_bytes());
    }
    bytes
}

/// Fills about one page in `one_in`, in runs, and returns how many.
pub(crate) fn fill(ram: &RamMap, seed: u64, one_in: u64) -> u64 {
    let mut random = Random(seed);
    let mut count = 0;
    for region in ram.iter() {
        let pages = region.len() / PAGE;
        let mut at = random.below(one_in);
        while at < pages {
            let run = (1 + random.below(16)).min(pages - at);
            for n in at..at + run {
                let gpa = region.start_addr().0 + n * PAGE;
                ram.write_slice(&page(gpa, seed), GuestAddress(gpa)).unwrap();
            }
            count += run;
            at += run + 1 + random.below(16 * one_in);
        }
    }
    count
}

/// That both hold the same.
pub(crate) fn assert_same(a: &RamMap, b: &RamMap) {
    const STEP: u64 = 1 << 20;
    assert_eq!(a.num_regions(), b.num_regions());
    let (mut left, mut right) = (vec![0; STEP as usize], vec![0; STEP as usize]);
    for (a, b) in a.iter().zip(b.iter()) {
        assert_eq!((a.start_addr(), a.len()), (b.start_addr(), b.len()));
        for at in (0..a.len()).step_by(STEP as usize) {
            let length = usize::try_from(STEP.min(a.len() - at)).unwrap();
            a.read_slice(&mut left[..length], MemoryRegionAddress(at)).unwrap();
            b.read_slice(&mut right[..length], MemoryRegionAddress(at)).unwrap();
            assert!(left[..length] == right[..length], "{:#x} in {:#x}", at, a.start_addr().0);
        }
    }
}

pub(crate) const CONFIG_TEXT: &str = r#"{"cpus":{"boot_vcpus":1}}"#;

/// What stands for the states of devices.
pub(crate) fn devices() -> serde_json::Value {
    serde_json::json!({ "clock": u64::MAX, "devices": [{ "kind": "rtc", "text": "\"}\n" }] })
}

pub(crate) fn save_at(path: &Path, memory: &Memory) -> Result<(), Error> {
    save_with(path, memory, CONFIG_TEXT)
}

pub(crate) fn save_with(path: &Path, memory: &Memory, config: &str) -> Result<(), Error> {
    let mut directory = Directory::create(path)?;
    directory.write_memory(memory, &Progress::new())?;
    directory.finish(config, &devices())
}

/// Saves and opens a snapshot.
pub(crate) fn save(path: &Path, ram: &RamMap) -> Source {
    save_at(path, &Memory { ram, behind: None, marks: &[] }).unwrap();
    open(path)
}

/// Opens a snapshot. A process that another test starts has our descriptors, and with them our locks, until it executes its program.
pub(crate) fn try_open(path: &Path) -> Result<Source, Error> {
    for _ in 0..200 {
        match Source::open(path) {
            Err(Error::Busy(_)) => std::thread::sleep(std::time::Duration::from_millis(10)),
            other => return other,
        }
    }
    Source::open(path)
}

/// Opens a snapshot that is good.
pub(crate) fn open(path: &Path) -> Source {
    try_open(path).unwrap()
}

/// Memory with the ranges of a snapshot.
pub(crate) fn empty_like(source: &Source, kind: Kind) -> RamMap {
    let ranges: Vec<_> = source.spans().iter().map(|s| (s.base, s.length)).collect();
    memory(kind, &ranges)
}

pub(crate) fn copied(source: &Source, kind: Kind) -> RamMap {
    let ram = empty_like(source, kind);
    source.copy(&ram, &Progress::new()).unwrap();
    ram
}

pub(crate) fn mapped(source: &Source) -> RamMap {
    RamMap::from_regions(source.map(false).unwrap()).unwrap()
}

/// Kilobytes of guest memory that have a page, if only the one full of zeros.
pub(crate) fn resident(ram: &RamMap) -> u64 {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut count = 0;
    for region in ram.iter() {
        let mut entries = vec![0; usize::try_from(region.len() / PAGE * 8).unwrap()];
        pagemap.read_exact_at(&mut entries, region.as_ptr() as u64 / PAGE * 8).unwrap();
        count += entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count() as u64;
    }
    count * PAGE / 1024
}
