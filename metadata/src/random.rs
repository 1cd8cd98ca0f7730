//! Random bytes from the kernel.

use std::io;

/// Draws some; `N` is at most 256.
///
/// # Errors
/// What the kernel answered.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    loop {
        // SAFETY: `bytes` is writable for its length; up to 256 bytes are given whole or not at all.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
        if usize::try_from(count) == Ok(N) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if count >= 0 || error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
