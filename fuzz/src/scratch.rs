//! A directory in memory for the files of one target.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

/// The directory: that of `VIRGA_FUZZ_SCRATCH`, which whoever set it removes, or one in `/dev/shm` that stays.
pub static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let own = || PathBuf::from(format!("/dev/shm/virga-fuzz-{}", std::process::id()));
    let path = std::env::var_os("VIRGA_FUZZ_SCRATCH").map_or_else(own, PathBuf::from);
    fs::create_dir_all(path.join("images")).expect("a directory for files");
    path
});

/// A file in it.
pub fn file(name: &str) -> PathBuf {
    SCRATCH.join(name)
}
