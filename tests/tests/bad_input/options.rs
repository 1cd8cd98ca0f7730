//! Options that do not parse, contradict each other, or are not offered.

use crate::bench::{Bench, machine};

#[track_caller]
fn refuses(args: &[&str], chain: &[&str]) {
    Bench::new().refuses(args, chain);
}

#[test]
fn texts_that_do_not_parse() {
    let size = "expected a number of bytes, or one with K, M, G or T (binary), below 16 EiB";
    let toggle = "expected on or off";
    for (flag, value, inner) in [
        ("memory", "size=1KM", &["Unable to convert 1KM for size", size][..]),
        ("memory", "size=512X", &["Unable to convert 512X for size", size]),
        ("memory", "size=64m64", &["Unable to convert 64m64 for size", size]),
        ("memory", "size=1.5G", &["Unable to convert 1.5G for size", size]),
        ("memory", "size=-1", &["Unable to convert -1 for size", size]),
        ("memory", "size=8E", &["Unable to convert 8E for size", size]),
        ("memory", "size=17179869184G", &["Unable to convert 17179869184G for size", size]),
        ("memory", "size=64M,shared=yes", &["Unable to convert yes for shared", toggle]),
        ("memory", "size", &["Invalid syntax: size"]),
        ("memory", "64M", &["Unknown option: 64M"]),
        ("memory", "Size=64M", &["Unknown option: Size"]),
        ("memory", "size=64M, shared=on", &["Unknown option:  shared"]),
        ("memory", "size=64M,", &["Unknown option: "]),
        ("disk", "path=a,bogus=1", &["Unknown option: bogus"]),
        ("disk", "path=\"a", &["Invalid syntax: path=\"a"]),
        ("disk", "path=a]", &["Invalid syntax: path=a]"]),
        (
            "disk",
            "path=a,image_type=zip",
            &["Unable to convert zip for image_type", "expected one of raw|qcow2|vhd|vhdx|vmdk"],
        ),
        (
            "disk",
            "path=a,bw_size=x",
            &["Unable to convert x for bw_size", "expected a decimal number from 0 to 18446744073709551615"],
        ),
        (
            "cpus",
            "boot=x",
            &["Unable to convert x for boot", "expected a decimal number from 0 to 4294967295"],
        ),
        (
            "cpus",
            "boot=-1",
            &["Unable to convert -1 for boot", "expected a decimal number from 0 to 4294967295"],
        ),
        (
            "cpus",
            "topology=1:1",
            &["Unable to convert 1:1 for topology", "expected four numbers such as 2:4:1:1"],
        ),
        (
            "net",
            "mac=zz",
            &[
                "Unable to convert zz for mac",
                "\"zz\" is not a MAC address (expected six groups of two hex digits, as in 2e:11:22:33:44:55)",
            ],
        ),
        ("net", "ip=300.1.1.1", &["Unable to convert 300.1.1.1 for ip", "expected an IPv4 or IPv6 address"]),
        ("console", "bogus", &["Unknown option: bogus"]),
        ("console", "", &["invalid console mode given"]),
        ("console", "file=", &["Path missing when using file console mode"]),
        ("serial", "socket=", &["Path missing when using socket console mode"]),
        ("serial", "file", &["Invalid syntax: file"]),
        (
            "debug-console",
            "off,iobase=7",
            &["Unable to convert 7 for iobase", "expected a port from 0x0 to 0xffff"],
        ),
    ] {
        let outer = ["Error parsing config".to_owned(), format!("Error parsing --{flag}")];
        let chain: Vec<&str> = outer.iter().map(String::as_str).chain(inner.iter().copied()).collect();
        refuses(&[&format!("--{flag}"), value], &chain);
    }
}

#[test]
fn a_repeated_key_keeps_its_last_value_and_sizes_may_be_lower_case() {
    let bench = Bench::new();
    for value in ["size=0,size=64M", "size=1KM,size=64m", "size=65536k"] {
        let outcome = bench.run_unchanged(&mut bench.machine(&["--memory", value]));
        assert!(outcome.status.success(), "{value}: {}", outcome.messages);
    }
}

#[test]
fn processors_that_cannot_be() {
    let invalid = |value, message| {
        refuses(&["--cpus", value], &["Error parsing config", "Failed to validate config", message]);
    };
    invalid("boot=0", "Number of boot vCPUs must be at least 1");
    invalid("boot=2,max=1", "Max CPUs (1) lower than boot CPUs (2)");
    invalid("boot=9000", "Too many CPUs: specified 9000 but 8192 is the limit");
    invalid("boot=1,max_phys_bits=60", "max_phys_bits (60) not in range of 33 to 52");
    invalid("boot=2,topology=1:1:1:1", "Product of CPU topology parts does not match maximum vCPU");
    invalid("boot=2,topology=0:1:1:1", "No part of the CPU topology can be zero");
    invalid("boot=4,topology=4:1:1:1", "CPU topology supports at most 2 threads per core");
    invalid("boot=1,affinity=[1@[0]]", "affinity names vCPU 1, but the last one is 0");
    invalid("boot=1,features=amx", "--cpus features=[amx] is not supported yet");
    // More than any host's KVM has, and within what the platform can name.
    let bench = Bench::new();
    let outcome = bench.run_unchanged(&mut bench.machine(&["--cpus", "boot=8192"]));
    assert_eq!(outcome.status.code(), Some(1));
    let wanted = "  0: Error booting VM\n  1: Too many CPUs: specified 8192 but this host's limit is ";
    assert!(outcome.messages.contains(wanted), "{}", outcome.messages);
}

