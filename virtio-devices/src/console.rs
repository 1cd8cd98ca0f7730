//! virtio-console with one port (virtio 1.3 §5.3): the guest's `hvc0`.
//!
//! The host's side is a [`Terminal`]. Both queues are served by the thread that quiet devices share:
//!
//! ```text
//!   queue 0 (to the guest)    ◄── Receive ◄── Typed (an inbox) ◄─── terminal
//!   queue 1 (from the guest)  ──► Transmit ───────────────────────► terminal, which never waits
//! ```
//!
//! Input is taken from the terminal only as far as the inbox has room, so what the guest does not read stays where it
//! came from.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use device::limit::LogLimit;
use device::state::{self as saved, Node, State, StateError};
use device::virtio::feature as ring;
use device::{
    Attached, Build, Built, Calls, DeviceError, Host, LiveQueue, Naming, Task, Virtio, VirtioGrant,
    VirtioKind, Watch, guest_warn,
};
use log::warn;
use sandbox::HostPath;
use serde::{Deserialize, Serialize};
use spec::{Facts, Part, PciCommon, Refusal, Spec};
use terminal::{ConsoleMode, Inbox, Input, Mode, Session, Terminal, calls};
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;

use crate::buffers::{Direction, Pieces, drain_event, kick_again, next_chain};

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most bytes of input that wait for the guest.
pub const MAX_INPUT: usize = 4096;
/// Most bytes taken from one buffer of output. What is beyond is lost: the terminal would not keep more either.
pub const MAX_OUTPUT: usize = 1 << 20;
/// Most chains served before other devices of the thread have their turn.
pub const BUDGET: usize = 16;

/// The configuration space has the size (§5.3.3).
const F_SIZE: u64 = 1 << 0;

/// Bytes of the configuration space: columns, rows, ports, emergency write (§5.3.4).
const CONFIG_LENGTH: usize = 12;

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

spec::spec! {
    /// The paravirtual console (hvc0 in the guest), and where it goes on the host.
    pub struct ConsoleSpec: "console" {
        flatten {
            /// Where it goes.
            mode: ConsoleMode = Mode::Tty.into(),
            /// Naming and placement.
            pci: PciCommon,
        }
        fields {}
        unsupported {}
    }
}

impl Spec for ConsoleSpec {
    const FLAG: &'static str = ConsoleSpec::FLAG;
    const ABOUT: &'static str = ConsoleSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--console {key}")));
        }
        self.mode.check()?;
        self.pci.check(facts)
    }
}

impl Build for ConsoleSpec {
    const NAMING: Naming = Naming::Single("__console");
    const CALLS: Calls = calls::CONSOLE;
    const REPLACEABLE: &'static [&'static str] = &["mode", "file", "socket"];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn paths(&self) -> Vec<HostPath> {
        self.mode.paths()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        Ok(match self.make(host)? {
            Some(console) => Built::Virtio(Box::new(console)),
            None => Built::Nothing,
        })
    }
}

impl ConsoleSpec {
    /// Builds the device, if there is to be one; the path of a pseudo-terminal is written back.
    fn make(&mut self, host: &Host<'_>) -> Result<Option<Console>, Refusal> {
        let terminal = host
            .kept
            .keep(host.id, || Terminal::open(&self.mode))
            .map_err(|e| Refusal::host("cannot set up the console", e))?;
        let Some(terminal) = terminal else { return Ok(None) };
        if let Some(path) = terminal.path() {
            self.mode.file = Some(path.to_owned());
        }
        let console = Console::new(host.id, terminal);
        console.map(Some).map_err(|e| Refusal::host("cannot set up the console", e))
    }
}

/// What is typed, until the guest takes it. The terminal's side.
struct Typed {
    inbox: Inbox,
    screen: Screen,
}

impl Input for Typed {
    fn room(&self) -> usize {
        self.inbox.room()
    }

    fn put(&self, bytes: &[u8]) {
        self.inbox.put(bytes);
    }

    fn resized(&self) {
        self.screen.look();
    }
}

/// The terminal's size as the guest was told.
struct Screen {
    terminal: Terminal,
    grant: OnceLock<VirtioGrant>,
    /// Accepted by the driver.
    features: AtomicU64,
    /// Columns and rows.
    shown: Mutex<(u16, u16)>,
    /// The driver comes from a saved state, and no queue was started since.
    loaded: AtomicBool,
}

