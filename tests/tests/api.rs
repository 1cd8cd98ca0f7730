//! The crate `cloud-hypervisor-client`, generated from the contract's OpenAPI description by others, drives a machine through its
//! life: what it understands, others do too.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloud_hypervisor_client::apis::DefaultApi;
use cloud_hypervisor_client::models::{
    ConsoleConfig, ConsoleMode, CpusConfig, MemoryConfig, PayloadConfig, SerialConfig, VmConfig, VmState,
};
use cloud_hypervisor_client::socket_based_api_client;
use tests::programs;
use tests::scratch::Scratch;

/// How long each step may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is killed when a test fails.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_generated_client_drives_a_machine_through_its_life() {
    let scratch = Scratch::new();
    let (socket, serial) = (scratch.file("api"), scratch.file("serial"));
    let mut vmm = Vmm(Command::new(programs::cloud_hypervisor())
        .arg("--api-socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .spawn()
        .unwrap());
    until("the API socket", || UnixStream::connect(&socket).is_ok());

    let path = |p: &std::path::Path| p.to_str().unwrap().to_owned();
    let config = VmConfig {
        cpus: Some(CpusConfig::new(2, 2)),
        memory: Some(MemoryConfig::new(128 << 20)),
        payload: PayloadConfig {
            kernel: Some(path(programs::probe())),
            cmdline: Some("probe.run=hang".into()),
            ..PayloadConfig::new()
        },
        serial: Some(SerialConfig { file: Some(path(&serial)), ..SerialConfig::new(ConsoleMode::File) }),
        console: Some(ConsoleConfig::new(ConsoleMode::Off)),
        ..VmConfig::default()
    };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = socket_based_api_client(&socket);
        let state = async || client.vm_info_get().await.unwrap().state;

        let ping = client.vmm_ping_get().await.unwrap();
        assert_eq!(ping.pid, Some(i64::from(vmm.0.id())));
        assert!(client.vm_info_get().await.is_err(), "there is no machine yet");
        assert!(client.boot_vm().await.is_err(), "there is no machine yet");

        client.create_vm(config).await.unwrap();
        assert_eq!(state().await, VmState::Created);
        client.boot_vm().await.unwrap();
        let info = client.vm_info_get().await.unwrap();
        assert_eq!(info.state, VmState::Running);
        assert_eq!(info.memory_actual_size, Some(128 << 20));
        assert!(info.device_tree.unwrap().contains_key("__rng"));
        until("the guest's first word", || std::fs::read(&serial).is_ok_and(|text| !text.is_empty()));
        client.vm_counters_get().await.unwrap();

        client.pause_vm().await.unwrap();
        assert_eq!(state().await, VmState::Paused);
        assert!(client.pause_vm().await.is_err(), "it is paused already");
        client.resume_vm().await.unwrap();
        assert_eq!(state().await, VmState::Running);
        client.power_button_vm().await.unwrap();
        client.reboot_vm().await.unwrap();
        client.shutdown_vm().await.unwrap();
        assert_eq!(state().await, VmState::Created);
        client.boot_vm().await.unwrap();
        client.delete_vm().await.unwrap();
        assert!(client.vm_info_get().await.is_err(), "it is deleted");
        client.shutdown_vmm().await.unwrap();
    });
    let mut status = None;
    until("the end of the process", || {
        status = vmm.0.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    assert!(!socket.exists(), "the socket is left");
}
