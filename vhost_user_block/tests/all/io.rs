//! Data that goes to the disk comes back, whatever queue it goes by.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, HALF, MEMORY, Memory, Queue};
use vhost_user::testing::{PATIENCE, Scratch};

use crate::disk::{FLUSH, GET_ID, IN, OUT, Requests, SECTOR, capacity, pattern, start};

const DISK: u64 = 8 << 20;

/// Writes all of the disk through all queues at once, deep, in pieces of `piece` bytes; reads it back through other queues; compares with the image.
fn verified(queues: usize, accept: u64, keys: &str, piece: u32) {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let _daemon = start(&scratch, &image, &socket, &format!(",num_queues={queues}{keys}"));
    let memory = Memory::new();
    let mut rings: Vec<Queue> = (0..queues).map(|i| Queue::new(i, 64)).collect();
    let mut front = Front::connect(&socket, accept);
    assert_eq!(front.socket.get_queue_num().unwrap(), queues as u64);
    assert_eq!(capacity(&mut front), DISK);
    front.start(&memory, &rings);
    // Data of a slot of a queue; that of one of them is in the second region.
    let place = |ring: usize, slot: u16| {
        let at = DATA + (ring as u64 * 32 + u64::from(slot)) * u64::from(piece);
        if ring == 0 && slot == 0 { MEMORY - u64::from(piece) } else { at }
    };
    assert!(DATA + queues as u64 * 32 * u64::from(piece) < HALF);
    let pieces = DISK / u64::from(piece);
    let sectors = u64::from(piece) / SECTOR;
    for (pass, kind) in [(0, OUT), (1, IN)] {
        let mut next = vec![0; queues];
        let mut under_way = vec![vec![None; 64]; queues];
        let mut done = 0;
        while done < pieces {
            for (r, ring) in rings.iter_mut().enumerate() {
                let mut offered = false;
                for slot in 0..ring.depth() {
                    // Of every `queues` pieces one is this queue's, and another one in the other pass.
                    let number = next[r] * queues as u64 + (r as u64 + pass) % queues as u64;
                    if under_way[r][usize::from(slot)].is_some() || number >= pieces {
                        continue;
                    }
                    let sector = number * sectors;
                    if kind == OUT {
                        memory.put(place(r, slot), &pattern(sector, 1, piece as usize));
                    }
                    ring.offer(&memory, slot, kind, sector, (place(r, slot), piece));
                    under_way[r][usize::from(slot)] = Some(sector);
                    next[r] += 1;
                    offered = true;
                }
                if offered {
                    ring.kick();
                }
                while let Some((slot, status)) = ring.poll(&memory) {
                    let sector = under_way[r][usize::from(slot)].take().expect("a request under way");
                    assert_eq!(status, 0);
                    if kind == IN {
                        let got = memory.get(place(r, slot), piece as usize);
                        assert!(got == pattern(sector, 1, piece as usize), "sector {sector}");
                    }
                    done += 1;
                }
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }
    for ring in &mut rings {
        assert_eq!(ring.ask(&memory, FLUSH, 0, (0, 0)), 0);
        ring.wait_call();
    }
    let bytes = std::fs::read(&image).unwrap();
    for number in 0..pieces {
        let sector = number * sectors;
        let at = (sector * SECTOR) as usize;
        assert!(bytes[at..at + piece as usize] == pattern(sector, 1, piece as usize), "sector {sector}");
    }
}

#[test]
fn one_queue() {
    verified(1, EVENT_IDX, "", 4096);
}

#[test]
fn two_queues_without_event_idx() {
    verified(2, 0, "", 65536);
}

#[test]
fn four_queues_without_io_uring() {
    verified(4, EVENT_IDX, ",_disable_io_uring=on,poll_queue=off", 8192);
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let _daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    front.start(&memory, &rings);
    for round in 0..20u16 {
        assert_eq!(rings[0].ask(&memory, FLUSH, 0, (0, 0)), 0);
        let base = front.socket.get_vring_base(0).unwrap();
        assert_eq!(base, u32::from(round) * 2 + 1);
        // Offered while it stands still: not served, and not forgotten.
        rings[0].offer(&memory, 1, FLUSH, 0, (0, 0));
        rings[0].kick();
        std::thread::sleep(Duration::from_millis(2));
        assert!(rings[0].poll(&memory).is_none());
        front.start_queue(&memory, 0, &rings[0], base as u16);
        assert_eq!(rings[0].wait(&memory), (1, 0));
    }
    // Disabled and enabled.
    front.socket.set_vring_enable(0, false).unwrap();
    rings[0].offer(&memory, 2, FLUSH, 0, (0, 0));
    rings[0].kick();
    std::thread::sleep(Duration::from_millis(2));
    assert!(rings[0].poll(&memory).is_none());
    front.socket.set_vring_enable(0, true).unwrap();
    assert_eq!(rings[0].wait(&memory), (2, 0));
}

#[test]
fn memory_comes_and_goes_while_a_queue_is_served() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let _daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    let [low, high] = memory.regions();
    assert!(front.socket.get_max_mem_slots().unwrap() >= 32);
    front.socket.add_mem_region(&low).unwrap();
    front.start_queue(&memory, 0, &rings[0], 0);
    let data = (MEMORY - 4096, 4096);
    memory.put(data.0, &pattern(8, 3, 4096));
    for _ in 0..10 {
        assert_eq!(rings[0].ask(&memory, OUT, 8, data), 1, "it is not there");
        front.socket.add_mem_region(&high).unwrap();
        front.socket.add_mem_region(&high).unwrap_err();
        assert_eq!(rings[0].ask(&memory, OUT, 8, data), 0);
        front.socket.remove_mem_region(&high).unwrap();
        front.socket.remove_mem_region(&high).unwrap_err();
    }
    assert!(std::fs::read(&image).unwrap()[4096..8192] == pattern(8, 3, 4096));
    // The whole table anew, with the queue running.
    front.socket.set_mem_table(&memory.regions()).unwrap();
    assert_eq!(rings[0].ask(&memory, IN, 8, data), 0);
}

#[test]
fn readonly_serial_and_configuration() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let _daemon = start(&scratch, &image, &socket, ",readonly=on,serial=hello,num_queues=3");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, u64::MAX);
    assert_ne!(front.features & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, OUT, 0, (DATA, 512)), 1);
    assert_eq!(rings[0].ask(&memory, IN, 0, (DATA, 512)), 0);
    assert_eq!(rings[0].ask(&memory, GET_ID, 0, (DATA, 20)), 0);
    assert_eq!(memory.get(DATA, 6), b"hello\0");
    assert_eq!(front.config(34, 2), [3, 0], "queues");
    // Front ends ask for more than there is.
    let all = front.config(0, 200);
    assert_eq!(all[..8], (DISK / SECTOR).to_le_bytes());
    assert!(all[60..].iter().all(|byte| *byte == 0));
    // Write-back is off when the driver says so.
    front.socket.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    assert_eq!(front.config(32, 1), [0]);
    front.socket.set_config(60, VhostUserConfigFlags::WRITABLE, &[0]).unwrap_err();
}

