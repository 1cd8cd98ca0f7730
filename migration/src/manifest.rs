//! `state.json`: what a snapshot consists of, and the states of the machine's devices.
//!
//! One JSON object whose last member is the checksum of all bytes before it. It is read in three steps: form and version, which may be
//! unknown to this program; then the checksum; then the rest, strictly.

use std::path::Path;

use device::Span;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;
use crate::{Error, PAGE};

/// What `format` says.
const FORMAT: &str = "virga-snapshot";
/// The version that is written.
const VERSION: u32 = 1;
/// The longest `config.json` or `state.json`, in bytes.
pub const TEXT_LIMIT: u64 = 64 << 20;
/// The most memory, in bytes, that the values of either may take; see [`check_values`].
pub(crate) const VALUES_LIMIT: u64 = 512 << 20;
/// The most ranges of memory. A machine has one or two, and some more for what is added to it.
const RANGES: usize = 1024;
/// The most pages of memory whose checksums are kept for a look at a file that is not read as a whole.
pub(crate) const SAMPLES: usize = 16;
/// As many again that the caller named.
pub(crate) const MARKS: usize = 16;

const TAIL_START: &str = ",\"checksum\":\"";
const TAIL_END: &str = "\"}\n";
const TAIL: usize = TAIL_START.len() + 8 + TAIL_END.len();

#[derive(Serialize)]
struct Writing<'a, M> {
    format: &'a str,
    version: u32,
    architecture: &'a str,
    program: &'a str,
    config: &'a ConfigFacts,
    memory: &'a MemoryFacts,
    machine: &'a M,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reading<M> {
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    #[serde(rename = "architecture")]
    _architecture: IgnoredAny,
    program: String,
    config: ConfigFacts,
    memory: MemoryFacts,
    machine: M,
    #[serde(rename = "checksum")]
    _checksum: Checksum,
}

/// The members that stay the same in every version.
#[derive(Deserialize)]
struct Heading {
    #[serde(default)]
    format: String,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    architecture: String,
}

/// What is known of `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFacts {
    length: u64,
    checksum: Checksum,
}

impl ConfigFacts {
    pub(crate) fn of(text: &[u8]) -> Self {
        ConfigFacts { length: text.len() as u64, checksum: Checksum::of(text) }
    }
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryRange {
    pub(crate) gpa: u64,
    pub(crate) length: u64,
}

impl From<MemoryRange> for Span {
    fn from(range: MemoryRange) -> Span {
        Span { base: range.gpa, length: range.length }
    }
}

/// The checksum of one page of the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sample {
    pub(crate) offset: u64,
    pub(crate) checksum: Checksum,
}

/// What is known of `memory-ranges`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryFacts {
    pub(crate) ranges: Vec<MemoryRange>,
    pub(crate) length: u64,
    pub(crate) data: u64,
    pub(crate) checksum: Checksum,
    pub(crate) samples: Vec<Sample>,
}

impl MemoryFacts {
    /// Ranges in ascending order of whole pages that fill the file, and samples within.
    fn check(&self) -> Result<(), String> {
        if self.ranges.len() > RANGES {
            return Err(format!("its memory has {} ranges, and at most {RANGES} can be", self.ranges.len()));
        }
        let mut sum = 0_u64;
        let mut free = 0_u64;
        for MemoryRange { gpa, length } in &self.ranges {
            let bad = || format!("its range of {length:#x} bytes at {gpa:#x}");
            if *length == 0 || !gpa.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
                return Err(format!("{} is not made of whole pages", bad()));
            }
            if *gpa < free {
                return Err(format!("{} is not behind the one before", bad()));
            }
            free = gpa.checked_add(*length).ok_or_else(|| format!("{} has no end", bad()))?;
            sum = sum.checked_add(*length).ok_or("its ranges have no sum")?;
        }
        if self.ranges.is_empty() {
            return Err("it has no range of memory".into());
        }
        if sum != self.length {
            return Err(format!("its ranges have {sum} bytes, and its memory {}", self.length));
        }
        if self.samples.len() > SAMPLES + MARKS {
            return Err(format!("it has {} samples", self.samples.len()));
        }
        match self.samples.iter().find(|s| !s.offset.is_multiple_of(PAGE) || s.offset >= self.length) {
            Some(sample) => Err(format!("it has a sample at {:#x}", sample.offset)),
            None => Ok(()),
        }
    }
}

