//! Types of images, stated, recognised and remembered.

use std::process::Command;

use super::*;

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
}

/// An empty qcow2 image of 1 MiB.
fn qcow2() -> Files {
    let files = Files::zeros();
    qemu_img(&["create", "-q", "-f", "qcow2", files.path.to_str().unwrap(), "1M"]);
    files
}

fn of_type(files: &Files, image_type: DiskType) -> DiskSpec {
    DiskSpec { image_type, ..files.spec() }
}

fn build(spec: &mut DiskSpec) -> Result<Disk, ::spec::Refusal> {
    spec.make(&Host { id: "_disk0", facts: &Facts::default(), kept: &Kept::default() })
}

fn shown(spec: &DiskSpec) -> serde_json::Value {
    serde_json::to_value(spec).unwrap()["image_type"].clone()
}

/// Writes a sector, from a driver; returns the status.
fn write(bench: &mut Bench<Disk>, sector: u64, bytes: &[u8]) -> u8 {
    bench.put(DATA, &[0; 512]);
    bench.put(DATA, bytes);
    request(bench, kind::OUT, sector, &[(DATA, 512, false)]).0
}

/// The header of an image that builds upon a file of the host.
fn evil(host_file: &str) -> Vec<u8> {
    let image = qcow2();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-F",
        "raw",
        "-b",
        host_file,
        image.path.to_str().unwrap(),
        "1M",
    ]);
    image.content()[..512].to_vec()
}

#[test]
fn a_raw_disk_stays_raw_whatever_the_guest_writes() {
    let secret = Files::new(&[0x53; 4096]);
    let header = evil(secret.path.to_str().unwrap());
    // Stated: the guest may write its header, and gets back what it wrote, ever after.
    let files = Files::zeros();
    let mut spec = files.spec();
    for round in 0..3 {
        let mut bench = Bench::new(build(&mut spec).unwrap(), ALL);
        assert_eq!(bench.device.shared.image.size(), (SECTORS * 512) as u64);
        if round == 0 {
            assert_eq!(write(&mut bench, 0, &header), OK);
        }
        request(&mut bench, kind::IN, 0, &[(DATA, 512, true)]);
        assert_eq!(bench.get(DATA, 512), header);
        bench.device.stop_queue(0).unwrap();
        assert_eq!(shown(&spec), "Raw");
        // As through a file: a saved machine, or `vm.create` with what `vm.info` said.
        spec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
    }
    // Forgotten: it looks like qcow2 now, and names a file that it gets nothing of.
    let refusal = build(&mut of_type(&files, DiskType::default())).map(drop).unwrap_err().chain().join(": ");
    assert!(refusal.contains("say image_type=qcow2,backing_files=on"), "{refusal}");

    // Found: the guest may not write there, but behind it and where a VHD has its footer.
    let files = Files::zeros();
    let mut spec = of_type(&files, DiskType::default());
    for _ in 0..3 {
        let mut bench = Bench::new(build(&mut spec).unwrap(), ALL);
        assert_eq!(bench.device.shared.image.size(), (SECTORS * 512) as u64);
        assert_eq!(write(&mut bench, 0, &header), ERROR);
        assert_eq!(write(&mut bench, SECTORS as u64 - 1, b"conectix"), OK);
        bench.device.stop_queue(0).unwrap();
        assert_eq!(shown(&spec), "Raw");
    }
    // Saved, and gone on with by another process.
    let saved = build(&mut spec).unwrap().save().unwrap();
    let mut again: DiskSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
    let disk = build(&mut again).unwrap();
    disk.load(saved).unwrap();
    let mut bench = Bench::new(disk, ALL);
    assert_eq!(write(&mut bench, 0, &header), ERROR);
    bench.device.stop_queue(0).unwrap();
}

#[test]
fn a_recognised_qcow2_image_is_used_and_remembered() {
    let files = qcow2();
    let mut spec = of_type(&files, DiskType::default());
    let mut bench = Bench::new(build(&mut spec).unwrap(), ALL);
    assert_eq!(shown(&spec), "Qcow2");
    assert_eq!(bench.device.shared.image.size(), 1 << 20);
    assert_ne!(bench.device.features() & feature::DISCARD, 0);
    assert_eq!(write(&mut bench, 0, b"its own first sector"), OK);
    bench.device.stop_queue(0).unwrap();
    drop(bench);
    qemu_img(&["check", "-q", files.path.to_str().unwrap()]);
    // Damaged meanwhile: still qcow2, and refused.
    fs::write(&files.path, vec![0; 4096]).unwrap();
    assert!(build(&mut spec).is_err());
}

