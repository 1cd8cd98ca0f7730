//! From a socket to a back end that can be worked with: connecting, and finding out what it offers.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use device::Launcher;
use device::virtio::feature;
use terminal::Listener;
use terminal::socket::connect;

use super::client::Client;
use crate::wire::{F_PROTOCOL_FEATURES, MAX_BODY, protocol, request};
use crate::{BackError, PeerError};

/// How often a socket is tried at which nobody answers yet.
pub(super) const AGAIN: Duration = Duration::from_millis(100);

/// Features of rings that are passed on.
const RINGS: u64 =
    feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX | feature::IN_ORDER;

/// A device that another process is to serve.
pub struct Wish {
    /// Its name.
    pub id: String,
    /// How one comes to it.
    pub way: Way,
    /// The type (virtio 1.3 §5).
    pub number: u16,
    /// Features of the type that the driver may be offered if the back end has them,
    pub features: u64,
    /// those of them that it must have,
    pub required: u64,
    /// and those that the driver is offered whatever the back end has: they are this side's business.
    pub own: u64,
    /// Features that hold for a driver whether it knows of them or not ([`device::Virtio::binding_features`]).
    pub binding: u64,
    /// Names of the type's features.
    pub names: &'static [(u64, &'static str)],
    /// Size of each queue.
    pub sizes: Vec<u16>,
    /// Queues that a back end serves which does not say how many.
    pub few_queues: usize,
    /// Chains come back in the order in which they were taken, whatever was negotiated: so a back end's death leaves no doubt about
    /// which of them are done.
    pub in_order: bool,
    /// What is available is served soon, so that a ring is given time to be empty before it is to rest. qemu-storage-daemon 11.1 ends the
    /// conversation if a request is done after that.
    pub empties: bool,
    /// What the back end knows of the driver beyond what guest memory tells.
    pub knows: Knows,
    /// Where the connection waits while the machine is made anew, if it is to: some back ends end with it.
    pub parked: Option<Parked>,
    /// The configuration space.
    pub config: ConfigWish,
}

impl Wish {
    /// A device of this type with queues of these sizes, and nothing else that would have to be said of it: no features of the type and no
    /// configuration space.
    pub fn new(id: &str, way: Way, number: u16, sizes: Vec<u16>) -> Wish {
        Wish {
            id: id.to_owned(),
            way,
            number,
            features: 0,
            required: 0,
            own: 0,
            binding: 0,
            names: &[],
            few_queues: sizes.len(),
            sizes,
            in_order: false,
            empties: false,
            knows: Knows::Nothing,
            parked: None,
            config: ConfigWish::default(),
        }
    }
}

/// How one comes to a back end.
pub enum Way {
    /// It listens at this socket.
    Connect(PathBuf),
    /// It connects to us, who listen there.
    Accept(Listener),
    /// It is a program that is started for the device and ends with the connection.
    Start(Program),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Connect(path) => path.display().fmt(f),
            Way::Accept(listener) => listener.path().display().fmt(f),
            Way::Start(program) => f.write_str(program.name),
        }
    }
}

/// A program that is started for a device.
pub struct Program {
    /// Its name, for messages.
    pub name: &'static str,
    /// Who starts it.
    pub launcher: Arc<dyn Launcher>,
    /// What it is to do ([`Launcher::start`]).
    pub task: String,
}

impl Program {
    /// What the program said when it ended is more than that the connection is gone.
    fn explained(&self, id: &str, e: BackError) -> BackError {
        let lost = matches!(e, BackError::Peer(PeerError::HungUp | PeerError::Cut | PeerError::Socket(_)));
        let last_words = if lost { self.launcher.ended(id) } else { None };
        last_words.map_or(e, BackError::Program)
    }
}

/// What a back end knows of a driver beyond what guest memory tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knows {
    /// Nothing: another one can go on in its place.
    Nothing,
    /// What others cannot do without.
    Vital,
    /// What others lack too, but they answer what they do not understand with errors, so that the driver sees them and can go on.
    Missed,
}

/// Who tells the bytes of a configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// We do.
    Here,
    /// The back end, once, and when it says that they changed.
    ByBackEnd,
    /// The back end, if it has any, whenever the driver reads some: what they mean is not known here.
    Live,
}

/// Puts our own into a configuration space.
pub type Adjust = Box<dyn Fn(&mut [u8]) + Send + Sync>;

