//! The way into a jail (`--jail`): what the process keeps of the host, and what it takes along.

use std::os::fd::RawFd;

use catalog::{JailSpec, RestoreRequest, VmSpec};
use clap::ArgMatches;
use sandbox::jail::{self, Side};
use sandbox::{HostPath, Mode, Use};
use spec::Refusal;

use crate::cli;
use crate::control::userfault_device;

/// A jail that is to be entered.
pub struct Cell {
    spec: JailSpec,
    /// The descriptors that the process was started with.
    inherited: Vec<RawFd>,
}

impl Cell {
    /// Called before anything is opened.
    ///
    /// # Errors
    /// The host does not say which descriptors there are.
    pub fn begin(spec: JailSpec) -> Result<Cell, Refusal> {
        let inherited =
            jail::inherited().map_err(|e| Refusal::host("Cannot list the descriptors of the process", e))?;
        Ok(Cell { spec, inherited })
    }

    /// Enters it with the machine that the command line describes or, if it says how to `restore` one, speaks of. Everything else
    /// that the process needs of the host is open.
    ///
    /// # Errors
    /// A path that is not there, a tap that cannot be had, or what the host refused.
    pub fn enter(
        self,
        matches: &ArgMatches,
        machine: Option<&mut VmSpec>,
        restore: Option<&RestoreRequest>,
        mode: Mode,
    ) -> Result<Side, Refusal> {
        let mut needed = cli::descriptors(matches);
        let mut paths = VmSpec::rules_from_matches(matches)?;
        if let Some(restore) = restore {
            needed.extend(restore.lend());
            paths.push(HostPath::new(restore.restore.directory()?, Use::Read));
            paths.extend(userfault_device(&restore.restore));
        }
        match machine {
            Some(machine) => {
                needed.extend(machine.lent());
                machine.ahead()?;
                paths.extend(machine.paths()?);
            }
            // It is described later, and has at least what every machine has.
            None => paths.extend(VmSpec::default().paths()?),
        }
        jail::close_all_but(&self.inherited, &needed);
        jail::enter(&self.spec.plan(paths), mode).map_err(|e| Refusal::host("Cannot enter the jail", e))
    }
}
