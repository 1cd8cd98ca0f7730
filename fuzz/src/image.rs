//! Disk images that somebody damaged: opened, read, written, zeroed, cut and grown.
//!
//! An input is a good image's number, changes to it, and requests. An image that was not changed must behave like a disk: what is read
//! is what was written. A changed one may hold anything, but never the content of a file outside of its directory, and no file
//! there is ever written to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use block::{Choice, Engine, Format, Image, Options, Segment, Type};

use crate::Target;
use crate::input::Input;
use crate::scratch;

const SECTOR: u64 = 512;
/// What damaged metadata may make of a file. Images of 10 MiB and requests of less than one do not need more.
const MOST_ON_DISK: u64 = 64 << 20;
/// Most bytes of one request.
const MOST: u64 = 256 << 10;

/// A good image.
struct Good {
    length: u64,
    /// Sectors that are not empty.
    sectors: Vec<(u64, Vec<u8>)>,
    /// Offsets of words that are not as those before: where something is said.
    words: Vec<u64>,
    backing: bool,
}

impl Good {
    fn unpack(packed: &[u8], backing: bool) -> Good {
        let bytes = miniz_oxide::inflate::decompress_to_vec_zlib(packed).unwrap();
        let (length, sectors) = bytes.split_first_chunk().unwrap();
        let sectors: Vec<_> = sectors
            .chunks_exact(4 + SECTOR as usize)
            .map(|chunk| {
                let (number, bytes) = chunk.split_first_chunk().unwrap();
                (u64::from(u32::from_le_bytes(*number)) * SECTOR, bytes.to_vec())
            })
            .collect();
        let mut words = Vec::new();
        let mut before: &[u8] = &[0; 8];
        for (offset, bytes) in &sectors {
            for (at, word) in (*offset..).step_by(8).zip(bytes.chunks_exact(8)) {
                if word != before && word != [0; 8] {
                    words.push(at);
                }
                before = word;
            }
        }
        Good { length: u64::from_le_bytes(*length), sectors, words, backing }
    }

    fn write(&self, file: &File) {
        file.set_len(0).unwrap();
        file.set_len(self.length).unwrap();
        for (offset, bytes) in &self.sectors {
            file.write_all_at(bytes, *offset).unwrap();
        }
    }
}

macro_rules! good {
    ($($name:literal $backing:literal),+) => {
        LazyLock::new(|| vec![$( Good::unpack(include_bytes!(concat!("../images/", $name, ".z")), $backing) ),+])
    };
}

static QCOW2: LazyLock<Vec<Good>> = good!(
    "qcow2" false, "qcow2_old" false, "qcow2_zlib" false, "qcow2_zstd" false, "qcow2_over" true
);
static VHD: LazyLock<Vec<Good>> = good!("vhd" false);
static VHDX: LazyLock<Vec<Good>> = good!("vhdx" false, "vhdx_fixed" false);

const VMDK: &str = "# Disk DescriptorFile\nversion=1\nCID=bed71d83\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
                    # Extent description\nRW 512 FLAT \"flat\" 0\n\n# The Disk Data Base\n#DDB\nddb.adapterType = \"ide\"\n";

/// A file outside of the images' directory: sixteen bytes, again and again.
struct Secret {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Of the sixteen bytes as they look from each of them on. Not the bytes themselves: the fuzzer would learn them from comparisons.
    hashes: Vec<u64>,
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

static SECRET: LazyLock<Secret> = LazyLock::new(|| {
    let random = device::fake::random::Random(u64::from(std::process::id())).bytes(16);
    let bytes = random.repeat(0x1_0000 / 16);
    let path = scratch::file("secret");
    fs::write(&path, &bytes).unwrap();
    fs::write(scratch::file("images/base"), vec![b'B'; 0x1_0000]).unwrap();
    let hashes = (0..16).map(|from| hash(&bytes[from..from + 16])).collect();
    Secret { path, bytes, hashes }
});

impl Secret {
    fn assert_untold(&self, read: &[u8]) {
        for sector in read.chunks_exact(SECTOR as usize) {
            assert!(!self.hashes.contains(&hash(&sector[..16])), "the guest reads a file outside");
        }
    }

