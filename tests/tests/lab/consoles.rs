//! Consoles of a stock kernel.

use std::path::Path;
use std::time::Duration;

use tests::linux::{BzImage, Linux, PATIENCE};
use tests::wire::Wire;

#[test]
fn a_current_kernel_by_bzimage_has_console_and_serial_port_on_ptys() {
    tests::elsewhere!();
    let mut guest = Linux::new("6.12", BzImage).serial("pty").console_pty().boot();
    let info = guest.info();
    let path = info["config"]["serial"]["file"].as_str().expect("vm.info tells the serial port's pty");
    let mut serial = Wire::terminal(Path::new(path));

    // Open from now on: what comes for a port that is closed is lost, as on real ones.
    guest.sh("exec 3<> /dev/ttyS0; stty raw -echo <&3; echo from the guest >&3");
    assert!(serial.wait_for("from the guest\n", PATIENCE).is_some(), "{}", serial.tail());

    serial.send(b"from the host\n");
    assert_eq!(guest.sh("head -n 1 <&3"), "from the host");

    // As much as has to wait in buffers, in both directions.
    let sum = "for i in $(seq 1 300); do echo line $i; done";
    let long: String = (1..=300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(guest.sh(sum), long.trim());
    guest.sh(&format!("({sum}) >&3"));
    let came = serial.wait_for("line 300\n", PATIENCE);
    assert_eq!(came.as_deref(), long.strip_suffix("line 300\n"));
    let words = "word ".repeat(1000);
    assert_eq!(guest.sh(&format!("echo {words} | wc -w")), "1000");
    guest.power_off();
}

#[test]
fn the_console_takes_the_size_of_the_terminal() {
    tests::elsewhere!();
    let mut guest = Linux::new("6.12", BzImage).boot();
    assert_eq!(guest.sh("stty -F /dev/hvc0 size"), "24 80");
    guest.console().resize(50, 132);
    for _ in 0..100 {
        if guest.sh("stty -F /dev/hvc0 size") == "50 132" {
            guest.power_off();
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    guest.fail("the guest does not hear of the terminal's new size");
}
