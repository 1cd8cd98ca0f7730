//! What every guest finds before it looks for a device.

use std::time::{SystemTime, UNIX_EPOCH};

use tests::probe::Guest;

#[test]
fn a_guest_starts_says_hello_and_powers_off() {
    Guest::new("hello,cpuid,fault,apic").run().all_passed();
}

#[test]
fn memory_is_all_there_below_and_above_the_hole() {
    for (megabytes, step) in [(64, 1), (512, 4), (3072, 64), (5120, 64)] {
        let memory = format!("size={megabytes}M");
        let guest = Guest::new("hello,memory-map,memory-touch,cmos-memory").memory(&memory);
        let report = guest.option(&format!("probe.step={}", step << 20)).run();
        report.all_passed();
        let ram: u64 =
            report.fact("hello", "ram").trim_end_matches('M').parse().expect("a number of megabytes");
        // The 384 KiB below 1 MiB are not RAM.
        assert!((megabytes - 1..=megabytes).contains(&ram), "{memory}: the guest sees {ram} MiB");
    }
}

#[test]
fn the_command_line_arrives_whole_up_to_its_limit() {
    for len in [40, 2048, 65_535] {
        let guest = Guest::new("command-line").option(&format!("probe.check={len} "));
        let padding = "x".repeat(len - guest.cmdline().len() - 1);
        guest.option(&padding).run().all_passed();
    }
}

#[test]
fn firmware_tables_add_up_and_tell_the_truth() {
    Guest::new("acpi,madt,mcfg,smbios").cpus("boot=2,max=4").option("probe.cpus=2").run().all_passed();
}

#[test]
fn every_processor_starts() {
    for (cpus, count) in [
        ("boot=1", 1),
        ("boot=2", 2),
        ("boot=4,topology=2:2:1:1", 4),
        ("boot=12,topology=2:3:1:2", 12),
        ("boot=254", 254),
    ] {
        let report =
            Guest::new("madt,processors,x2apic").cpus(cpus).option(&format!("probe.cpus={count}")).run();
        report.all_passed();
        assert_eq!(report.fact("processors", "started"), count.to_string(), "{report}");
    }
}

#[test]
fn the_serial_port_is_a_16550_with_its_interrupt() {
    let report = Guest::new("serial-loopback,serial-fifo,serial-string,serial-interrupt").run();
    report.all_passed();
    assert!(report.serial.contains("# 2b\n# string of bytes in one instruction\n"), "{report}");
}

#[test]
fn clocks_tell_the_time() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let before = now();
    let report = Guest::new("rtc,pm-timer").run();
    report.all_passed();
    let (date, time) = report.passed("rtc").split_once('T').expect("a date and a time");
    let number = |text: &str| text.trim_end_matches('Z').parse::<u64>().expect("a number");
    let date: Vec<_> = date.split('-').map(number).collect();
    let time: Vec<_> = time.split(':').map(number).collect();
    let seconds =
        days_since_1970(date[0], date[1], date[2]) * 86_400 + time[0] * 3600 + time[1] * 60 + time[2];
    assert!((before - 1..=now() + 1).contains(&seconds), "{report}");
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let years: u64 = (1970..year).map(|y| 365 + u64::from(leap(y))).sum();
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    years + lengths[..month as usize - 1].iter().sum::<u64>() + day - 1
}

#[test]
fn ports_where_nothing_is_read_as_all_ones() {
    Guest::new("unclaimed,i8042").run().all_passed();
}

#[test]
fn the_debug_console_writes_to_its_file() {
    let guest = Guest::new("debug-ports");
    let file = guest.file("debug");
    let argument = format!("file={}", file.display());
    let running = guest.with(&["--debug-console", &argument]).start();
    let mut running = running;
    running.wait_for("DONE", 1);
    let text = std::fs::read_to_string(&file).expect("the debug console's file is there");
    assert_eq!(text, "probe: debug console\nprobe: debug console, one instruction\n");
    running.finish().all_passed();
}
