//! No kick is lost, wherever the vCPU is.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

/// Kicks a vCPU in `code` many times, each as soon as the one before was answered plus a pause that sweeps from nothing to
/// longer than it takes to be in the guest again.
fn kick_many_times(code: &[u8], create: fn(&Guest) -> Option<Box<dyn Vcpu>>, rounds: u32) {
    let guest = Guest::new(&[code]);
    let mut vcpu = create(&guest);
    let Guest { vcpu: mut first, vm: _vm, memory: _memory } = guest;
    let kick = vcpu.as_ref().unwrap_or(&first).kick_handle();
    let (answer, answers) = mpsc::channel();
    let runner = std::thread::Builder::new()
        .name("vcpu0".into())
        .spawn(move || {
            let vcpu = vcpu.as_mut().unwrap_or(&mut first);
            for _ in 0..rounds {
                let stop = vcpu.run(&Recorder::default());
                answer.send(stop).unwrap();
            }
        })
        .unwrap();
    for round in 0..rounds {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(u64::from(round % 100)) {
            std::hint::spin_loop();
        }
        kick.kick();
        match answers.recv_timeout(Duration::from_secs(10)) {
            Ok(stop) => assert_eq!(stop, Stop::Interrupted, "round {round}"),
            Err(_) => panic!("kick {round} was lost"),
        }
    }
    runner.join().unwrap();
}

#[test]
fn out_of_a_busy_loop() {
    kick_many_times(&[0xeb, 0xfe], |_| None, 1000); // jmp $
}

#[test]
fn out_of_a_halt() {
    kick_many_times(&[0xf4, 0xeb, 0xfd], |_| None, 1000); // hlt; jmp back to it
}

#[test]
fn out_of_exits() {
    kick_many_times(&[0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd], |_| None, 1000); // out dx, al; jmp back to it
}

#[test]
fn out_of_waiting_for_sipi() {
    kick_many_times(&[0xf4], |guest| Some(guest.vm.create_vcpu(1).unwrap()), 100);
}

#[test]
fn before_the_first_run() {
    let mut guest = Guest::new(&[&[0xeb, 0xfe]]);
    guest.vcpu.kick_handle().kick();
    assert_eq!(guest.run(&Recorder::default()), Stop::Interrupted);
}

#[test]
fn of_a_vcpu_that_is_gone() {
    let kick = {
        let guest = Guest::new(&[&[0xf4]]);
        guest.vcpu.kick_handle()
    };
    kick.kick();
}
