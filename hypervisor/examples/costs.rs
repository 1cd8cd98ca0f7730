//! What each step of making a VM costs here: medians of 31 rounds, in microseconds.

use std::collections::BTreeMap;
use std::time::Instant;

use hypervisor::kvm::Kvm;
use hypervisor::{Hypervisor, RamFlags, RamSlot, VmOptions};

fn main() {
    let mut costs: BTreeMap<(usize, &str), Vec<f64>> = BTreeMap::new();
    for _ in 0..31 {
        let mut step = 0;
        let mut measure = |name: &'static str, from: Instant| {
            costs.entry((step, name)).or_default().push(from.elapsed().as_secs_f64() * 1e6);
            step += 1;
        };
        let at = Instant::now();
        let kvm = Kvm::open().expect("no KVM");
        measure("open, capabilities", at);
        let at = Instant::now();
        let cpuid = kvm.supported_cpuid().expect("no CPUID");
        measure("supported CPUID", at);
        let at = Instant::now();
        let vm = kvm.create_vm(&VmOptions::default()).expect("no VM");
        measure("VM with split irqchip", at);
        let mut page = vec![0u8; 0x20_0000];
        let address = page.as_mut_ptr().wrapping_add(page.as_ptr().align_offset(4096));
        let at = Instant::now();
        let slot = RamSlot {
            slot: 0,
            guest_address: 0,
            host_address: address,
            size: 0x10_0000,
            flags: RamFlags::default(),
        };
        // SAFETY: the page lives until the VM is gone (see below), and the guest never runs.
        unsafe { vm.map_ram(&slot) }.expect("no RAM");
        measure("RAM slot", at);
        let at = Instant::now();
        let slot = RamSlot { slot: 1, guest_address: 0x1_0000_0000, ..slot };
        // SAFETY: as above.
        unsafe { vm.map_ram(&slot) }.expect("no RAM");
        measure("another RAM slot", at);
        let at = Instant::now();
        let vcpu = vm.create_vcpu(0).expect("no vCPU");
        measure("vCPU", at);
        let at = Instant::now();
        vcpu.x86_64().set_cpuid(&cpuid).expect("CPUID");
        measure("set CPUID", at);
        let at = Instant::now();
        let special = vcpu.x86_64().special_registers().expect("get");
        measure("get special registers", at);
        let at = Instant::now();
        vcpu.x86_64().set_special_registers(&special).expect("set");
        measure("set special registers", at);
        let at = Instant::now();
        let lapic = vcpu.x86_64().lapic().expect("get");
        measure("get LAPIC", at);
        let at = Instant::now();
        vcpu.x86_64().set_lapic(&lapic).expect("set");
        measure("set LAPIC", at);
        let at = Instant::now();
        let route = vm.msi_route().expect("route");
        measure("MSI route", at);
        let message = device::irq::MsiMessage { address: 0xfee0_0000, data: 0x40 };
        let at = Instant::now();
        route.update(Some(message)).expect("update");
        measure("first message (table and irqfd)", at);
        let at = Instant::now();
        route.update(Some(device::irq::MsiMessage { data: 0x41, ..message })).expect("update");
        measure("other message (table)", at);
        let at = Instant::now();
        route.update(None).expect("mask");
        measure("mask (irqfd)", at);
        let at = Instant::now();
        route.update(Some(device::irq::MsiMessage { data: 0x41, ..message })).expect("unmask");
        measure("unmask (irqfd)", at);
        let at = Instant::now();
        drop((route, vcpu, vm));
        measure("end", at);
        drop(page);
    }
    for ((_, name), mut values) in costs {
        values.sort_by(f64::total_cmp);
        println!("{:10.1}  {name}", values[values.len() / 2]);
    }
}
