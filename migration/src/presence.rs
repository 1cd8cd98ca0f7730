//! Which pages of our own memory exist, found out without touching any.
//!
//! Private anonymous memory that was never touched reads as zeros, and reading it would cost page tables. The kernel is asked: by
//! `PAGEMAP_SCAN` (Linux 6.7), else by the entries of `/proc/self/pagemap`. Where neither can be had, everything is said to exist, which is slow and
//! never wrong.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref};
use vmm_sys_util::ioctl_iowr_nr;

use crate::files::check;

/// `PAGE_IS_PRESENT` and its neighbours of `linux/fs.h`.
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, Scan);

/// Its number, for filters.
pub(crate) const REQUEST: u32 =
    ioctl_expr(_IOC_READ | _IOC_WRITE, b'f' as u32, 16, size_of::<Scan>() as u32) as u32;

/// A stretch of our memory that may hold something other than zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Host addresses.
    pub(crate) range: Range<u64>,
    /// It may be a mapped file, whose pages exist whether or not they were touched.
    pub(crate) file: bool,
}

enum Way {
    Scan(File),
    Entries(File),
    Everything,
}

/// What the kernel knows about our memory.
pub(crate) struct Presence {
    way: Way,
    /// Mapped files, by host address, in ascending order.
    files: Vec<Range<u64>>,
    page: u64,
}

/// Size of the host's pages in bytes.
pub(crate) fn host_page() -> u64 {
    // SAFETY: a question without arguments.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(crate::PAGE)
}

impl Presence {
    /// Looks at what is mapped now.
    pub(crate) fn open() -> Self {
        let page = host_page();
        let opened = mapped_files().and_then(|files| Ok((files, File::open("/proc/self/pagemap")?)));
        match opened {
            Ok((files, pagemap)) => Presence { way: Way::Scan(pagemap), files, page },
            Err(e) => {
                log::debug!("all of guest memory has to be read, because /proc/self is not to be had: {e}");
                Presence { way: Way::Everything, files: Vec::new(), page }
            }
        }
    }

    /// The stretches within `range` of host addresses, whole pages, that may hold something, in order.
    pub(crate) fn runs(&mut self, range: Range<u64>) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut at = range.start;
        let first = self.files.partition_point(|f| f.end <= range.start);
        let files: Vec<_> = self.files[first..].iter().take_while(|f| f.start < range.end).cloned().collect();
        for file in files {
            let file = file.start.max(range.start)..file.end.min(range.end);
            self.anonymous(at..file.start, &mut runs);
            at = file.end;
            runs.push(Run { range: file, file: true });
        }
        self.anonymous(at..range.end, &mut runs);
        runs
    }

    fn anonymous(&mut self, range: Range<u64>, runs: &mut Vec<Run>) {
        if range.is_empty() {
            return;
        }
        let before = runs.len();
        if let Way::Scan(pagemap) = &self.way {
            match scan(pagemap, range.clone(), runs) {
                Ok(()) => return,
                Err(e) => log::debug!("PAGEMAP_SCAN is not to be had: {e}"),
            }
            runs.truncate(before);
            if let Way::Scan(pagemap) = std::mem::replace(&mut self.way, Way::Everything) {
                self.way = Way::Entries(pagemap);
            }
        }
        if let Way::Entries(pagemap) = &self.way {
            match entries(pagemap, range.clone(), self.page, runs) {
                Ok(()) => return,
                Err(e) => log::debug!("/proc/self/pagemap cannot be read: {e}"),
            }
            runs.truncate(before);
            self.way = Way::Everything;
        }
        runs.push(Run { range, file: true });
    }
}

