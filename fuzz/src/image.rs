//! Disk images that somebody damaged: opened, read, written, zeroed, cut and grown.
//!
//! An input is a good image's number, changes to it, and requests. An image that was not changed must behave like a disk: what is read
//! is what was written. A changed one may hold anything, but never the content of a file outside of its directory, and no file
//! there is ever written to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, LazyLock};

use block::{Choice, Engine, Format, Image, Options, Segment, Type};

use crate::damage::{Good, Mend, QCOW2, SECRET, SECTOR, VHD, VHDX, damage, mend_vhd, mend_vhdx};
use crate::input::Input;
use crate::{Target, scratch};

/// What damaged metadata may make of a file. Images of 10 MiB and requests of less than one do not need more.
const MOST_ON_DISK: u64 = 64 << 20;
/// Most bytes of one request.
const MOST: u64 = 256 << 10;

const VMDK: &str = "# Disk DescriptorFile\nversion=1\nCID=bed71d83\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
                    # Extent description\nRW 512 FLAT \"flat\" 0\n\n# The Disk Data Base\n#DDB\nddb.adapterType = \"ide\"\n";

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
        assert!(damaged || options.readonly, "a good image is refused: {:?}", Image::open(options).map(drop));
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
