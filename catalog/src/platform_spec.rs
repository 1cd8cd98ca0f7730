//! `--platform`: the machine's identity and its PCI segments.

use arch::x86_64::smbios::SmbiosInfo;
use serde::{Deserialize, Serialize};
use spec::value::string_list;
use spec::{Facts, Refusal, Spec, Value};

spec::spec! {
    /// The machine's identity, as SMBIOS tells it to the guest.
    pub struct PlatformSpec: "platform" {
        flatten {}
        fields {
            /// PCI segments, each a bus of its own with 32 slots.
            "num_pci_segments" => num_pci_segments: u16 = 1,
            /// SMBIOS system manufacturer.
            "system_manufacturer" => system_manufacturer: Option<String> = None,
            /// SMBIOS product name.
            "system_product_name" => system_product_name: Option<String> = None,
            /// SMBIOS system version.
            "system_version" => system_version: Option<String> = None,
            /// SMBIOS system serial number.
            "system_serial_number" => system_serial_number: Option<String> = None,
            /// SMBIOS system UUID.
            "system_uuid" => system_uuid: Option<Uuid> = None,
            /// SMBIOS SKU number.
            "system_sku_number" => system_sku_number: Option<String> = None,
            /// SMBIOS product family.
            "system_family" => system_family: Option<String> = None,
            /// SMBIOS chassis asset tag.
            "chassis_asset_tag" => chassis_asset_tag: Option<String> = None,
            /// SMBIOS OEM strings.
            "oem_strings" => oem_strings: Option<Strings> = None,
            /// Old name of system_serial_number.
            "serial_number" => serial_number: Option<String> = None,
            /// Old name of system_uuid.
            "uuid" => uuid: Option<Uuid> = None,
            /// Lets passed-through devices reach each other's memory.
            "vfio_p2p_dma" => vfio_p2p_dma: bool = true,
            /// Address bits of the virtual IOMMU.
            "iommu_address_width" => iommu_address_width_bits: u8 = 64,
        }
        unsupported {
            "iommu_segments" => iommu_segments,
            "iommufd" => iommufd,
            "iommufd_fd" => iommufd_fd,
            "tdx" => tdx,
            "sev_snp" => sev_snp,
        }
    }
}

/// Most PCI segments of a machine.
pub const MAX_PCI_SEGMENTS: u16 = 96;

/// A list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Strings(pub Vec<String>);

impl Value for Strings {
    const SYNTAX: &'static str = "[<text>,…]";

    fn convert(text: &str) -> Result<Self, String> {
        string_list(text).map(Strings)
    }

    fn show(&self) -> String {
        format!("[{}]", self.0.join(","))
    }
}

/// A UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub uuid::Uuid);

impl TryFrom<String> for Uuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Uuid::convert(&text)
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> String {
        uuid.0.to_string()
    }
}

impl Value for Uuid {
    const SYNTAX: &'static str = "<uuid>";

    fn convert(text: &str) -> Result<Self, String> {
        text.parse().map(Uuid).map_err(|e| format!("{text:?} is no UUID: {e}"))
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl PlatformSpec {
    /// The strings of the SMBIOS tables; the new names win over the old.
    pub fn smbios(&self) -> SmbiosInfo {
        SmbiosInfo {
            manufacturer: self.system_manufacturer.clone(),
            product_name: self.system_product_name.clone(),
            version: self.system_version.clone(),
            serial_number: self.system_serial_number.clone().or_else(|| self.serial_number.clone()),
            uuid: self.system_uuid.or(self.uuid).map(|u| u.0.to_string()),
            sku_number: self.system_sku_number.clone(),
            family: self.system_family.clone(),
            chassis_asset_tag: self.chassis_asset_tag.clone(),
            oem_strings: self.oem_strings.clone().unwrap_or_default().0,
        }
    }
}

impl Spec for PlatformSpec {
    const FLAG: &'static str = PlatformSpec::FLAG;
    const ABOUT: &'static str = PlatformSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        let segments = self.num_pci_segments;
        if !(1..=MAX_PCI_SEGMENTS).contains(&segments) {
            return Err(Refusal::invalid(format!(
                "Number of PCI segments ({segments}) not in range of 1 to {MAX_PCI_SEGMENTS}"
            )));
        }
        if self.iommu_address_width_bits > 64 {
            return Err(Refusal::invalid(format!(
                "IOMMU address width in bits ({}) should be less than or equal to 64",
                self.iommu_address_width_bits
            )));
        }
        let texts = [
            &self.system_manufacturer,
            &self.system_product_name,
            &self.system_version,
            &self.system_serial_number,
            &self.system_sku_number,
            &self.system_family,
            &self.chassis_asset_tag,
            &self.serial_number,
        ];
        let oem = self.oem_strings.iter().flat_map(|s| &s.0);
        if texts.into_iter().flatten().chain(oem).any(|t| t.contains('\0')) {
            return Err(Refusal::invalid("--platform: an SMBIOS string contains a NUL byte"));
        }
        Ok(())
    }
}