impl Screen {
    fn shown(&self) -> MutexGuard<'_, (u16, u16)> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the terminal, and tells the guest if its size is another.
    fn look(&self) {
        let size = self.terminal.size().unwrap_or_default();
        if std::mem::replace(&mut *self.shown(), size) != size {
            self.announce();
        }
    }

    /// Tells a driver that is new, or new here, of the size if there is one. Linux looks at it only when it is said to have changed.
    fn introduce(&self) {
        let size = self.terminal.size().unwrap_or_default();
        let before = std::mem::replace(&mut *self.shown(), size);
        if size != (0, 0) || before != size {
            self.announce();
        }
    }

    fn announce(&self) {
        if self.features.load(Ordering::Acquire) & F_SIZE != 0
            && let Some(grant) = self.grant.get()
        {
            grant.link.config_changed();
        }
    }
}

/// What is saved of a console. What the guest wrote and the host has not read yet is not its state any more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleState {
    columns: u16,
    rows: u16,
    /// Typed, and not taken by the guest.
    input: Vec<u8>,
}

impl State for ConsoleState {
    const KIND: &'static str = "virtio-console";
}

/// A console device.
pub struct Console {
    id: String,
    typed: Arc<Typed>,
    live: Mutex<Live>,
}

/// What runs. The lock is held by those who start and stop; no thread of the device takes it.
#[derive(Default)]
struct Live {
    receive: Option<Attached<Receive>>,
    transmit: Option<Attached<Transmit>>,
    /// From the first driver on.
    session: Option<Session>,
}

impl Console {
    fn new(id: &str, terminal: Terminal) -> io::Result<Self> {
        let screen = Screen {
            shown: Mutex::new(terminal.size().unwrap_or_default()),
            terminal,
            grant: OnceLock::new(),
            features: AtomicU64::new(0),
            loaded: AtomicBool::new(false),
        };
        let typed = Arc::new(Typed { inbox: Inbox::new(MAX_INPUT)?, screen });
        Ok(Console { id: id.to_owned(), typed, live: Mutex::default() })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self) -> Result<&VirtioGrant, DeviceError> {
        let missing = || DeviceError { what: format!("\"{}\" is not connected", self.id), source: None };
        self.typed.screen.grant.get().ok_or_else(missing)
    }

    fn attach<T: Task>(&self, task: T) -> Result<Attached<T>, DeviceError> {
        let failed = |e| DeviceError::new(format!("cannot start a queue of \"{}\"", self.id), e);
        self.grant()?.workers.shared()?.attach(task).map_err(failed)
    }
}

