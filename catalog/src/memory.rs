//! `--memory`: how much, and how the host backs it.

use spec::{Bytes, Facts, Refusal, Spec};

spec::spec! {
    /// The machine's memory.
    pub struct MemorySpec: "memory" {
        flatten {}
        fields {
            /// Size; a multiple of the page size.
            "size" => size: Bytes = Bytes(512 << 20),
            /// Lets the host merge equal pages (KSM).
            "mergeable" => mergeable: bool = false,
            /// Shares the pages with other processes, as vhost-user back ends need.
            "shared" => shared: bool = false,
            /// Takes huge pages from the host's pool.
            "hugepages" => hugepages: bool = false,
            /// Size of a huge page; the host's default when absent.
            "hugepage_size" => hugepage_size: Option<Bytes> = None,
            /// Touches every page before the guest starts.
            "prefault" => prefault: bool = false,
            /// Has the host account for all of it at once instead of page by page.
            "reserve" => reserve: bool = false,
            /// Allows transparent huge pages.
            "thp" => thp: bool = true,
            /// How memory is added to a running guest.
            "hotplug_method" => hotplug_method: HotplugMethod = HotplugMethod::Acpi,
        }
        unsupported {
            "hotplug_size" => hotplug_size,
            "hotplugged_size" => hotplugged_size,
            "zones" => zones,
            "file" => file,
        }
    }
}

spec::choice! {
    /// How memory is added to a running guest.
    pub enum HotplugMethod {
        /// ACPI memory devices.
        #[default]
        Acpi = "acpi",
        /// virtio-mem.
        VirtioMem = "virtio-mem",
    }
}

impl MemorySpec {
    /// Whether other processes can map it.
    pub fn is_shared(&self) -> bool {
        self.shared || self.hugepages
    }
}

impl Spec for MemorySpec {
    const FLAG: &'static str = MemorySpec::FLAG;
    const ABOUT: &'static str = MemorySpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        if let Some(size) = self.hugepage_size {
            if !self.hugepages {
                return Err(Refusal::invalid("Huge page size specified but huge pages not enabled"));
            }
            if !size.0.is_power_of_two() {
                return Err(Refusal::invalid(format!("Huge page size is not power of 2: {}", size.0)));
            }
        }
        if self.shared && self.mergeable {
            return Err(Refusal::invalid("Invalid to set both 'mergeable' and 'shared' for memory"));
        }
        let page = self.hugepage_size.map_or(if self.hugepages { 2 << 20 } else { 4096 }, |s| s.0);
        if self.size.0 == 0 {
            return Err(Refusal::invalid("Memory size must not be zero"));
        }
        if !self.size.0.is_multiple_of(page) {
            return Err(Refusal::invalid(format!(
                "Memory size is misaligned: {} is no multiple of the page size {page}",
                self.size.0
            )));
        }
        Ok(())
    }
}
