//! A segment with several functions, whose configuration space a guest writes as it likes through both ways, while functions come and go.

use std::sync::Arc;

use device::{BarKind, Device, Region, Registers};
use pci::{Plugged, Reservation};
use virtio_devices::transport::VirtioPci;

use crate::Target;
use crate::guest::{Board, ECAM, HIGH, LOW};
use crate::input::Input;

/// Most functions at once.
const FUNCTIONS: usize = 6;

struct Machine {
    functions: Vec<(Plugged, Arc<VirtioPci>)>,
    board: Board,
}

fn entropy() -> Box<dyn device::Virtio> {
    crate::virtio::build::<virtio_devices::rng::RngSpec>(
        "src=/dev/urandom",
        "__rng",
        &device::Kept::default(),
    )
}

impl Machine {
    fn plug(&mut self, kind: BarKind, slot: Option<u8>) {
        if self.functions.len() >= FUNCTIONS {
            return;
        }
        let mut device = VirtioPci::new("it", entropy(), kind).unwrap();
        let Ok(place) = Reservation::new(&self.board.segment, &device.needs(), slot) else { return };
        self.board.wire(&mut device, &place);
        let device = Arc::new(device);
        let plugged = place.plug(device.clone()).unwrap();
        plugged.removable();
        device.start().unwrap();
        self.functions.push((plugged, device));
    }

    /// One of them leaves, and comes back as it was.
    fn replace(&mut self, n: usize) {
        if self.functions.is_empty() {
            return;
        }
        let (plugged, device) = self.functions.remove(n % self.functions.len());
        device.stop().unwrap();
        let (state, function, placed) =
            (device.save().unwrap(), plugged.save().unwrap(), plugged.placed().clone());
        let ejected = self.board.segment.function(placed.slot).is_none();
        let kind = placed.bars[0].1;
        drop((plugged, device));
        if ejected {
            // It is not the guest's any more; its state is of no use.
            return;
        }
        let mut device = VirtioPci::new("it", entropy(), kind).unwrap();
        let place = match Reservation::load(&self.board.segment, &device.needs(), &placed, function) {
            Ok(place) => place,
            // What it had room in may have gone to another since: the guest moved that one there.
            Err(pci::PciError::Replay { .. }) => return,
            Err(e) => panic!("a function is not taken back: {e}"),
        };
        self.board.wire(&mut device, &place);
        device.load(state).unwrap();
        let device = Arc::new(device);
        let plugged = place.plug(device.clone()).unwrap();
        plugged.removable();
        device.start().unwrap();
        self.functions.push((plugged, device));
    }

