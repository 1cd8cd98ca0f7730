//! A network device whose frames another process moves: address, status, MTU and the control queue are this side's business.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ::spec::{Kind, Refusal};
use device::state::{self as saved, Node, StateError};
use device::{Attached, DeviceError, Host, LiveQueue, Virtio, VirtioGrant, VirtioKind};
use log::warn;
use net_util::MacAddr;
use sandbox::Set;
use terminal::Listener;
use vhost_user::front::{Remote, Way, Wish};
use virtio_queue::QueueState;

use super::ctrl::{Commanded, Ctrl, refuse};
use super::state::{self, Settings};
use super::wire::{self, CONFIG_LENGTH, Command, STATUS_ANNOUNCE, STATUS_LINK_UP, feature};
use super::{ANNOUNCES, NetSpec, VhostMode};

/// What the control queue's thread has of it, too.
struct Shared {
    id: String,
    remote: Remote,
    mac: MacAddr,
    mtu: Option<u16>,
    pairs: usize,
    /// Accepted by the driver.
    features: AtomicU64,
    status: AtomicU16,
    in_use: AtomicU16,
}

/// See the module.
pub(super) struct RemoteNet {
    // First: its thread must not be the last to hold the device.
    ours: Mutex<Ours>,
    shared: Arc<Shared>,
    queue_size: u16,
    grant: OnceLock<VirtioGrant>,
    /// Until the device is activated or reset.
    loaded: Mutex<Option<Settings>>,
}

/// Queues that the other process does not have.
#[derive(Default)]
struct Ours {
    ctrl: Option<Attached<Ctrl>>,
    /// Those that the driver has no business to use: kept, not served.
    idle: Vec<(usize, LiveQueue)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NetSpec {
    /// Finds the process that moves the frames; the MAC is written back.
    pub(super) fn find(&mut self, host: &Host<'_>) -> Result<RemoteNet, Refusal> {
        let what = || format!("cannot add network device \"{}\"", host.id);
        let taps = self.tap.is_some() || self.ip.is_some() || self.host_mac.is_some();
        if taps || !self.fds.numbers().is_empty() {
            warn!("{}: tap, fd, ip, mask and host_mac are not looked at with vhost_user=on", host.id);
        }
        let mac = self.drawn_mac()?;
        let pairs = self.num_queues / 2;
        let way = if self.user.is_on() { self.passt(host) } else { self.way() };
        let way = way.map_err(|e| e.within(what()))?;
        let mtu = if self.mtu.is_some() { feature::MTU } else { 0 };
        let wish = Wish {
            // Of another choice of offloads the other process would not hear.
            features: self.offloads(true) & !feature::CTRL_GUEST_OFFLOADS | feature::MRG_RXBUF,
            required: if pairs > 1 { feature::MQ } else { 0 },
            own: feature::MAC | feature::STATUS | ANNOUNCES | mtu,
            names: feature::NAMES,
            few_queues: 2,
            in_order: true,
            ..Wish::new(host.id, way, VirtioKind::Net as u16, vec![self.queue_size; 2 * pairs])
        };
        let shared = Shared {
            id: host.id.to_owned(),
            remote: crate::remote::find(wish, host).map_err(|e| e.within(what()))?,
            mac,
            mtu: self.mtu,
            pairs,
            features: AtomicU64::new(0),
            status: AtomicU16::new(STATUS_LINK_UP),
            in_use: AtomicU16::new(1),
        };
        Ok(RemoteNet {
            ours: Mutex::default(),
            shared: Arc::new(shared),
            queue_size: self.queue_size,
            grant: OnceLock::new(),
            loaded: Mutex::default(),
        })
    }

    /// How one comes to the process at the socket; we listen, if it is that one that connects.
    fn way(&self) -> Result<Way, Refusal> {
        let socket = self.vhost_socket.clone().unwrap_or_default();
        if self.vhost_mode == VhostMode::Client {
            return Ok(Way::Connect(socket));
        }
        Listener::bind_private(&socket).map(Way::Accept).map_err(|e| {
            let taken = matches!(e, terminal::TerminalError::SocketTaken(_));
            let kind = if taken { Kind::Conflict } else { Kind::Host };
            Refusal::new(kind, "no socket for the vhost-user back end").because(e)
        })
    }
}

impl Shared {
    /// Where the driver looks for the control queue (virtio 1.3 §5.1.2).
    fn control_index(&self) -> usize {
        if self.features.load(Ordering::Acquire) & feature::MQ != 0 { 2 * self.pairs } else { 2 }
    }

    /// Has the driver use so many pairs.
    fn use_first(&self, pairs: u16) {
        self.in_use.store(pairs, Ordering::Release);
        for index in 0..2 * self.pairs {
            self.remote.use_queue(index, index / 2 < usize::from(pairs));
        }
    }
}

impl Commanded for Shared {
    fn id(&self) -> &str {
        &self.id
    }

