//! Both boot protocols to their first instructions, on KVM: guests of a few bytes report what they find.
//!
//! These run wherever `/dev/kvm` opens, also where it emulates kernel mode: the guests use only plain moves and ports.

use std::ops::ControlFlow;
use std::sync::Mutex;

use hypervisor::kvm::Kvm;
use hypervisor::{Exits, Hypervisor, RamFlags, RamSlot, Stop, Vcpu, VmOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::tests::{LOAD, bzimage, file, memory, pvh_kernel};
use super::*;
use crate::x86_64::acpi::{Cpu, Machine, PciSegment, Tables};
use crate::x86_64::cpuid::{Config, Cpuid, HostCpu};
use crate::x86_64::topology::Topology;

const RAM: u64 = 64 << 20;

/// Loads segments from the boot GDT, as a kernel may: mov ax, 0x10; mov ds, ax; mov ss, ax; mov dx, 0x3f8.
const PROLOGUE: [u8; 12] = [0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, 0x8e, 0xd0, 0x66, 0xba, 0xf8, 0x03];
/// out dx, eax
const OUT: u8 = 0xef;
/// jmp $
const FOREVER: [u8; 2] = [0xeb, 0xfe];

/// Collects double words from port 0x3f8 and stops the guest after some.
struct Port {
    wanted: usize,
    words: Mutex<Vec<u32>>,
}

impl Exits for Port {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, port: u16, data: &[u8]) -> ControlFlow<()> {
        assert_eq!(port, 0x3f8);
        let mut words = self.words.lock().unwrap();
        words.push(u32::from_le_bytes(data.try_into().unwrap()));
        if words.len() == self.wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn mmio_read(&self, address: u64, _data: &mut [u8]) {
        panic!("the guest read {address:#x}");
    }
    fn mmio_write(&self, address: u64, _data: &[u8]) -> ControlFlow<()> {
        panic!("the guest wrote {address:#x}");
    }
    fn ioapic_eoi(&self, _vector: u8) {}
}

fn kvm() -> Option<Kvm> {
    Kvm::open().inspect_err(|e| eprintln!("SKIPPED: {e}; no guest was started")).ok()
}

fn cpuid(kvm: &Kvm, topology: Topology) -> Cpuid {
    let config = Config {
        topology,
        phys_bits: kvm.physical_address_bits().unwrap().min(46),
        tsc_deadline: kvm.capabilities().tsc_deadline_timer,
        extended_dest_id: false,
        tsc_khz: None,
        nested: false,
        amx: false,
    };
    let supported = kvm.supported_cpuid().unwrap();
    Cpuid::new(&supported, &HostCpu::read(&supported), &config)
}

fn set_up(vcpu: &dyn Vcpu, cpuid: &Cpuid, index: u32, entry: Option<Entry>) {
    let x86 = vcpu.x86_64();
    x86.set_cpuid(&cpuid.for_vcpu(index)).unwrap();
    assert_eq!(x86.set_msrs(&registers::msrs()).unwrap(), [0u32; 0], "KVM refused an MSR");
    x86.set_lapic(&registers::lapic(x86.lapic().unwrap())).unwrap();
    if let Some(entry) = entry {
        x86.set_fpu(&registers::boot_fpu()).unwrap();
        let reset = x86.special_registers().unwrap();
        x86.set_special_registers(&registers::boot_special_registers(reset)).unwrap();
        x86.set_registers(&registers::boot_registers(entry)).unwrap();
    }
}

/// Boots `image` and gives the double words that it reports.
fn boot(kvm: &Kvm, image: &[u8], wanted: usize) -> Vec<u32> {
    let kernel_file = file(image);
    let kernel = Kernel::open(kernel_file.as_path()).unwrap();
    let (map, ram): (MemoryMap, GuestMemoryMmap) = memory(RAM);
    let plan = plan(&kernel, None, b"root=/dev/vda", &map, Some(layout::RSDP)).unwrap();
    plan.load(&ram, Backing::PrivateAnonymous).unwrap();
    let cpus = [0, 1, 2].map(|apic_id| Cpu { apic_id, enabled: true });
    let segment = PciSegment { number: 0, mmio32: layout::MMIO32, mmio64: map.mmio64 };
    let tables =
        Tables::new().finish(&Machine { cpus: &cpus, segments: &[segment], hotplug: false }).unwrap();
    ram.write_slice(&tables, GuestAddress(layout::RSDP)).unwrap();

    let vm = kvm.create_vm(&VmOptions::default()).unwrap();
    let slot = RamSlot {
        slot: 0,
        guest_address: 0,
        host_address: ram.get_host_address(GuestAddress(0)).unwrap(),
        size: RAM,
        flags: RamFlags::default(),
    };
    // SAFETY: `ram` outlives `vm`, which is dropped first at the end of this function, and is not referenced meanwhile.
    unsafe { vm.map_ram(&slot) }.unwrap();
    let cpuid = cpuid(kvm, Topology::flat(3));
    let mut vcpu = vm.create_vcpu(0).unwrap();
    set_up(vcpu.as_ref(), &cpuid, 0, Some(plan.entry));
    let port = Port { wanted, words: Mutex::default() };
    assert_eq!(vcpu.run(&port), Stop::Asked);
    drop((vcpu, vm));
    port.words.into_inner().unwrap()
}

#[test]
fn pvh_guest_finds_start_info_tables_and_cpuid() {
    let Some(kvm) = kvm() else { return };
    let mut code = PROLOGUE.to_vec();
    // mov eax, [ebx] (magic)
    code.extend([0x8b, 0x03, OUT]);
    // mov eax, [ebx + 0x18]; mov eax, [eax] (command line)
    code.extend([0x8b, 0x43, 0x18, 0x8b, 0x00, OUT]);
    // mov eax, [ebx + 0x20]; mov eax, [eax] (RSDP)
    code.extend([0x8b, 0x43, 0x20, 0x8b, 0x00, OUT]);
    // mov eax, 1; cpuid; mov dx, 0x3f8; mov eax, ebx; out; mov eax, ecx
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xba, 0xf8, 0x03, 0x89, 0xd8, OUT, 0x89, 0xc8, OUT]);
    code.extend(FOREVER);
    let mut image = pvh_kernel(LOAD, 0x20_0000);
    image[0x1000..0x1000 + code.len()].copy_from_slice(&code);
    let words = boot(&kvm, &image, 5);
    assert_eq!(words[0], 0x336e_c578);
    assert_eq!(words[1].to_le_bytes(), *b"root");
    assert_eq!(words[2].to_le_bytes(), *b"RSD ");
    assert_eq!((words[3] >> 24, words[3] >> 16 & 0xff), (0, 4), "APIC id 0, ids for three processors");
    assert_eq!(words[4] >> 31, 1, "there is a hypervisor");
}

