//! What a stock kernel sees of the machine: processors, memory, buses, firmware tables, clocks.

use tests::linux::{Linux, Pvh};

#[test]
fn a_current_kernel_by_pvh_finds_four_processors_in_two_cores() {
    tests::elsewhere!();
    let mut guest = Linux::new("6.12", Pvh).cpus("boot=4,topology=2:2:1:1").memory("size=1G").boot();
    println!("{}", guest.sh("nproc; dmesg; cat /proc/interrupts"));
    guest.power_off();
}
