//! SMBIOS 3.2: who made the machine, and the strings that tools read from `/sys/class/dmi`.
//!
//! One 64-bit entry point and the structures 0, 1, 3, 11 and 127, as bytes for [`layout::SMBIOS`]. Structures that describe
//! processors or memory (4, 16, 17) are not made: ACPI has those facts.

use super::layout;
use crate::{Error, Result};

const ENTRY_POINT_LEN: usize = 24;
/// Structures start here, counted from the entry point.
const STRUCTURES: usize = 32;
const VERSION: [u8; 2] = [3, 2];

/// BIOS characteristics: PCI is supported.
const PCI_SUPPORTED: u64 = 1 << 7;
/// BIOS characteristics, extension byte 2: this is a virtual machine.
const VIRTUAL_MACHINE: u8 = 1 << 4;
/// "Unknown" in the wake-up type of type 1, and in the type and all states of type 3.
const UNKNOWN: u8 = 2;

/// The strings of `--platform` that are about SMBIOS. What is absent or empty takes its default, or is not told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SmbiosInfo {
    /// Type 1; default "Cloud Hypervisor".
    pub manufacturer: Option<String>,
    /// Type 1; default "cloud-hypervisor".
    pub product_name: Option<String>,
    /// Type 1.
    pub version: Option<String>,
    /// Type 1.
    pub serial_number: Option<String>,
    /// Type 1, in any of the usual notations; default all zeroes.
    pub uuid: Option<String>,
    /// Type 1.
    pub sku_number: Option<String>,
    /// Type 1.
    pub family: Option<String>,
    /// Type 3, which exists only with it.
    pub chassis_asset_tag: Option<String>,
    /// Type 11, which exists only if there are any.
    pub oem_strings: Vec<String>,
}

/// Entry point and structures.
///
/// # Errors
/// [`Error::Uuid`], [`Error::SmbiosString`], [`Error::TablesTooLarge`].
pub fn build(info: &SmbiosInfo) -> Result<Vec<u8>> {
    let uuid = match info.uuid.as_deref() {
        None | Some("") => [0; 16],
        Some(text) => uuid::Uuid::parse_str(text)
            .map_err(|source| Error::Uuid { uuid: text.into(), source })?
            .to_bytes_le(),
    };
    let mut structures = Structures { bytes: vec![0; STRUCTURES], handle: 1 };
    structures.firmware()?;
    structures.system(info, uuid)?;
    if let Some(tag) = info.chassis_asset_tag.as_deref().filter(|tag| !tag.is_empty()) {
        structures.chassis(tag)?;
    }
    if !info.oem_strings.is_empty() {
        structures.oem_strings(&info.oem_strings)?;
    }
    structures.push(127, &[], &Strings::default());

    let mut bytes = structures.bytes;
    let (needed, available) = (bytes.len() as u64, layout::SMBIOS_END - layout::SMBIOS);
    if needed > available {
        return Err(Error::TablesTooLarge { tables: "SMBIOS", needed, available });
    }
    let entry_point = entry_point((bytes.len() - STRUCTURES) as u32);
    bytes[..ENTRY_POINT_LEN].copy_from_slice(&entry_point);
    Ok(bytes)
}