fn scan(pagemap: &File, range: Range<u64>, runs: &mut Vec<Run>) -> io::Result<()> {
    let mut found = [PageRegion::default(); 512];
    let mut at = range.start;
    while at < range.end {
        let mut arg = Scan {
            size: size_of::<Scan>() as u64,
            start: at,
            end: range.end,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            category_anyof_mask: PRESENT | SWAPPED,
            // Asked for so that neighbours come as one.
            return_mask: 0,
            ..Scan::default()
        };
        // SAFETY: the structure has the form that this call wants, and both it and the list it points to live during the call.
        let count = check(unsafe { ioctl_with_mut_ref(pagemap, PAGEMAP_SCAN(), &mut arg) })?;
        for region in &found[..usize::try_from(count).unwrap_or(0).min(found.len())] {
            runs.push(Run { range: region.start..region.end, file: false });
        }
        if arg.walk_end <= at {
            return Err(io::Error::other("no step forward"));
        }
        at = arg.walk_end;
    }
    Ok(())
}

fn entries(pagemap: &File, range: Range<u64>, page: u64, runs: &mut Vec<Run>) -> io::Result<()> {
    /// Bits 62 and 63: swapped, present.
    const EXISTS: u64 = 3 << 62;
    let mut buffer = [0; 32 << 10];
    let mut at = range.start;
    while at < range.end {
        let want = usize::try_from((range.end - at) / page * 8).unwrap_or(usize::MAX).min(buffer.len());
        pagemap.read_exact_at(&mut buffer[..want], at / page * 8)?;
        for entry in buffer[..want].chunks_exact(8) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(entry);
            if u64::from_ne_bytes(bytes) & EXISTS != 0 {
                match runs.last_mut() {
                    Some(last) if last.range.end == at && !last.file => last.range.end += page,
                    _ => runs.push(Run { range: at..at + page, file: false }),
                }
            }
            at += page;
        }
    }
    Ok(())
}

/// Where our address space shows files (`proc_pid_maps(5)`).
fn mapped_files() -> io::Result<Vec<Range<u64>>> {
    let mut files: Vec<Range<u64>> = Vec::new();
    for line in BufReader::new(File::open("/proc/self/maps")?).split(b'\n') {
        // A path need not be text, and is not looked at.
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let mut fields = line.split_ascii_whitespace();
        let (range, inode) = (fields.next(), fields.nth(3));
        let range = range.and_then(|r| r.split_once('-')).and_then(|(start, end)| {
            Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
        });
        let (Some(range), Some(inode)) = (range, inode) else {
            return Err(io::Error::other("/proc/self/maps has another form"));
        };
        if inode == "0" {
            continue;
        }
        match files.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => files.push(range),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, VolatileMemory};

    #[test]
    fn all_ways_find_the_same_pages() {
        let page = host_page();
        let length = 5000 * page;
        let region = MmapRegionBuilder::<()>::new(usize::try_from(length).unwrap())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .unwrap();
        let slice = region.as_volatile_slice();
        let touched = |n: u64| n.is_multiple_of(3) || n > 4000;
        for n in (0..5000).filter(|n| touched(*n)) {
            slice.write_obj(1_u8, usize::try_from(n * page).unwrap()).unwrap();
        }
        let host = region.as_ptr() as u64;
        let pages = |runs: &[Run]| -> Vec<u64> {
            runs.iter().flat_map(|r| (r.range.start - host) / page..(r.range.end - host) / page).collect()
        };
        let expected: Vec<u64> = (0..5000).filter(|n| touched(*n)).collect();
        let open = || File::open("/proc/self/pagemap").unwrap();
        for way in [Way::Scan(open()), Way::Entries(open())] {
            let mut presence = Presence { way, files: Vec::new(), page };
            let runs = presence.runs(host..host + length);
            assert_eq!(pages(&runs), expected);
            assert_eq!(runs.len(), 1335);
            assert!(runs.iter().all(|run| !run.file));
        }
        let mut presence = Presence { way: Way::Everything, files: Vec::new(), page };
        assert_eq!(presence.runs(host..host + length), [Run { range: host..host + length, file: true }]);
        // A file in the midst of it is there from end to end.
        let file = host + 10 * page..host + 12 * page;
        let mut presence = Presence { way: Way::Scan(open()), files: vec![file.clone()], page };
        let runs = presence.runs(host + 9 * page..host + 13 * page);
        let ought = |start, end, file| Run { range: host + start * page..host + end * page, file };
        assert_eq!(runs, [ought(9, 10, false), ought(10, 12, true), ought(12, 13, false)]);
    }
}
