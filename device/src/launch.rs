//! Programs that serve devices: a filtered thread starts none, so somebody else does, who was there before the filters.

use std::os::unix::net::UnixStream;

/// Who starts programs that serve devices.
pub trait Launcher: Send + Sync {
    /// Has the program of device `id` started, in the place of one that is there; one end of a connection to it. `task` says what it is
    /// to do, in words that the device and the launcher agree on.
    ///
    /// # Errors
    /// Why it is not started, in words for a user.
    fn start(&self, id: &str, task: &str) -> Result<UnixStream, String>;

    /// How the program that was last started for device `id` ended, with its last words, if it has ended.
    fn ended(&self, id: &str) -> Option<String>;
}
