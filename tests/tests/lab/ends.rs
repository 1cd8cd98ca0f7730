//! Ways a stock kernel ends, and ways it is ended.

use tests::linux::{BzImage, Linux, Pvh, Running};
use tests::place;

/// What the guest sees of its devices.
fn devices(guest: &mut Running) -> String {
    guest.sh("cd /sys/bus/pci/devices; for f in *; do echo $f $(cat $f/vendor $f/device $f/irq $f/resource); done; cat /proc/iomem")
}

#[test]
fn a_current_kernel_reboots_into_the_same_machine() {
    tests::elsewhere!();
    let mut guest = Linux::new("6.12", Pvh).cpus("boot=2").with(&["--no-shutdown"]).boot();
    let before = devices(&mut guest);
    guest.begin("reboot -f");
    guest.meet();
    assert_eq!(devices(&mut guest), before);

    // Each processor hears of an NMI and goes on.
    let count = "awk '/^ *NMI:/ { print $2 + $3 }' /proc/interrupts";
    let interrupts: u32 = guest.sh(count).parse().expect("a number");
    guest.ask(&["nmi"]);
    guest.sh("sleep 1");
    let after: u32 = guest.sh(count).parse().expect("a number");
    assert!(after >= interrupts + 2, "{interrupts} NMIs before, {after} after");

    guest.ask(&["reboot"]);
    guest.meet();
    assert_eq!(devices(&mut guest), before);

    // Switched off, the machine stays, to be booted again.
    guest.begin("poweroff -f");
    let mut tries = 0;
    while guest.info()["state"] != "Created" {
        tries += 1;
        assert!(tries < 600, "the machine does not switch off: {}", guest.info());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    guest.ask(&["boot"]);
    guest.meet();
    assert!(guest.status().is_none());
    guest.terminate();
    guest.ends_well();
}

#[test]
fn a_kernel_that_panics_says_so_on_the_serial_port_and_reboots_by_triple_fault() {
    tests::elsewhere!();
    let serial = place::scratch().join("serial");
    let mut guest = Linux::new("6.1", BzImage)
        .serial(&format!("file={}", serial.display()))
        .option("console=ttyS0 console=hvc0 panic=1 reboot=t")
        .boot();
    guest.begin("echo c > /proc/sysrq-trigger");
    guest.expect("Kernel panic - not syncing: sysrq triggered crash");
    guest.meet();
    let said = std::fs::read_to_string(&serial).expect("the serial port's file can be read");
    assert!(said.contains("Kernel panic - not syncing: sysrq triggered crash"), "{said}");
    assert!(said.contains("Rebooting in 1 seconds"), "{said}");
    guest.power_off();
}
