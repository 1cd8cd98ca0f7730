//! How vCPUs are arranged in threads, cores, dies and packages, and the APIC ids that follow from it.
//!
//! Each level takes as many bits of the APIC id as its count needs (SDM volume 3, 11.9), so ids have gaps where a count is
//! no power of two.

use crate::{Error, Result};

/// Counts of each level within the one above. Made by [`Topology::new`] or [`Topology::flat`]: none is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    threads: u16,
    cores: u16,
    dies: u16,
    packages: u16,
}

impl Topology {
    /// Threads per core, cores per die, dies per package, packages. Their product must be `max_vcpus`.
    ///
    /// # Errors
    /// [`Error::Topology`].
    pub fn new(threads: u16, cores: u16, dies: u16, packages: u16, max_vcpus: u32) -> Result<Self> {
        let total = [cores, dies, packages].iter().fold(u64::from(threads), |n, &c| n * u64::from(c));
        if total != u64::from(max_vcpus) || total == 0 {
            return Err(Error::Topology { threads, cores, dies, packages, total, max_vcpus });
        }
        Ok(Topology { threads, cores, dies, packages })
    }

    /// The default: one package of single-threaded cores. `max_vcpus` is at least 1.
    pub const fn flat(max_vcpus: u16) -> Self {
        Topology { threads: 1, cores: if max_vcpus == 0 { 1 } else { max_vcpus }, dies: 1, packages: 1 }
    }

    /// APIC id of vCPU `index`. Ids beyond the last vCPU's are still distinct.
    pub fn apic_id(&self, index: u32) -> u32 {
        let (threads, cores, dies) = (u32::from(self.threads), u32::from(self.cores), u32::from(self.dies));
        let thread = index % threads;
        let core = index / threads % cores;
        let die = index / threads / cores % dies;
        let package = index / threads / cores / dies;
        thread | core << self.core_shift() | die << self.die_shift() | package << self.package_shift()
    }

    /// Threads per core.
    pub fn threads(&self) -> u32 {
        u32::from(self.threads)
    }

    /// Cores per die.
    pub fn cores(&self) -> u32 {
        u32::from(self.cores)
    }

    /// Dies per package.
    pub fn dies(&self) -> u32 {
        u32::from(self.dies)
    }

    /// Threads per die.
    pub fn die_threads(&self) -> u32 {
        self.threads() * self.cores()
    }

    /// Threads per package.
    pub fn package_threads(&self) -> u32 {
        self.die_threads() * self.dies()
    }

    /// Number of APIC id bits below the core number.
    pub fn core_shift(&self) -> u32 {
        bits(self.threads)
    }

    /// Number of APIC id bits below the die number.
    pub fn die_shift(&self) -> u32 {
        self.core_shift() + bits(self.cores)
    }

    /// Number of APIC id bits below the package number.
    pub fn package_shift(&self) -> u32 {
        self.die_shift() + bits(self.dies)
    }
}

/// Bits that tell `count` things apart.
fn bits(count: u16) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_distinct_and_decompose() {
        for threads in 1..=2 {
            for cores in 1..=9 {
                for dies in 1..=3 {
                    for packages in 1..=3 {
                        let max = u32::from(threads * cores * dies * packages);
                        let t = Topology::new(threads, cores, dies, packages, max).unwrap();
                        let ids: Vec<u32> = (0..max).map(|i| t.apic_id(i)).collect();
                        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
                        assert!(ids.windows(2).all(|w| w[0] < w[1]), "ids ascend with the index");
                        for (shift, count) in [
                            (t.core_shift(), u32::from(cores * dies * packages)),
                            (t.die_shift(), u32::from(dies * packages)),
                            (t.package_shift(), u32::from(packages)),
                        ] {
                            let groups: HashSet<u32> = ids.iter().map(|id| id >> shift).collect();
                            assert_eq!(groups.len(), count as usize);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn default_ids_are_indices() {
        let t = Topology::flat(254);
        assert!((0..254).all(|i| t.apic_id(i) == i));
        assert_eq!(t.package_shift(), 8);
        let t = Topology::new(2, 3, 1, 1, 6).unwrap();
        assert_eq!((0..6).map(|i| t.apic_id(i)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        let t = Topology::new(1, 3, 1, 2, 6).unwrap();
        assert_eq!((0..6).map(|i| t.apic_id(i)).collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6]);
    }

    #[test]
    fn products_must_match() {
        assert!(matches!(Topology::new(1, 2, 1, 1, 4), Err(Error::Topology { total: 2, max_vcpus: 4, .. })));
        assert!(matches!(Topology::new(0, 2, 1, 1, 0), Err(Error::Topology { total: 0, .. })));
        assert!(Topology::new(u16::MAX, u16::MAX, u16::MAX, u16::MAX, 1).is_err());
    }
}