/// Where the configuration space comes from, and who may change it.
pub struct ConfigWish {
    /// Who tells its bytes.
    pub told: Told,
    /// What they are where the back end does not tell them; otherwise as many as there are.
    pub bytes: Vec<u8>,
    /// What of them is ours to say.
    pub adjust: Adjust,
    /// What the back end may change while the driver looks on.
    pub changes: Range<usize>,
    /// Whether a driver that knows the first can go on with a back end that tells the second; says what is in the way.
    pub fits: fn(&[u8], &[u8]) -> Result<(), String>,
    /// What the driver may write,
    pub writable: Range<usize>,
    /// and the features that it must have accepted for that.
    pub writable_with: u64,
}

/// No bytes, which are ours, and which nobody changes.
impl Default for ConfigWish {
    fn default() -> ConfigWish {
        ConfigWish {
            told: Told::Here,
            bytes: Vec::new(),
            adjust: Box::new(|_| ()),
            changes: 0..0,
            fits: |_, _| Ok(()),
            writable: 0..0,
            writable_with: 0,
        }
    }
}

/// A place for a connection between two lives of a machine.
#[derive(Clone, Default)]
pub struct Parked(Arc<Mutex<Option<Client>>>);

impl Parked {
    pub(super) fn put(&self, client: Client) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
    }

    fn take(&self) -> Option<Client> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a back end offers.
pub(super) struct Offer {
    /// All that the back end has.
    pub(super) theirs: u64,
    /// Features for the driver.
    pub(super) features: u64,
    /// Protocol features that were agreed on.
    pub(super) protocol: u64,
    /// The configuration space.
    pub(super) config: Vec<u8>,
    /// Where the back end asks us.
    pub(super) back: Option<UnixStream>,
}

/// Goes on with the connection of the machine's last life, if it is still good.
pub(super) fn again(wish: &Wish, gone: &Arc<AtomicBool>) -> Option<(Client, Offer)> {
    let mut client = wish.parked.as_ref()?.take()?;
    client.gone = gone.clone();
    match agree(&mut client, wish) {
        Ok(offer) => Some((client, offer)),
        Err(e) => {
            log::warn!("{}: the back end at {} is gone: {}", wish.id, wish.way, e.line());
            None
        }
    }
}

/// Connects, and if nobody answers tries again for so long.
pub(super) fn wait(
    wish: &Wish,
    gone: &Arc<AtomicBool>,
    patience: Duration,
) -> Result<(Client, Offer), BackError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match dial(wish, gone) {
            Err(BackError::Connect { source, .. }) if absent(&source) && begun.elapsed() < patience => {
                if !told {
                    let (id, socket) = (&wish.id, &wish.way);
                    let how_long = match patience {
                        Duration::MAX => "for it".to_owned(),
                        patience => format!("up to {} seconds", patience.as_secs()),
                    };
                    log::warn!("{id}: no back end at {socket} yet ({source}); waiting {how_long}");
                }
                told = true;
                if told_to_end() {
                    return Err(BackError::Gone);
                }
                std::thread::sleep(AGAIN);
            }
            other => return other,
        }
    }
}

/// Whether somebody wants the program to end: who waits here keeps the signal from being read.
fn told_to_end() -> bool {
    // SAFETY: a set of zeros is one to be written to; the calls only read and write it.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut pending) == 0
            && [libc::SIGTERM, libc::SIGINT]
                .iter()
                .any(|signal| libc::sigismember(&raw const pending, *signal) == 1)
    }
}

/// Whether a back end may still come.
pub(super) fn absent(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    matches!(e.kind(), NotFound | ConnectionRefused | WouldBlock)
}

/// Connects and asks what there is.
pub(super) fn dial(wish: &Wish, gone: &Arc<AtomicBool>) -> Result<(Client, Offer), BackError> {
    let (path, stream) = match &wish.way {
        Way::Connect(path) => (path.as_path(), reach(path)?),
        Way::Accept(listener) => (listener.path(), listener.socket().accept().map(|(stream, _)| stream)),
        Way::Start(program) => {
            let stream = program.launcher.start(&wish.id, &program.task).map_err(BackError::Program)?;
            return greet(stream, wish, gone).map_err(|e| program.explained(&wish.id, e));
        }
    };
    let stream = stream.map_err(|source| BackError::Connect { path: path.to_owned(), source })?;
    greet(stream, wish, gone)
}

/// Asks a back end what there is.
fn greet(stream: UnixStream, wish: &Wish, gone: &Arc<AtomicBool>) -> Result<(Client, Offer), BackError> {
    let mut client = Client::new(stream, gone.clone())?;
    client.tell(request::SET_OWNER, &[], &[])?;
    let offer = agree(&mut client, wish)?;
    Ok((client, offer))
}

