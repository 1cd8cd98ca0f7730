//! qcow2, versions 2 and 3 (QEMU's `docs/interop/qcow2.txt`).
//!
//! ```text
//!   disk position ─► L1 table ─► L2 table ─► cluster in the file │ zeros │ compressed │ nothing: the backing image
//!                    in memory   cached      (of extended entries: subcluster)
//!   cluster in the file ─► refcount table ─► refcount block ─► how often it is used
//!                          in memory         cached
//! ```
//!
//! Tables are changed in memory and written when the guest flushes, in an order that leaves a valid image behind wherever it stops:
//! reference counts go up before something refers to a cluster, and down when nothing does any more. An image that was not closed in
//! order may have clusters that are counted and not used (`qemu-img check` says "leaked"), never the reverse.
//!
//! Images come from anywhere: whatever they say is checked when it is used. Clusters that hold metadata are known from the start
//! and are never written as data. Never done: encryption, external data files, changes of snapshots inside the image, which stay as they are.

mod cache;
mod compressed;
mod entry;
mod header;
mod refcount;
mod state;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::Format;
use crate::image::{Image, Opened, Options, Type};
use crate::map::{Generation, MOST_ZEROED, Map, Place};
use crate::storage::Storage;
use crate::{Error, Result};

use header::{Compression, Header};
use state::State;

/// The most images that one may build upon.
const MAX_CHAIN: usize = 64;

/// Most clusters that are zeroed in one go: a few milliseconds for their entries.
const MOST_CLUSTERS_ZEROED: u64 = 1 << 14;

/// Bits of L1 and L2 entries.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What does not change.
#[derive(Debug)]
struct Layout {
    storage: Arc<Storage>,
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    compression: Compression,
    /// L2 entries have 128 bits, and speak of subclusters.
    extended: bool,
    backing: Option<Arc<Image>>,
    /// Writes to places in the file that have not ended, by generation.
    writes: [AtomicU64; 2],
}

impl Layout {
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Binary logarithm of the entries of an L2 table.
    fn l2_bits(&self) -> u32 {
        header::l2_bits(self.cluster_bits, self.extended)
    }

    /// Whether the backing image has something at this position.
    fn is_backed(&self, offset: u64) -> bool {
        self.backing.as_ref().is_some_and(|image| offset < image.size())
    }

    fn corrupt(&self, what: &str) -> io::Error {
        let path = self.storage.path().display();
        io::Error::new(io::ErrorKind::InvalidData, format!("{path} is corrupt, run qemu-img check: {what}"))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    layout: Layout,
    /// Held while the file is read or written for metadata and for copying clusters, never while the guest's data moves.
    state: Mutex<State>,
}

impl Qcow2 {
    /// Opens an image. `above` are the inodes of those that build upon it.
    pub(crate) fn open(
        storage: Arc<Storage>,
        options: &Options,
        stated: bool,
        above: &[(u64, u64)],
    ) -> Result<Opened> {
        let path = storage.path().to_owned();
        let malformed = |what: String| Error::malformed(&path, Format::Qcow2, what);
        let inspect = |what| {
            let path = path.clone();
            move |source| Error::Inspect { path, what, source }
        };
        let writable = !storage.readonly();
        let mut start = vec![0; (2 << 20).min(storage.length()) as usize];
        storage.read_at(0, &mut start).map_err(inspect("header"))?;
        // All of the header is in the first cluster, whose size is at a fixed place in it.
        let bits = start.get(23).copied().unwrap_or(0).clamp(9, 21);
        start.truncate(1 << bits);
        let header = Header::parse(&start, writable).map_err(malformed)?;
        let backing = backing(&header, options, stated, storage.inode(), above)?;
        let size = header.size;
        let layout = Layout {
            version: header.version,
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            compression: header.compression,
            extended: header.extended,
            backing,
            writes: Default::default(),
            storage: storage.clone(),
        };
        let state = State::open(&layout, &header, writable).map_err(inspect("tables"))?;
        if writable && header.autoclear != 0 {
            // What these stand for is out of date once we have written.
            storage.write_at(header::AUTOCLEAR_AT, &[0; 8]).map_err(inspect("header"))?;
        }
        let map = Qcow2 { layout, state: Mutex::new(state) };
        Ok(Opened { storage, map: Some(Arc::new(map)), size })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the image that one builds upon.
fn backing(
    header: &Header,
    options: &Options,
    stated: bool,
    inode: (u64, u64),
    above: &[(u64, u64)],
) -> Result<Option<Arc<Image>>> {
    let Some(name) = &header.backing else { return Ok(None) };
    let path = &options.path;
    let refuse = |what: String| Err(Error::malformed(path, Format::Qcow2, what));
    if !(options.backing_files && stated) {
        return refuse(format!(
            "it builds upon {name:?}; say image_type=qcow2,backing_files=on to allow that"
        ));
    }
    if above.len() >= MAX_CHAIN {
        return refuse(format!("more than {MAX_CHAIN} images build upon each other"));
    }
    let format = match header.backing_format.as_deref() {
        Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some("vpc") => Format::Vhd,
        Some(other) => return refuse(format!("it builds upon a {other:?} image, which cannot be used")),
        // The content of a raw image is the guest's, and must not decide.
        None => {
            return refuse(format!(
                "it does not say of what format {name:?} is; state it with qemu-img rebase -u -F <format> -b <name>"
            ));
        }
    };
    // "nbd://…", "json:…": not a file.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return refuse(format!("it builds upon {name:?}, which is no path"));
    }
    let below = Options {
        path: resolve(path, name),
        readonly: true,
        direct: false,
        format: Type::Stated(format),
        ..options.clone()
    };
    let mut chain = above.to_vec();
    chain.push(inode);
    let image = Image::open_in_chain(&below, &chain)
        .map_err(|source| Error::Backing { path: path.clone(), source: Box::new(source) })?;
    Ok(Some(image))
}

/// Names are relative to the image's own directory.
fn resolve(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(image).join(name)
}

impl Map for Qcow2 {
    fn below(&self) -> Vec<Arc<Storage>> {
        self.layout.backing.as_ref().map(|image| image.files()).unwrap_or_default()
    }