#[test]
fn what_is_not_offered_yet_is_refused_by_name() {
    for (flag, value) in [
        ("balloon", Some("size=1M")),
        ("device", Some("path=/sys/x")),
        ("firmware", Some("f")),
        ("memory-zone", Some("id=z")),
        ("numa", Some("guest_numa_id=0")),
        ("pvpanic", None),
        ("rtc", None),
        ("tpm", Some("socket=s")),
        ("user-device", Some("socket=s")),
        ("vdpa", Some("path=v")),
        ("watchdog", None),
    ] {
        let flag = format!("--{flag}");
        let args: Vec<&str> = [flag.as_str()].into_iter().chain(value).collect();
        refuses(&args, &["Error parsing config", &format!("{flag} is not supported yet")]);
    }
    refuses(
        &["--seccomp", "yes"],
        &["Error parsing --seccomp: expected true, false, log or errno, not \"yes\""],
    );
}

#[test]
fn paths_that_cannot_be_kept_to() {
    let invalid = |value, message| {
        refuses(
            &["--landlock", "--landlock-rules", value],
            &["Error parsing config", "Failed to validate config", message],
        );
    };
    invalid("path=/", "Error parsing --landlock-rules: path/access field missing");
    invalid("path=/,access=x", "Invalid landlock access: x");
    invalid("path=/no/such,access=r", "Path \"/no/such\" provided in landlock-rules does not exist");
    // Nothing is run with paths that are not there: whoever could make them later is not trusted.
    let bench = Bench::new();
    let outcome = bench.run_unchanged(&mut bench.machine(&["--landlock", "--disk", "path=missing"]));
    assert_eq!(outcome.status.code(), Some(1));
    let wanted =
        "  0: Error creating VM\n  1: Cannot confine the process by Landlock\n  2: cannot allow missing\n";
    assert!(outcome.messages.contains(wanted), "{}", outcome.messages);
}

#[test]
fn segments_that_cannot_be() {
    let invalid = |args: &[&str], message: &str| {
        refuses(args, &["Error parsing config", "Failed to validate config", message]);
    };
    let weights = "Invalid PCI segment aperture weight: 0";
    invalid(&["--platform", "num_pci_segments=97"], "Number of PCI segments (97) not in range of 1 to 96");
    invalid(&["--pci-segment", "pci_segment=1"], "Invalid PCI segment id: 1");
    invalid(&["--pci-segment", "mmio32_aperture_weight=0"], weights);
    invalid(
        &["--platform", "num_pci_segments=2", "--pci-segment", "pci_segment=1", "pci_segment=1"],
        "PCI segment 1 has more than one --pci-segment",
    );
    // A weight beside which nothing is left for the others.
    refuses(
        &[
            "--platform",
            "num_pci_segments=2",
            "--pci-segment",
            "pci_segment=1,mmio32_aperture_weight=4294967295",
        ],
        &[
            "Error booting VM",
            "Cannot divide the PCI address windows",
            "cannot divide the 32-bit PCI window of 0x28000000 bytes over 2 segments",
        ],
    );
}

#[test]
fn a_command_line_that_no_kernel_takes() {
    let long = "x".repeat(65_536);
    let message = "Kernel command line of 65536 bytes is longer than 65535";
    refuses(&["--cmdline", &long], &["Error parsing config", "Failed to validate config", message]);
}

#[test]
fn usage_errors_end_with_status_2() {
    let bench = Bench::new();
    let machine = |args| machine(args);
    let cases: [(Vec<String>, &str); 6] = [
        (vec!["--bogus".into()], "error: unexpected argument '--bogus' found\n"),
        (vec!["stray".into()], "error: unexpected argument 'stray' found\n"),
        (
            vec!["--disk".into(), "path=a".into()],
            "error: the following required arguments were not provided:\n",
        ),
        (
            vec!["--api-socket".into()],
            "error: a value is required for '--api-socket <path=<path>|fd=<number>>'",
        ),
        (machine(&["--memory", "size=1G", "--memory", "size=2G"]), "error: the argument '--memory"),
        (machine(&["--cpus"]), "error: a value is required for '--cpus"),
    ];
    for (args, message) in cases {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let outcome = bench.run_unchanged(&mut bench.command(&args));
        assert_eq!(outcome.status.code(), Some(2), "{args:?}");
        assert!(outcome.messages.starts_with(message), "{args:?}: {}", outcome.messages);
        assert_eq!(outcome.stdout, "");
    }
    let nothing = "Nothing to do: give --kernel to boot a machine, --restore to go on with a saved one, or --api-socket to wait for \
                   requests";
    bench.refused(&mut bench.command(&["-v"]), &[nothing]);
}
