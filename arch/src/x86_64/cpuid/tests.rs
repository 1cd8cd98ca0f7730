//! CPUID by field, on made-up lists of an Intel and an AMD host.

use super::host::Vendor;
use super::*;

fn host(vendor: Vendor) -> HostCpu {
    HostCpu { vendor, brand: [[0x41; 4], [0x42; 4], [0x43; 4]], cache: [[5; 4], [6; 4]] }
}

fn config(topology: Topology) -> Config {
    Config {
        topology,
        phys_bits: 40,
        tsc_deadline: true,
        extended_dest_id: true,
        tsc_khz: Some(2_400_000),
        nested: true,
        amx: false,
    }
}

fn at(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, indexed: index > 0, ..leaf(function, registers) }
}

fn supported() -> Vec<CpuidEntry> {
    vec![
        leaf(0, [0x1e, 0, 0, 0]),
        leaf(1, [0, 0xaabb_0800, VMX, HTT_ALL]),
        // L1 data, L2, L3, no more.
        at(4, 0, [0xfc1f_c021, 1, 2, 3]),
        at(4, 1, [0xfc1f_c043, 1, 2, 3]),
        at(4, 2, [0xfc1f_c063, 1, 2, 3]),
        at(4, 3, [0; 4]),
        at(7, 0, [1, 2, 3, u32::MAX]),
        at(7, 1, [u32::MAX; 4]),
        at(0xb, 0, [9; 4]),
        at(0xd, 0, [0x6_0207, 0x340, 0x2b00, 0]),
        at(0xd, 1, [0xf, 0x9999, 0, 0]),
        at(0xd, 2, [0x100, 0x240, 0, 0]),
        at(0xd, 9, [8, 0xa80, 0, 0]),
        at(0xd, 17, [0x40, 0xac0, 0, 0]),
        at(0xd, 18, [0x2000, 0xb00, 0, 0]),
        at(0x1d, 0, [1; 4]),
        at(0x1e, 0, [1; 4]),
        leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x4000_0001, [0x100_7efb, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, SVM | 2, 0]),
        leaf(0x8000_0005, [0; 4]),
        leaf(0x8000_0006, [1, 0, 0, 0]),
        leaf(0x8000_0007, [0, 0, 0, INVARIANT_TSC]),
        leaf(0x8000_0008, [0x0030_3934, 0xff, 0x7007, 0]),
        leaf(0x8000_000a, [1, 8, 0, 0x1bc]),
        at(0x8000_001d, 0, [0x4121, 1, 2, 3]),
        at(0x8000_001d, 3, [0x4163, 1, 2, 3]),
        leaf(0x8000_001e, [7; 4]),
        at(0x8000_0026, 0, [7; 4]),
    ]
}

