//! The device tree of `vm.info`.

use std::collections::BTreeMap;

use api::info::BarType;
use api::{DeviceNode, Resource};
use device::{BarKind, PlacedPci, Space, Span};

use super::board::Attached;

/// How the node of a virtio device's PCI function is called: this, and the device's name.
pub(super) const FUNCTION: &str = "_virtio-pci-";

/// One node a device, and for a virtio device one more for the PCI function it sits on.
pub(super) fn build(attached: &[Attached]) -> BTreeMap<String, DeviceNode> {
    let mut tree = BTreeMap::new();
    for Attached { id, device, placed, virtio, .. } in attached {
        let mut node = DeviceNode { id: id.clone(), ..DeviceNode::default() };
        for (need, span) in device.needs().windows.iter().zip(&placed.windows) {
            let (base, size) = (span.base, span.length);
            node.resources.push(match need.space {
                Space::Port => Resource::PioAddressRange { base, size },
                Space::Memory => Resource::MmioAddressRange { base, size },
            });
        }
        node.resources.extend(placed.lines.iter().map(|line| Resource::LegacyIrq(*line)));
        if let Some(pci) = &placed.pci {
            if *virtio {
                let function = format!("{FUNCTION}{id}");
                node.parent = Some(function.clone());
                let memory = |span: &Span| Resource::MmioAddressRange { base: span.base, size: span.length };
                node.resources.extend(pci.apertures.iter().map(memory));
                let mut parent = pci_node(&function, pci);
                parent.children.push(id.clone());
                tree.insert(function, parent);
            } else {
                node = pci_node(id, pci);
            }
        }
        tree.insert(id.clone(), node);
    }
    tree
}

fn pci_node(id: &str, pci: &PlacedPci) -> DeviceNode {
    let bar = |(index, kind, span): &(u8, BarKind, Span)| {
        let (type_, prefetchable) = match kind {
            BarKind::Memory32 => (BarType::Mmio32, false),
            BarKind::Memory64 { prefetchable } => (BarType::Mmio64, *prefetchable),
        };
        Resource::PciBar { index: *index, base: span.base, size: span.length, type_, prefetchable }
    };
    DeviceNode {
        id: id.to_owned(),
        resources: pci.bars.iter().map(bar).collect(),
        pci_bdf: Some(api::info::bdf(pci.segment, pci.slot)),
        ..DeviceNode::default()
    }
}
