//! What is written after flags: the command line of a machine, or of one to restore. An argument a line.

use catalog::VmSpec;
use catalog::flags::Purpose;
use clap::Command;
use spec::{Part, Spec};

use crate::Target;

fn command() -> Command {
    VmSpec::add_flags(Command::new("fuzz").no_binary_name(true), Purpose::Help)
}

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.contains('\0') {
        return;
    }
    let Ok(matches) = command().try_get_matches_from(text.split('\n')) else { return };
    match VmSpec::from_matches(&matches) {
        Err(refusal) => drop(refusal.report("fuzz")),
        Ok(None) => {}
        Ok(Some(spec)) => {
            if let Err(refusal) = spec.check() {
                drop(refusal.report("fuzz"));
            }
            let _weights = spec.segment_weights();
            round_trip(&spec);
        }
    }
    if let Err(refusal) = VmSpec::restore_from_matches(&matches) {
        drop(refusal.report("fuzz"));
    }
}

/// What is shown of a machine describes the same one, but for descriptors, which are only shown.
pub fn round_trip(spec: &VmSpec) {
    let text = serde_json::to_string(spec).unwrap();
    let again: VmSpec =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("what is shown is refused: {e}: {text}"));
    if !text.contains("\"fds\"") {
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}

fn keys<S: Spec + Part>() -> Vec<String> {
    S::keys().iter().map(|key| format!("{}=", key.name)).chain([format!("--{}\n", S::FLAG)]).collect()
}

pub fn words() -> Vec<String> {
    let mut words: Vec<String> = [
        keys::<catalog::CpusSpec>(),
        keys::<catalog::MemorySpec>(),
        keys::<catalog::PlatformSpec>(),
        keys::<catalog::PciSegmentSpec>(),
        keys::<spec::RateLimitGroupSpec>(),
        keys::<catalog::RestoreSpec>(),
        keys::<virtio_devices::block::DiskSpec>(),
        keys::<virtio_devices::net::NetSpec>(),
        keys::<virtio_devices::console::ConsoleSpec>(),
        keys::<virtio_devices::rng::RngSpec>(),
        keys::<virtio_devices::vsock::VsockSpec>(),
        keys::<platform::SerialSpec>(),
        keys::<platform::DebugConsoleSpec>(),
    ]
    .concat();
    words.extend(
        ["on", "off", "[", "]", "@[", "\"", ",", "18446744073709551615", "0x", "G", "-", "--kernel\n"]
            .map(str::to_owned),
    );
    words.sort();
    words.dedup();
    words
}

pub fn targets() -> Vec<Target> {
    vec![Target {
        name: "options",
        about: "command lines: flags and the key=value grammar",
        length: 1024,
        options: &[],
        words,
        seeds: || {
            let lines = [
                "--kernel\nk\n--cpus\nboot=4,max=8,topology=2:2:1:2,affinity=[0@[1-3,7],1@[2]]\n--memory\nsize=1G,shared=on,hugepages=on,hugepage_size=2M",
                "--kernel\nk\n--cmdline\nconsole=hvc0\n--initramfs\ni\n--disk\npath=d,readonly=on,serial=\"a,b\",queue_affinity=[0@[1],1@[2-3]],num_queues=2\npath=e,rate_limit_group=g\n--rate-limit-group\nid=g,bw_size=1000,bw_refill_time=100",
                "--kernel\nk\n--net\ntap=t,ip=10.0.0.1,mask=255.0.0.0,mac=2e:00:00:00:00:02,mtu=1500,fd=[3,4],num_queues=4\n--vsock\ncid=3,socket=s",
                "--kernel\nk\n--platform\nnum_pci_segments=4,iommu_segments=[1-2],uuid=a,oem_strings=[a,b]\n--pci-segment\npci_segment=1,mmio32_aperture_weight=2",
                "--kernel\nk\n--serial\nfile=f\n--console\nsocket=s\n--debug-console\nfile=f,iobase=0xe9\n--rng\nsrc=/dev/urandom",
                "--restore\nsource_url=file:///s,memory_restore_mode=ondemand,net_fds=[n@[3,4]]\n--disk\nid=d,path=p",
            ];
            lines.map(|line| line.as_bytes().to_vec()).into()
        },
        run,
    }]
}