    /// Addresses for BARs: good ones, those of others, and bad ones.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        let at = |n: usize| self.functions.get(n).map_or(0, |(plugged, _)| plugged.placed().bars[0].2.base);
        match input.u8() & 7 {
            0 | 1 => at(input.u8().into()),
            2 => at(input.u8().into()) + 0x8_0000 * u64::from(input.u8() & 3),
            3 => LOW.base + 0x8_0000 * u64::from(input.u8()),
            4 => HIGH.base + 0x8_0000 * u64::from(input.u8()),
            5 => u64::MAX,
            6 => ECAM,
            _ => input.value(),
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let slot = u64::from(input.u8() & 7);
        match input.u8() % 10 {
            0 => {
                let kind =
                    if input.flag() { BarKind::Memory32 } else { BarKind::Memory64 { prefetchable: false } };
                let slot = input.u8();
                self.plug(kind, (slot < 40).then_some(slot));
            }
            1 => {
                if !self.functions.is_empty() {
                    let (plugged, device) = self.functions.remove(input.below(256) % self.functions.len());
                    if input.flag() {
                        drop(plugged);
                        drop(device);
                    } else {
                        drop(device);
                        drop(plugged);
                    }
                }
            }
            2 => self.replace(input.u8().into()),
            3 => drop(self.board.segment.eject(input.value() as u32)),
            4 | 5 => {
                // Command, BARs.
                let (register, value) =
                    (input.one_of(&[4u64, 0x10, 0x14, 0x10, 0x14, 0x18, 0x30]), self.address(input));
                let width = if register == 4 { 2 } else { 4 };
                let value = if register == 0x14 {
                    value >> 32
                } else if register == 4 {
                    value & 7
                } else {
                    value
                };
                self.board.write(ECAM + (slot << 15) + register, &value.to_le_bytes()[..width]);
            }
            6 => {
                let (offset, value, width) =
                    (input.value() & 0xfff, input.value(), input.one_of(&[1, 2, 4, 8]));
                self.board.write(ECAM + (slot << 15) + offset, &value.to_le_bytes()[..width]);
                self.board.memory.read(ECAM + (slot << 15) + offset, &mut [0; 8][..width]);
            }
            7 => {
                let address = 1u32 << 31 | (slot as u32) << 11 | input.value() as u32 & 0xff_07ff;
                let effect = self.board.ports.write(Region::Window(0), 0, &address.to_le_bytes());
                self.board.apply(Some(effect));
                let (at, width) = (4 + u64::from(input.u8() & 3), input.one_of(&[1, 2, 4]));
                let effect =
                    self.board.ports.write(Region::Window(0), at, &input.value().to_le_bytes()[..width]);
                self.board.apply(Some(effect));
                self.board.ports.read(Region::Window(0), at, &mut [0; 4][..width]);
            }
            8 => {
                // Registers, MSI-X table and pending bits, wherever the BAR is.
                let address = self
                    .address(input)
                    .wrapping_add(input.one_of(&[0, 0x14, 0x6000, 0x8000, 0x800c, 0x4_8000, 0x7_fff8]));
                let address = address.wrapping_add(u64::from(input.u8()));
                self.board.write(address, &input.value().to_le_bytes()[..input.one_of(&[1, 2, 4, 8])]);
                self.board.memory.read(address, &mut [0; 8][..input.one_of(&[1, 2, 4, 8])]);
            }
            _ => {
                if let Some((plugged, device)) = self.functions.first() {
                    let vector = input.u8();
                    let _effect = plugged.function().write(Region::Bar(0), 0x14, &[vector]);
                    let _state = device.save();
                }
            }
        }
    }
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut machine = Machine { functions: Vec::new(), board: Board::new(Board::ram()) };
    for kind in [BarKind::Memory32, BarKind::Memory64 { prefetchable: false }, BarKind::Memory32] {
        machine.plug(kind, None);
    }
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        machine.act(&mut input);
    }
    machine.board.assert_well();
    // When all have gone, all room is back.
    machine.functions.clear();
    let rooms = || {
        let all = (0..31u8).map_while(|_| {
            let device = VirtioPci::new("it", entropy(), BarKind::Memory32).unwrap();
            Reservation::new(&machine.board.segment, &device.needs(), None).ok()
        });
        all.collect::<Vec<_>>().len()
    };
    assert_eq!(rooms(), 31, "slots or room for BARs are lost");
    assert!(machine.board.bells.addresses().is_empty(), "doorbells are left");
    let mut byte = [0];
    for address in [LOW.base, LOW.end() - 0x8_0000, HIGH.end() - 0x8_0000] {
        assert!(!machine.board.memory.read(address, &mut byte), "something still answers at {address:#x}");
    }
}

pub fn target() -> Target {
    Target {
        name: "pci",
        about: "configuration space, BARs and MSI-X of several functions that come and go",
        length: 512,
        options: &[],
        words: Vec::new,
        seeds: || {
            let bar = |slot: u8, to: u8| vec![slot, 4, 1, 3, to, slot, 4, 0, 10, 16];
            vec![
                bar(1, 4),
                [bar(1, 4), bar(2, 4), bar(2, 9)].concat(),
                vec![1, 2, 0, 1, 2, 1, 1, 2, 2],
                vec![1, 0, 1, 200, 2, 0, 0, 7, 1, 1, 0, 0, 1, 1, 0, 1],
                vec![1, 3, 2, 255, 255, 255, 255, 1, 0, 1, 1, 1, 1, 0, 0],
                vec![1, 8, 0, 0, 3, 12, 1, 0, 2, 1, 6, 66, 2, 0, 128, 1],
            ]
        },
        run,
    }
}