/// SMBIOS 3.2 specification, 5.2.2.
fn entry_point(size: u32) -> [u8; ENTRY_POINT_LEN] {
    let mut entry = [0; ENTRY_POINT_LEN];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = ENTRY_POINT_LEN as u8;
    entry[7..9].copy_from_slice(&VERSION);
    // Entry point revision.
    entry[10] = 1;
    entry[12..16].copy_from_slice(&size.to_le_bytes());
    entry[16..24].copy_from_slice(&(layout::SMBIOS + STRUCTURES as u64).to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    entry
}

/// The structures made so far.
struct Structures {
    bytes: Vec<u8>,
    handle: u16,
}

impl Structures {
    /// Appends one: header, fields, strings.
    fn push(&mut self, kind: u8, fields: &[u8], strings: &Strings) {
        self.bytes.extend([kind, 4 + fields.len() as u8]);
        self.bytes.extend(self.handle.to_le_bytes());
        self.bytes.extend_from_slice(fields);
        self.bytes.extend_from_slice(&strings.bytes);
        // The set ends with an empty string; a set without strings is two NULs.
        self.bytes.extend(if strings.count == 0 { &[0, 0][..] } else { &[0] });
        self.handle += 1;
    }

    /// Type 0, with all fields of version 3.1.
    fn firmware(&mut self) -> Result<()> {
        let mut strings = Strings::default();
        let mut fields = vec![strings.add("vendor", "cloud-hypervisor")?, strings.add("version", "0")?];
        // Start segment, release date, ROM size.
        fields.extend([0, 0, 0, 0]);
        fields.extend(PCI_SUPPORTED.to_le_bytes());
        fields.extend([0, VIRTUAL_MACHINE]);
        // Release of the firmware and of the embedded controller (0xff: there is none), extended ROM size.
        fields.extend([0, 0, 0xff, 0xff, 0, 0]);
        self.push(0, &fields, &strings);
        Ok(())
    }

    /// Type 1.
    fn system(&mut self, info: &SmbiosInfo, uuid: [u8; 16]) -> Result<()> {
        let mut strings = Strings::default();
        let mut string = |field, value: &Option<String>, default| {
            let value = value.as_deref().filter(|v| !v.is_empty()).unwrap_or(default);
            strings.add(field, value)
        };
        let mut fields = vec![
            string("system_manufacturer", &info.manufacturer, "Cloud Hypervisor")?,
            string("system_product_name", &info.product_name, "cloud-hypervisor")?,
            string("system_version", &info.version, "")?,
            string("system_serial_number", &info.serial_number, "")?,
        ];
        fields.extend(uuid);
        fields.push(UNKNOWN);
        fields.push(string("system_sku_number", &info.sku_number, "")?);
        fields.push(string("system_family", &info.family, "")?);
        self.push(1, &fields, &strings);
        Ok(())
    }

    /// Type 3.
    fn chassis(&mut self, asset_tag: &str) -> Result<()> {
        let mut strings = Strings::default();
        let manufacturer = strings.add("manufacturer", "Cloud Hypervisor")?;
        let tag = strings.add("chassis_asset_tag", asset_tag)?;
        let mut fields = vec![manufacturer, UNKNOWN, 0, 0, tag];
        // Boot-up, power supply, thermal and security state.
        fields.extend([UNKNOWN; 4]);
        // OEM-defined (4 bytes), height, power cords, contained elements and their length, SKU.
        fields.extend([0; 9]);
        self.push(3, &fields, &strings);
        Ok(())
    }

    /// Type 11.
    fn oem_strings(&mut self, values: &[String]) -> Result<()> {
        let mut strings = Strings::default();
        for value in values {
            // An empty string would end the set.
            if value.is_empty() {
                return Err(Error::SmbiosString { field: "oem_strings", reason: "contains an empty string" });
            }
            strings.add("oem_strings", value)?;
        }
        self.push(11, &[strings.count], &strings);
        Ok(())
    }
}

/// The strings behind a structure, which its fields name by number.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    count: u8,
}