/// What a saved machine's driver was told is written is in the image when it is saved.
#[test]
fn saving_leaves_a_whole_image_behind() {
    let files = qcow2();
    let mut bench = Bench::new(build(&mut of_type(&files, DiskType::stated(ImageType::Qcow2))).unwrap(), ALL);
    for sector in [0, 500, 2047] {
        assert_eq!(write(&mut bench, sector, &[sector as u8 | 1; 512]), OK);
    }
    bench.device.stop_queue(0).unwrap();
    bench.device.save().unwrap();
    let copy = Files::new(&files.content());
    qemu_img(&["check", "-q", copy.path.to_str().unwrap()]);
    let raw = copy.path.with_extension("raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", copy.path.to_str().unwrap(), raw.to_str().unwrap()]);
    let content = fs::read(raw).unwrap();
    for sector in [0, 500, 2047usize] {
        assert_eq!(content[sector * 512..][..512], [sector as u8 | 1; 512]);
    }
}

#[test]
fn disks_of_every_format_are_resized_or_refuse_it() {
    let files = qcow2();
    let mut bench = Bench::new(build(&mut of_type(&files, DiskType::stated(ImageType::Qcow2))).unwrap(), ALL);
    bench.device.stop_queue(0).unwrap();
    let resize =
        |bench: &Bench<Disk>, bytes| Resize::resize(&bench.device, bytes).map_err(|e| e.chain().join(": "));
    resize(&bench, 2 << 20).unwrap();
    assert_eq!(bench.link.config(), 1);
    let mut capacity = [0; 8];
    bench.device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), (2 << 20) / 512);
    for bytes in [1 << 20, 1000] {
        let refusal = resize(&bench, bytes).unwrap_err();
        assert!(refusal.contains("cannot be resized from 2097152"), "{refusal}");
    }
    bench.start(0, 0);
    assert_eq!(write(&mut bench, (2 << 20) / 512 - 1, b"the last sector"), OK);
    bench.device.stop_queue(0).unwrap();
    drop(bench);
    qemu_img(&["check", "-q", files.path.to_str().unwrap()]);

    for (format, features, kind) in [
        ("vpc", "subformat=fixed,force_size=on", ImageType::FixedVhd),
        ("vhdx", "block_size=1M", ImageType::Vhdx),
        ("vmdk", "subformat=monolithicFlat", ImageType::FlatVmdk),
    ] {
        let files = Files::zeros();
        qemu_img(&["create", "-q", "-f", format, "-o", features, files.path.to_str().unwrap(), "3M"]);
        let bench = Bench::new(build(&mut of_type(&files, DiskType::stated(kind))).unwrap(), ALL);
        bench.device.stop_queue(0).unwrap();
        let refusal = resize(&bench, 4 << 20).unwrap_err();
        assert!(refusal.contains("cannot change its size"), "{refusal}");
        assert_eq!(bench.link.config(), 0);
    }
}

#[test]
fn what_is_zeroed_cluster_by_cluster_is_bounded_and_the_driver_knows() {
    for (cluster, sectors) in [("512", 1 << 14), ("64k", 1 << 21), ("2M", 1 << 21)] {
        let files = Files::zeros();
        let options = format!("cluster_size={cluster}");
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, files.path.to_str().unwrap(), "2G"]);
        let mut bench =
            Bench::new(build(&mut of_type(&files, DiskType::stated(ImageType::Qcow2))).unwrap(), ALL);
        let mut config = [0; 60];
        bench.device.read_config(0, &mut config);
        let told = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        assert_eq!((told(36), told(48)), (sectors, sectors), "clusters of {cluster}");
        for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
            assert_eq!(on_range(&mut bench, kind, 8, sectors, 0), OK, "clusters of {cluster}");
            // What a driver makes of that is to zero by itself.
            assert_eq!(on_range(&mut bench, kind, 8, sectors + 1, 0), UNSUPPORTED, "clusters of {cluster}");
        }
        assert!(!bench.link.broken());
    }
}
