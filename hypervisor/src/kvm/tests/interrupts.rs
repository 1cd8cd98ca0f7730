//! Routes deliver, mask, remember and give back.

use std::time::Duration;

use device::irq::MsiMessage;

use super::*;
use crate::check::{DATA, DONE, Machine, Outcome, Snippet, Watchdog};
use crate::x86_64::LapicState;

const VECTOR: u32 = 0x40;
const TO_CPU_0: MsiMessage = MsiMessage { address: 0xfee0_0000, data: VECTOR };

/// A machine in long mode that waits for interrupts; the handler counts at 0x3000 past the data and asks to stop. (Real mode
/// would do, but not every nested host delivers interrupts to it.)
fn waiting_guest() -> Machine {
    let code = &[
        0xfb, // sti
        0xf4, // hlt
        0xeb, 0xfd, // back to hlt
    ];
    let handler = [
        &[0xfe, 0x07][..],                     // inc byte [rdi]
        &[0xbb, 0xb0, 0x00, 0xe0, 0xfe],       // mov ebx, 0xfee000b0
        &[0xc7, 0x03, 0x00, 0x00, 0x00, 0x00], // mov dword [rbx], 0: end of interrupt
        DONE,
        &[0x48, 0xcf], // iretq
    ]
    .concat();
    let machine = Machine::new(&Kvm::open().unwrap(), &Arc::new(Watchdog::start().unwrap())).unwrap();
    machine.load(&Snippet { code, handler: &handler, user: &[] }).unwrap();
    machine
}

/// Runs until the handler ran, or until it obviously does not.
fn run_briefly(guest: &mut Machine) -> Stop {
    run_briefly_with(guest, &Recorder::default())
}

fn run_briefly_with(guest: &mut Machine, exits: &dyn Exits) -> Stop {
    let kick = guest.vcpu.kick_handle();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(Duration::from_millis(300)).is_err() {
                kick.kick();
            }
        });
        let stop = guest.vcpu.run(exits);
        done.send(()).ok();
        stop
    })
}

#[test]
fn a_route_delivers_its_message() {
    let mut guest = waiting_guest();
    let route = guest.vm.msi_route().unwrap();
    assert_eq!(route.gsi(), 24);
    route.update(Some(TO_CPU_0)).unwrap();
    for count in 1..=3 {
        route.signal().unwrap();
        assert_eq!(run_briefly(&mut guest), Stop::Asked);
        assert_eq!(guest.byte(DATA), count);
    }
    // Another message for the same route: a vector whose handler reports an exception and halts for good.
    route.update(Some(MsiMessage { data: VECTOR + 1, ..TO_CPU_0 })).unwrap();
    route.event().write(1).unwrap();
    assert_eq!(guest.run(Duration::from_secs(5)), Outcome::Exception(0x41));
    assert_eq!(guest.byte(DATA), 3);
}

#[test]
fn a_masked_route_remembers() {
    let mut guest = waiting_guest();
    let route = guest.vm.msi_route().unwrap();
    route.update(Some(TO_CPU_0)).unwrap();
    route.update(None).unwrap();
    route.signal().unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Interrupted, "a masked interrupt was delivered");
    route.update(Some(TO_CPU_0)).unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Asked);
    assert_eq!(guest.byte(DATA), 1);
    assert_eq!(run_briefly(&mut guest), Stop::Interrupted, "it came twice");
}

#[test]
fn a_batch_of_routes_is_set_at_its_end() {
    let mut guest = waiting_guest();
    let routes: Vec<_> = (0..64).map(|_| guest.vm.msi_route().unwrap()).collect();
    guest
        .vm
        .batch_routes(&mut || {
            for route in &routes {
                route.update(Some(TO_CPU_0)).unwrap();
            }
            routes[5].update(None).unwrap();
        })
        .unwrap();
    routes[63].signal().unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Asked);
    routes[5].signal().unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Interrupted);
    routes[5].update(Some(TO_CPU_0)).unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Asked);
}

