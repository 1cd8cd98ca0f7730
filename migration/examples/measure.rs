//! Times of writing memory and of each way back: `cargo run --release -p migration --example measure [DIRECTORY]`.
//!
//! For each size of memory, one machine that touched little (64 MiB) and one that touched all of at most a GiB, in scattered runs. A way
//! back is timed until it returns, and until one page in 16 of the data, in random order, was read.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use device::ram::RamMap;
use migration::{Directory, Memory, Progress, Source};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Pages that are touched together.
const RUN: u64 = 64;

fn memory(size: u64) -> Outcome<RamMap> {
    let region = MmapRegionBuilder::new(usize::try_from(size)?)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()?;
    let region = GuestRegionMmap::new(region, GuestAddress(0)).ok_or("no place for memory")?;
    Ok(RamMap::from_regions(vec![region])?)
}

/// Guest addresses of the pages that a machine of `size` bytes touched.
fn pages(size: u64, touched: u64) -> Vec<u64> {
    let stride = RUN * (size / touched);
    (0..touched / PAGE / RUN).flat_map(|run| (0..RUN).map(move |page| (run * stride + page) * PAGE)).collect()
}

fn shuffled(pages: &[u64]) -> Vec<u64> {
    let mut some: Vec<u64> = pages.iter().step_by(16).copied().collect();
    some.sort_unstable_by_key(|p| (p / PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    some
}

fn read(ram: &RamMap, pages: &[u64]) -> Outcome<()> {
    for page in pages {
        if ram.read_obj::<u64>(GuestAddress(*page))? != *page | 1 {
            return Err(format!("another value at {page:#x}").into());
        }
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn measure(folder: &Path, size: u64, touched: u64) -> Outcome<()> {
    let ram = memory(size)?;
    let pages = pages(size, touched);
    for page in &pages {
        let mut bytes = [0x5a; PAGE as usize];
        bytes[..8].copy_from_slice(&(page | 1).to_ne_bytes());
        ram.write_slice(&bytes, GuestAddress(*page))?;
    }
    let begun = Instant::now();
    let mut directory = Directory::create(folder)?;
    directory.write_memory(&Memory { ram: &ram, behind: None, marks: &[] }, &Progress::new())?;
    directory.finish("{}", &serde_json::json!({}))?;
    let write = ms(begun.elapsed());
    drop(ram);

    let some = shuffled(&pages);
    let begun = Instant::now();
    let source = Source::open(folder)?;
    let open = ms(begun.elapsed());
    print!("{:6} MiB {:5} touched | write {write:8.1} ms | open {open:5.2}", size / MIB, touched / MIB);

    let begun = Instant::now();
    let ram = memory(size)?;
    source.copy(&ram, &Progress::new())?;
    let back = ms(begun.elapsed());
    read(&ram, &some)?;
    print!(" | copy {back:7.1} read {:7.1}", ms(begun.elapsed()));
    drop(ram);

    let begun = Instant::now();
    let ram = RamMap::from_regions(source.map(false)?)?;
    let back = ms(begun.elapsed());
    read(&ram, &some)?;
    print!(" | mmap {back:6.2} read {:7.1}", ms(begun.elapsed()));
    drop(ram);

    let begun = Instant::now();
    let ram = memory(size)?;
    let pager = source.page_in(&ram, |e| eprintln!("{e}"))?;
    let back = ms(begun.elapsed());
    read(&ram, &some)?;
    let all_read = ms(begun.elapsed());
    while !pager.done() {
        std::thread::sleep(Duration::from_micros(100));
    }
    println!(" | ondemand {back:6.2} read {all_read:7.1} all {:7.1}", ms(begun.elapsed()));
    Ok(())
}

fn main() -> Outcome<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for size in [128, 1024, 8192] {
        for touched in [64, size.min(1024)] {
            let folder = parent.join(format!("migration-measure-{}", std::process::id()));
            fs::create_dir(&folder)?;
            let measured = measure(&folder, size * MIB, touched * MIB);
            fs::remove_dir_all(&folder)?;
            measured?;
        }
    }
    Ok(())
}