/// Connects to somebody who listens.
fn reach(path: &Path) -> Result<io::Result<UnixStream>, BackError> {
    // The kernel says the same of a file that is no socket as of a socket that nobody listens on.
    if std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(BackError::NoSocket(path.to_owned()));
    }
    Ok(connect(path))
}

/// Asks what there is, and says what is made use of.
fn agree(client: &mut Client, wish: &Wish) -> Result<Offer, BackError> {
    let features = client.number(request::GET_FEATURES)?;
    if features & F_PROTOCOL_FEATURES == 0 {
        return Err(BackError::Lacks("VHOST_USER_F_PROTOCOL_FEATURES".to_owned()));
    }
    let told = wish.config.told;
    let wanted = protocol::WANTED & if told == Told::Here { !protocol::CONFIG } else { u64::MAX };
    let agreed = client.number(request::GET_PROTOCOL_FEATURES)? & wanted;
    if told == Told::ByBackEnd && agreed & protocol::CONFIG == 0 {
        return Err(BackError::Lacks(names(protocol::CONFIG, protocol::NAMES)));
    }
    client.tell(request::SET_PROTOCOL_FEATURES, &agreed.to_ne_bytes(), &[])?;
    client.acknowledges = agreed & protocol::REPLY_ACK != 0;

    let (wanted, mut offered) = (wish.sizes.len(), wish.few_queues as u64);
    if agreed & protocol::MQ != 0 {
        offered = client.number(request::GET_QUEUE_NUM)?;
    }
    if offered < wanted as u64 {
        return Err(BackError::Queues { offered, wanted });
    }
    let missing = (wish.required | feature::VERSION_1) & !features;
    if missing != 0 {
        return Err(BackError::Lacks(names(missing, &[wish.names, feature::NAMES].concat())));
    }
    let mut back = None;
    if agreed & protocol::BACKEND_REQ != 0 {
        let failed = |source| BackError::Host { what: "make a socket for its requests", source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        client.tell(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()])?;
        back = Some(ours);
    }
    let config = config_of(client, wish)?;
    let theirs = features;
    let features = theirs & (RINGS | wish.features | wish.required) | wish.own;
    Ok(Offer { theirs, features, protocol: agreed, config, back })
}

/// The configuration space as the driver is to see it.
pub(super) fn config_of(client: &mut Client, wish: &Wish) -> Result<Vec<u8>, BackError> {
    let mut bytes = wish.config.bytes.clone();
    if wish.config.told == Told::ByBackEnd {
        let length = bytes.len();
        let told = config_part(client, 0, length)?;
        if told.len() != length {
            let what = format!("{} bytes, of {length}", told.len());
            return Err(BackError::Answer { request: request::GET_CONFIG, what });
        }
        bytes = told;
    }
    (wish.config.adjust)(&mut bytes);
    Ok(bytes)
}

/// Part of the configuration space, as the back end has it; nothing if it has no such part.
pub(super) fn config_part(client: &mut Client, offset: u32, length: usize) -> Result<Vec<u8>, BackError> {
    let length = length.min(MAX_BODY - CONFIG_HEADER);
    let answer = client.ask(request::GET_CONFIG, &config_body(offset, &vec![0; length]))?;
    let mut fields = answer.fields();
    let (of, size) = (fields.u32()?, fields.u32()?);
    fields.u32()?;
    let told = fields.rest();
    if size == 0 {
        return Ok(Vec::new());
    }
    if of != offset || size as usize != length || told.len() != length {
        let what = format!("{} bytes at {of}, of {length} at {offset}", told.len());
        return Err(BackError::Answer { request: request::GET_CONFIG, what });
    }
    Ok(told.to_vec())
}

/// Bytes before those of the configuration space: offset, size, flags.
const CONFIG_HEADER: usize = 12;

/// Part of the configuration space, as both sides send it.
pub(super) fn config_body(offset: u32, bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(CONFIG_HEADER + bytes.len());
    // The bytes are few: see `Virtio::config_length`. No flags: it is the driver who asks.
    for number in [offset, bytes.len() as u32, 0] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    body.extend_from_slice(bytes);
    body
}

/// Names of features.
pub(super) fn names(features: u64, table: &[(u64, &str)]) -> String {
    let names: Vec<_> = table.iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| *name).collect();
    names.join(", ")
}
