//! Everything that can be asked of a VMM, and how each question is written: as an HTTP route and as a command of `ch-remote`.
//!
//! [`routes`] is the one list; server, client, help texts, man page and completions derive from it.

use std::borrow::Cow;
use std::sync::LazyLock;

use catalog::hot::{self, Addition, Hot};
use catalog::{RestoreRequest, SnapshotSpec, VmSpec, machine};
use metadata::{Document, Patch};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Error;

use crate::bodies::{RemoveDevice, ResizeDisk, WaitDevice};

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
    /// Tell what the guest finds about itself.
    VmMetadata,
    /// Replace it.
    VmSetMetadata(Document),
    /// Change part of it.
    VmPatchMetadata(Patch),
    /// Add a device.
    VmAdd(Addition),
    /// Ask the guest to let go of a device.
    VmRemoveDevice(RemoveDevice),
    /// Change the size of a disk.
    VmResizeDisk(ResizeDisk),
    /// Wait for what a guest does with a device.
    VmWaitDevice(WaitDevice),
    /// Save the machine, which is paused.
    VmSnapshot(SnapshotSpec),
    /// Go on with a saved machine.
    VmRestore(Box<RestoreRequest>),
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
    /// Changes part of something.
    Patch,
}

impl Verb {
    /// As written in a request.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Put => "PUT",
            Verb::Patch => "PATCH",
        }
    }
}

/// How a request's body becomes an action.
#[derive(Clone, Copy)]
pub enum Body {
    /// There is none.
    None(fn() -> Action),
    /// There may be one, which does not matter.
    Ignored(fn() -> Action),
    /// A JSON document, and how a client is told what is in it.
    Json(fn(&[u8]) -> Result<Action, serde_json::Error>, Written),
    /// The description of a device, and perhaps descriptors.
    Device(&'static Hot),
    /// What to restore and what is different now, and perhaps descriptors.
    Restore,
}

/// How a client's command line says what a JSON body holds.
#[derive(Clone, Copy)]
pub enum Written {
    /// The document is in a file.
    File,
    /// Field by field.
    Fields(&'static [Field]),
}

/// A field of a body, as an argument of a command.
#[derive(Clone, Copy)]
pub struct Field {
    /// Its name in JSON.
    pub json: &'static str,
    /// The flag before its value; none for one that stands alone.
    pub flag: Option<&'static str>,
    /// How its value is written.
    pub value: FieldValue,
    /// What it is, for help texts.
    pub help: &'static str,
}

/// How the value of a field is written on a command line.
#[derive(Clone, Copy)]
pub enum FieldValue {
    /// As it is.
    Text,
    /// A number of bytes, perhaps with a unit.
    Size,
    /// Seconds, which are milliseconds in JSON; may be left out.
    Seconds,
    /// One of a few words.
    Word(&'static [&'static str]),
}

/// One question.
pub struct Route {
    /// Method.
    pub verb: Verb,
    /// Path below `/api/v1/`.
    pub path: Cow<'static, str>,
    /// The command of `ch-remote`.
    pub command: Cow<'static, str>,
    /// What it does, for help texts.
    pub help: Cow<'static, str>,
    /// Its body.
    pub body: Body,
}

/// The prefix of every path.
pub const ROOT: &str = "/api/v1/";

/// All questions, in the order of the help: those written here, and one for each kind of device that can be added.
static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let mut all = vec![
        get("vmm.ping", "ping", "Ask the VMM for its version and process id", || Action::VmmPing),
        get("vm.info", "info", "Show the machine: its description, state and devices", || Action::VmInfo),
        get("vm.counters", "counters", "Show what the machine's devices counted", || Action::VmCounters),
        json(
            "vm.create",
            "create",
            "Describe a machine, from a JSON file or standard input; boot starts it",
            |text| parse(text, |spec: VmSpec| Action::VmCreate(Box::new(spec))),
            Written::File,
        ),
        put("vm.boot", "boot", "Build the described machine and start it", || Action::VmBoot),
        put("vm.pause", "pause", "Stop the machine's vCPUs and I/O until resume", || Action::VmPause),
        put("vm.resume", "resume", "Let a paused machine continue", || Action::VmResume),
        put(
            "vm.power-button",
            "power-button",
            "Press the power button; the guest decides what to do",
            || Action::VmPowerButton,
        ),
        put("vm.nmi", "nmi", "Send every vCPU a non-maskable interrupt", || Action::VmNmi),
        put("vm.reboot", "reboot", "Replace the machine by a new one of the same description", || {
            Action::VmReboot
        }),
        put("vm.shutdown", "shutdown", "Stop the machine at once; its description stays", || {
            Action::VmShutdown
        }),
        put("vm.delete", "delete", "Stop the machine and forget its description", || Action::VmDelete),
    ];
    all.extend(machine::HOT.iter().map(|hot| Route {
        verb: Verb::Put,
        path: format!("vm.add-{}", hot.name).into(),
        command: format!("add-{}", hot.name).into(),
        help: format!("Add a device, described as after --{} of cloud-hypervisor", hot.name).into(),
        body: Body::Device(hot),
    }));
    all.extend([
        get("vm.metadata", "metadata", "Show the metadata that the guest finds", || Action::VmMetadata),
        json(
            "vm.metadata",
            "set-metadata",
            "Replace the metadata that the guest finds, from a JSON file or standard input",
            |text| Document::parse(text).map(Action::VmSetMetadata).map_err(Error::custom),
            Written::File,
        ),
        Route {
            verb: Verb::Patch,
            ..json(
                "vm.metadata",
                "patch-metadata",
                "Change part of the metadata by a JSON merge patch (RFC 7396), from a file or standard input",
                |text| Patch::parse(text).map(Action::VmPatchMetadata),
                Written::File,
            )
        },
        json(
            "vm.remove-device",
            "remove-device",
            "Ask the guest to let go of a device; it is removed when the guest has",
            |text| parse(text, Action::VmRemoveDevice),
            Written::Fields(&[ID]),
        ),
        json(
            "vm.resize-disk",
            "resize-disk",
            "Change the size of a disk and of its image",
            |text| parse(text, Action::VmResizeDisk),
            Written::Fields(&[
                Field { flag: Some("disk"), help: "Name of the disk", ..ID },
                Field {
                    json: "desired_size",
                    flag: Some("size"),
                    value: FieldValue::Size,
                    help: "New size: a multiple of 512 bytes, or with K, M, G or T (binary)",
                },
            ]),
        ),
        json(
            "vm.wait-device",
            "wait-device",
            "Wait until the guest uses a device that was added, or has let go of one",
            |text| parse(text, Action::VmWaitDevice),
            Written::Fields(&[
                ID,
                Field {
                    json: "until",
                    flag: Some("until"),
                    value: FieldValue::Word(&["ready", "removed"]),
                    help: "What to wait for",
                },
                Field {
                    json: "timeout_ms",
                    flag: Some("timeout"),
                    value: FieldValue::Seconds,
                    help: "Seconds to wait at most; 10 unless given",
                },
            ]),
        ),
        json(
            "vm.snapshot",
            "snapshot",
            "Save a paused machine into an empty directory",
            |text| parse(text, Action::VmSnapshot),
            Written::Fields(&[Field { json: "destination_url", help: "file:// and the directory", ..ID }]),
        ),
        Route {
            verb: Verb::Put,
            path: "vm.restore".into(),
            command: "restore".into(),
            help: "Go on with a saved machine; devices' flags say what is different now".into(),
            body: Body::Restore,
        },
        Route {
            verb: Verb::Put,
            path: "vmm.shutdown".into(),
            command: "shutdown-vmm".into(),
            help: "End the VMM's process, stopping the machine first".into(),
            body: Body::Ignored(|| Action::VmmShutdown),
        },
    ]);
    all
});

