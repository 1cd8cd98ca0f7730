//! Everything that can be asked of a VMM, and how each question is written: as an HTTP route and as a command of `ch-remote`.
//!
//! [`ROUTES`] is the one list; server, client, help texts, man page and completions derive from it.

use catalog::VmSpec;
use serde::de::{Error, Unexpected};

/// A request to the control thread.
#[derive(Debug)]
pub enum Action {
    /// Who are you?
    VmmPing,
    /// End the process, shutting the machine down first.
    VmmShutdown,
    /// Take the description of a machine.
    VmCreate(Box<VmSpec>),
    /// Build the machine and start it.
    VmBoot,
    /// Forget the description, shutting the machine down first.
    VmDelete,
    /// Describe the machine.
    VmInfo,
    /// Count what its devices did.
    VmCounters,
    /// Stop its vCPUs and I/O.
    VmPause,
    /// Continue after a pause.
    VmResume,
    /// Stop the machine and drop it; the description stays.
    VmShutdown,
    /// Replace the machine by a new one of the same description.
    VmReboot,
    /// Press the ACPI power button.
    VmPowerButton,
    /// Send every vCPU a non-maskable interrupt.
    VmNmi,
}

/// The HTTP methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Asks.
    Get,
    /// Acts.
    Put,
}

/// How a request's body becomes an action.
#[derive(Clone, Copy)]
pub enum Body {
    /// There is none.
    None(fn() -> Action),
    /// There may be one, which does not matter.
    Ignored(fn() -> Action),
    /// A JSON document.
    Json(fn(&[u8]) -> Result<Action, serde_json::Error>),
}

/// One question.
pub struct Route {
    /// Method.
    pub verb: Verb,
    /// Path below `/api/v1/`.
    pub path: &'static str,
    /// The command of `ch-remote`.
    pub command: &'static str,
    /// What it does, for help texts.
    pub help: &'static str,
    /// Its body.
    pub body: Body,
}

/// The prefix of every path.
pub const ROOT: &str = "/api/v1/";

/// All questions, in the order of the help.
pub const ROUTES: &[Route] = &[
    get("vmm.ping", "ping", "Ask the VMM for its version and process id", || Action::VmmPing),
    get("vm.info", "info", "Show the machine: its description, state and devices", || Action::VmInfo),
    get("vm.counters", "counters", "Show what the machine's devices counted", || Action::VmCounters),
    Route {
        verb: Verb::Put,
        path: "vm.create",
        command: "create",
        help: "Describe a machine, from a JSON file or standard input; boot starts it",
        body: Body::Json(|text| {
            // Derived deserializers also take the fields' values in a list, and an empty one for a whole machine.
            if text.trim_ascii_start().starts_with(b"[") {
                return Err(Error::invalid_type(Unexpected::Seq, &"a machine as a JSON object"));
            }
            serde_json::from_slice::<VmSpec>(text).map(|s| Action::VmCreate(Box::new(s)))
        }),
    },
    put("vm.boot", "boot", "Build the described machine and start it", || Action::VmBoot),
    put("vm.pause", "pause", "Stop the machine's vCPUs and I/O until resume", || Action::VmPause),
    put("vm.resume", "resume", "Let a paused machine continue", || Action::VmResume),
    put("vm.power-button", "power-button", "Press the power button; the guest decides what to do", || {
        Action::VmPowerButton
    }),
    put("vm.nmi", "nmi", "Send every vCPU a non-maskable interrupt", || Action::VmNmi),
    put("vm.reboot", "reboot", "Replace the machine by a new one of the same description", || {
        Action::VmReboot
    }),
    put("vm.shutdown", "shutdown", "Stop the machine at once; its description stays", || Action::VmShutdown),
    put("vm.delete", "delete", "Stop the machine and forget its description", || Action::VmDelete),
    Route {
        verb: Verb::Put,
        path: "vmm.shutdown",
        command: "shutdown-vmm",
        help: "End the VMM's process, stopping the machine first",
        body: Body::Ignored(|| Action::VmmShutdown),
    },
];

const fn get(path: &'static str, command: &'static str, help: &'static str, make: fn() -> Action) -> Route {
    Route { verb: Verb::Get, path, command, help, body: Body::Ignored(make) }
}

const fn put(path: &'static str, command: &'static str, help: &'static str, make: fn() -> Action) -> Route {
    Route { verb: Verb::Put, path, command, help, body: Body::None(make) }
}

/// Questions of the contract that this version does not answer yet; asking them is refused by name.
pub const UNSUPPORTED: &[&str] = &[
    "vm.add-device",
    "vm.add-disk",
    "vm.add-fs",
    "vm.add-generic-vhost-user",
    "vm.add-net",
    "vm.add-pmem",
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.add-vsock",
    "vm.coredump",
    "vm.receive-migration",
    "vm.remove-device",
    "vm.resize",
    "vm.resize-disk",
    "vm.resize-zone",
    "vm.restore",
    "vm.send-migration",
    "vm.snapshot",
];
