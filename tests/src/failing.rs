//! A file whose disk fails when it is told to: a file system of our own (FUSE) that passes everything on to another file, and answers
//! reads, writes and flushes with EIO, or late.
//!
//! A request that fails has done nothing. The host's page cache is kept out of it, so every request of the VMM's comes here.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::scratch::Scratch;
use crate::small;

/// The file's name and number.
const NAME: &str = "disk";
const NUMBER: INodeNo = INodeNo(2);
/// Nothing is remembered of the file by the kernel.
const NEVER: Duration = Duration::ZERO;

/// What goes wrong, of a thousand requests of each kind; and what went wrong so far.
#[derive(Debug, Default)]
struct Orders {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    delay: AtomicU64,
    asked: AtomicU64,
    failed: AtomicU64,
}

/// The file system; unmounted on drop.
#[derive(Debug)]
pub struct Failing {
    orders: Arc<Orders>,
    // Before the directory that it is mounted at.
    _session: BackgroundSession,
    _directory: Scratch,
    path: PathBuf,
}

impl Failing {
    /// Moves the calling thread to a mount namespace of its own, and shows `file` there at another [`path`](Failing::path).
    ///
    /// # Panics
    /// Needs root and `/dev/fuse`.
    pub fn mount(file: &Path) -> Failing {
        small::private_mounts();
        let directory = Scratch::new();
        let orders = Arc::<Orders>::default();
        let backing = File::options().read(true).write(true).open(file);
        let backing = backing.unwrap_or_else(|e| panic!("cannot open {}: {e}", file.display()));
        let served = Served { backing, orders: Arc::clone(&orders) };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("failing".to_owned())];
        let session = fuser::spawn_mount(served, directory.path(), &config);
        let session = session.expect("a FUSE file system can be mounted");
        Failing { orders, _session: session, path: directory.file(NAME), _directory: directory }
    }

    /// Where the file can be found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many of a thousand reads, writes and flushes fail from now on.
    pub fn fail(&self, reads: u64, writes: u64, flushes: u64) {
        self.orders.reads.store(reads, Relaxed);
        self.orders.writes.store(writes, Relaxed);
        self.orders.flushes.store(flushes, Relaxed);
    }

    /// How long each request takes from now on, to the millisecond.
    pub fn delay(&self, time: Duration) {
        self.orders.delay.store(time.as_millis() as u64, Relaxed);
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> u64 {
        self.orders.failed.load(Relaxed)
    }
}

struct Served {
    backing: File,
    orders: Arc<Orders>,
}

impl Served {
    /// Takes the time that it takes; whether the request may be done.
    fn lets(&self, chance: &AtomicU64) -> bool {
        let delay = self.orders.delay.load(Relaxed);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
        // In no order, but the same number of any thousand.
        let nth = self.orders.asked.fetch_add(1, Relaxed);
        let good = nth.wrapping_mul(617) % 1000 >= chance.load(Relaxed);
        self.orders.failed.fetch_add(u64::from(!good), Relaxed);
        good
    }

    fn metadata(&self) -> Result<Metadata, Errno> {
        self.backing.metadata().map_err(Errno::from)
    }

    fn attributes(&self, number: INodeNo) -> Result<FileAttr, Errno> {
        let metadata = self.metadata()?;
        let root = number == INodeNo::ROOT;
        Ok(FileAttr {
            ino: number,
            size: if root { 0 } else { metadata.len() },
            blocks: if root { 0 } else { metadata.blocks() },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if root { FileType::Directory } else { FileType::RegularFile },
            perm: if root { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        })
    }
}

impl Filesystem for Served {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT || name != NAME {
            return reply.error(Errno::ENOENT);
        }
        match self.attributes(NUMBER) {
            Ok(attributes) => reply.entry(&NEVER, &attributes, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _file: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Ok(attributes) => reply.attr(&NEVER, &attributes),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _file: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = size.map_or(Ok(()), |size| self.backing.set_len(size)).map_err(Errno::from);
        match done.and_then(|()| self.attributes(number)) {
            Ok(attributes) => reply.attr(&NEVER, &attributes),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        _file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if !self.lets(&self.orders.reads) {
            return reply.error(Errno::EIO);
        }
        let mut bytes = vec![0; size as usize];
        match self.backing.read_at(&mut bytes, offset) {
            Ok(count) => reply.data(&bytes[..count]),
            Err(e) => reply.error(e.into()),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        _file: FileHandle,
        offset: u64,
        bytes: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if !self.lets(&self.orders.writes) {
            return reply.error(Errno::EIO);
        }
        match self.backing.write_all_at(bytes, offset) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(e) => reply.error(e.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        match self.lets(&self.orders.flushes) {
            true => reply.ok(),
            false => reply.error(Errno::EIO),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        _file: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if !self.lets(&self.orders.writes) {
            return reply.error(Errno::EIO);
        }
        // SAFETY: a plain system call on an open file.
        let done = unsafe { libc::fallocate(self.backing.as_raw_fd(), mode, offset as i64, length as i64) };
        match done {
            0 => reply.ok(),
            _ => reply.error(std::io::Error::last_os_error().into()),
        }
    }
}
