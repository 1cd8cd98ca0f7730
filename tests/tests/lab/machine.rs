//! What a stock kernel sees of the machine: processors, memory, buses, firmware tables, clocks.

use tests::linux::{BzImage, Linux, Pvh, Running};

/// Warnings of kernels that are no fault of the machine's.
const KNOWN: [&str; 6] = [
    // The console's driver is a module, which the initramfs loads.
    "unable to open an initial console",
    // A host that is slow, or emulated at that.
    "hrtimer: interrupt took",
    "clocksource: Long readout interval",
    "clocksource: timekeeping watchdog on",
    "clocksource: wd-",
    // Any guest on an AMD processor: there is no frequency for it to govern.
    "amd_pstate: the _CPC object is not present",
];

/// Checks that the kernel has nothing to complain of.
#[track_caller]
fn content(guest: &mut Running) {
    let log = guest.sh("dmesg -r");
    let complaints: Vec<&str> = log
        .lines()
        .filter(|line| {
            let level = line
                .strip_prefix('<')
                .and_then(|rest| rest.split_once('>'))
                .and_then(|(n, _)| n.parse().ok());
            // The facility is in the bits above the level.
            level.is_some_and(|level: u32| level & 7 <= 4) && !KNOWN.iter().any(|words| line.contains(words))
        })
        .collect();
    assert!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
}

/// A number that a command prints.
#[track_caller]
fn number(guest: &mut Running, command: &str) -> u64 {
    let text = guest.sh(command);
    text.parse().unwrap_or_else(|_| panic!("no number from {command}: {text}"))
}

#[test]
fn a_current_kernel_by_pvh_finds_four_processors_in_two_cores() {
    tests::elsewhere!();
    let platform = "system_manufacturer=Tests,system_product_name=Bench 7,system_serial_number=s-42,\
        system_uuid=01234567-89ab-cdef-0123-456789abcdef,system_family=Benches,system_version=1.5,\
        system_sku_number=k9,chassis_asset_tag=a1,oem_strings=[first,second]";
    let mut guest = Linux::new("6.12", Pvh)
        .cpus("boot=4,topology=2:2:1:1")
        .memory("size=1G")
        .with(&["--platform", platform])
        .boot();

    assert_eq!(guest.sh("nproc"), "4");
    let siblings = guest.sh("cd /sys/devices/system/cpu; cat cpu*/topology/thread_siblings_list");
    assert_eq!(siblings, "0-1\n0-1\n2-3\n2-3");
    assert_eq!(guest.sh("cd /sys/devices/system/cpu; cat cpu*/topology/core_siblings_list | sort -u"), "0-3");
    assert_eq!(guest.sh("cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | sort -u"), "0");
    assert_eq!(guest.sh("cd /proc; grep -c '^flags.*x2apic' cpuinfo"), "4");

    // The kernel keeps a part of the gigabyte to itself.
    let memory = number(&mut guest, "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    assert!((900 << 10..=1 << 20).contains(&memory), "{memory} KiB");

    // The bridge, console and random numbers; class, vendor, device.
    let functions =
        guest.sh("cd /sys/bus/pci/devices; for f in *; do echo $f $(cat $f/class $f/vendor $f/device); done");
    let expected = [
        "0000:00:00.0 0x060000 0x8086 0x0d57",
        "0000:00:01.0 0xffff00 0x1af4 0x1043",
        "0000:00:02.0 0xffff00 0x1af4 0x1044",
    ];
    assert_eq!(functions.lines().collect::<Vec<_>>(), expected);

    for (name, value) in [
        ("sys_vendor", "Tests"),
        ("product_name", "Bench 7"),
        ("product_serial", "s-42"),
        ("product_uuid", "01234567-89ab-cdef-0123-456789abcdef"),
        ("product_family", "Benches"),
        ("product_version", "1.5"),
        ("product_sku", "k9"),
        ("chassis_asset_tag", "a1"),
        ("bios_vendor", "cloud-hypervisor"),
    ] {
        assert_eq!(guest.sh(&format!("cat /sys/class/dmi/id/{name}")), value, "{name}");
    }
    let strings = guest.sh("strings /sys/firmware/dmi/tables/DMI");
    assert!(
        strings.lines().any(|line| line == "first") && strings.lines().any(|line| line == "second"),
        "{strings}"
    );

    assert_eq!(guest.sh("cat /sys/class/misc/hw_random/rng_current"), "virtio_rng.0");
    let random = guest.sh("for i in 1 2; do head -c 4096 /dev/hwrng | sha256sum; done");
    let (first, second) = random.split_once('\n').expect("two lines");
    assert_ne!(first, second);

    let clock = guest.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert!(["kvm-clock", "tsc"].contains(&clock.as_str()), "{clock}");
    let date = number(&mut guest, "date +%s");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("it is later than 1970")
        .as_secs();
    assert!(date.abs_diff(now) <= 5, "the guest has {date}, the host {now}");

    content(&mut guest);
    guest.power_off();
}

#[test]
fn an_old_kernel_by_bzimage_finds_its_memory_above_four_gibibytes() {
    tests::elsewhere!();
    let mut guest = Linux::new("6.1", BzImage).memory("size=5G").boot();
    let memory = number(&mut guest, "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    assert!((4800 << 10..=5 << 20).contains(&memory), "{memory} KiB");
    let ram = guest.sh("grep 'System RAM' /proc/iomem");
    assert!(ram.contains("100000000-17fffffff : System RAM") || ram.contains("100000000-"), "{ram}");
    assert_eq!(guest.sh("nproc"), "1");
    content(&mut guest);
    guest.power_off();
}

#[test]
fn a_machine_of_254_processors_boots_on_two_of_them() {
    tests::elsewhere!();
    // Starting them all takes an emulated host too long: the kernel is told to start two.
    let mut guest = Linux::new("6.1", Pvh).cpus("boot=254").option("maxcpus=2").boot();
    assert_eq!(guest.sh("cat /sys/devices/system/cpu/present"), "0-253");
    assert_eq!(guest.sh("cat /sys/devices/system/cpu/online"), "0-1");
    guest.sh("echo 1 > /sys/devices/system/cpu/cpu253/online");
    assert_eq!(guest.sh("cat /sys/devices/system/cpu/online"), "0-1,253");
    let mask = format!("2{}", "0".repeat(63)); // bit 253
    assert_eq!(guest.sh(&format!("taskset {mask} cut -d ' ' -f 39 /proc/self/stat")), "253");
    guest.power_off();
}
