//! Tables by field, and by what `iasl` makes of them.

use std::collections::BTreeMap;
use std::process::Command;

use acpi_tables::aml;
use device::TableSink;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::x86_64::layout::MemoryMap;

fn cpus(count: u32, id: impl Fn(u32) -> u32) -> Vec<Cpu> {
    (0..count).map(|i| Cpu { apic_id: id(i), enabled: true }).collect()
}

fn segments(count: u16) -> Vec<PciSegment> {
    let map = MemoryMap::new(1 << 30, 46).unwrap();
    let weights = vec![1; usize::from(count)];
    let (low, high) = (MemoryMap::mmio32_windows(&weights).unwrap(), map.mmio64_windows(&weights).unwrap());
    (0..count)
        .zip(low.into_iter().zip(high))
        .map(|(number, (mmio32, mmio64))| PciSegment { number, mmio32, mmio64 })
        .collect()
}

/// What the machine's own devices would say.
fn described() -> Tables {
    let mut tables = Tables::new();
    tables.add(TableEntry::ResetPort { port: 0x600, value: 1 });
    tables.add(TableEntry::SleepPort(0x600));
    tables.add(TableEntry::PmTimerPort(0x608));
    let mut ioapic = vec![1, 12, 0, 0];
    ioapic.extend(0xfec0_0000u32.to_le_bytes());
    ioapic.extend(0u32.to_le_bytes());
    tables.add(TableEntry::Madt(ioapic));
    tables.add(TableEntry::Madt(vec![2, 10, 0, 4, 4, 0, 0, 0, 0, 0]));
    let id = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C"));
    tables.system_bus(&aml::Device::new("PWRB".into(), vec![&id]));
    tables.system_bus(&controller());
    tables.root(&aml::Name::new("TEST".into(), &7u8));
    tables
}