    fn assert_untouched(&self) {
        assert!(fs::read(&self.path).unwrap() == self.bytes, "the guest writes a file outside");
    }
}

/// Puts a right checksum where one is wanted, so that a change is not all that is found.
type Mend = fn(&File);

fn crc32c(bytes: &[u8]) -> u32 {
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|n| {
            (0..8).fold(n as u32, |c, _| c >> 1 ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 })
        })
    });
    !bytes.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

/// VHDX: the headers and the region tables.
fn mend_vhdx(file: &File) {
    for (offset, length) in
        [(0x1_0000, 0x1000), (0x2_0000, 0x1000), (0x3_0000, 0x1_0000), (0x4_0000, 0x1_0000)]
    {
        let mut bytes = vec![0; length];
        if file.read_exact_at(&mut bytes, offset).is_ok() {
            bytes[4..8].fill(0);
            file.write_all_at(&crc32c(&bytes).to_le_bytes(), offset + 4).unwrap();
        }
    }
}

/// VHD: the footer, whose bytes without the checksum and the checksum itself have the sum of all ones.
fn mend_vhd(file: &File) {
    let Some(at) = file.metadata().unwrap().len().checked_sub(SECTOR) else { return };
    let mut footer = [0; SECTOR as usize];
    file.read_exact_at(&mut footer, at).unwrap();
    footer[64..68].fill(0);
    let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    file.write_all_at(&sum.to_be_bytes(), at + 64).unwrap();
}

/// Changes an image; whether anything was.
fn damage(good: &Good, file: &File, input: &mut Input<'_>, mend: Mend) -> bool {
    let (count, mends) = (input.u8() % 24, input.flag());
    for _ in 0..count {
        let how = input.u8();
        let at = match how & 3 {
            0 => u64::from(input.u32()) % (good.length + 1),
            1 => input.one_of(&good.words),
            2 => input.one_of(&good.words) + u64::from(input.u8()),
            _ => good.length.saturating_sub(u64::from(input.u16())),
        };
        let bytes: Vec<u8> = match how >> 2 & 7 {
            0 => vec![input.u8()],
            1 => input.value().to_be_bytes().to_vec(),
            2 => input.value().to_le_bytes().to_vec(),
            3 => (input.value() as u32).to_be_bytes().to_vec(),
            4 => (input.value() as u32).to_le_bytes().to_vec(),
            5 => {
                // What is said elsewhere.
                let mut word = [0; 8];
                file.read_exact_at(&mut word, input.one_of(&good.words)).unwrap();
                word.to_vec()
            }
            6 => {
                let mut bit = [0];
                let _past = file.read_at(&mut bit, at);
                vec![bit[0] ^ 1 << (input.u8() & 7)]
            }
            _ => {
                let length = input.u8() as usize;
                input.bytes(length).to_vec()
            }
        };
        file.write_all_at(&bytes, at).unwrap();
    }
    let cut = input.u8();
    if cut & 0xf == 1 {
        file.set_len(u64::from(input.u32()) % (2 * good.length)).unwrap();
    }
    if mends {
        mend(file);
    }
    count > 0 || cut & 0xf == 1
}

/// An open image, and what it should hold if that is known.
struct Disk {
    image: Arc<Image>,
    engine: Box<dyn Engine>,
    model: Option<Vec<u8>>,
}

impl Disk {
    fn open(options: &Options) -> Option<Disk> {
        let image = Image::open(options).ok()?;
        assert!(image.size() >= SECTOR && image.size().is_multiple_of(SECTOR));
        let engine = image.engine(8, Choice { io_uring: false, aio: false });
        Some(Disk { image, engine, model: None })
    }

    fn done(&mut self) -> io::Result<u32> {
        let mut last = None;
        self.engine.submit().unwrap();
        self.engine.drain(&mut |_, result| last = Some(result)).unwrap();
        last.expect("a request is answered")
    }

    fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut memory = vec![0xee; length];
        let (first, second) = memory.split_at_mut(length / 3);
        let segments = [first, second].map(|part| Segment::new(part.as_mut_ptr(), part.len()));
        // SAFETY: the memory outlives the request, which is waited for.
        unsafe { self.engine.read(offset, &segments, 0).unwrap() };
        self.done().map(|_| memory)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let segments = [Segment::new(bytes.as_ptr().cast_mut(), bytes.len())];
        // SAFETY: as above, and it is only read.
        unsafe { self.engine.write(offset, &segments, 0).unwrap() };
        self.done().map(drop)
    }

    /// One request, as a device would make it of the input.
    fn request(&mut self, input: &mut Input<'_>) {
        let sectors = self.image.size() / SECTOR;
        let kind = input.u8();
        let first = match kind >> 4 & 3 {
            0 => u64::from(input.u16()),
            1 => sectors.saturating_sub(1 + u64::from(input.u8())),
            2 => u64::from(input.u8()) * 128,
            _ => input.value(),
        } % sectors;
        let count = (1 + u64::from(input.u8())).min(sectors - first).min(MOST / SECTOR);
        let (offset, length) = (first * SECTOR, count * SECTOR);
        let range = offset as usize..(offset + length) as usize;
        let writes = self.image.may_write(offset, length).is_ok();
        assert!(self.image.may_read(offset, length).is_ok());
        let fill = match kind & 7 {
            0 => return self.checked(|disk| disk.engine.flush(0).map_or(Ok(0), |()| disk.done())),
            1 | 2 => {
                let read = self.read(offset, length as usize);
                if let (Ok(read), Some(model)) = (&read, &self.model) {
                    assert!(*read == model[range], "what is read is not what was written");
                }
                match read {
                    Ok(read) => SECRET.assert_untold(&read),
                    Err(error) => assert!(self.model.is_none(), "{error}"),
                }
                return;
            }
            3 if writes => {
                self.checked(|disk| disk.engine.discard(offset, length, 0).map_or(Ok(0), |()| disk.done()));
                0
            }
            4 if writes => {
                let free = kind & 8 != 0;
                self.checked(|disk| {
                    disk.engine.zero(offset, length, free, 0).map_or(Ok(0), |()| disk.done())
                });
                0
            }
            5 | 6 if writes => {
                let byte = kind | 0x80;
                self.checked(|disk| disk.write(offset, &vec![byte; length as usize]).map(|()| 0));
                byte
            }
            7 => {
                // Mostly sizes whose tables are not all that there is time for.
                let size = if kind >= 0xf0 { input.value() } else { input.value() & 0x3f_ffff };
                let grown = self.image.resize(size.saturating_mul(if kind & 8 == 0 { SECTOR } else { 1 }));
                if grown.is_ok()
                    && let Some(model) = &mut self.model
                {
                    model.resize(usize::try_from(self.image.size()).unwrap().min(1 << 26), 0);
                    // A disk that large is not modelled.
                    self.model.take_if(|model| model.len() as u64 != self.image.size());
                }
                return;
            }
            _ => return,
        };
        if let Some(model) = &mut self.model {
            model[range].fill(fill);
        }
    }

    /// Does something that may fail only if the image is damaged.
    fn checked(&mut self, act: impl FnOnce(&mut Disk) -> io::Result<u32>) {
        if let Err(error) = act(self) {
            assert!(self.model.is_none(), "{error}");
        }
    }
}

fn exercise(options: &Options, damaged: bool, input: &mut Input<'_>) {
    let Some(mut disk) = Disk::open(options) else {
        assert!(damaged, "a good image is refused: {:?}", Image::open(options).map(drop));
        return;
    };
    if !damaged {
        let size = usize::try_from(disk.image.size()).unwrap();
        disk.model = Some(disk.read(0, size).unwrap());
    }
    let mut left = 24;
    while !input.is_empty() && left > 0 {
        left -= 1;
        disk.request(input);
        if input.u8() & 0xf == 0xf {
            // Somebody else finds what was written.
            let model = disk.model.take();
            disk.image.settle().ok().or_else(|| damaged.then_some(())).unwrap();
            drop(disk);
            match Disk::open(options) {
                Some(again) => disk = again,
                None if damaged => return,
                None => panic!("what was written cannot be opened: {:?}", Image::open(options).map(drop)),
            }
            assert!(
                model.as_ref().is_none_or(|m| m.len() as u64 == disk.image.size()),
                "another size than before"
            );
            disk.model = model;
        }
    }
    SECRET.assert_untouched();
}

