//! Images of disks: files in the page cache, or not at all in it; removed when they are not needed any more.
//!
//! Those that are used past the page cache are files of their own: who writes there throws out what is cached, which is work that others are spared
//! then, and who reads through the cache afterwards finds nothing.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::grid::Place;
use crate::load::Setting;
use crate::rows::Rows;
use crate::served::unique;

/// The formats that rows are about; the first is what the others are made of.
const FORMATS: [&str; 2] = ["raw", "qcow2"];

/// How long a program that has ended may keep it.
const LIMIT: Duration = Duration::from_secs(20);

/// An image; removed on drop.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    format: &'static str,
    direct: bool,
}

impl Image {
    const SIZE: u64 = 256 << 20;

    /// One of zeroes, which take no room.
    pub(crate) fn empty(directory: &Path, len: u64) -> Result<Image, Error> {
        let (image, file) = Image::create(directory)?;
        file.set_len(len)?;
        Ok(image)
    }

    fn create(directory: &Path) -> Result<(Image, File), Error> {
        let path = directory.join(format!("bench-{}-{}.raw", std::process::id(), unique()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok((Image { path, format: FORMATS[0], direct: false }, file))
    }

    /// One full of noise.
    pub(crate) fn new(directory: &Path) -> Result<Image, Error> {
        let (image, mut file) = Image::create(directory)?;
        let mut noise = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut noise)?;
        for _ in 0..Self::SIZE >> 20 {
            file.write_all(&noise)?;
        }
        // On the disk, so that no write-back runs during the measurement; and read, so that it is cached.
        file.sync_all()?;
        for at in (0..Self::SIZE).step_by(noise.len()) {
            file.read_exact_at(&mut noise, at)?;
        }
        Ok(image)
    }

    /// The same disk in every format that it can be had in, each to be used through the host's page cache and once more past it.
    pub(crate) fn of_formats(
        setting: &Setting<'_>,
        rows: &mut Rows,
        section: &str,
    ) -> Result<Vec<Image>, Error> {
        let raw = || Image::new(setting.scratch);
        let mut images = vec![raw()?, raw()?.uncached()?];
        for format in &FORMATS[1..] {
            let both = images[0].converted(format).and_then(|cached| {
                let other = images[1].converted(format)?.uncached()?;
                Ok([cached, other])
            });
            match both {
                Ok(both) => images.extend(both),
                Err(e) => rows.skip(format!("{section}: no {format} image by qemu-img: {e}")),
            }
        }
        // The other one was read again for that.
        images[1].forget()?;
        Ok(images)
    }

    /// The same disk in another format.
    fn converted(&self, format: &'static str) -> Result<Image, Error> {
        let image = Image { path: self.path.with_extension(format), format, direct: false };
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", self.format, "-O", format]).arg(&self.path).arg(&image.path);
        let output = command.output()?;
        if !output.status.success() {
            return Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        File::open(&image.path)?.sync_all()?;
        // In the page cache.
        std::io::copy(&mut File::open(&image.path)?, &mut std::io::sink())?;
        Ok(image)
    }

    /// It is to be used past the page cache.
    fn uncached(mut self) -> Result<Image, Error> {
        self.forget()?;
        self.direct = true;
        Ok(self)
    }

    /// Has the kernel forget what it has of it in the page cache, which is on the disk as well.
    fn forget(&self) -> Result<(), Error> {
        let file = File::open(&self.path)?;
        // SAFETY: no pointers are passed.
        match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            error => Err(Error::from_raw_os_error(error)),
        }
    }

    /// Waits until nobody has it locked: the kernel lets go of it for a killed program when that one's last request is done.
    pub(crate) fn wait_unlocked(path: &Path) -> Result<(), Error> {
        let file = File::options().read(true).write(true).open(path)?;
        let begun = Instant::now();
        loop {
            // SAFETY: all zeroes are a valid question: about the whole file.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = libc::F_WRLCK as libc::c_short;
            // SAFETY: asks with a valid question, and has the answer written there.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } < 0 {
                return Err(Error::last_os_error());
            }
            if lock.l_type == libc::F_UNLCK as libc::c_short {
                return Ok(());
            }
            if begun.elapsed() > LIMIT {
                return Err(Error::other(format!("{} stays locked", path.display())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it is and how it is to be used.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { path: &self.path, format: self.format, direct: self.direct }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != ErrorKind::NotFound
        {
            eprintln!("bench: cannot remove {}: {e}", self.path.display());
        }
    }
}