#[test]
fn a_reset_makes_all_new() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let _daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let mut front = Front::connect(&socket, u64::MAX);
    let mut rings = [Queue::new(0, 16)];
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, FLUSH, 0, (0, 0)), 0);
    front.socket.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    front.socket.reset_device().unwrap();
    assert_eq!(front.config(32, 1), [1]);
    memory.put(0, &[0; 0x10000]);
    let mut rings = [Queue::new(0, 32)];
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, FLUSH, 0, (0, 0)), 0);
}

#[test]
fn a_resized_image_is_told_of() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    front.socket.set_backend_request_fd(&theirs).unwrap();
    front.start(&memory, &rings);
    for sectors in [40_000u64, 100, DISK / SECTOR] {
        std::fs::File::options().write(true).open(&image).unwrap().set_len(sectors * SECTOR).unwrap();
        daemon.signal(libc::SIGHUP);
        let mut message = [0; 12];
        ours.read_exact(&mut message).unwrap();
        let words: Vec<u32> =
            message.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [2, 1, 0], "CONFIG_CHANGE_MSG");
        assert_eq!(capacity(&mut front), sectors * SECTOR);
        assert_eq!(rings[0].ask(&memory, IN, sectors - 1, (DATA, 512)), 0);
        assert_eq!(rings[0].ask(&memory, IN, sectors, (DATA, 512)), 1);
    }
    // The same size again, and one that cannot be: nothing is told.
    daemon.signal(libc::SIGHUP);
    std::fs::File::options().write(true).open(&image).unwrap().set_len(DISK + 1).unwrap();
    daemon.signal(libc::SIGHUP);
    let begun = std::time::Instant::now();
    while !daemon.said().contains("not a multiple of 512") {
        assert!(begun.elapsed() < PATIENCE, "{}", daemon.said());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(capacity(&mut front), DISK);
    ours.set_nonblocking(true).unwrap();
    assert!(ours.read(&mut [0; 12]).is_err());
}

/// The disk is the one that machines have, with its formats and limits.
#[test]
fn a_qcow2_image_with_a_limit() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.path("image"), scratch.path("socket"));
    let qemu_img = |args: &[&str]| {
        let output = std::process::Command::new("qemu-img").args(args).arg(&image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let create =
        std::process::Command::new("qemu-img").args(["create", "-f", "qcow2"]).arg(&image).arg("8M").output();
    assert!(create.unwrap().status.success());
    let limit = ",image_type=qcow2,ops_size=20,ops_refill_time=100";
    let mut daemon = start(&scratch, &image, &socket, limit);
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    assert_eq!(capacity(&mut front), DISK);
    front.start(&memory, &rings);
    let begun = std::time::Instant::now();
    for sector in 0..100u64 {
        memory.put(DATA, &pattern(sector, 2, 512));
        assert_eq!(rings[0].ask(&memory, OUT, sector * 100, (DATA, 512)), 0);
    }
    // The first twenty at once, the others at twenty in a tenth of a second.
    assert!(begun.elapsed() > Duration::from_millis(350), "{:?}", begun.elapsed());
    for sector in 0..100u64 {
        assert_eq!(rings[0].ask(&memory, IN, sector * 100, (DATA, 512)), 0);
        assert!(memory.get(DATA, 512) == pattern(sector, 2, 512));
    }
    drop(front);
    daemon.signal(libc::SIGTERM);
    assert!(daemon.end().success());
    qemu_img(&["check"]);
}

/// A limit of the host for the size of files (RLIMIT_FSIZE), as a user's shell or a service manager sets it.
#[test]
fn a_write_past_the_limit_of_files_fails_and_the_daemon_goes_on() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let daemon = start(&scratch, &image, &socket, "");
    let limit = |bytes: &str| {
        let (limit, id) = (format!("--fsize={bytes}:"), daemon.id().to_string());
        assert!(
            std::process::Command::new("prlimit").args([&limit, "--pid", &id]).status().unwrap().success()
        );
    };
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    front.start(&memory, &rings);
    let mut write = |sector| rings[0].ask(&memory, OUT, sector, (DATA, 512));
    limit("65536");
    assert_eq!([write(127), write(128), write(0)], [0, 1, 0]);
    limit("unlimited");
    assert_eq!(write(128), 0);
}
