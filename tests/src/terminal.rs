//! A terminal for a program under test, its other end in the test's hands.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Both ends. The program's end stays open here too, so that its settings can be looked at when the program is gone.
#[derive(Debug)]
pub struct Terminal {
    ours: File,
    programs: File,
    came: Vec<u8>,
}

/// A terminal's settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// Flags of input, output, control and local mode.
    flags: [libc::tcflag_t; 4],
    characters: Vec<libc::cc_t>,
}

impl Terminal {
    /// Makes a terminal with the settings that a new one has.
    pub fn new() -> Terminal {
        let (mut ours, mut programs) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: the two out parameters are ours; name, settings and size may be null.
        let made = unsafe { libc::openpty(&mut ours, &mut programs, null, null.cast(), null.cast()) };
        assert!(made == 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: plain system calls on descriptors just made.
        unsafe {
            libc::fcntl(ours, libc::F_SETFL, libc::O_NONBLOCK);
            libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(programs, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        // SAFETY: openpty gave them to us alone.
        let (ours, programs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(programs)) };
        Terminal { ours, programs, came: Vec::new() }
    }

    /// The program's end, once more, for its standard input or output.
    pub fn program_end(&self) -> OwnedFd {
        self.programs.try_clone().expect("a descriptor can be duplicated").into()
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.ours.write_all(text.as_bytes()).expect("the terminal takes a line");
    }

    /// Waits up to ten seconds for `text` to be shown; whether it was.
    pub fn shows(&mut self, text: &str) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if String::from_utf8_lossy(&self.came).contains(text) {
                return true;
            }
            let mut part = [0; 1024];
            match self.ours.read(&mut part) {
                Ok(len) => self.came.extend(&part[..len]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                Err(e) => panic!("the terminal cannot be read: {e}"),
            }
        }
        false
    }

    /// Everything that has been shown so far.
    pub fn shown(&mut self) -> String {
        let mut part = [0; 4096];
        // Nothing more to read is an error too.
        while let Ok(len @ 1..) = self.ours.read(&mut part) {
            self.came.extend(&part[..len]);
        }
        String::from_utf8_lossy(&self.came).into_owned()
    }

    /// Its settings, for comparison.
    pub fn settings(&self) -> Settings {
        // SAFETY: zeroes are a valid termios.
        let mut settings = unsafe { std::mem::zeroed::<libc::termios>() };
        // SAFETY: a terminal's descriptor and a termios to fill.
        let got = unsafe { libc::tcgetattr(self.programs.as_raw_fd(), &mut settings) };
        assert!(got == 0, "tcgetattr: {}", std::io::Error::last_os_error());
        let libc::termios { c_iflag, c_oflag, c_cflag, c_lflag, c_cc, .. } = settings;
        Settings { flags: [c_iflag, c_oflag, c_cflag, c_lflag], characters: c_cc.to_vec() }
    }

    /// Whether it echoes what is typed and collects lines, as a shell expects to find it.
    pub fn is_cooked(&self) -> bool {
        let local = self.settings().flags[3];
        local & (libc::ECHO | libc::ICANON) == libc::ECHO | libc::ICANON
    }
}

impl Default for Terminal {
    fn default() -> Terminal {
        Terminal::new()
    }
}
