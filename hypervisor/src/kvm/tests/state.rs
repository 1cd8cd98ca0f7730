//! State that was set is the state that is got.

use super::*;
use crate::x86_64::{FpuState, MpState, MsrEntry};

#[test]
fn every_part_of_a_vcpus_state_goes_round() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let cpu = vcpu.x86_64();
    cpu.set_cpuid(&kvm.supported_cpuid().unwrap()).unwrap();
    assert!(!cpu.cpuid().unwrap().is_empty());

    let registers = StandardRegisters { rax: 1, r15: u64::MAX, rip: 0xfff0, rflags: 2, ..Default::default() };
    cpu.set_registers(&registers).unwrap();
    assert_eq!(cpu.registers().unwrap(), registers);

    let mut special = cpu.special_registers().unwrap();
    special.fs.base = 0x1234_5000;
    special.gdt.base = 0x500;
    special.gdt.limit = 0x1f;
    cpu.set_special_registers(&special).unwrap();
    assert_eq!(cpu.special_registers().unwrap(), special);

    let mut fpu = FpuState::default();
    fpu.xmm[3] = [7; 16];
    cpu.set_fpu(&fpu).unwrap();
    // KVM has MXCSR in the XSAVE area only.
    assert_eq!(FpuState { mxcsr: fpu.mxcsr, ..cpu.fpu().unwrap() }, fpu);

    if let Some(xcr0) = cpu.xcr0().unwrap() {
        assert_eq!(xcr0 & 1, 1);
        cpu.set_xcr0(xcr0).unwrap();
    }
    let mut area = cpu.xsave().unwrap();
    assert_eq!(area.0.len(), kvm.capabilities().xsave_size as usize);
    area.0[160 + 3 * 16..][..16].fill(7); // XMM3 of the legacy region
    area.0[512] |= 3; // x87 and SSE are in use
    cpu.set_xsave(&area).unwrap();
    assert_eq!(cpu.xsave().unwrap(), area);
    assert_eq!(cpu.fpu().unwrap().xmm[3], [7; 16]);
    let mut short = area;
    short.0.pop();
    assert!(matches!(cpu.set_xsave(&short), Err(Error::StateShape { .. })));

    let mut debug = cpu.debug_registers().unwrap();
    debug.db[0] = 0xdead;
    cpu.set_debug_registers(&debug).unwrap();
    assert_eq!(cpu.debug_registers().unwrap(), debug);

    let mut lapic = cpu.lapic().unwrap();
    lapic.set(0xf0, 0x1ff);
    cpu.set_lapic(&lapic).unwrap();
    assert_eq!(cpu.lapic().unwrap(), lapic);

    let events = cpu.events().unwrap();
    cpu.set_events(&events).unwrap();
    assert_eq!(cpu.events().unwrap(), events);

    assert_eq!(cpu.mp_state().unwrap(), MpState::Runnable);
    cpu.set_mp_state(MpState::Halted).unwrap();
    assert_eq!(cpu.mp_state().unwrap(), MpState::Halted);
    assert_eq!(vm.create_vcpu(1).unwrap().x86_64().mp_state().unwrap(), MpState::Uninitialized);

    match cpu.tsc_khz().unwrap() {
        Some(khz) => assert!(khz > 100_000, "{khz} kHz"),
        None => assert!(!kvm.capabilities().tsc_control),
    }
    if !kvm.capabilities().tsc_control {
        assert!(matches!(cpu.set_tsc_khz(1_000_000), Err(Error::Unsupported(_))));
    }
    cpu.notify_paused().unwrap();
}

#[test]
fn msrs_that_the_host_does_not_know_are_skipped() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let cpu = vcpu.x86_64();
    cpu.set_cpuid(&kvm.supported_cpuid().unwrap()).unwrap();
    // IA32_SYSENTER_CS, nonsense, IA32_SYSENTER_ESP, more nonsense, LSTAR.
    let wanted = [(0x174, 8), (0xdead_0000, 1), (0x175, 0x7000), (0xdead_0001, 1), (0xc000_0082, 0x1000)]
        .map(|(index, data)| MsrEntry { index, data });
    assert_eq!(cpu.set_msrs(&wanted).unwrap(), [0xdead_0000, 0xdead_0001]);
    let found = cpu.msrs(&wanted.map(|entry| entry.index)).unwrap();
    assert_eq!(found, [wanted[0], wanted[2], wanted[4]]);
    assert!(cpu.set_msrs(&[]).unwrap().is_empty());
}

#[test]
fn more_msrs_than_kvm_takes_at_once_are_transferred() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let cpu = vcpu.x86_64();
    cpu.set_cpuid(&kvm.supported_cpuid().unwrap()).unwrap();
    for count in [255, 256, 257, 600] {
        let wanted: Vec<_> = (0..count).map(|data| MsrEntry { index: 0x175, data }).collect();
        assert!(cpu.set_msrs(&wanted).unwrap().is_empty());
        let found = cpu.msrs(&vec![0x175; count as usize]).unwrap();
        assert_eq!(found, vec![MsrEntry { index: 0x175, data: count - 1 }; count as usize]);
    }
}

#[test]
fn the_saved_msrs_can_be_read() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.x86_64().set_cpuid(&kvm.supported_cpuid().unwrap()).unwrap();
    let indices = kvm.msr_indices().unwrap();
    let values = vcpu.x86_64().msrs(&indices).unwrap();
    assert!(values.len() > indices.len() / 2, "{} of {}", values.len(), indices.len());
}

#[test]
fn the_clock_is_set() {
    let vm = Kvm::open().unwrap().create_vm(&VmOptions::default()).unwrap();
    let mut clock = vm.clock().unwrap();
    clock.nanoseconds += 1_000_000_000_000;
    clock.realtime = None;
    vm.set_clock(&clock).unwrap();
    let now = vm.clock().unwrap().nanoseconds;
    assert!((clock.nanoseconds..clock.nanoseconds + 10_000_000_000).contains(&now), "{now}");
}

#[test]
fn ids_beyond_a_byte_work_with_the_x2apic_interface() {
    let kvm = Kvm::open().unwrap();
    let options = VmOptions { x2apic_32bit_ids: true };
    if !kvm.capabilities().x2apic_32bit_ids {
        assert!(kvm.create_vm(&options).is_err());
        return;
    }
    let vm = kvm.create_vm(&options).unwrap();
    let id = 300.min(kvm.capabilities().max_vcpu_id - 1);
    vm.create_vcpu(id).unwrap();
    assert!(vm.create_vcpu(id).is_err(), "the id is taken");
    let error = vm.create_vcpu(u32::MAX).err().unwrap();
    assert_eq!(error.to_string(), "cannot create the vCPU with APIC id 4294967295");
}

#[test]
fn state_survives_serialisation() {
    let guest = Guest::new(&[DONE]);
    let lapic = guest.vcpu.x86_64().lapic().unwrap();
    let text = serde_json::to_string(&lapic).unwrap();
    assert_eq!(serde_json::from_str::<crate::x86_64::LapicState>(&text).unwrap(), lapic);
    assert!(serde_json::from_str::<crate::x86_64::LapicState>("{\"registers\":[1,2]}").is_err());
    let special = guest.vcpu.x86_64().special_registers().unwrap();
    let text = serde_json::to_string(&special).unwrap();
    assert_eq!(serde_json::from_str::<crate::x86_64::SpecialRegisters>(&text).unwrap(), special);
}