impl Strings {
    /// Number of the string: 0 for an empty one, which cannot be stored.
    fn add(&mut self, field: &'static str, value: &str) -> Result<u8> {
        if value.is_empty() {
            return Ok(0);
        }
        let refused = |reason| Error::SmbiosString { field, reason };
        if value.contains('\0') {
            return Err(refused("contains a NUL byte"));
        }
        self.count = self.count.checked_add(1).ok_or_else(|| refused("are more than 255"))?;
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        Ok(self.count)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn full() -> SmbiosInfo {
        let some = |text: &str| Some(text.to_owned());
        SmbiosInfo {
            manufacturer: some("Makers"),
            product_name: some("Thing"),
            version: some("v9"),
            serial_number: some("serial-1"),
            uuid: some("00112233-4455-6677-8899-aabbccddeeff"),
            sku_number: some("sku-2"),
            family: some("relatives"),
            chassis_asset_tag: some("tag-3"),
            oem_strings: vec!["one".into(), "io.systemd.credential:a=b".into()],
        }
    }

    /// Kind, handle, fields and strings of each structure.
    fn parse(image: &[u8]) -> Vec<(u8, u16, Vec<u8>, Vec<String>)> {
        assert_eq!(&image[..5], b"_SM3_");
        assert_eq!(image[..24].iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        assert_eq!(image[16..24], 0xf_0020u64.to_le_bytes());
        let size = u32::from_le_bytes(image[12..16].try_into().unwrap()) as usize;
        assert_eq!(size, image.len() - 32);
        let (mut rest, mut found) = (&image[32..], Vec::new());
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest[1].into());
            let end = tail.windows(2).position(|w| w == [0, 0]).unwrap();
            let strings = tail[..end].split(|&b| b == 0).filter(|s| !s.is_empty());
            let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap()).collect();
            found.push((head[0], u16::from_le_bytes([head[2], head[3]]), head[4..].to_vec(), strings));
            rest = &tail[end + 2..];
        }
        found
    }

    #[test]
    fn defaults() {
        let found = parse(&build(&SmbiosInfo::default()).unwrap());
        assert_eq!(found.iter().map(|s| (s.0, s.1)).collect::<Vec<_>>(), [(0, 1), (1, 2), (127, 3)]);
        assert_eq!((found[0].2.len() + 4, found[1].2.len() + 4), (0x1a, 0x1b));
        assert_eq!(found[0].3, ["cloud-hypervisor", "0"]);
        assert_eq!((found[0].2[6], found[0].2[15]), (0x80, 0x10));
        assert_eq!(found[1].3, ["Cloud Hypervisor", "cloud-hypervisor"]);
        assert_eq!(found[1].2[..4], [1, 2, 0, 0]);
        assert_eq!(found[1].2[4..20], [0; 16]);
        assert_eq!(found[1].2[20..], [2, 0, 0]);
    }

    #[test]
    fn everything_given() {
        let found = parse(&build(&full()).unwrap());
        assert_eq!(found.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 3, 11, 127]);
        assert_eq!(found[1].3, ["Makers", "Thing", "v9", "serial-1", "sku-2", "relatives"]);
        assert_eq!((&found[1].2[..4], &found[1].2[21..]), (&[1, 2, 3, 4][..], &[5, 6][..]));
        // The first three fields of a UUID are little-endian.
        assert_eq!(found[1].2[4..12], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!((found[2].2.len() + 4, found[2].2[4]), (0x16, 2));
        assert_eq!((&found[3].2[..], found[3].3.len()), (&[2][..], 2));
    }

    #[test]
    fn bad_values_are_refused() {
        let with = |change: fn(&mut SmbiosInfo)| {
            let mut info = full();
            change(&mut info);
            build(&info).unwrap_err().to_string()
        };
        assert!(with(|i| i.uuid = Some("not-a-uuid".into())).starts_with("uuid \"not-a-uuid\""));
        assert_eq!(
            with(|i| i.family = Some("a\0b".into())),
            "SMBIOS string system_family contains a NUL byte"
        );
        assert!(with(|i| i.oem_strings.push(String::new())).contains("contains an empty string"));
        assert!(with(|i| i.oem_strings = vec!["x".into(); 256]).contains("more than 255"));
        assert!(with(|i| i.oem_strings = vec!["x".repeat(0x1_0000)]).contains("SMBIOS tables need"));
    }

    /// Needs `dmidecode` (Debian: dmidecode).
    #[test]
    fn dmidecode_understands_every_structure() {
        let dir = TempDir::new().unwrap();
        let dump = dir.as_path().join("dump");
        // In a dump the structures lie at 32, whatever the entry point says of physical memory.
        let mut image = build(&full()).unwrap();
        image[16..24].copy_from_slice(&32u64.to_le_bytes());
        image[5] = 0;
        image[5] = image[..24].iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        std::fs::write(&dump, image).unwrap();
        let command = ["dmidecode", "/usr/sbin/dmidecode"]
            .into_iter()
            .find(|program| Command::new(program).arg("--version").output().is_ok());
        let Some(command) = command else {
            eprintln!(
                "SKIPPED: dmidecode is not installed (Debian: dmidecode); the structures were not decoded"
            );
            return;
        };
        let output = Command::new(command).arg("--from-dump").arg(&dump).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        for line in [
            "SMBIOS 3.2.0 present.",
            "Vendor: cloud-hypervisor",
            "PCI is supported",
            "System is a virtual machine",
            "Manufacturer: Makers",
            "Product Name: Thing",
            "Version: v9",
            "Serial Number: serial-1",
            "UUID: 00112233-4455-6677-8899-aabbccddeeff",
            "Wake-up Type: Unknown",
            "SKU Number: sku-2",
            "Family: relatives",
            "Asset Tag: tag-3",
            "String 2: io.systemd.credential:a=b",
            "End Of Table",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
        assert!(!text.contains("TRUNCATED") && !text.contains("OUT OF SPEC"), "{text}");
    }
}