#[test]
fn the_ioapics_pins_have_routes_of_their_own() {
    let mut guest = waiting_guest();
    let pin = guest.vm.ioapic_route(4).unwrap();
    assert_eq!(pin.gsi(), 4);
    assert!(guest.vm.ioapic_route(4).is_err(), "a pin was given twice");
    assert!(matches!(guest.vm.ioapic_route(24), Err(Error::NoSuchPin { pin: 24, pins: 24 })));
    pin.update(Some(TO_CPU_0)).unwrap();
    pin.signal().unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Asked);
    drop(pin);
    guest.vm.ioapic_route(4).unwrap();
}

/// Counts the reports of ended interrupts.
#[derive(Default)]
struct Eois(Mutex<Vec<u8>>);

impl Exits for Eois {
    fn pio_read(&self, _: u16, _: &mut [u8]) {}
    fn pio_write(&self, _: u16, _: &[u8]) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    fn ioapic_eoi(&self, vector: u8) {
        self.0.lock().unwrap().push(vector);
    }
}

#[test]
fn the_end_of_a_level_interrupt_is_reported() {
    let mut guest = waiting_guest();
    let pin = guest.vm.ioapic_route(5).unwrap();
    // Data bit 15: level-triggered; bit 14: asserted.
    pin.update(Some(MsiMessage { data: 0xc000 | VECTOR, ..TO_CPU_0 })).unwrap();
    pin.signal().unwrap();
    let eois = Eois::default();
    assert_eq!(run_briefly_with(&mut guest, &eois), Stop::Asked);
    assert_eq!(guest.byte(DATA), 1);
    // KVM may report it on the next way into the guest only.
    assert_eq!(run_briefly_with(&mut guest, &eois), Stop::Interrupted);
    assert_eq!(*eois.0.lock().unwrap(), [0x40]);
}

#[test]
fn dropped_routes_come_back() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let first = vm.msi_route().unwrap();
    let second = vm.msi_route().unwrap();
    assert_eq!((first.gsi(), second.gsi()), (24, 25));
    first.update(Some(TO_CPU_0)).unwrap();
    drop(first);
    assert_eq!(vm.msi_route().unwrap().gsi(), 24);
}

#[test]
fn all_routes_can_be_in_use() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let count = kvm.capabilities().interrupt_routes - 24;
    // As many as the limit on descriptors allows; beyond it there is an error, too.
    let mut routes = Vec::new();
    let error = loop {
        match vm.msi_route() {
            Ok(route) => routes.push(route),
            Err(error) => break error,
        }
    };
    match error {
        Error::RoutesExhausted(limit) => assert_eq!((limit, routes.len()), (count, count as usize)),
        Error::Refused { operation: "make an eventfd", .. } => assert!(routes.len() < count as usize),
        other => panic!("{other}"),
    }
    routes.truncate(10);
    assert_eq!(vm.msi_route().unwrap().gsi(), 34);
}

#[test]
fn a_message_needs_no_route() {
    let mut guest = waiting_guest();
    guest.vm.send_msi(TO_CPU_0).unwrap();
    assert_eq!(run_briefly(&mut guest), Stop::Asked);
    assert_eq!(guest.byte(DATA), 1);
}

#[test]
fn an_nmi_arrives() {
    let mut guest = waiting_guest();
    guest.vcpu.x86_64().nmi().unwrap();
    assert_eq!(guest.run(Duration::from_secs(5)), Outcome::Exception(2));
}

#[test]
fn lapic_registers_are_found_by_offset() {
    let guest = Guest::new(&[DONE]);
    let lapic = guest.vcpu.x86_64().lapic().unwrap();
    // Version register: at least four entries in the vector table.
    assert!((lapic.get(0x30) >> 16) & 0xff >= 3, "{:#x}", lapic.get(0x30));
    assert_eq!(lapic.get(LapicState::LVT_LINT1), 0x1_0000, "masked at reset");
}