const HTT_ALL: u32 = 1 << 28;

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> [u32; 4] {
    let mut found = entries.iter().filter(|e| e.function == function && e.index == index);
    let entry = found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn has(entries: &[CpuidEntry], function: u32, index: u32) -> bool {
    entries.iter().any(|e| e.function == function && e.index == index)
}

#[test]
fn a_guest_sees_a_hypervisor() {
    let cpuid = Cpuid::new(&supported(), &host(Vendor::Intel), &config(Topology::flat(1)));
    let entries = cpuid.for_vcpu(0);
    let [_, ebx, ecx, edx] = find(&entries, 1, 0);
    assert_eq!(ecx, HYPERVISOR | TSC_DEADLINE | VMX);
    assert_eq!(edx, MTRR, "one thread has no HTT");
    assert_eq!(ebx, 0x0001_0800);
    assert_eq!(find(&entries, 0x4000_0000, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(find(&entries, 0x4000_0001, 0)[0], 0x100_fefb);
    assert_eq!(find(&entries, 0x4000_0010, 0), [2_400_000, 1_000_000, 0, 0]);
    assert_eq!(find(&entries, 0x8000_0003, 0), [0x42; 4]);
    assert_eq!(find(&entries, 0x8000_0005, 0), [5; 4]);
    assert_eq!(find(&entries, 0x8000_0006, 0), [1, 0, 0, 0]);
    assert_eq!(find(&entries, 0x8000_0008, 0)[0], 0x0028_3928);
}

#[test]
fn what_is_not_there_is_not_claimed() {
    let off =
        Config { tsc_deadline: false, extended_dest_id: false, nested: false, ..config(Topology::flat(1)) };
    let mut list = supported();
    list.iter_mut().find(|e| e.function == LEAF_POWER).unwrap().edx = 0;
    let entries = Cpuid::new(&list, &host(Vendor::Intel), &off).for_vcpu(0);
    assert_eq!(find(&entries, 1, 0)[2], HYPERVISOR);
    assert_eq!(find(&entries, 0x4000_0001, 0)[0] & MSI_EXT_DEST_ID, 0);
    assert_eq!(find(&entries, 0x8000_0001, 0)[2] & SVM, 0);
    assert_eq!(find(&entries, 0x8000_000a, 0), [0; 4]);
    assert!(!has(&entries, 0x4000_0010, 0), "a variable TSC has no frequency to tell");
}

#[test]
fn amx_is_masked_unless_wanted() {
    let masked = Cpuid::new(&supported(), &host(Vendor::Intel), &config(Topology::flat(1))).for_vcpu(0);
    assert_eq!(find(&masked, 7, 0)[3], !(1 << 22 | 1 << 24 | 1 << 25));
    assert_eq!(find(&masked, 7, 1), [!(1 << 21), u32::MAX, u32::MAX, !(1 << 8)]);
    let [eax, ebx, ecx, _] = find(&masked, 0xd, 0);
    assert_eq!((eax, ebx, ecx), (0x207, 0x340, 0xa88));
    for (function, index) in [(0xd, 17), (0xd, 18), (0x1d, 0), (0x1e, 0)] {
        assert!(!has(&masked, function, index));
    }
    assert_eq!(find(&masked, 0xd, 9), [8, 0xa80, 0, 0]);

    let amx = Config { amx: true, ..config(Topology::flat(1)) };
    let entries = Cpuid::new(&supported(), &host(Vendor::Intel), &amx).for_vcpu(0);
    assert_eq!(find(&entries, 7, 0)[3], u32::MAX);
    assert_eq!(find(&entries, 0xd, 0)[2], 0x2b00);
    assert!(has(&entries, 0x1d, 0));
}

/// Every thread of every topology finds its own place by the method of SDM volume 3, 11.9.4.
#[test]
fn topology_leaves_decompose_every_id() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for (threads, cores, dies, packages) in
            [(1, 1, 1, 1), (1, 254, 1, 1), (2, 3, 1, 2), (2, 4, 3, 2), (1, 5, 2, 1), (2, 127, 1, 1)]
        {
            let max = u32::from(threads) * u32::from(cores) * u32::from(dies) * u32::from(packages);
            let t = Topology::new(threads, cores, dies, packages, max).unwrap();
            let cpuid = Cpuid::new(&supported(), &host(vendor), &config(t));
            for index in 0..max {
                let entries = cpuid.for_vcpu(index);
                let id = t.apic_id(index);
                assert_eq!(find(&entries, 1, 0)[1] >> 24, id & 0xff);
                assert_eq!(find(&entries, 1, 0)[3] & HTT_ALL != 0, t.package_threads() > 1);
                let package = index / t.package_threads();
                for leaf in [0xb, 0x1f] {
                    if !has(&entries, leaf, 0) {
                        assert!(leaf == 0x1f && (vendor != Vendor::Intel || dies == 1));
                        continue;
                    }
                    let levels: Vec<_> = entries.iter().filter(|e| e.function == leaf).collect();
                    assert!(levels.iter().all(|e| e.indexed && e.edx == id && e.ecx & 0xff == e.index));
                    let [smt, .., top, last] = levels[..] else { panic!("too few levels") };
                    assert_eq!((smt.ebx, smt.ecx >> 8), (u32::from(threads), 1));
                    assert_eq!(id & ((1 << smt.eax) - 1), index % u32::from(threads));
                    assert_eq!((id >> top.eax, top.ebx), (package, t.package_threads()));
                    assert_eq!((last.eax, last.ebx, last.ecx >> 8), (0, 0, 0));
                }
                if vendor == Vendor::Intel && dies > 1 {
                    assert_eq!(find(&entries, 0, 0)[0], 0x1f);
                    let [core_shift, die_threads, _, _] = find(&entries, 0x1f, 1);
                    assert_eq!(die_threads, u32::from(threads * cores));
                    assert_eq!(
                        id >> core_shift & ((1 << (t.package_shift() - core_shift)) - 1),
                        index / die_threads % u32::from(dies)
                    );
                }
                let [eax, ebx, ecx, _] = find(&entries, 0x8000_001e, 0);
                assert_eq!((eax, ebx >> 8 & 0xff), (id, u32::from(threads) - 1));
                assert_eq!((ebx & 0xff, ecx >> 8), (id >> t.core_shift() & 0xff, u32::from(dies) - 1));
                assert!(!has(&entries, 0x8000_0026, 0));
            }
        }
    }
}

#[test]
fn caches_are_shared_by_core_and_die() {
    let t = Topology::new(2, 3, 2, 1, 12).unwrap();
    let entries = Cpuid::new(&supported(), &host(Vendor::Intel), &config(t)).for_vcpu(5);
    let sharing = |index| find(&entries, 4, index)[0] >> 14 & 0xfff;
    assert_eq!([0, 1, 2].map(sharing), [1, 1, 7], "ids: two of a core, eight of a die");
    assert_eq!(find(&entries, 4, 0)[0] >> 26, 7, "eight core ids in a package");
    assert_eq!(find(&entries, 4, 0)[0] & 0x3fff, 0x21, "type and level stay");
    assert_eq!(find(&entries, 4, 3), [0; 4], "the end of the list stays");

    let entries = Cpuid::new(&supported(), &host(Vendor::Amd), &config(t)).for_vcpu(5);
    let sharing = |index| find(&entries, 0x8000_001d, index)[0] >> 14 & 0xfff;
    assert_eq!([0, 3].map(sharing), [1, 5], "processors: two of a core, six of a die");
    assert_eq!(find(&entries, 0x8000_0008, 0)[2], 0x400b, "12 threads, 4 bits, nothing else of 0x7007");
    assert_eq!(find(&entries, 0x8000_0001, 0)[2] & 2, 0);
    let cores = Cpuid::new(&supported(), &host(Vendor::Amd), &config(Topology::flat(4))).for_vcpu(0);
    assert_eq!(find(&cores, 0x8000_0001, 0)[2] & 2, 2);
}

#[test]
fn the_host_has_a_name() {
    let host = HostCpu::read(&[]);
    assert_ne!(host.brand, [[0; 4]; 3]);
    assert_eq!(host, HostCpu::read(&[]));
}

#[test]
fn the_processor_is_asked_only_for_what_the_hypervisor_does_not_tell() {
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let list = [
        leaf(0, [7, word(b"Genu"), word(b"ntel"), word(b"ineI")]),
        leaf(0x8000_0002, [0x41; 4]),
        leaf(0x8000_0005, [5; 4]),
        leaf(0x8000_0006, [0; 4]),
    ];
    let (host, asked) = (HostCpu::read(&list), HostCpu::read(&[]));
    assert_eq!(host.vendor, Vendor::Intel);
    assert_eq!(host.brand, [[0x41; 4], asked.brand[1], asked.brand[2]]);
    assert_eq!(host.cache, [[5; 4], asked.cache[1]]);
}
