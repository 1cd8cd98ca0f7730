//! `--pci-segment`: how the address windows are divided among PCI segments.

use spec::{Facts, Refusal, Spec};

spec::spec! {
    /// The share of the PCI address windows that a segment gets. Segments that are not named have weight 1.
    pub struct PciSegmentSpec: "pci-segment" {
        flatten {}
        fields {
            /// The segment.
            "pci_segment" => pci_segment: u16 = 0,
            /// Its share of the window below 4 GiB, in proportion to the weights of the others.
            "mmio32_aperture_weight" => mmio32_aperture_weight: u32 = 1,
            /// Its share of the window above, likewise.
            "mmio64_aperture_weight" => mmio64_aperture_weight: u32 = 1,
        }
        unsupported {}
    }
}

impl Spec for PciSegmentSpec {
    const FLAG: &'static str = PciSegmentSpec::FLAG;
    const ABOUT: &'static str = PciSegmentSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if self.pci_segment >= facts.pci_segments {
            return Err(Refusal::invalid(format!("Invalid PCI segment id: {}", self.pci_segment)));
        }
        for weight in [self.mmio32_aperture_weight, self.mmio64_aperture_weight] {
            if weight == 0 {
                return Err(Refusal::invalid(format!("Invalid PCI segment aperture weight: {weight}")));
            }
        }
        Ok(())
    }
}

/// The weights of `count` segments, below 4 GiB and above.
pub(crate) fn weights(count: u16, specs: &[PciSegmentSpec]) -> (Vec<u32>, Vec<u32>) {
    let of = |n: u16, weight: fn(&PciSegmentSpec) -> u32| {
        specs.iter().find(|spec| spec.pci_segment == n).map_or(1, weight)
    };
    let low = (0..count).map(|n| of(n, |spec| spec.mmio32_aperture_weight)).collect();
    (low, (0..count).map(|n| of(n, |spec| spec.mmio64_aperture_weight)).collect())
}

/// Checks all of them.
pub(crate) fn check(specs: &[PciSegmentSpec], facts: &Facts) -> Result<(), Refusal> {
    for (n, spec) in specs.iter().enumerate() {
        spec.check(facts)?;
        if specs[..n].iter().any(|other| other.pci_segment == spec.pci_segment) {
            return Err(Refusal::invalid(format!(
                "PCI segment {} has more than one --pci-segment",
                spec.pci_segment
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_one_unless_given() {
        let specs = [
            PciSegmentSpec::parse("pci_segment=2,mmio64_aperture_weight=7").unwrap(),
            PciSegmentSpec::parse("mmio32_aperture_weight=3").unwrap(),
        ];
        assert_eq!(weights(3, &specs), (vec![3, 1, 1], vec![1, 1, 7]));
        assert_eq!(weights(1, &[]), (vec![1], vec![1]));
    }

    #[test]
    fn segments_that_are_not_there_weightless_or_named_twice_are_refused() {
        let facts = Facts { pci_segments: 2, ..Facts::default() };
        for (texts, message) in [
            (&["pci_segment=2"][..], "Invalid PCI segment id: 2"),
            (&["mmio32_aperture_weight=0"], "Invalid PCI segment aperture weight: 0"),
            (&["pci_segment=1,mmio64_aperture_weight=0"], "Invalid PCI segment aperture weight: 0"),
            (&["pci_segment=1", "", "pci_segment=1"], "PCI segment 1 has more than one --pci-segment"),
        ] {
            let specs: Vec<_> = texts.iter().map(|text| PciSegmentSpec::parse(text).unwrap()).collect();
            assert_eq!(check(&specs, &facts).unwrap_err().to_string(), message);
        }
        assert!(check(&[PciSegmentSpec::default()], &facts).is_ok());
    }
}