/// A device's name as the only plain argument.
const ID: Field = Field { json: "id", flag: None, value: FieldValue::Text, help: "Name of the device" };

/// All questions, in the order of the help.
pub fn routes() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter()
}

fn get(path: &'static str, command: &'static str, help: &'static str, make: fn() -> Action) -> Route {
    let body = Body::Ignored(make);
    Route { verb: Verb::Get, path: path.into(), command: command.into(), help: help.into(), body }
}

fn put(path: &'static str, command: &'static str, help: &'static str, make: fn() -> Action) -> Route {
    let body = Body::None(make);
    Route { verb: Verb::Put, path: path.into(), command: command.into(), help: help.into(), body }
}

fn json(
    path: &'static str,
    command: &'static str,
    help: &'static str,
    parse: fn(&[u8]) -> Result<Action, serde_json::Error>,
    written: Written,
) -> Route {
    let body = Body::Json(parse, written);
    Route { verb: Verb::Put, path: path.into(), command: command.into(), help: help.into(), body }
}

fn parse<T: DeserializeOwned>(
    text: &[u8],
    make: impl FnOnce(T) -> Action,
) -> Result<Action, serde_json::Error> {
    hot::object(text).map(make)
}

/// Questions of the contract that this version does not answer yet; asking them is refused by name.
pub const UNSUPPORTED: &[&str] = &[
    "vm.add-device",
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.coredump",
    "vm.receive-migration",
    "vm.resize",
    "vm.resize-zone",
    "vm.send-migration",
];
