//! Room for BARs and apertures: ranges of one window, given from the top down.
//!
//! The first device gets the highest address, as the platform's contract has it. The map is small and changes rarely, so it is a
//! sorted list and not a tree.

use device::Span;

/// Hands out aligned ranges of one window.
#[derive(Debug)]
pub struct BarAllocator {
    window: Span,
    // Sorted by base, never overlapping.
    taken: Vec<Span>,
}

impl BarAllocator {
    /// An allocator over a window; the window may be empty and must not wrap (it is cut if it does).
    pub fn new(window: Span) -> Self {
        let length = window.length.min(u64::MAX - window.base);
        BarAllocator { window: Span { base: window.base, length }, taken: Vec::new() }
    }

    /// The highest free range of `size` bytes, aligned to its size, a power of two; `None` if there is none.
    pub fn allocate(&mut self, size: u64) -> Option<Span> {
        size.is_power_of_two().then(|| self.allocate_aligned(size, size))?
    }

    /// The highest free range of `size` bytes, not zero, that begins at a multiple of `align`, a power of two; `None` if there is
    /// none.
    pub fn allocate_aligned(&mut self, size: u64, align: u64) -> Option<Span> {
        if size == 0 || !align.is_power_of_two() {
            return None;
        }
        let mut end = self.window.base + self.window.length;
        for i in (0..=self.taken.len()).rev() {
            let below = i.checked_sub(1).map(|i| self.taken[i]);
            let start = below.map_or(self.window.base, |s| s.base + s.length);
            if let Some(base) = end.checked_sub(size).map(|b| b & !(align - 1))
                && base >= start
            {
                let span = Span { base, length: size };
                self.taken.insert(i, span);
                return Some(span);
            }
            end = below.map_or(start, |s| s.base);
        }
        None
    }

    /// Takes exactly this range; tells whether it could be had.
    pub fn reserve(&mut self, span: Span) -> bool {
        if !self.contains(span) {
            return false;
        }
        let at = self.taken.partition_point(|s| s.base < span.base);
        let before = at.checked_sub(1).is_some_and(|i| self.taken[i].base + self.taken[i].length > span.base);
        let after = self.taken.get(at).is_some_and(|s| s.base < span.base + span.length);
        if before || after {
            return false;
        }
        self.taken.insert(at, span);
        true
    }

    /// Gives a range back; tells whether it was taken.
    pub fn free(&mut self, base: u64) -> bool {
        match self.taken.binary_search_by_key(&base, |s| s.base) {
            Ok(at) => {
                self.taken.remove(at);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether the range lies in the window, empty ranges never do.
    pub fn contains(&self, span: Span) -> bool {
        let Some(offset) = span.base.checked_sub(self.window.base) else { return false };
        span.length != 0 && offset.checked_add(span.length).is_some_and(|end| end <= self.window.length)
    }
}

#[cfg(test)]
mod tests {
    use device::fake::random::Random;

    use super::*;

    #[test]
    fn the_first_gets_the_highest_address() {
        let mut a = BarAllocator::new(Span { base: 0xc000_0000, length: 0x2800_0000 });
        assert_eq!(a.allocate(0x8_0000).unwrap().base, 0xe7f8_0000);
        assert_eq!(a.allocate(0x8_0000).unwrap().base, 0xe7f0_0000);
        assert_eq!(a.allocate(16).unwrap().base, 0xe7ef_fff0);
        assert_eq!(a.allocate(0x8_0000).unwrap().base, 0xe7e0_0000);
        assert_eq!(a.allocate(0x10_0000).unwrap().base, 0xe7d0_0000);
        // The gap that alignment left is used.
        assert_eq!(a.allocate(0x4_0000).unwrap().base, 0xe7e8_0000);
    }

    #[test]
    fn impossible_sizes_and_ranges_are_refused() {
        let mut a = BarAllocator::new(Span { base: 0x1000, length: 0x1000 });
        for size in [0, 3, 0x2000, 1 << 63] {
            assert_eq!(a.allocate(size), None);
        }
        for (base, length) in [(0x1000, 0), (0xfff, 1), (0x1f00, 0x101), (u64::MAX, 2), (0x1800, u64::MAX)] {
            assert!(!a.reserve(Span { base, length }));
        }
        assert!(a.reserve(Span { base: 0x1000, length: 0x1000 }));
        assert_eq!(a.allocate(16), None);
        assert!(!a.free(0x1800));
        assert!(a.free(0x1000));
        assert_eq!(BarAllocator::new(Span { base: u64::MAX - 15, length: 32 }).allocate(16), None);
        assert_eq!(BarAllocator::new(Span { base: 0, length: 0 }).allocate(16), None);
    }

    #[test]
    fn ranges_never_overlap_and_a_range_is_found_whenever_there_is_one() {
        for seed in 1..=50 {
            let mut random = Random(seed);
            let window = Span { base: random.below(1 << 20) << 4, length: 0x1_0000 };
            let mut a = BarAllocator::new(window);
            let mut held: Vec<Span> = Vec::new();
            for _ in 0..400 {
                let size = 16 << random.below(10);
                let free = |base: u64| {
                    base >= window.base
                        && base + size <= window.base + window.length
                        && held.iter().all(|s| base + size <= s.base || s.base + s.length <= base)
                };
                match random.below(4) {
                    0 if !held.is_empty() => {
                        let span = held.swap_remove(random.below(held.len() as u64) as usize);
                        assert!(a.free(span.base));
                        assert!(!a.free(span.base));
                    }
                    1 => {
                        let base = window.base + (random.below(0x1_1000) & !(size - 1));
                        let span = Span { base, length: size };
                        let could = free(base);
                        assert_eq!(a.reserve(span), could, "seed {seed}");
                        if could {
                            held.push(span);
                        }
                    }
                    _ => {
                        // The highest aligned place, found the slow way.
                        let top = (window.base + window.length - size) & !(size - 1);
                        let expected = (window.base / size..=top / size)
                            .rev()
                            .map(|n| n * size)
                            .find(|base| free(*base));
                        let got = a.allocate(size);
                        assert_eq!(got.map(|s| s.base), expected, "seed {seed}");
                        held.extend(got);
                    }
                }
            }
        }
    }
}