impl Virtio for Console {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Console
    }

    fn features(&self) -> u64 {
        // With EVENT_IDX a guest that waits for its output by polling is not interrupted for each line of it.
        ring::VERSION_1 | ring::RING_EVENT_IDX | F_SIZE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config_length(&self) -> usize {
        CONFIG_LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let (columns, rows) = *self.typed.screen.shown();
        let mut config = [0; CONFIG_LENGTH];
        config[..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    fn connect(&mut self, grant: VirtioGrant) {
        if self.typed.screen.grant.set(grant).is_err() {
            warn!("{}: connected twice", self.id);
        }
    }

    fn activate(&self, features: u64) -> Result<(), DeviceError> {
        let grant = self.grant()?;
        let screen = &self.typed.screen;
        screen.features.store(features, Ordering::Release);
        if !screen.loaded.load(Ordering::Acquire) {
            screen.introduce();
        }
        let mut live = self.live();
        if live.session.is_none() {
            live.session = Some(screen.terminal.serve(&grant.workers, self.typed.clone())?);
        }
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let (id, typed, pieces) = (self.id.clone(), self.typed.clone(), Pieces::new());
        if typed.screen.loaded.swap(false, Ordering::AcqRel) {
            typed.screen.introduce();
        }
        match index {
            TO_GUEST => {
                let task = self.attach(Receive { id, queue, typed, pieces })?;
                self.live().receive = Some(task);
            }
            FROM_GUEST => {
                let task = self.attach(Transmit { id, queue, typed, pieces })?;
                self.live().transmit = Some(task);
            }
            _ => return Err(DeviceError { what: format!("\"{id}\" has no queue {index}"), source: None }),
        }
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        match index {
            TO_GUEST => {
                let task = self.live().receive.take()?;
                task.stop().map(|t| t.queue.state())
            }
            FROM_GUEST => {
                let task = self.live().transmit.take()?;
                task.stop().map(|t| t.queue.state())
            }
            _ => None,
        }
    }

    fn reset(&self) {
        self.typed.screen.features.store(0, Ordering::Release);
        self.typed.screen.loaded.store(false, Ordering::Release);
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let (columns, rows) = *self.typed.screen.shown();
        let state = ConsoleState { columns, rows, input: self.typed.inbox.contents() };
        let failed = |e| DeviceError::new(format!("cannot save \"{}\"", self.id), e);
        Node::of(&state).map(Some).map_err(failed)
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let ConsoleState { columns, rows, input } = saved::some(node)?.read()?;
        if input.len() > MAX_INPUT {
            let what =
                format!("input of {:?} has {} bytes, and at most {MAX_INPUT} can be", self.id, input.len());
            return Err(StateError::value::<ConsoleState>(what));
        }
        *self.typed.screen.shown() = (columns, rows);
        self.typed.screen.loaded.store(true, Ordering::Release);
        self.typed.inbox.put(&input);
        Ok(())
    }

    fn resized(&self) {
        self.typed.screen.look();
    }
}

const KICK: u32 = 0;
const INBOX: u32 = 1;

static BAD_BUFFER: LogLimit = LogLimit::new();

/// Bytes moved at once.
const CHUNK: usize = 4096;

/// Gives input to the guest.
struct Receive {
    id: String,
    queue: LiveQueue,
    typed: Arc<Typed>,
    pieces: Pieces,
}

impl Receive {
    fn serve(&mut self) {
        let Receive { id, queue, typed, pieces } = self;
        let map = queue.ram.map();
        let mut used = 0;
        queue.quiet(&*map);
        while used < BUDGET && !typed.inbox.is_empty() {
            let Some(chain) = next_chain(queue, &map) else { break };
            let head = chain.head_index();
            let written = match pieces.gather(&map, chain, Direction::ToDriver) {
                Ok(mut buffers) => {
                    let mut bytes = [0; CHUNK];
                    let count = typed.inbox.take(&mut bytes[..buffers.length().min(CHUNK)]);
                    buffers.write(0, &bytes[..count])
                }
                Err(e) => {
                    guest_warn!(BAD_BUFFER, "{id}: a buffer for input: {e}");
                    0
                }
            };
            // At most `CHUNK`.
            queue.push(&map, head, written as u32);
            used += 1;
        }
        if used > 0 {
            queue.signal(&map);
            typed.screen.terminal.resume();
        }
        if used == BUDGET {
            kick_again(&queue.kick);
        }
    }
}

impl Task for Receive {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), KICK, EventSet::IN)?;
        watch.add(self.typed.inbox.event().as_raw_fd(), INBOX, EventSet::IN)?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) {
        match token {
            KICK => drain_event(&self.queue.kick),
            _ => drain_event(self.typed.inbox.event()),
        }
        self.serve();
    }
}

/// Takes output from the guest.
struct Transmit {
    id: String,
    queue: LiveQueue,
    typed: Arc<Typed>,
    pieces: Pieces,
}

impl Transmit {
    fn serve(&mut self) {
        let Transmit { id, queue, typed, pieces } = self;
        let map = queue.ram.map();
        let (mut used, mut taken) = (0, 0);
        queue.quiet(&*map);
        let more = loop {
            if used == BUDGET || taken >= MAX_OUTPUT {
                break true;
            }
            let Some(chain) = next_chain(queue, &map) else { break false };
            let head = chain.head_index();
            match pieces.gather(&map, chain, Direction::ToDevice) {
                Ok(mut buffers) => {
                    if buffers.length() > MAX_OUTPUT {
                        guest_warn!(BAD_BUFFER, "{id}: {} bytes of output at once", buffers.length());
                        buffers.truncate(MAX_OUTPUT);
                    }
                    let mut bytes = [0; CHUNK];
                    for offset in (0..buffers.length()).step_by(CHUNK) {
                        let count = buffers.read(offset, &mut bytes);
                        typed.screen.terminal.write(&bytes[..count]);
                    }
                    taken += buffers.length();
                }
                Err(e) => guest_warn!(BAD_BUFFER, "{id}: output: {e}"),
            }
            queue.push(&map, head, 0);
            used += 1;
        };
        if used > 0 {
            queue.signal(&map);
        }
        if more {
            kick_again(&queue.kick);
        }
    }
}

impl Task for Transmit {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), KICK, EventSet::IN)?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) {
        drain_event(&self.queue.kick);
        self.serve();
    }
}

#[cfg(test)]
mod tests;
