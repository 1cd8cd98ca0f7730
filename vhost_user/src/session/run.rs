//! Rings that run: starting and stopping them, and what happens in between.

use device::virtio::feature;
use device::{DriverLink, Ledger, LiveQueue, Virtio};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Answer, Served, Session, publish};
use crate::PeerError;
use crate::replay::{Replay, used_index};
use crate::wire::F_PROTOCOL_FEATURES;

impl Session<'_> {
    /// Does something while no ring is served, and goes on.
    pub(super) fn stopped(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), PeerError>,
    ) -> Result<Answer, PeerError> {
        for index in 0..self.rings.len() {
            self.stop(index)?;
        }
        work(self)?;
        self.publish();
        self.start_ready()
    }

    /// Does something with the device while no ring is served, and goes on.
    pub(crate) fn quiesced(&mut self, work: impl FnOnce(&dyn Virtio)) -> Result<(), PeerError> {
        let device = &*self.served.device;
        let work = |_: &mut Self| {
            work(device);
            Ok(())
        };
        self.stopped(work).map(|_| ())
    }

    /// Shows the device the present memory.
    pub(super) fn publish(&self) {
        publish(&self.served.ram, &self.memory);
    }

    /// Starts the rings that can be.
    pub(super) fn start_ready(&mut self) -> Result<Answer, PeerError> {
        for index in 0..self.rings.len() {
            if self.rings[index].ready() {
                self.start(index)?;
            }
        }
        Ok(Answer::Done)
    }

    /// Starts a ring, after the device has served what a process that died left under way.
    fn start(&mut self, index: usize) -> Result<(), PeerError> {
        let Served { device, ram, link, .. } = self.served;
        let failed = |what: String| PeerError::Ring { index, what };
        let events = self.features & feature::RING_EVENT_IDX != 0;
        let mut queue = self.rings[index].queue(index, self.sizes[index], events, &self.memory)?;
        let used = used_index(queue.used_ring(), ram).map_err(|e| failed(e.to_string()))?;
        queue.set_next_used(used);
        let kick = self.rings[index].kick.as_ref().map(EventFd::try_clone);
        let kick =
            kick.and_then(Result::ok).ok_or_else(|| failed("no descriptor to be kicked by".to_owned()))?;

        let features = self.features & !F_PROTOCOL_FEATURES;
        if self.active != Some(features) {
            device.activate(features)?;
            self.active = Some(features);
        }
        let mut ledger: Option<Box<dyn Ledger>> = None;
        if let Some(area) = &self.inflight {
            let mut record = area.ring(index, queue.size())?;
            let Some(heads) = record.recover(used) else {
                return self.go(index, queue, kick, Some(Box::new(record)));
            };
            if !heads.is_empty() {
                log::info!("{}: ring {index}: {} requests were under way", self.served.name, heads.len());
                let replay =
                    Replay { device: &**device, memory: &self.memory, link, index, queue: queue.state() };
                replay.run(&heads, Box::new(record))?;
                record = area.ring(index, queue.size())?;
            }
            // Every chain that was ever taken has been given back now.
            let used = used_index(queue.used_ring(), ram).map_err(|e| failed(e.to_string()))?;
            record.recover(used);
            queue.set_next_used(used);
            queue.set_next_avail(used);
            ledger = Some(Box::new(record));
        }
        self.go(index, queue, kick, ledger)
    }

    /// Hands a ring to the device.
    fn go(
        &mut self,
        index: usize,
        queue: Queue,
        kick: EventFd,
        ledger: Option<Box<dyn Ledger>>,
    ) -> Result<(), PeerError> {
        let Served { device, ram, link, .. } = self.served;
        let (ram, number) = (ram.clone(), index as u16);
        let mut live = LiveQueue::new(queue, ram, kick, link.clone(), number);
        live.ledger = ledger;
        device.start_queue(index, live)?;
        self.rings[index].live = true;
        device.use_queue(index, true);
        // An interrupt may have died with the process before. One too many does no harm.
        link.queue_used(number);
        Ok(())
    }

    /// Stops a ring, if it is served, and notes how far it has come.
    pub(super) fn stop(&mut self, index: usize) -> Result<(), PeerError> {
        let ring = &mut self.rings[index];
        if !std::mem::take(&mut ring.live) {
            return Ok(());
        }
        let state = self.served.device.stop_queue(index);
        let state = state
            .ok_or_else(|| PeerError::Ring { index, what: "the device had stopped serving it".to_owned() })?;
        ring.base = state.next_avail;
        Ok(())
    }
}
