//! What is saved comes back, by each way, and costs what it has to.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::machine::{
    KINDS, Kind, assert_same, copied, devices, empty_like, fill, mapped, memory, page, resident, save,
};
use super::scratch::Scratch;
use crate::{Error, MEMORY, Memory, PAGE, Progress};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Below and above the gap of a PC, and one page.
const RANGES: [(u64, u64); 3] = [(0, 16 * MIB), (4 * GIB, 3 * MIB + PAGE), (5 * GIB, PAGE)];

fn parents() -> Vec<&'static Path> {
    ["/dev/shm", "/tmp"].into_iter().map(Path::new).filter(|p| p.is_dir()).collect()
}

#[test]
fn memory_comes_back_by_each_way_from_each_kind() {
    for parent in parents() {
        for (kind, one_in) in KINDS.into_iter().flat_map(|kind| [(kind, 1), (kind, 3), (kind, 50)]) {
            let scratch = Scratch::within(parent);
            let ram = memory(kind, &RANGES);
            let pages = fill(&ram, 7 + one_in, one_in);
            let source = save(scratch.path(), &ram);
            assert_eq!(source.data(), pages * PAGE);
            assert_eq!(source.length(), 19 * MIB + 2 * PAGE);
            assert_eq!(source.machine::<serde_json::Value>().unwrap(), devices());
            for kind in KINDS {
                assert_same(&ram, &copied(&source, kind));
            }
            assert_same(&ram, &mapped(&source));
        }
    }
}

#[test]
fn a_machine_that_came_back_is_saved_again() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &RANGES);
    fill(&ram, 1, 20);
    let first = save(&scratch.folder("first"), &ram);
    let second = mapped(&first);
    // Over data, over a hole, and zeros over data.
    for ram in [&ram, &second] {
        fill(ram, 2, 40);
        let gpa =
            (0..).map(|n| n * PAGE).find(|g| ram.read_obj::<u64>(GuestAddress(*g)).unwrap() != 0).unwrap();
        ram.write_slice(&[0; PAGE as usize], GuestAddress(gpa)).unwrap();
    }
    let again = save(&scratch.folder("second"), &second);
    assert_same(&ram, &copied(&again, Kind::Private));
    assert_same(&ram, &mapped(&again));
    // And what it came from is as it was.
    let unchanged = memory(Kind::Private, &RANGES);
    fill(&unchanged, 1, 20);
    assert_same(&unchanged, &copied(&first, Kind::Private));
}

#[test]
fn untouched_memory_costs_nothing() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, GIB)]);
    for gpa in [0, 512 * MIB, GIB - PAGE] {
        ram.write_slice(&page(gpa, 0), GuestAddress(gpa)).unwrap();
    }
    // Looked at, but full of zeros.
    let mut page = [1; PAGE as usize];
    ram.read_slice(&mut page, GuestAddress(100 * MIB)).unwrap();
    ram.write_slice(&[0; PAGE as usize], GuestAddress(200 * MIB)).unwrap();
    let before = resident(&ram);
    assert_eq!(before, 5 * 4);
    let source = save(scratch.path(), &ram);
    assert_eq!(resident(&ram), before);
    assert_eq!(source.data(), 3 * PAGE);
    let file = std::fs::metadata(scratch.path().join(MEMORY)).unwrap();
    assert_eq!(file.len(), GIB);
    assert!(file.blocks() * 512 <= 16 * PAGE, "{} blocks", file.blocks());

    let back = copied(&source, Kind::Private);
    assert_eq!(resident(&back), 3 * 4);
    assert_same(&ram, &back);
    let back = mapped(&source);
    assert_eq!(resident(&back), 0);
    assert_same(&ram, &back);
    let shared = empty_like(&source, Kind::Shared);
    source.copy(&shared, &Progress::new()).unwrap();
    let memfd = shared.iter().next().unwrap().file_offset().unwrap().file().metadata().unwrap();
    assert!(memfd.blocks() * 512 <= 16 * PAGE, "{} blocks", memfd.blocks());
}

/// A kernel is mapped from its file at boot: its pages are there though nobody touched them.
#[test]
fn files_that_are_mapped_into_memory_are_saved() {
    let scratch = Scratch::new();
    let ram = memory(Kind::Private, &[(0, 16 * MIB)]);
    fill(&ram, 3, 30);
    let kernel = save(&scratch.folder("kernel"), &ram);
    // The very same, all of it in untouched pages of a file.
    let source = save(&scratch.folder("again"), &mapped(&kernel));
    assert_eq!(source.data(), kernel.data());
    assert_same(&ram, &copied(&source, Kind::Private));
}

#[test]
fn memory_of_another_layout_is_refused() {
    let scratch = Scratch::new();
    let source = save(scratch.path(), &memory(Kind::Private, &[(0, MIB), (4 * MIB, MIB)]));
    for ranges in [&[(0, MIB)][..], &[(0, MIB), (2 * MIB, MIB)], &[(0, 2 * MIB), (4 * MIB, MIB)]] {
        let ram = memory(Kind::Private, ranges);
        let refused = source.copy(&ram, &Progress::new());
        assert!(matches!(refused, Err(Error::Layout(_))), "{refused:?}");
    }
    let odd = memory(Kind::Private, &[(0, MIB + 1)]);
    let memory = Memory { ram: &odd, behind: None, marks: &[] };
    let refused = super::machine::save_at(&scratch.folder("odd"), &memory);
    assert!(matches!(refused, Err(Error::Layout(_))), "{refused:?}");
}
