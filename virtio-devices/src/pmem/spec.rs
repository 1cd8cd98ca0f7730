//! What a user may say about persistent memory: `--pmem`, `PmemConfig`, `vm.add-pmem`.

use std::path::PathBuf;

use ::spec::value::Bytes;
use ::spec::{Facts, Part, PciCommon, Refusal, Spec};
use device::{Build, Built, Calls, Host, Naming};
use sandbox::{HostPath, Use};

use super::backing::Backing;
use super::{ALIGN, Pmem};

spec::spec! {
    /// A file as persistent memory of the guest's (virtio-pmem), which it can map instead of reading blocks. If the file cannot be opened
    /// for writing, what the guest writes is dropped.
    pub struct PmemSpec: "pmem" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
        }
        fields {
            /// The file or block device; or a directory, for memory of which nothing is left.
            "file" => file: Option<PathBuf> = None,
            /// How much of the file to use, a multiple of 2M; all of it when absent. Needed with a directory.
            "size" => size: Option<Bytes> = None,
            /// Keep what the guest writes in memory: the file is never written.
            "discard_writes" => discard_writes: bool = false,
        }
        unsupported {}
    }
}

impl Spec for PmemSpec {
    const FLAG: &'static str = PmemSpec::FLAG;
    const ABOUT: &'static str = PmemSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--pmem {key}")));
        }
        if self.file.is_none() {
            return Err(missing());
        }
        if let Some(Bytes(size)) = self.size.filter(|size| size.0 == 0 || !size.0.is_multiple_of(ALIGN)) {
            return Err(Refusal::invalid(format!("Size of --pmem ({size} bytes) is no multiple of 2M")));
        }
        self.pci.check(facts)
    }
}

fn missing() -> Refusal {
    Refusal::invalid("Error parsing --pmem: file missing")
}

impl Build for PmemSpec {
    const NAMING: Naming = Naming::Counted("pmem");
    const CALLS: Calls = super::calls::CALLS;
    const REPLACEABLE: &'static [&'static str] = &["file"];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn paths(&self) -> Vec<HostPath> {
        self.file.iter().map(|path| HostPath::new(path, Use::ReadWrite)).collect()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        self.make(host).map(|pmem| Built::Virtio(Box::new(pmem)))
    }
}

impl PmemSpec {
    /// Opens and maps the file.
    pub(super) fn make(&self, host: &Host<'_>) -> Result<Pmem, Refusal> {
        let what = || format!("cannot add persistent memory \"{}\"", host.id);
        let path = self.file.as_deref().ok_or_else(missing)?;
        let (backing, mode) = Backing::open(path, self.size.map(|size| size.0), self.discard_writes)
            .map_err(|e| e.within(what()))?;
        let mapping = backing.map(mode).map_err(|e| {
            Refusal::host(format!("cannot map {} bytes of {}", backing.length(), path.display()), e)
                .within(what())
        })?;
        Ok(Pmem::new(host.id, backing, mapping))
    }
}
