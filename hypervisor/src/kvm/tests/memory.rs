//! Doorbells, RAM slots and their flags.

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::{Doorbell, DoorbellSpace};

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

#[test]
fn doorbells_ring_without_an_exit() {
    let code: &[&[u8]] = &[
        &[0xba, 0x10, 0x05],       // mov dx, 0x510
        &[0xb8, 0x07, 0x00],       // mov ax, 7
        &[0xee],                   // out dx, al
        &[0xef],                   // out dx, ax
        &[0xa3, 0x00, 0x90],       // mov [0x9000], ax
        &[0x66, 0xa3, 0x00, 0x90], // mov [0x9000], eax
        &[0xa3, 0x08, 0x90],       // mov [0x9008], ax
        &[0xb8, 0x08, 0x00],       // mov ax, 8
        &[0xa3, 0x08, 0x90],       // mov [0x9008], ax
        DONE,
    ];
    let mut guest = Guest::new(code);
    let (port, memory, matched) = (event(), event(), event());
    let on_port = Doorbell { space: DoorbellSpace::Pio, address: 0x510, length: 2, datamatch: None };
    let on_memory = Doorbell { space: DoorbellSpace::Mmio, address: 0x9000, length: 0, datamatch: None };
    let on_match = Doorbell { space: DoorbellSpace::Mmio, address: 0x9008, length: 2, datamatch: Some(8) };
    guest.vm.add_doorbell(&port, &on_port).unwrap();
    guest.vm.add_doorbell(&memory, &on_memory).unwrap();
    guest.vm.add_doorbell(&matched, &on_match).unwrap();
    let exits = Recorder::default();
    assert_eq!(guest.run(&exits), Stop::Asked);
    assert_eq!(port.read().unwrap(), 1, "only the 16-bit write rings");
    assert_eq!(memory.read().unwrap(), 2, "both widths ring");
    assert_eq!(matched.read().unwrap(), 1, "only the value 8 rings");
    use Access::{MmioWrite, PioWrite};
    assert_eq!(exits.take(), [PioWrite(0x510, vec![7]), MmioWrite(0x9008, vec![7, 0])]);

    // Removed, all of it comes as exits.
    guest.vm.remove_doorbell(&port, &on_port).unwrap();
    guest.vm.remove_doorbell(&memory, &on_memory).unwrap();
    guest.vm.remove_doorbell(&matched, &on_match).unwrap();
    assert!(guest.vm.remove_doorbell(&port, &on_port).is_err(), "removed twice");
    real_mode(&*guest.vcpu);
    assert_eq!(guest.run(&exits), Stop::Asked);
    assert_eq!(exits.take().len(), 6);
    assert!(port.read().is_err() && memory.read().is_err() && matched.read().is_err());
}

#[test]
fn two_doorbells_at_one_place_are_refused() {
    let guest = Guest::new(&[DONE]);
    let doorbell = Doorbell { space: DoorbellSpace::Mmio, address: 0x9000, length: 0, datamatch: None };
    guest.vm.add_doorbell(&event(), &doorbell).unwrap();
    let error = guest.vm.add_doorbell(&event(), &doorbell).unwrap_err();
    assert_eq!(error.to_string(), "cannot add the doorbell at memory address 0x9000");
    let odd = Doorbell { length: 3, ..doorbell };
    assert!(guest.vm.add_doorbell(&event(), &odd).is_err());
}

#[test]
fn writes_to_readonly_ram_are_exits() {
    let mut guest = Guest::new(&[
        &[0xa0, 0x00, 0xa0], // mov al, [0xa000]
        &[0xa2, 0x01, 0xa0], // mov [0xa001], al
        DONE,
    ]);
    let rom = Memory::new();
    rom.write(0, &[0x5a]);
    let slot = RamSlot {
        slot: 1,
        guest_address: 0xa000,
        host_address: rom.0,
        size: 0x1000,
        flags: RamFlags { readonly: true, log_dirty: false },
    };
    // SAFETY: unmapped below before the memory goes.
    unsafe { guest.vm.map_ram(&slot) }.unwrap();
    let exits = Recorder::default();
    assert_eq!(guest.run(&exits), Stop::Asked);
    assert_eq!(exits.take(), [Access::MmioWrite(0xa001, vec![0x5a])]);
    guest.vm.unmap_ram(1).unwrap();
    assert!(guest.vm.unmap_ram(1).is_err(), "unmapped twice");
    real_mode(&*guest.vcpu);
    assert_eq!(guest.run(&exits), Stop::Asked);
    assert_eq!(exits.take()[0], Access::MmioRead(0xa000, 1));
}

#[test]
fn the_dirty_log_names_the_pages_that_the_guest_wrote() {
    let mut guest = Guest::new(&[
        &[0xa2, 0x01, 0x30], // mov [0x3001], al
        &[0xa2, 0x01, 0x50], // mov [0x5001], al
        DONE,
    ]);
    let slot = RamSlot {
        slot: 0,
        guest_address: 0,
        host_address: guest.memory.0,
        size: RAM as u64,
        flags: RamFlags { readonly: false, log_dirty: true },
    };
    // SAFETY: the same memory as before, with other flags.
    unsafe { guest.vm.map_ram(&slot) }.unwrap();
    assert_eq!(guest.run(&Recorder::default()), Stop::Asked);
    assert_eq!(guest.vm.take_dirty_log(0, RAM as u64).unwrap(), [1 << 3 | 1 << 5]);
    assert_eq!(guest.vm.take_dirty_log(0, RAM as u64).unwrap(), [0]);
}

#[test]
fn bad_slots_are_refused_by_number_and_address() {
    let guest = Guest::new(&[DONE]);
    let slot = RamSlot {
        slot: 1,
        guest_address: 0x1000,
        host_address: guest.memory.0,
        size: 0x1000,
        flags: RamFlags::default(),
    };
    // SAFETY: refused, because it overlaps slot 0.
    let error = unsafe { guest.vm.map_ram(&slot) }.unwrap_err();
    assert_eq!(error.to_string(), "cannot map RAM slot 1 at guest address 0x1000, 0x1000 bytes");
    // SAFETY: refused, because it is empty.
    assert!(unsafe { guest.vm.map_ram(&RamSlot { size: 0, ..slot }) }.is_err());
}
