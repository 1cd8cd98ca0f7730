//! The DSDT: processors, PCI roots, the motherboard resources, and what devices said of themselves.

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};

use super::slots::Slots;
use super::{Cpu, Machine, PciSegment, bytes, table};
use crate::x86_64::layout;

/// PCI firmware specification 3.3, 4.6: functions of a host bridge.
const PCI_DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// Functions 0 (which functions there are) and 5 (boot configuration).
const PCI_DSM_FUNCTIONS: u8 = 1 << 0 | 1 << 5;

pub(super) fn build(machine: &Machine, system_bus: &[u8], root: &[u8]) -> Sdt {
    let mut scope = processors(machine.cpus);
    for segment in machine.segments {
        scope.extend(pci_root(segment, machine.hotplug));
    }
    if !machine.segments.is_empty() {
        scope.extend(motherboard(machine.segments));
    }
    scope.extend_from_slice(system_bus);
    let mut body = aml::Scope::raw("\\_SB_".into(), scope);
    body.extend_from_slice(root);
    table(*b"DSDT", 6, *b"CHDSDT  ", &body)
}

/// The container `CPUS` and in it `C000` to `Cxxx` (hexadecimal index), for processors that are there.
fn processors(cpus: &[Cpu]) -> Vec<u8> {
    let devices: Vec<Processor> =
        (0..).zip(cpus).filter(|(_, c)| c.enabled).map(|(i, _)| Processor(i)).collect();
    let id = aml::Name::new("_HID".into(), &"ACPI0010");
    let compatible = aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A05"));
    let mut children: Vec<&dyn Aml> = vec![&id, &compatible];
    children.extend(devices.iter().map(|d| d as &dyn Aml));
    bytes(&aml::Device::new("CPUS".into(), children))
}

/// One processor; its uid is that in the MADT.
struct Processor(u32);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let name = format!("C{:03X}", self.0 & 0xfff);
        let id = aml::Name::new("_HID".into(), &"ACPI0007");
        let uid = aml::Name::new("_UID".into(), &self.0);
        aml::Device::new(name.as_str().into(), vec![&id, &uid]).to_aml_bytes(sink);
    }
}

/// `PCxx`: the host bridge of a segment.
fn pci_root(segment: &PciSegment, hotplug: bool) -> Vec<u8> {
    let name = format!("PC{:02X}", segment.number & 0xff);
    let id = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08"));
    let compatible = aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03"));
    let address = aml::Name::new("_ADR".into(), &aml::ZERO);
    let number = aml::Name::new("_SEG".into(), &segment.number);
    let uid = aml::Name::new("_UID".into(), &segment.number);
    let coherent = aml::Name::new("_CCA".into(), &aml::ONE);
    let resources = Resources(resources(segment));
    let resources = aml::Name::new("_CRS".into(), &resources);
    let routing = aml::Name::new("_PRT".into(), &routing());
    let slots = Slots(segment.number);
    let mut children: Vec<&dyn Aml> =
        vec![&id, &compatible, &address, &number, &uid, &coherent, &Dsm, &resources, &routing];
    if hotplug {
        children.push(&slots);
    }
    bytes(&aml::Device::new(name.as_str().into(), children))
}

/// What the bridge passes on: one bus, ports on segment 0, memory windows. ECAM is not passed on but used by the bridge,
/// so it is in [`motherboard`].
fn resources(segment: &PciSegment) -> Vec<Box<dyn Aml>> {
    let mut list: Vec<Box<dyn Aml>> = vec![Box::new(aml::AddressSpace::new_bus_number(0u16, 0u16))];
    if segment.number == 0 {
        list.push(Box::new(aml::IO::new(0xcf8, 0xcf8, 1, 8)));
        list.push(Box::new(aml::AddressSpace::new_io(0u16, 0xcf7, None)));
        list.push(Box::new(aml::AddressSpace::new_io(0xd00u16, 0xffff, None)));
    }
    let (low, high) = (segment.mmio32, segment.mmio64);
    let uncached = aml::AddressSpaceCacheable::NotCacheable;
    if low.length > 0 {
        let (first, last) = (low.base as u32, (low.end() - 1) as u32);
        list.push(Box::new(aml::AddressSpace::new_memory(uncached, true, first, last, None)));
    }
    if high.length > 0 {
        list.push(Box::new(aml::AddressSpace::new_memory(uncached, true, high.base, high.end() - 1, None)));
    }
    list
}

/// A resource template that owns its descriptors.
struct Resources(Vec<Box<dyn Aml>>);

impl Aml for Resources {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        aml::ResourceTemplate::new(self.0.iter().map(Box::as_ref).collect()).to_aml_bytes(sink);
    }
}

/// Pin A of each slot's function 0, straight to an input of the IOAPIC.
fn routing() -> aml::PackageBuilder {
    let mut table = aml::PackageBuilder::new();
    for slot in 0..layout::PCI_SLOTS {
        let address = u32::from(slot) << 16 | 0xffff;
        let gsi = layout::pci_intx_gsi(slot);
        table.add_element(&aml::Package::new(vec![&address, &aml::ZERO, &aml::ZERO, &gsi]));
    }
    table
}

/// `_DSM` of a host bridge: function 5 answers 0, "keep the addresses that the devices have".
struct Dsm;

impl Aml for Dsm {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let uuid = aml::Uuid::new(PCI_DSM);
        let functions = aml::BufferData::new(vec![PCI_DSM_FUNCTIONS]);
        let functions = aml::Return::new(&functions);
        let keep = aml::Return::new(&aml::ZERO);
        let is_query = aml::Equal::new(&aml::Arg(2), &aml::ZERO);
        let is_configuration = aml::Equal::new(&aml::Arg(2), &5u8);
        let query = aml::If::new(&is_query, vec![&functions]);
        let configuration = aml::If::new(&is_configuration, vec![&keep]);
        let is_ours = aml::Equal::new(&aml::Arg(0), &uuid);
        let ours = aml::If::new(&is_ours, vec![&query, &configuration]);
        let nothing = aml::BufferData::new(vec![0]);
        let otherwise = aml::Return::new(&nothing);
        aml::Method::new("_DSM".into(), 4, false, vec![&ours, &otherwise]).to_aml_bytes(sink);
    }
}

/// `MBRD`: addresses that nothing may be moved to (PCI firmware specification 3.3, 4.1.2).
fn motherboard(segments: &[PciSegment]) -> Vec<u8> {
    let id = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02"));
    let uid = aml::Name::new("_UID".into(), &aml::ZERO);
    let ecams = segments.iter().filter_map(|s| layout::ecam(s.number));
    let list = ecams
        .map(|e| Box::new(aml::Memory32Fixed::new(true, e.base as u32, e.length as u32)) as Box<dyn Aml>);
    let resources = aml::Name::new("_CRS".into(), &Resources(list.collect()));
    bytes(&aml::Device::new("MBRD".into(), vec![&id, &uid, &resources]))
}
