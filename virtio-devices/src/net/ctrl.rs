//! The control queue: how many pairs are used, which offloads, announcements (virtio 1.3 §5.1.6.5).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use device::limit::LogLimit;
use device::ram::RamMap;
use device::virtio::Chain;
use device::{LiveQueue, Task, Watch, guest_warn};
use log::{debug, warn};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::Shared;
use super::wire::{ACK_ERR, ACK_OK, Command, MAX_COMMAND, STATUS_ANNOUNCE, feature};
use crate::buffers::{MAX_PIECES, drain_event, kick_again, next_chain};

/// Most commands carried out before other events of the thread are looked at.
const BUDGET: usize = 64;

static BAD_COMMAND: LogLimit = LogLimit::new();

/// What commands are about.
pub(super) trait Commanded: Send + Sync {
    /// The device's name.
    fn id(&self) -> &str;

    /// Carries a command out, and tells whether that could be done.
    fn carry_out(&self, command: Command) -> bool;
}

/// Serves the control queue.
pub(super) struct Ctrl {
    pub(super) queue: LiveQueue,
    shared: Arc<dyn Commanded>,
}

/// Complains about a command that makes no sense.
pub(super) fn refuse(id: &str, command: Command) -> bool {
    guest_warn!(BAD_COMMAND, "{id}: refused {command:?}");
    false
}

impl Ctrl {
    pub(super) fn new(queue: LiveQueue, shared: Arc<dyn Commanded>) -> Self {
        Ctrl { queue, shared }
    }

    fn serve(&mut self) {
        let Ctrl { queue, shared } = self;
        let map = queue.ram.map();
        let mut used = 0;
        queue.quiet(&*map);
        while used < BUDGET {
            let Some(chain) = next_chain(queue, &map) else { break };
            let head = chain.head_index();
            let written = answer(&**shared, &map, chain);
            queue.push(&map, head, written);
            used += 1;
        }
        if used > 0 {
            queue.signal(&map);
        }
        if used == BUDGET {
            kick_again(&queue.kick);
        }
    }
}

/// Carries out the command in `chain`, and returns the number of bytes written to it.
fn answer(shared: &dyn Commanded, map: &RamMap, chain: Chain<'_>) -> u32 {
    let mut command = [0u8; MAX_COMMAND];
    let mut length = 0;
    let mut ack_at: Option<GuestAddress> = None;
    for descriptor in chain.take(MAX_PIECES) {
        let size = descriptor.len() as usize;
        if descriptor.is_write_only() {
            // The answer is the first byte that the device may write.
            ack_at = ack_at.or((size > 0).then_some(descriptor.addr()));
            continue;
        }
        let size = size.min(command.len() - length);
        if map.read_slice(&mut command[length..length + size], descriptor.addr()).is_err() {
            guest_warn!(BAD_COMMAND, "{}: a command outside of RAM", shared.id());
            length = 0;
            break;
        }
        length += size;
    }
    let Some(ack_at) = ack_at else {
        guest_warn!(BAD_COMMAND, "{}: a command without room for the answer", shared.id());
        return 0;
    };
    let ack = match Command::parse(&command[..length]) {
        Some(command) if shared.carry_out(command) => ACK_OK,
        Some(_) => ACK_ERR,
        None => {
            debug!("{}: unknown command {:?}", shared.id(), &command[..length.min(2)]);
            ACK_ERR
        }
    };
    match map.write_obj(ack, ack_at) {
        Ok(()) => 1,
        Err(_) => {
            guest_warn!(BAD_COMMAND, "{}: the answer to a command is outside of RAM", shared.id());
            0
        }
    }
}

impl Commanded for Shared {
    fn id(&self) -> &str {
        &self.id
    }

    fn carry_out(&self, command: Command) -> bool {
        let features = self.features.load(Ordering::Acquire);
        let done = match command {
            Command::AnnounceAck if features & feature::GUEST_ANNOUNCE != 0 => {
                self.status.fetch_and(!STATUS_ANNOUNCE, Ordering::AcqRel);
                return true;
            }
            Command::SetPairs(count)
                if features & feature::MQ != 0
                    && (1..=self.pairs.list.len()).contains(&usize::from(count)) =>
            {
                self.pairs.use_first(usize::from(count))
            }
            Command::SetOffloads(wanted)
                if features & feature::CTRL_GUEST_OFFLOADS != 0
                    && wanted & !(features & feature::GUEST_OFFLOADS) == 0 =>
            {
                self.set_offloads(wanted)
            }
            _ => return refuse(&self.id, command),
        };
        done.inspect_err(|e| warn!("{}: {command:?}: {e}", self.id)).is_ok()
    }
}

impl Task for Ctrl {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), 0, EventSet::IN)?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) {
        drain_event(&self.queue.kick);
        self.serve();
    }
}
