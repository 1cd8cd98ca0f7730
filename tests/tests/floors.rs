//! Crates import strictly downward: the floors of `docs/architecture.md`, checked against what cargo says.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Floor of each crate; those that stand aside (tests, tools) are not in the house and nobody may import them.
const FLOORS: &[(&str, u8)] = &[
    ("spec", 0),
    ("sandbox", 0),
    ("block", 1),
    ("net_util", 1),
    ("metadata", 1),
    ("device", 1),
    ("terminal", 2),
    ("hypervisor", 2),
    ("migration", 2),
    ("pci", 2),
    ("platform", 3),
    ("vhost_user", 3),
    ("arch", 3),
    ("virtio-devices", 4),
    ("catalog", 5),
    ("api", 6),
    ("vmm", 7),
    ("ch-remote", 7),
    ("vhost_user_block", 7),
    ("vhost_user_net", 7),
];
const ASIDE: &[&str] = &["tests", "bare-kvm", "models", "bench", "docs-gen"];

/// Crates that must not see the hypervisor: devices work on any.
const BLIND: &[&str] = &[
    "device",
    "pci",
    "migration",
    "terminal",
    "platform",
    "virtio-devices",
    "vhost_user",
    "block",
    "net_util",
    "metadata",
    "spec",
    "sandbox",
];

fn imports() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let name = |v: &Value| v["name"].as_str().expect("a name").to_owned();
    let ours: Vec<String> = packages.iter().map(name).collect();
    let imports = |p: &Value| {
        let dependencies = p["dependencies"].as_array().expect("a list of dependencies");
        // A crate's tests may use what it does not import otherwise.
        let normal = dependencies.iter().filter(|d| d["kind"].as_str() != Some("dev"));
        normal.map(name).filter(|d| ours.contains(d)).collect()
    };
    packages.iter().map(|p| (name(p), imports(p))).collect()
}

#[test]
fn every_crate_has_a_floor_and_imports_only_from_below() {
    let floors: BTreeMap<&str, u8> = FLOORS.iter().copied().collect();
    for (package, imports) in imports() {
        if ASIDE.contains(&package.as_str()) {
            continue;
        }
        let floor = *floors.get(package.as_str()).unwrap_or_else(|| panic!("{package} has no floor"));
        for import in imports {
            let below = *floors.get(import.as_str()).unwrap_or_else(|| panic!("{package} imports {import}"));
            assert!(below < floor, "{package} (floor {floor}) imports {import} (floor {below})");
        }
    }
}

#[test]
fn no_device_crate_sees_the_hypervisor() {
    let imports = imports();
    for package in BLIND {
        let seen = imports.get(*package).unwrap_or_else(|| panic!("there is no crate {package}"));
        assert!(!seen.iter().any(|i| i == "hypervisor"), "{package} imports the hypervisor");
    }
}