    fn carry_out(&self, command: Command) -> bool {
        let features = self.features.load(Ordering::Acquire);
        match command {
            Command::AnnounceAck if features & feature::GUEST_ANNOUNCE != 0 => {
                self.status.fetch_and(!STATUS_ANNOUNCE, Ordering::AcqRel);
            }
            Command::SetPairs(count)
                if features & feature::MQ != 0 && (1..=self.pairs).contains(&usize::from(count)) =>
            {
                self.use_first(count);
            }
            _ => return refuse(&self.id, command),
        }
        true
    }
}

impl Virtio for RemoteNet {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Net
    }

    fn calls(&self) -> Vec<Set> {
        self.shared.remote.calls()
    }

    fn features(&self) -> u64 {
        self.shared.remote.features()
    }

    fn feature_names(&self) -> &'static [(u64, &'static str)] {
        feature::NAMES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; 2 * self.shared.pairs + 1]
    }

    fn config_length(&self) -> usize {
        CONFIG_LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let shared = &self.shared;
        let status = shared.status.load(Ordering::Acquire);
        // As many as queues can be, halved.
        let config = wire::config(shared.mac, status, shared.pairs as u16, shared.mtu.unwrap_or(0));
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    fn connect(&mut self, grant: VirtioGrant) {
        self.shared.remote.join(grant.clone());
        if self.grant.set(grant).is_err() {
            warn!("{}: connected twice", self.shared.id);
        }
    }

    fn activate(&self, features: u64) -> Result<(), DeviceError> {
        let shared = &self.shared;
        // A driver that was saved has perhaps changed by command what it began with.
        let saved = lock(&self.loaded).take();
        let settings = saved.unwrap_or_else(|| Settings::new(features));
        if !settings.suit(features) {
            let what = format!("\"{}\": {settings:?} with the features {features:#x}", shared.id);
            return Err(DeviceError { what, source: None });
        }
        shared.use_first(settings.pairs);
        // A restored guest may be at another port of the network; the transport tells its driver to look.
        let announce = if saved.is_some() && features & ANNOUNCES == ANNOUNCES { STATUS_ANNOUNCE } else { 0 };
        shared.status.store(settings.status() | announce, Ordering::Release);
        shared.features.store(features, Ordering::Release);
        shared.remote.activate(features)
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let Some(grant) = self.grant.get() else {
            return Err(DeviceError { what: format!("\"{}\" is not connected", shared.id), source: None });
        };
        let control = shared.control_index();
        if index < control {
            return shared.remote.start_queue(index, queue);
        }
        let mut ours = lock(&self.ours);
        if index > control {
            ours.idle.push((index, queue));
            return Ok(());
        }
        let ctrl = Ctrl::new(queue, shared.clone());
        let attached = grant.workers.shared()?.attach(ctrl);
        let failed = |e| DeviceError::new(format!("cannot start a queue of \"{}\"", shared.id), e);
        ours.ctrl = Some(attached.map_err(failed)?);
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let control = self.shared.control_index();
        if index < control {
            return self.shared.remote.stop_queue(index);
        }
        // Not with the lock held: the thread may be in the middle of a command.
        let ctrl = if index == control { lock(&self.ours).ctrl.take() } else { None };
        if let Some(ctrl) = ctrl {
            return ctrl.stop().map(|ctrl| ctrl.queue.state());
        }
        let idle = &mut lock(&self.ours).idle;
        let at = idle.iter().position(|(of, _)| *of == index)?;
        Some(idle.swap_remove(at).1.state())
    }

    fn vector_changed(&self, index: usize) {
        if index < self.shared.control_index() {
            self.shared.remote.vector_changed(index);
        }
    }

    fn reset(&self) {
        self.shared.features.store(0, Ordering::Release);
        self.shared.status.store(STATUS_LINK_UP, Ordering::Release);
        *lock(&self.loaded) = None;
        self.shared.remote.reset();
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let shared = &self.shared;
        let failed = |e| DeviceError::new(format!("cannot save \"{}\"", shared.id), e);
        let features = shared.features.load(Ordering::Acquire);
        let driver = (features != 0).then(|| Settings {
            pairs: shared.in_use.load(Ordering::Acquire),
            announce: shared.status.load(Ordering::Acquire) & STATUS_ANNOUNCE != 0,
            ..Settings::new(features)
        });
        state::node(shared.mtu, driver).map(Some).map_err(failed)
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let shared = &self.shared;
        let settings = state::settings(saved::some(node)?, &shared.id, shared.mtu, shared.pairs)?;
        *lock(&self.loaded) = settings;
        Ok(())
    }
}
