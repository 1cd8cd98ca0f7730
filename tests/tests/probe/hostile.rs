//! Guests that lie: the VMM refuses, keeps its own and other memory intact, and the devices work after a reset.

use crate::devices::with_devices;
use tests::image;
use tests::probe::Guest;

#[test]
fn chains_that_lie_do_no_harm() {
    with_devices("blk-hostile,blk-read").run().all_passed();
}

#[test]
fn a_reset_cuts_off_requests_in_flight() {
    with_devices("blk-reset,blk-read").run().all_passed();
}

#[test]
fn transport_registers_take_any_access_in_any_state() {
    let guest = with_devices("virtio-registers,virtio-bar,virtio-queue-setup,blk-read,rng");
    guest.with(&["--net", "ip=192.168.249.1,mask=255.255.255.0"]).in_private_network().run().all_passed();
}

#[test]
fn the_image_survives_what_the_guest_tries() {
    let guest = Guest::new("blk-hostile,virtio-registers,virtio-queue-setup,blk-readonly");
    let disk = image::make(&guest.file("disk"), 5, 4096);
    let argument = format!("path={},readonly=on", disk.display());
    let mut running = guest.with(&["--disk", &argument]).start();
    running.wait_for("DONE", 1);
    let content = std::fs::read(&disk).expect("the image is there");
    running.finish().all_passed();
    assert!(content == image::pattern(5, 0, 4096), "the image changed");
}