#[test]
fn linux_guest_finds_its_zero_page() {
    let Some(kvm) = kvm() else { return };
    let mut code = PROLOGUE.to_vec();
    // mov eax, [esi + 0x202] (magic)
    code.extend([0x8b, 0x86, 0x02, 0x02, 0, 0, OUT]);
    // mov eax, [esi + 0x228]; mov eax, [eax] (command line)
    code.extend([0x8b, 0x86, 0x28, 0x02, 0, 0, 0x8b, 0x00, OUT]);
    // mov eax, [esi + 0x70]; mov eax, [eax] (RSDP)
    code.extend([0x8b, 0x46, 0x70, 0x8b, 0x00, OUT]);
    code.extend(FOREVER);
    let mut image = bzimage(0x100, 0x1000);
    image[0x1000..0x1000 + code.len()].copy_from_slice(&code);
    let words = boot(&kvm, &image, 3).into_iter().map(u32::to_le_bytes).collect::<Vec<_>>();
    assert_eq!(words, [*b"HdrS", *b"root", *b"RSD "]);
}

#[test]
fn kvm_takes_every_topology() {
    let Some(kvm) = kvm() else { return };
    for (threads, cores, dies, packages) in [(1, 1, 1, 1), (2, 3, 2, 1), (1, 254, 1, 1)] {
        let max = u32::from(threads * cores * dies * packages);
        let topology = Topology::new(threads, cores, dies, packages, max).unwrap();
        let cpuid = cpuid(&kvm, topology);
        let vm = kvm.create_vm(&VmOptions::default()).unwrap();
        for index in [0, max - 1].into_iter().take(max as usize) {
            let vcpu = vm.create_vcpu(topology.apic_id(index)).unwrap();
            set_up(vcpu.as_ref(), &cpuid, index, None);
            let leaf = vcpu.x86_64().cpuid().unwrap().into_iter().find(|e| e.function == 0xb);
            assert_eq!(leaf.unwrap().edx, topology.apic_id(index));
        }
    }
}
