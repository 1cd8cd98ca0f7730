//! A vCPU's state goes through JSON into another VM and is the same there. On the real `/dev/kvm`.

use device::{Node, State};
use hypervisor::kvm::Kvm;
use hypervisor::{Hypervisor, Vcpu, VmOptions};

use super::*;

const TSC_LIKE: [u32; 2] = [MSR_TSC, MSR_TSC_DEADLINE];

fn new_vcpu(kvm: &Kvm) -> Box<dyn Vcpu> {
    kvm.create_vm(&VmOptions::default()).unwrap().create_vcpu(0).unwrap()
}

#[test]
fn a_state_is_the_same_in_another_machine() {
    let kvm = Kvm::open().unwrap();
    let indices = kvm.msr_indices().unwrap();
    let first = new_vcpu(&kvm);
    first.x86_64().set_cpuid(&kvm.supported_cpuid().unwrap()).unwrap();
    let mut registers = first.x86_64().registers().unwrap();
    registers.rax = 0x1234_5678_9abc_def0;
    registers.rip = 0x10_0000;
    first.x86_64().set_registers(&registers).unwrap();
    let saved = VcpuState::save(first.x86_64(), &indices).unwrap();
    assert!(!saved.msrs.is_empty() && !saved.is_hypervisor());

    let text = serde_json::to_string(&Node::of(&saved).unwrap()).unwrap();
    let read: VcpuState = serde_json::from_str::<Node>(&text).unwrap().read().unwrap();
    assert_eq!(read, saved);

    let second = new_vcpu(&kvm);
    let refused = read.load(second.x86_64()).unwrap();
    let again = VcpuState::save(second.x86_64(), &indices).unwrap();
    assert_eq!(again.registers.rax, registers.rax);
    let same = |a: &VcpuState, b: &VcpuState| {
        // Clocks run on; what the host does not take is told by the return value.
        let kept = |m: &&MsrEntry| !TSC_LIKE.contains(&m.index) && !refused.contains(&m.index);
        let msrs = |s: &VcpuState| s.msrs.iter().filter(kept).copied().collect::<Vec<_>>();
        assert_eq!(msrs(a), msrs(b));
        let rest = |s: &VcpuState| VcpuState { msrs: Vec::new(), ..s.clone() };
        assert_eq!(rest(a), rest(b));
    };
    same(&saved, &again);
}

#[test]
fn the_counter_is_set_first_and_the_deadline_last() {
    let state = VcpuState::save(new_vcpu(&Kvm::open().unwrap()).x86_64(), &[]).unwrap();
    let entry = |index| MsrEntry { index, data: 5 };
    let mut state = VcpuState {
        tsc_khz: Some(2_000_000),
        msrs: [MSR_TSC_DEADLINE, 0x174, MSR_TSC].map(entry).to_vec(),
        ..state
    };
    let order: Vec<u32> = state.ordered_msrs().iter().map(|m| m.index).collect();
    assert_eq!(order, [MSR_TSC, 0x174, MSR_TSC_DEADLINE]);
    state.advance_tsc(1_000_000_000);
    assert_eq!(state.ordered_msrs()[0].data, 2_000_000_005);
    assert_eq!(state.ordered_msrs()[2].data, 5);
    state.advance_tsc(u64::MAX);
    state.tsc_khz = None;
    let before = state.clone();
    state.advance_tsc(1_000);
    assert_eq!(state, before);
}

#[test]
fn the_counter_keeps_its_frequency_or_the_state_is_refused() {
    let kvm = Kvm::open().unwrap();
    let state = VcpuState::save(new_vcpu(&kvm).x86_64(), &[]).unwrap();
    let saved = |khz| VcpuState { tsc_khz: khz, ..state.clone() };
    assert_eq!(saved(Some(2_000_000)).other_tsc_khz(Some(2_000_500)), None);
    assert_eq!(saved(Some(2_000_000)).other_tsc_khz(Some(2_000_501)), Some(2_000_000));
    assert_eq!(saved(Some(u32::MAX)).other_tsc_khz(Some(0)), Some(u32::MAX));
    assert_eq!((saved(None).other_tsc_khz(Some(1)), saved(Some(1)).other_tsc_khz(None)), (None, None));

    let Some(khz) = state.tsc_khz else { return };
    let vcpu = new_vcpu(&kvm);
    let loaded = saved(Some(khz / 2)).load(vcpu.x86_64());
    assert_eq!(loaded.is_ok(), kvm.capabilities().tsc_control, "{loaded:?}");
    if loaded.is_ok() {
        assert_eq!(vcpu.x86_64().tsc_khz().unwrap(), Some(khz / 2));
    }
}

#[test]
fn a_state_of_another_form_is_refused() {
    let state = VcpuState::save(new_vcpu(&Kvm::open().unwrap()).x86_64(), &[]).unwrap();
    let node = Node::of(&state).unwrap();
    for (field, value) in
        [("xsave", "abc".into()), ("xsave", "zz".into()), ("lapic", 7.into()), ("more", 1.into())]
    {
        let mut bad = node.clone();
        bad.change(|body| body[field] = value);
        assert!(bad.read::<VcpuState>().is_err(), "{field}");
    }
    let mut short = state.clone();
    short.xsave.0.truncate(100);
    assert!(short.load(new_vcpu(&Kvm::open().unwrap()).x86_64()).is_err());
    assert_eq!(VcpuState::KIND, "x86-vcpu");
}