/// The text of a manifest.
///
/// # Errors
/// The machine's state cannot be written as JSON, or is longer than [`TEXT_LIMIT`].
pub(crate) fn write(
    path: &Path,
    config: &ConfigFacts,
    memory: &MemoryFacts,
    machine: &impl Serialize,
) -> Result<String, Error> {
    let writing = Writing {
        format: FORMAT,
        version: VERSION,
        architecture: std::env::consts::ARCH,
        program: env!("CARGO_PKG_VERSION"),
        config,
        memory,
        machine,
    };
    let malformed = |source| Error::Malformed { path: path.to_owned(), source };
    let mut text = serde_json::to_string(&writing).map_err(malformed)?;
    text.pop();
    let checksum = Checksum::of(text.as_bytes());
    text.push_str(TAIL_START);
    text.push_str(&checksum.to_string());
    text.push_str(TAIL_END);
    let length = text.len() as u64;
    if length > TEXT_LIMIT {
        return Err(Error::TooLong { path: path.to_owned(), length, limit: TEXT_LIMIT });
    }
    Ok(text)
}

/// A manifest that was read.
#[derive(Debug)]
pub(crate) struct Manifest {
    text: Vec<u8>,
    pub(crate) program: String,
    pub(crate) config: ConfigFacts,
    pub(crate) memory: MemoryFacts,
}

impl Manifest {
    /// # Errors
    /// Another form, version or architecture; a wrong checksum; a malformed member; ranges that cannot be.
    pub(crate) fn read(path: &Path, text: Vec<u8>) -> Result<Self, Error> {
        let malformed = |source| Error::Malformed { path: path.to_owned(), source };
        let heading: Heading = serde_json::from_slice(&text).map_err(malformed)?;
        let unknown = |what, found: String, known: &str| Error::Unknown {
            path: path.to_owned(),
            what,
            found,
            known: known.to_owned(),
        };
        if heading.format != FORMAT {
            return Err(unknown("format", format!("{:?}", heading.format), FORMAT));
        }
        if heading.version != u64::from(VERSION) {
            return Err(unknown("version", heading.version.to_string(), &VERSION.to_string()));
        }
        if heading.architecture != std::env::consts::ARCH {
            return Err(unknown(
                "architecture",
                format!("{:?}", heading.architecture),
                std::env::consts::ARCH,
            ));
        }
        if !right_tail(&text) {
            return Err(Error::damaged(path, "its checksum is wrong"));
        }
        let Reading { program, config, memory, machine: IgnoredAny, .. } =
            serde_json::from_slice(&text).map_err(malformed)?;
        memory.check().map_err(|what| Error::damaged(path, what))?;
        Ok(Manifest { text, program, config, memory })
    }

    /// The caller's part.
    ///
    /// # Errors
    /// It has another form.
    pub(crate) fn machine<M: DeserializeOwned>(&self, path: &Path) -> Result<M, Error> {
        serde_json::from_slice(&self.text)
            .map(|reading: Reading<M>| reading.machine)
            .map_err(|source| Error::Malformed { path: path.to_owned(), source })
    }
}

/// Refuses a text of which so many values would be made that they take very much memory: `{\"a\":0}` takes a hundred times as much as there. What
/// they take is known by the byte that is before each but the first; those within strings are counted, too, which have none of them in a
/// text of ours. A vCPU has 300 objects and 900 values.
///
/// # Errors
/// [`Error::TooLarge`].
pub(crate) fn check_values(path: &Path, text: &[u8]) -> Result<(), Error> {
    // An object has room for eleven members from the start, a list for four; a list that grows is there twice, and each name is on the heap.
    let cost = |byte: &u8| match byte {
        b'{' => 700,
        b'[' => 160,
        b',' => 160,
        _ => 0,
    };
    let bytes = text.iter().map(cost).sum();
    if bytes > VALUES_LIMIT {
        return Err(Error::TooLarge { path: path.to_owned(), bytes, limit: VALUES_LIMIT });
    }
    Ok(())
}

/// Whether the text ends as it was written, with the checksum of what is before.
fn right_tail(text: &[u8]) -> bool {
    let Some((body, tail)) = text.len().checked_sub(TAIL).and_then(|at| text.split_at_checked(at)) else {
        return false;
    };
    tail == format!("{TAIL_START}{}{TAIL_END}", Checksum::of(body)).as_bytes()
}
