//! Talking to a guest over a byte stream: what comes is collected by a thread, and waited for by its text.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How many bytes of the end of a stream an error shows.
const TAIL: usize = 6000;

#[derive(Default)]
struct Come {
    bytes: Vec<u8>,
    ended: bool,
}

/// One end of a terminal, a socket or a pipe, read by a thread of its own.
pub struct Wire {
    writer: File,
    come: Arc<(Mutex<Come>, Condvar)>,
    /// How much of what came has been waited for.
    seen: usize,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Wire {
    /// Takes the stream behind `fd`.
    pub fn new(fd: OwnedFd) -> Wire {
        let writer = File::from(fd);
        let mut reader = writer.try_clone().expect("a descriptor can be duplicated");
        let come = Arc::<(Mutex<Come>, Condvar)>::default();
        let theirs = Arc::clone(&come);
        // It ends when the other side closes the stream, at the latest with the test's process.
        std::thread::Builder::new()
            .name("wire".to_string())
            .spawn(move || {
                let mut buffer = [0; 4096];
                loop {
                    let got = match reader.read(&mut buffer) {
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                        Ok(count) => count,
                        Err(_) => 0, // a pty whose other side is closed answers EIO
                    };
                    let mut come = theirs.0.lock().expect("nobody panics with this lock held");
                    come.bytes.extend_from_slice(&buffer[..got]);
                    come.ended = got == 0;
                    theirs.1.notify_all();
                    if got == 0 {
                        return;
                    }
                }
            })
            .expect("a thread can be started");
        Wire { writer, come, seen: 0 }
    }

    /// A pseudo terminal in raw mode, 24 rows by 80 columns: our end, and the one to give away.
    pub fn pty() -> (Wire, OwnedFd) {
        let (mut ours, mut theirs) = (0, 0);
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: a termios of zeroes is a valid value; cfmakeraw writes one; openpty writes two descriptors and reads the rest.
        let (status, theirs) = unsafe {
            let mut raw: libc::termios = std::mem::zeroed();
            libc::cfmakeraw(&mut raw);
            raw.c_cflag |= libc::CREAD | libc::B38400;
            (libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), &raw, &size), theirs)
        };
        assert_eq!(status, 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: openpty made both and gave them to us.
        unsafe {
            // Without it a child that outlived its machine would keep the terminal open.
            libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC);
            (Wire::new(OwnedFd::from_raw_fd(ours)), OwnedFd::from_raw_fd(theirs))
        }
    }

    /// Opens a terminal device, which the other side has put in raw mode.
    pub fn terminal(path: &Path) -> Wire {
        let file = File::options().read(true).write(true).open(path);
        Wire::new(file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display())).into())
    }

    /// Connects to a listening socket.
    pub fn socket(path: &Path) -> Wire {
        let stream = UnixStream::connect(path);
        Wire::new(stream.unwrap_or_else(|e| panic!("cannot connect to {}: {e}", path.display())).into())
    }

    /// Tells a pty of ours another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the ioctl reads a winsize.
        let status = unsafe { libc::ioctl(self.writer.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(status, 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).expect("the other side takes what we write");
    }

    /// Waits until `text` comes, and returns what came before it since the last such wait; nothing if the stream ends or
    /// `patience` is over.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        let come = Arc::clone(&self.come);
        let mut state = lock(&come);
        let mut from = self.seen; // searched so far
        loop {
            if let Some(at) = find(&state.bytes[from..], text.as_bytes()) {
                let before = String::from_utf8_lossy(&state.bytes[self.seen..from + at]).into_owned();
                self.seen = from + at + text.len();
                return Some(before);
            }
            from = self.seen.max(state.bytes.len().saturating_sub(text.len()));
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = come.1.wait_timeout(state, left).expect("nobody panics with this lock held").0;
        }
    }

    /// Everything that has come.
    pub fn everything(&self) -> String {
        String::from_utf8_lossy(&lock(&self.come).bytes).into_owned()
    }

    /// What has come since the last text that was waited for.
    pub fn unseen(&self) -> String {
        String::from_utf8_lossy(&lock(&self.come).bytes[self.seen..]).into_owned()
    }

    /// The end of what has come.
    pub fn tail(&self) -> String {
        let state = lock(&self.come);
        String::from_utf8_lossy(&state.bytes[state.bytes.len().saturating_sub(TAIL)..]).replace('\r', "")
    }
}

fn lock(come: &(Mutex<Come>, Condvar)) -> MutexGuard<'_, Come> {
    come.0.lock().expect("nobody panics with this lock held")
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_piece_by_piece_and_the_end_is_noticed() {
        let (mut wire, theirs) = Wire::pty();
        let mut other = File::from(theirs);
        other.write_all(b"one two").expect("a pty takes bytes");
        assert_eq!(wire.wait_for(" tw", Duration::from_secs(5)).as_deref(), Some("one"));
        other.write_all(b" three").expect("a pty takes bytes");
        assert_eq!(wire.wait_for("three", Duration::from_secs(5)).as_deref(), Some("o "));
        wire.send(b"back");
        let mut back = [0; 4];
        other.read_exact(&mut back).expect("a pty gives bytes");
        assert_eq!(&back, b"back");
        assert_eq!(wire.wait_for("four", Duration::from_millis(20)), None);
        drop(other);
        assert_eq!(wire.wait_for("four", Duration::from_secs(60)), None);
        assert_eq!(wire.tail(), "one two three");
    }
}
