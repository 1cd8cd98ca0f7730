//! Snapshots that somebody forged: their texts changed with the checksums set right, their memory patched or cut.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use device::ram::RamMap;
use migration::{CONFIG, Directory, MEMORY, Memory, Progress, STATE, Source};
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::input::Input;
use crate::json::{change, places};
use crate::{Target, scratch};

const PAGE: u64 = 4096;
const RANGES: [(u64, u64); 2] = [(0, 24 * PAGE), (1 << 32, 8 * PAGE)];
/// What is read back at most.
const MOST: u64 = 4 << 20;

struct Good {
    path: PathBuf,
    state: Value,
    places: Vec<String>,
    config: Vec<u8>,
    memory: Vec<u8>,
}

fn ram(ranges: &[(u64, u64)]) -> Option<RamMap> {
    let ranges: Vec<_> =
        ranges.iter().map(|(base, length)| (GuestAddress(*base), *length as usize)).collect();
    RamMap::from_ranges(&ranges).ok()
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let path = scratch::file("snapshot");
    let _absent = fs::remove_dir_all(&path);
    fs::create_dir(&path).unwrap();
    let ram = ram(&RANGES).unwrap();
    for page in [0u64, 1, 2, 7, 20] {
        ram.write_slice(&[page as u8 + 1; 4096], GuestAddress(page * PAGE)).unwrap();
    }
    let mut directory = Directory::create(&path).unwrap();
    directory
        .write_memory(&Memory { ram: &ram, behind: None, marks: &[GuestAddress(PAGE)] }, &Progress::new())
        .unwrap();
    let machine = json!({ "clock": u64::MAX, "devices": [{ "kind": "rtc", "version": 1, "body": { "text": "\"}\n" } }] });
    directory.finish(r#"{"cpus":{"boot_vcpus":1},"memory":{"size":131072}}"#, &machine).unwrap();
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    let state: Value = serde_json::from_slice(&read(STATE)).unwrap();
    Good { places: places(&state), state, config: read(CONFIG), memory: read(MEMORY), path }
});

fn run(bytes: &[u8]) {
    let good = &*GOOD;
    let mut input = Input::new(bytes);
    let how = input.u8();
    let put = |name: &str, bytes: &[u8]| fs::write(good.path.join(name), bytes).unwrap();

    let mut config = good.config.clone();
    if how & 1 != 0 {
        let length = input.u8().into();
        config = input.bytes(length).to_vec();
    }
    put(CONFIG, &config);

    let mut state = good.state.clone();
    if how & 2 != 0 {
        change(&mut state, &good.places, &mut input);
    }
    if how & 4 != 0
        && let Some(facts) = state.get_mut("config")
    {
        *facts = json!({ "length": config.len(), "checksum": format!("{:08x}", crc32fast::hash(&config)) });
    }
    if let Some(members) = state.as_object_mut() {
        members.remove("checksum");
    }
    let mut text = state.to_string();
    if how & 8 != 0 {
        // Bytes, not values.
        for _ in 0..1 + input.u8() % 4 {
            let at = usize::from(input.u16()) % text.len();
            let byte = input.u8() & 0x7f;
            if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                text.replace_range(at..=at, &char::from(byte).to_string());
            }
        }
    }
    if text.pop() == Some('}') {
        text.push_str(&format!(",\"checksum\":\"{:08x}\"}}\n", crc32fast::hash(text.as_bytes())));
    }
    put(STATE, text.as_bytes());

    put(MEMORY, &good.memory);
    let file = File::options().read(true).write(true).open(good.path.join(MEMORY)).unwrap();
    if how & 0x10 != 0 {
        let at = u64::from(input.u32()) % good.memory.len() as u64;
        file.write_all_at(&input.value().to_le_bytes(), at).unwrap();
    }
    if how & 0x20 != 0 {
        file.set_len(u64::from(input.u32()) % (2 * good.memory.len() as u64)).unwrap();
    }

    let Ok(source) = Source::open(&good.path) else {
        assert_ne!(how & 0x3b, 0, "a good snapshot is refused");
        return;
    };
    let _form = source.machine::<Value>();
    let spans: Vec<_> = source.spans().iter().map(|span| (span.base, span.length)).collect();
    assert_eq!(spans.iter().map(|span| span.1).sum::<u64>(), source.length());
    assert!(source.length() <= file.metadata().unwrap().len(), "there is less memory than was promised");
    if source.length() > MOST {
        return;
    }
    let Some(memory) = ram(&spans) else { return };
    let copied = source.copy(&memory, &Progress::new());
    let Ok(regions) = source.map(false) else { return };
    let mapped = RamMap::from_regions(regions).unwrap();
    if copied.is_ok() {
        for (base, length) in &spans {
            let (mut a, mut b) = (vec![0; *length as usize], vec![0; *length as usize]);
            memory.read_slice(&mut a, GuestAddress(*base)).unwrap();
            mapped.read_slice(&mut b, GuestAddress(*base)).unwrap();
            assert!(a == b, "copied and mapped memory differ");
        }
    }
    if how & 0x40 != 0
        && let Some(memory) = ram(&spans)
    {
        // On demand; a host may not have that for us.
        if let Ok(pager) = source.page_in(&memory, |_| {}) {
            for region in memory.iter() {
                let at = GuestAddress(vm_memory::GuestMemoryRegion::start_addr(region).0);
                let _byte: u8 = memory.read_obj(at).unwrap();
            }
            drop(pager);
        }
    }
}

pub fn target() -> Target {
    Target {
        name: "snapshot",
        about: "snapshots that somebody forged, checksums and all",
        length: 256,
        options: &[],
        words: || {
            [
                "\"checksum\":\"",
                "\"ranges\":[",
                "\"gpa\":",
                "\"length\":",
                "\"samples\":[",
                "\"offset\":",
                "}\n",
            ]
            .map(str::to_owned)
            .into()
        },
        seeds: || {
            let mut seeds = vec![
                vec![0],
                vec![0x40],
                vec![0x45, 2, b'{', b'}'],
                vec![0x10, 0, 0, 0, 0, 20],
                vec![0x20, 0, 16, 0, 0],
            ];
            for place in 0..GOOD.places.len() as u16 {
                seeds.push([&[2, 0][..], &place.to_le_bytes(), &[0, 0, 10, 12]].concat());
            }
            seeds
        },
        run,
    }
}