fn run(all: &[Good], format: Format, mend: Mend, bytes: &[u8]) {
    LazyLock::force(&SECRET);
    let mut input = Input::new(bytes);
    let good = &all[input.below(all.len())];
    let path = scratch::file("images/image");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    good.write(&file);
    let damaged = damage(good, &file, &mut input, mend);
    let how = input.u8();
    let options = Options {
        path,
        readonly: how & 7 == 1,
        format: match how >> 3 & 3 {
            0 if !good.backing => Type::Unknown,
            1 if !good.backing => Type::Found(format),
            _ => Type::Stated(format),
        },
        backing_files: good.backing,
        ..Options::default()
    };
    exercise(&options, damaged, &mut input);
    assert!(file.metadata().unwrap().blocks() * 512 < MOST_ON_DISK, "the image takes too much room");
}

/// A descriptor and its extent: the first byte says how many bytes of requests come before the text.
fn run_vmdk(bytes: &[u8]) {
    LazyLock::force(&SECRET);
    let mut input = Input::new(bytes);
    let length = input.u8() as usize;
    let mut requests = Input::new(input.bytes(length));
    let text = input.rest();
    let (path, flat) = (scratch::file("images/image.vmdk"), scratch::file("images/flat"));
    fs::write(&path, text).unwrap();
    let extent = File::create(&flat).unwrap();
    extent.set_len(0x4_0000).unwrap();
    let link = scratch::file("images/link");
    if !link.is_symlink() {
        std::os::unix::fs::symlink(&SECRET.path, &link).unwrap();
    }
    let options = Options { path, format: Type::Stated(Format::Vmdk), ..Options::default() };
    exercise(&options, text != VMDK.as_bytes(), &mut requests);
    assert!(extent.metadata().unwrap().blocks() * 512 < MOST_ON_DISK, "the extent takes too much room");
}

/// A few requests of each kind, on a good image and on one with a word changed.
fn seeds(count: usize) -> Vec<Vec<u8>> {
    let requests = [
        5, 0, 0, 7, 0, 1, 0, 0, 7, 0, 3, 0, 0, 3, 0x0f, 4, 8, 0, 9, 0, 1, 0, 0, 20, 0, 0, 0, 0, 0, 0, 7, 0,
        0, 0, 2, 0, 0, 4, 0,
    ];
    let mut all = Vec::new();
    for image in 0..count as u8 {
        all.push([&[image, 0, 0, 0, 2 << 3][..], &requests].concat());
        for word in 0..12 {
            for how in [4 << 2 | 1, 1 << 2 | 1, 5 << 2 | 1] {
                all.push([&[image, 1, 1, how, word, 13, 0, 2 << 3][..], &requests].concat());
            }
        }
    }
    all
}

fn no_words() -> Vec<String> {
    Vec::new()
}

pub fn targets() -> Vec<Target> {
    let target = |name, about, seeds, run| Target {
        name,
        about,
        length: 512,
        options: &[],
        words: no_words,
        seeds,
        run,
    };
    vec![
        target(
            "qcow2",
            "qcow2 images that somebody damaged",
            || seeds(QCOW2.len()),
            |b| {
                run(&QCOW2, Format::Qcow2, |_| {}, b);
            },
        ),
        target(
            "vhd",
            "VHD images that somebody damaged",
            || seeds(VHD.len()),
            |b| run(&VHD, Format::Vhd, mend_vhd, b),
        ),
        target(
            "vhdx",
            "VHDX images that somebody damaged",
            || seeds(VHDX.len()),
            |b| {
                run(&VHDX, Format::Vhdx, mend_vhdx, b);
            },
        ),
        Target {
            length: 2048,
            words: || {
                [
                    "parentCID=",
                    "createType=",
                    "RW ",
                    "RDONLY ",
                    "FLAT ",
                    "VMFS ",
                    "\"flat\"",
                    "\"../secret\"",
                    "\"link\"",
                    " 0",
                    "SPARSE",
                    "# Disk DescriptorFile",
                ]
                .map(str::to_owned)
                .into()
            },
            ..target(
                "vmdk",
                "VMDK descriptors",
                || {
                    let text =
                        |text: String| [&[10, 5, 0, 0, 7, 0, 1, 0, 0, 7, 0][..], text.as_bytes()].concat();
                    let names = ["flat", "link", "../secret", "base"];
                    names.map(|name| text(VMDK.replace("\"flat\"", &format!("\"{name}\"")))).into()
                },
                run_vmdk,
            )
        },
    ]
}
