//! A file system that is full: requests fail, nothing else does.

#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use block::{Choice, Engine, Format, Image, Options, Segment, Type};
use vmm_sys_util::tempdir::TempDir;

const INSIDE: &str = "BLOCK_TEST_INSIDE";
const MIB: usize = 1 << 20;

/// Runs this test again in a namespace of mounts of its own.
fn outside(test: &str) {
    let dir = TempDir::new().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, dir.as_path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

fn mount_small(at: &Path) {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: all of them are C strings.
    let result = unsafe {
        libc::mount(c"tmpfs".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=1m".as_ptr().cast())
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn wait(engine: &mut dyn Engine) -> io::Result<u32> {
    let mut last = None;
    engine.drain(&mut |_, result| last = Some(result)).unwrap();
    last.unwrap()
}

#[test]
fn a_full_file_system_fails_writes_and_nothing_else() {
    let Some(dir) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        return outside("a_full_file_system_fails_writes_and_nothing_else");
    };
    mount_small(&dir);
    let path = dir.join("image");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let options = Options { path, format: Type::Stated(Format::Raw), ..Options::default() };
    let image = Image::open(&options).unwrap();
    let mut memory = vec![0x5au8; 2 * MIB];
    let all = Segment::new(memory.as_mut_ptr(), memory.len());
    let some = Segment::new(memory.as_mut_ptr(), MIB / 4);
    for (io_uring, aio) in [(true, true), (false, true), (false, false)] {
        let mut engine = image.engine(16, Choice { io_uring, aio });
        for _ in 0..3 {
            // SAFETY: the memory outlives the engine.
            unsafe { engine.write(0, &[all], 1).unwrap() };
            assert_eq!(wait(&mut *engine).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
        engine.discard(0, 2 * MIB as u64, 1).unwrap();
        wait(&mut *engine).unwrap();
        // SAFETY: as above.
        unsafe { engine.write(0, &[some], 1).unwrap() };
        assert_eq!(wait(&mut *engine).unwrap(), MIB as u32 / 4);
        engine.flush(1).unwrap();
        wait(&mut *engine).unwrap();
        engine.discard(0, MIB as u64, 1).unwrap();
        wait(&mut *engine).unwrap();
        // Small ones, each beginning where the one before ends: all succeed until there is no room, and those beyond fail.
        let mut failed = Vec::new();
        for batch in 0..32 {
            for n in batch * 16..batch * 16 + 16 {
                let page = Segment::new(memory.as_mut_ptr(), 4096);
                // SAFETY: as above.
                unsafe { engine.write(n * 4096, &[page], n).unwrap() };
            }
            engine
                .drain(&mut |n, result| {
                    if let Err(error) = result {
                        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                        failed.push(n);
                    }
                })
                .unwrap();
        }
        failed.sort_unstable();
        // The file system has 256 pages, some of which may be used by the directory.
        let first = failed[0];
        assert!((200..=256).contains(&first), "{first}");
        assert!(failed.len() as u64 >= 512 - 256, "{failed:?}");
        engine.discard(0, 2 * MIB as u64, 1).unwrap();
        wait(&mut *engine).unwrap();
    }
}
