//! Where a file has data, and where only holes, which read as zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::PAGE;

/// With more than this many stretches of data a file is looked at in coarser steps: the host has to remember each, which takes it about 10 µs, so
/// that this many keep a machine waiting for no more than a millisecond or two.
pub(crate) const MOST: usize = 128;

/// Lists are shortened whenever they get this long, so that a file of a thousand million little holes costs no memory.
const ROUGH: usize = 1 << 16;

fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: moves the position of an open file, which nobody here uses.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
    }
}

/// The first stretch of data within `range`, in whole pages; `None` if there are only holes.
///
/// # Errors
/// The file cannot be looked at.
pub(crate) fn next(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let Some(start) = seek(file, range.start, libc::SEEK_DATA)? else { return Ok(None) };
    if start >= range.end {
        return Ok(None);
    }
    // No hole behind data: the file became shorter in between, and who reads will see.
    let end = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(range.end);
    let start = (start / PAGE * PAGE).max(range.start);
    let end = end.checked_next_multiple_of(PAGE).map_or(range.end, |end| end.min(range.end));
    Ok(Some(start..end))
}

/// Remembers the last answer: some file systems walk over every page of a stretch to find its end, so a stretch that is dealt with in steps must not
/// be looked for at each. What has come since is not found; what was found is not lost.
#[derive(Default)]
pub(crate) struct Finder {
    /// Whence the last search went, and what it found.
    last: Option<(u64, Option<Range<u64>>)>,
}

impl Finder {
    /// As [`next`].
    pub(crate) fn next(&mut self, file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let known = self.last.as_ref().filter(|(from, data)| {
            *from <= range.start && data.as_ref().is_none_or(|data| range.start < data.end)
        });
        let data = match known {
            Some((_, data)) => data.clone(),
            None => {
                let data = next(file, range.start..u64::MAX)?;
                self.last = Some((range.start, data.clone()));
                data
            }
        };
        let data = data.map(|data| data.start.max(range.start)..data.end.min(range.end));
        Ok(data.filter(|data| !data.is_empty()))
    }
}

/// All stretches of data within `ranges` of a file, in order; at most `most` if there are fewer ranges than that, with the smallest holes taken
/// for data. No stretch reaches beyond its range.
///
/// # Errors
/// The file cannot be looked at.
pub(crate) fn plan(
    file: &File,
    ranges: impl IntoIterator<Item = Range<u64>>,
    most: usize,
) -> io::Result<Vec<Range<u64>>> {
    let mut found: Vec<Stretch> = Vec::new();
    for range in ranges {
        let mut at = range.start;
        let mut first = true;
        while let Some(data) = next(file, at..range.end)? {
            at = data.end;
            // The hole before the first of a range is no hole between two.
            let hole = if first { u64::MAX } else { data.start - found.last().map_or(0, |s| s.data.end) };
            first = false;
            found.push(Stretch { hole, data });
            if found.len() >= ROUGH.max(most * 2) {
                shorten(&mut found, most);
            }
        }
    }
    shorten(&mut found, most);
    Ok(found.into_iter().map(|s| s.data).collect())
}

struct Stretch {
    /// Length of the hole between the one before and this one.
    hole: u64,
    data: Range<u64>,
}

/// Joins over the smallest holes until `most` are left.
fn shorten(found: &mut Vec<Stretch>, most: usize) {
    let Some(mut excess) = found.len().checked_sub(most).filter(|excess| *excess > 0) else { return };
    let mut holes: Vec<u64> = found.iter().map(|s| s.hole).collect();
    holes.sort_unstable();
    let limit = holes[excess - 1];
    let mut kept: Vec<Stretch> = Vec::with_capacity(most);
    for stretch in found.drain(..) {
        match kept.last_mut() {
            Some(last) if excess > 0 && stretch.hole <= limit && stretch.hole != u64::MAX => {
                excess -= 1;
                last.data.end = stretch.data.end;
            }
            _ => kept.push(stretch),
        }
    }
    *found = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::scratch;
    use std::os::unix::fs::FileExt;

    fn file(length: u64, pages: &[u64]) -> File {
        let file = scratch::file();
        file.set_len(length).unwrap();
        for page in pages {
            file.write_all_at(&[1], page * PAGE).unwrap();
        }
        file
    }

    #[test]
    fn data_is_found_within_the_range_only() {
        let file = file(64 * PAGE, &[2, 3, 10]);
        assert_eq!(next(&file, 0..64 * PAGE).unwrap(), Some(2 * PAGE..4 * PAGE));
        assert_eq!(next(&file, 3 * PAGE..64 * PAGE).unwrap(), Some(3 * PAGE..4 * PAGE));
        assert_eq!(next(&file, 0..3 * PAGE).unwrap(), Some(2 * PAGE..3 * PAGE));
        assert_eq!(next(&file, 4 * PAGE..10 * PAGE).unwrap(), None);
        assert_eq!(next(&file, 11 * PAGE..64 * PAGE).unwrap(), None);
        assert_eq!(next(&file, 0..0).unwrap(), None);
        assert!(next(&file, u64::MAX - 1..u64::MAX).is_err());
    }

    #[test]
    fn what_was_found_is_found_again() {
        let file = file(64 * PAGE, &[2, 3, 10]);
        let mut finder = Finder::default();
        for start in 0..64 {
            for end in start..64 {
                let range = start * PAGE..end * PAGE;
                assert_eq!(finder.next(&file, range.clone()).unwrap(), next(&file, range).unwrap());
            }
        }
        assert_eq!(finder.next(&file, 0..3 * PAGE).unwrap(), Some(2 * PAGE..3 * PAGE));
    }

    #[test]
    fn the_smallest_holes_are_taken_for_data_first() {
        let pages = [0, 2, 10, 13, 40];
        let file = file(64 * PAGE, &pages);
        let plan = |most| {
            plan(&file, std::iter::once(0..64 * PAGE), most)
                .unwrap()
                .into_iter()
                .map(|r| (r.start / PAGE, r.end / PAGE))
                .collect::<Vec<_>>()
        };
        assert_eq!(plan(8), [(0, 1), (2, 3), (10, 11), (13, 14), (40, 41)]);
        assert_eq!(plan(4), [(0, 3), (10, 11), (13, 14), (40, 41)]);
        assert_eq!(plan(3), [(0, 3), (10, 14), (40, 41)]);
        assert_eq!(plan(1), [(0, 41)]);
    }

    #[test]
    fn no_stretch_reaches_beyond_its_range() {
        let file = file(8 * PAGE, &[0, 1, 2, 3, 4, 5, 6, 7]);
        let halves = [0..4 * PAGE, 4 * PAGE..8 * PAGE];
        assert_eq!(plan(&file, halves.clone(), 1).unwrap(), halves);
    }
}
