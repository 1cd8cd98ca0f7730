//! The `pci_cfg` capability: access to BAR 0 through configuration space, for firmware that maps no BARs (virtio 1.3 §4.1.4.9).

use serde::{Deserialize, Serialize};

use super::layout::{BAR, BAR_SIZE, pci_cfg};

/// The capability's registers.
#[derive(Debug)]
pub(super) struct Window {
    body: [u8; pci_cfg::BODY],
}

/// What is saved of a [`Window`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowState {
    bar: u8,
    offset: u32,
    length: u32,
    data: u32,
}

/// An access that the driver asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Offset in BAR 0.
    pub(super) offset: u64,
    /// Width: 1, 2 or 4.
    pub(super) length: usize,
    /// What is written.
    pub(super) data: [u8; 4],
}

impl Window {
    /// As after power-on; `body` is the capability as the driver first sees it.
    pub(super) fn new(body: &[u8]) -> Self {
        let mut window = Window { body: [0; pci_cfg::BODY] };
        let known = body.len().min(pci_cfg::BODY);
        window.body[..known].copy_from_slice(&body[..known]);
        window
    }

    fn word(&self, at: std::ops::Range<usize>) -> [u8; 4] {
        let mut word = [0; 4];
        word.copy_from_slice(&self.body[at]);
        word
    }

    /// The access that touching these bytes of the body asks for, if it is one that can be made.
    pub(super) fn asked(&self, offset: usize, length: usize) -> Option<Asked> {
        if !(offset..offset.saturating_add(length)).contains(&pci_cfg::DATA.start) {
            return None;
        }
        let at = u32::from_le_bytes(self.word(pci_cfg::OFFSET));
        let width = u32::from_le_bytes(self.word(pci_cfg::LENGTH));
        let valid = self.body[pci_cfg::BAR] == BAR
            && matches!(width, 1 | 2 | 4)
            && at.is_multiple_of(width)
            && u64::from(at) < BAR_SIZE;
        valid.then(|| Asked { offset: at.into(), length: width as usize, data: self.word(pci_cfg::DATA) })
    }

    /// Reads the registers themselves.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.body.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the registers themselves; only BAR, offset, length and data can be written.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let may = at == pci_cfg::BAR
                || pci_cfg::OFFSET.contains(&at)
                || pci_cfg::LENGTH.contains(&at)
                || pci_cfg::DATA.contains(&at);
            if may {
                self.body[at] = *byte;
            }
        }
    }

    pub(super) fn save(&self) -> WindowState {
        let word = |at| u32::from_le_bytes(self.word(at));
        WindowState {
            bar: self.body[pci_cfg::BAR],
            offset: word(pci_cfg::OFFSET),
            length: word(pci_cfg::LENGTH),
            data: word(pci_cfg::DATA),
        }
    }

    /// Goes on from a state; a driver can write any value to these registers.
    pub(super) fn load(&mut self, saved: &WindowState) {
        self.body[pci_cfg::BAR] = saved.bar;
        self.body[pci_cfg::OFFSET].copy_from_slice(&saved.offset.to_le_bytes());
        self.body[pci_cfg::LENGTH].copy_from_slice(&saved.length.to_le_bytes());
        self.body[pci_cfg::DATA].copy_from_slice(&saved.data.to_le_bytes());
    }

    /// Keeps what an access read.
    pub(super) fn store(&mut self, data: &[u8]) {
        let known = data.len().min(pci_cfg::DATA.len());
        self.body[pci_cfg::DATA][..known].copy_from_slice(&data[..known]);
    }
}
