//! The functions of a program, and the list of those that a start executes (`vmm/functions.order`), by which the linker lays them out.
//!
//! Names hold hashes: of the compiler, and of the versions and features of crates and of all that those depend on. The linker passes names over
//! that the program does not have, and so the list of an older program does less and less, in silence.

use std::collections::HashSet;
use std::io::{Error, Write};
use std::path::Path;
use std::process::Command;

/// The functions of a program.
pub struct Functions(Vec<(u64, String)>);

impl Functions {
    /// Reads them from its symbols, by nm.
    ///
    /// # Errors
    /// It is no program, or there is no nm.
    pub fn of(program: &Path) -> Result<Functions, Error> {
        let text = told("nm", &["--defined-only", "--numeric-sort"], program)?;
        let functions = text.lines().filter_map(|line| {
            let mut words = line.splitn(3, ' ');
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            "tTwWi".contains(words.next()?).then_some((address, words.next()?.to_owned()))
        });
        Ok(Functions(functions.collect()))
    }

    /// The function that this address, relative to the program's begin, lies in.
    pub fn at(&self, address: u64) -> Option<&str> {
        let after = self.0.partition_point(|(begin, _)| *begin <= address);
        self.0.get(after.checked_sub(1)?).map(|(_, name)| name.as_str())
    }

    /// Their names, in the order of their addresses.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, name)| name.as_str())
    }
}

/// The compiler that made a program, with its version, as the program itself tells it.
///
/// # Errors
/// It does not tell, or there is no readelf.
pub fn compiler(program: &Path) -> Result<String, Error> {
    let text = told("readelf", &["--string-dump=.comment"], program)?;
    let found = text.lines().find_map(|line| line.find("rustc version ").map(|at| line[at..].to_owned()));
    found.ok_or_else(|| Error::other(format!("{} does not tell its compiler", program.display())))
}

/// What one of binutils tells of a program.
fn told(tool: &str, words: &[&str], program: &Path) -> Result<String, Error> {
    let output = Command::new(tool).args(words).arg(program).output();
    let output = output.map_err(|e| Error::new(e.kind(), format!("{tool}: {e}")))?;
    if !output.status.success() {
        return Err(Error::other(format!("{tool}: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What writes the list.
pub const RECORDS: &str = "scripts/bench --function-order";

/// How many of a hundred names may be of functions that are no more. A change of what a start executes is one or two; another version of a crate that
/// many depend on is half of them.
const STALE: usize = 5;

/// The list.
pub struct Order {
    /// The compiler of the program that it was recorded with.
    pub compiler: String,
    /// The functions in the order of their first execution.
    pub names: Vec<String>,
}

const COMPILER: &str = "# The program's compiler: ";

impl Order {
    /// Reads the text of a list.
    ///
    /// # Errors
    /// It does not tell its compiler, or is empty.
    pub fn read(text: &str) -> Result<Order, Error> {
        let lacks = |what: &str| Error::other(format!("the list has no {what}: write it by {RECORDS}"));
        let compiler = text.lines().find_map(|line| line.strip_prefix(COMPILER));
        let names: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        match compiler {
            None => Err(lacks("compiler")),
            Some(_) if names.is_empty() => Err(lacks("functions")),
            Some(compiler) => Ok(Order { compiler: compiler.to_owned(), names }),
        }
    }

    /// Writes it as the linker takes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, mut to: impl Write) -> Result<(), Error> {
        writeln!(
            to,
            "# Functions in the order in which a start executes them; `{RECORDS}` writes this file."
        )?;
        writeln!(to, "{COMPILER}{}", self.compiler)?;
        self.names.iter().try_for_each(|name| writeln!(to, "{name}"))
    }

    /// Holds the list against the functions of the program that was linked by it; returns how many of its names are of none.
    ///
    /// # Errors
    /// These are too many: how many, some of them, and what to do.
    pub fn check(&self, functions: &Functions) -> Result<usize, String> {
        let there: HashSet<&str> = functions.names().collect();
        let stale: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| !there.contains(name)).collect();
        let (count, all) = (stale.len(), self.names.len());
        if count * 100 <= all * STALE {
            return Ok(count);
        }
        let some: Vec<&str> = stale.into_iter().step_by(count.div_ceil(5)).collect();
        Err(format!(
            "{count} of the {all} functions in vmm/functions.order are not in the program, and at most {STALE} % may be, since a start touches more \
             pages of a program that is laid out by such a list: write it anew by {RECORDS}. Among them are:\n  {}",
            some.join("\n  ")
        ))
    }
}
