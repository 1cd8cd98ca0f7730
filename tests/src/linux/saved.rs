//! A machine that one VMM has saved, and others bring back.

use std::path::PathBuf;
use std::process::Command;

use super::{Line, Running, unique};
use crate::{place, programs};

/// A snapshot in the story's scratch directory. The guest's shell waits for a command in it.
#[derive(Debug)]
pub struct Saved {
    directory: PathBuf,
    root: bool,
    description: String,
}

impl Running {
    /// Pauses the machine, saves it, and ends its VMM. The console is a pty ([`Linux::console_pty`](super::Linux::console_pty)), for the
    /// restored machine has another VMM's terminal.
    #[track_caller]
    pub fn save(mut self) -> Saved {
        let directory = place::scratch().join(format!("{}.snapshot", unique()));
        std::fs::create_dir(&directory).expect("the scratch directory takes another");
        self.ask(&["pause"]);
        self.ask(&["snapshot", &format!("file://{}", directory.display())]);
        let (root, description) = (self.root, self.description.clone());
        self.terminate();
        self.ends_well();
        Saved { directory, root, description }
    }
}

impl Saved {
    /// Removes it; machines that were restored from it go on.
    pub fn forget(self) {
        std::fs::remove_dir_all(&self.directory).expect("the snapshot is there");
    }

    /// Goes on with it in a new process, on what `arguments` replace.
    #[track_caller]
    pub fn restore(&self, mode: &str, arguments: &[&str]) -> Running {
        let url = self.directory.display();
        let mut command = Command::new(programs::cloud_hypervisor());
        command.arg("--restore");
        command.arg(format!("source_url=file://{url},memory_restore_mode={mode},resume=on")).args(arguments);
        Running::launch(command, Line::Pty, self.root, format!("{}, restored by {mode}", self.description))
    }
}