/// A hotplug controller with the names that slots refer to.
fn controller() -> impl acpi_tables::Aml {
    struct Controller;
    impl acpi_tables::Aml for Controller {
        fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
            let id = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A06"));
            let mutex = aml::Mutex::new("BLCK".into(), 0);
            let registers: Vec<_> =
                ["PCIU", "PCID", "PSEG"].iter().map(|name| aml::Name::new((*name).into(), &0u32)).collect();
            let nothing = aml::Return::new(&aml::ZERO);
            let eject = aml::Method::new("PCEJ".into(), 2, true, vec![&nothing]);
            let mut all: Vec<&dyn acpi_tables::Aml> = vec![&id, &mutex, &eject];
            all.extend(registers.iter().map(|name| name as &dyn acpi_tables::Aml));
            aml::Device::new("PHPR".into(), all).to_aml_bytes(sink);
        }
    }
    Controller
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Follows the pointers as an operating system does, checking lengths and checksums.
fn walk(image: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let table = |address: u64| {
        let at = (address - 0xa_0000) as usize;
        assert_eq!(at % 16, 0);
        let bytes = image[at..at + u32_at(image, at + 4) as usize].to_vec();
        assert_eq!(sum(&bytes), 0);
        assert_eq!(&bytes[10..16], b"CLOUDH");
        (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
    };
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!((sum(&image[..20]), sum(&image[..36]), image[15]), (0, 0, 2));
    let (name, xsdt) = table(u64_at(image, 24));
    assert_eq!(name, "XSDT");
    let mut tables: BTreeMap<_, _> = xsdt[36..].chunks(8).map(|c| table(u64_at(c, 0))).collect();
    let (name, dsdt) = table(u64_at(&tables["FACP"], 140));
    tables.extend([(name, dsdt), ("XSDT".into(), xsdt)]);
    tables
}

#[test]
fn tables_are_found_and_hold_the_facts() {
    let machine = Machine { cpus: &cpus(2, |i| i * 2), segments: &segments(2), hotplug: true };
    let tables = walk(&described().finish(&machine).unwrap());
    assert_eq!(
        tables.keys().map(String::as_str).collect::<Vec<_>>(),
        ["APIC", "DSDT", "FACP", "MCFG", "XSDT"]
    );

    let fadt = &tables["FACP"];
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 3));
    assert_eq!(&fadt[16..24], b"CHFACP  ");
    assert_eq!(u32_at(fadt, 112), 1 | 1 << 8 | 1 << 10 | 1 << 20);
    assert_eq!((&fadt[116..120], u64_at(fadt, 120), fadt[128]), (&[1, 8, 0, 1][..], 0x600, 1));
    assert_eq!((&fadt[208..212], u64_at(fadt, 212)), (&[1, 32, 0, 3][..], 0x608));
    assert_eq!((u64_at(fadt, 248), u64_at(fadt, 260)), (0x600, 0x600));
    assert_eq!(&fadt[268..276], b"CLOUDHYP");

    let madt = &tables["APIC"];
    assert_eq!((madt[8], u32_at(madt, 36), u32_at(madt, 40)), (5, 0xfee0_0000, 0));
    assert_eq!(madt[44..60], [9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(madt[60..76], [9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!((madt[76], u32_at(madt, 80), madt[88], madt.len()), (1, 0xfec0_0000, 2, 98));

    let mcfg = &tables["MCFG"];
    assert_eq!(mcfg.len(), 44 + 32);
    assert_eq!((u64_at(mcfg, 44), u64_at(mcfg, 60)), (0xe800_0000, 0xe810_0000));
    assert_eq!((mcfg[68], mcfg[70], mcfg[71]), (1, 0, 0));
}

#[test]
fn what_nobody_described_is_not_there() {
    let machine = Machine { cpus: &cpus(1, |i| i), segments: &[], hotplug: true };
    let tables = walk(&Tables::new().finish(&machine).unwrap());
    let fadt = &tables["FACP"];
    assert_eq!(u32_at(fadt, 112), 1 | 1 << 20);
    assert_eq!([u64_at(fadt, 120), u64_at(fadt, 212), u64_at(fadt, 248)], [0; 3]);
    let dsdt = &tables["DSDT"];
    let has = |name: &[u8; 4]| dsdt.windows(4).any(|w| w == name);
    assert!(has(b"CPUS") && has(b"C000"));
    assert!(![b"PC00", b"MBRD", b"PHPR", b"S001", b"C001"].into_iter().any(has));
    assert!(!tables.contains_key("MCFG"));
}

#[test]
fn processors_to_come_are_online_capable_only() {
    let mut list = cpus(3, |i| i);
    list[2].enabled = false;
    let tables =
        walk(&described().finish(&Machine { cpus: &list, segments: &segments(1), hotplug: true }).unwrap());
    assert_eq!((tables["APIC"][44 + 16 + 8], tables["APIC"][44 + 32 + 8]), (1, 2));
    assert!(!tables["DSDT"].windows(4).any(|w| w == b"C002"));
}

#[test]
fn the_largest_machine_fits() {
    for (count, base, roots) in [(254, 0, 96), (255, 1000, 1), (1024, 0, 1)] {
        let list = cpus(count, |i| base + i);
        let machine = Machine { cpus: &list, segments: &segments(roots), hotplug: true };
        let image = described().finish(&machine).unwrap();
        assert!(image.len() < 0x5_0000, "{:#x}", image.len());
        walk(&image);
    }
    let list = cpus(8192, |i| i);
    let error = described().finish(&Machine { cpus: &list, segments: &[], hotplug: true }).unwrap_err();
    assert!(matches!(error, Error::TablesTooLarge { tables: "ACPI", available: 0x4_f000, .. }));
}

/// Needs `iasl` (Debian: acpica-tools).
#[test]
fn iasl_understands_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl is not installed (Debian: acpica-tools); the tables were not disassembled");
        return;
    }
    let dir = TempDir::new().unwrap();
    let machine = Machine { cpus: &cpus(254, |i| i), segments: &segments(3), hotplug: true };
    let tables = walk(&described().finish(&machine).unwrap());
    let run = |args: &[&str]| {
        let output = Command::new("iasl").args(args).current_dir(dir.as_path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    for (name, bytes) in &tables {
        std::fs::write(dir.as_path().join(format!("{name}.dat")), bytes).unwrap();
        let (ok, text) = run(&["-d", &format!("{name}.dat")]);
        assert!(ok && !text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
        let (ok, text) = run(&["-ve", &format!("{name}.dsl")]);
        assert!(ok && !text.contains("Error  "), "{name}: {text}");
    }
    let dsl = std::fs::read_to_string(dir.as_path().join("DSDT.dsl")).unwrap();
    for text in [
        "Device (PC00)",
        "Device (PC02)",
        "Device (MBRD)",
        "Device (S000)",
        "Device (S031)",
        "Name (_SUN, 0x1F)",
        "Name (_ADR, 0x001F0000)",
        "\\_SB.PHPR.PCEJ (0x1F, 0x02)",
        "Notify (S031, Arg1)",
        "If ((Arg0 & 0x80000000))",
        "\\_SB.PHPR.PSEG = 0x02",
        "DVNT (Local0, 0x03)",
        "DVNT (Local0, One)",
        "Device (C0FD)",
        "Device (PWRB)",
        "Name (TEST, 0x07)",
        "ToUUID (\"e5c937d0-3553-4d7a-9117-ea4d19c3434d\")",
        "0x001FFFFF",
    ] {
        assert!(dsl.contains(text), "no {text:?} in the disassembled DSDT");
    }
    for name in ["FACP", "APIC", "MCFG"] {
        let dsl = std::fs::read_to_string(dir.as_path().join(format!("{name}.dsl"))).unwrap();
        assert!(!dsl.contains("Invalid") && !dsl.contains("incorrect"), "{dsl}");
    }
}
