//! `bare-kvm ELF [COMMAND LINE [MIB]]`: runs a PVH guest on one vCPU with 512 MiB, or as many as are asked for, and nothing else, and copies
//! what it writes to COM1 to standard output.
//!
//! This is the yardstick of the benchmarks, so it makes no system call that a guest start could do without: a split
//! irqchip, one memory slot (a second for what is above 3 GiB), one vCPU on the main thread. It has no devices: unclaimed ports read all-ones. It ends when the guest
//! powers off or resets through port 0x600, or faults three times. A guest that halts stays halted, in the kernel, as the split
//! irqchip has it: kill the process.
//! Exit status: 0 power-off, 2 reset, 3 triple fault, 1 for an error of its own.

mod elf;

use std::io::{Error, Write};
use std::process::ExitCode;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const USUAL_MIB: usize = 512;
/// Memory from here on begins at 4 GiB: local APIC, I/O APIC and KVM's own pages lie between.
const HOLE: usize = 3 << 30;
const HOLE_END: u64 = 4 << 30;
const START_INFO: usize = 0x6000;
const MEMORY_MAP: usize = 0x7000;
const COMMAND_LINE: usize = 0x20000;
const COM1: u16 = 0x3f8;
const SLEEP: u16 = 0x600;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(kernel) = arguments.next() else {
        eprintln!("usage: bare-kvm ELF [COMMAND LINE [MIB]]");
        return ExitCode::from(1);
    };
    let command_line = arguments.next().unwrap_or_default();
    let mib = arguments.next().map_or(Some(USUAL_MIB), |mib| mib.to_str()?.parse().ok());
    let run = || {
        // 1 TiB is more than any host of ours has.
        let mib = mib.filter(|mib| (2..1 << 20).contains(mib));
        let mib = mib.ok_or_else(|| Error::other("the memory is no number of MiB that there could be"))?;
        let kernel = std::fs::read(&kernel)?;
        run(&kernel, command_line.as_encoded_bytes(), mib << 20)
    };
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("bare-kvm: {}: {error}", kernel.to_string_lossy());
            ExitCode::from(1)
        }
    }
}

/// Guest memory: anonymous, private, untouched until used.
fn guest_memory(len: usize) -> Result<&'static mut [u8], Error> {
    // SAFETY: a fresh anonymous mapping; it stays until the process ends.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: mapped just above with this length. The guest writes to it while it runs, but nothing here looks at it then.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast(), len) })
}

fn run(kernel: &[u8], command_line: &[u8], len: usize) -> Result<u8, Error> {
    let memory = guest_memory(len)?;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = 24;
    vm.enable_cap(&split)?;
    let (low, high) = memory.split_at(len.min(HOLE));
    for (slot, (guest_phys_addr, part)) in (0..).zip([(0, low), (HOLE_END, high)]) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size: part.len() as u64,
            userspace_addr: part.as_ptr() as u64,
        };
        if !part.is_empty() {
            // SAFETY: the mapping lives as long as the process.
            unsafe { vm.set_user_memory_region(slot)? };
        }
    }
    let entry = elf::load(kernel, memory)?;
    write_start_info(memory, command_line)?;
    let vcpu = create_vcpu(&kvm, &vm, entry)?;
    serve(vcpu)
}

/// PVH's start_info version 1 with its memory map (Xen, public/arch-x86/hvm/start_info.h).
fn write_start_info(memory: &mut [u8], command_line: &[u8]) -> Result<(), Error> {
    if command_line.len() >= 65536 {
        return Err(Error::other("the command line is longer than 65535 bytes"));
    }
    let low = memory.len().min(HOLE);
    let map =
        [(0u64, 0xa_0000u64), (0x10_0000, low as u64 - 0x10_0000), (HOLE_END, (memory.len() - low) as u64)];
    let map = if memory.len() > low { &map[..] } else { &map[..2] };
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    put(START_INFO, &0x336e_c578u32.to_le_bytes());
    put(START_INFO + 4, &1u32.to_le_bytes());
    put(START_INFO + 24, &(COMMAND_LINE as u64).to_le_bytes());
    put(START_INFO + 40, &(MEMORY_MAP as u64).to_le_bytes());
    put(START_INFO + 48, &(map.len() as u32).to_le_bytes());
    for (i, (base, len)) in map.iter().enumerate() {
        put(MEMORY_MAP + i * 24, &base.to_le_bytes());
        put(MEMORY_MAP + i * 24 + 8, &len.to_le_bytes());
        put(MEMORY_MAP + i * 24 + 16, &1u32.to_le_bytes());
    }
    put(COMMAND_LINE, command_line);
    Ok(())
}

/// A vCPU in PVH's entry state: 32-bit protected mode, flat segments, paging off, EBX = start_info.
fn create_vcpu(kvm: &Kvm, vm: &VmFd, entry: u32) -> Result<VcpuFd, Error> {
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    let flat =
        kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 0x10, type_: 3, ..flat };
    sregs.cs = kvm_segment { selector: 0x08, type_: 11, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: 0x18, type_: 11, limit: 0x67, present: 1, ..Default::default() };
    sregs.cr0 = 1 | 1 << 4; // PE, ET
    sregs.cr4 = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = u64::from(entry);
    regs.rbx = START_INFO as u64;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    Ok(vcpu)
}

/// Runs the guest to its end.
fn serve(mut vcpu: VcpuFd) -> Result<u8, Error> {
    let mut out = std::io::stdout().lock();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(COM1, data) => {
                out.write_all(data)?;
                out.flush()?;
            }
            VcpuExit::IoOut(SLEEP, [0x34]) => return Ok(0),
            VcpuExit::IoOut(SLEEP, [1]) => return Ok(2),
            // The line status register: transmitter empty.
            VcpuExit::IoIn(port, data) => data.fill(if port == COM1 + 5 { 0x60 } else { 0xff }),
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) | VcpuExit::IoapicEoi(_) => {}
            VcpuExit::Hlt => return Ok(0),
            VcpuExit::Shutdown => return Ok(3),
            other => return Err(Error::other(format!("the guest stopped: {other:?}"))),
        }
    }
}