    fn find(&self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let (layout, mut state) = (&self.layout, self.state());
        let (first, mut run) = state.find(layout, offset)?;
        // Clusters that go on where the last one ended are one run.
        while run < length {
            let (next, more) = state.find(layout, offset + run)?;
            let goes_on = match (first, next) {
                (Place::File { file, at }, Place::File { file: other, at: next }) => {
                    file == other && at.checked_add(run) == Some(next)
                }
                (a, b) => a == b,
            };
            if !goes_on {
                break;
            }
            run += more;
        }
        Ok((first, run.min(length)))
    }

    fn make_place(&self, offset: u64, length: u64) -> io::Result<(u64, u64, Generation)> {
        let (layout, mut state) = (&self.layout, self.state());
        let mask = layout.cluster() - 1;
        let first = state.make_place(layout, offset, length)? + (offset & mask);
        let mut run = layout.cluster() - (offset & mask);
        while run < length {
            // A cluster that is somewhere else has its place nevertheless, and is found there the next time.
            let Ok(next) = state.make_place(layout, offset + run, length - run) else { break };
            if first.checked_add(run) != Some(next) {
                break;
            }
            run += layout.cluster();
        }
        let generation = state.generation();
        layout.writes[usize::from(generation & 1)].fetch_add(1, Ordering::AcqRel);
        Ok((first, run.min(length), Generation(generation)))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.state().read(&self.layout, offset, buffer)
    }

    fn most_zeroed(&self) -> u64 {
        (MOST_CLUSTERS_ZEROED * self.layout.cluster()).min(MOST_ZEROED)
    }

    fn zero(&self, offset: u64, length: u64, may_free: bool) -> io::Result<()> {
        let (layout, mut state) = (&self.layout, self.state());
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let unit = match state.has_table(layout, at) {
                true => layout.cluster(),
                // Nothing to zero as far as the table would reach.
                false => layout.cluster() << layout.l2_bits(),
            };
            let next = (at | (unit - 1)).saturating_add(1).min(end);
            if unit == layout.cluster() {
                state.zero(layout, at, next - at, may_free)?;
            }
            at = next;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.state().flush(&self.layout)
    }

    fn written(&self, generation: Generation) {
        self.layout.writes[usize::from(generation.0 & 1)].fetch_sub(1, Ordering::AcqRel);
    }

    fn grow(&self, size: u64) -> io::Result<()> {
        self.state().grow(&self.layout, size)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.layout.storage.readonly() {
            return;
        }
        let Qcow2 { layout, state } = self;
        let state = state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = state.close(layout) {
            log::warn!("cannot write the tables of disk image {}: {error}", layout.storage.path().display());
        }
    }
}
