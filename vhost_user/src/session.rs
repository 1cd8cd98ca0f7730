//! One front end: its requests, one after the other, and what they make of the device.
//!
//! A ring runs when it has a descriptor to be kicked by and is enabled. What cannot be changed under a running ring (memory,
//! features, addresses) stops it for the moment, so that the device never works with what is no longer so.

mod run;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use device::{DriverLink, Ram, Virtio};
use vmm_sys_util::eventfd::EventFd;

use crate::PeerError;
use crate::channel::Channel;
use crate::inflight::Area;
use crate::link::{Link, eventfd};
use crate::memory::{MAX_REGIONS, Memory, Region};
use crate::ring::{Addresses, Ring};
use crate::wire::{
    F_PROTOCOL_FEATURES, InflightBody, Message, NO_DESCRIPTOR, RegionBody, belongs_to, expects_answer,
    protocol, request, takes_descriptors,
};

/// What is served, whoever the front end is.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) device: Box<dyn Virtio>,
    pub(crate) ram: Ram,
    pub(crate) link: Arc<Link>,
}

/// What a request is answered with.
enum Answer {
    /// Nothing but whether it succeeded, if the front end wants to know.
    Done,
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes and a descriptor.
    Descriptor(Vec<u8>, OwnedFd),
}

impl Answer {
    fn number(value: u64) -> Result<Answer, PeerError> {
        Ok(Answer::Bytes(value.to_ne_bytes().to_vec()))
    }
}

/// See the module.
pub(crate) struct Session<'a> {
    served: &'a Served,
    sizes: Vec<u16>,
    /// Rings when memory goes that is mapped.
    bell: &'a EventFd,
    features: u64,
    protocol: u64,
    memory: Memory,
    rings: Vec<Ring>,
    inflight: Option<Arc<Area>>,
    /// Features that the device was activated with.
    active: Option<u64>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(served: &'a Served, bell: &'a EventFd) -> Self {
        let sizes = served.device.queue_sizes();
        Session {
            served,
            bell,
            features: 0,
            protocol: 0,
            memory: Memory::default(),
            rings: sizes.iter().map(|_| Ring::default()).collect(),
            sizes,
            inflight: None,
            active: None,
        }
    }

    /// Carries a message out and answers it.
    ///
    /// # Errors
    /// What ends the connection. A request that failed does not, if the front end asked to be told of that.
    pub(crate) fn handle(&mut self, message: Message, channel: &Channel) -> Result<(), PeerError> {
        let (number, need_reply) = (message.request, message.need_reply);
        let acknowledge = |session: &Self| need_reply && session.protocol & protocol::REPLY_ACK != 0;
        match self.carry_out(message) {
            Ok(Answer::Bytes(bytes)) => channel.reply(number, &bytes, None),
            Ok(Answer::Descriptor(bytes, fd)) => channel.reply(number, &bytes, Some(fd.as_raw_fd())),
            Ok(Answer::Done) if acknowledge(self) => channel.reply(number, &0u64.to_ne_bytes(), None),
            Ok(Answer::Done) => Ok(()),
            Err(error) if acknowledge(self) && !expects_answer(number) => {
                device::guest_warn!(crate::server::LIMIT, "{}: {error}", self.served.name);
                channel.reply(number, &1u64.to_ne_bytes(), None)
            }
            Err(error) => Err(error),
        }
    }

    fn offered(&self) -> u64 {
        self.served.device.features() | F_PROTOCOL_FEATURES
    }

    fn offered_protocol(&self) -> u64 {
        let device = &self.served.device;
        let mut offered = protocol::OFFERED;
        for (bit, there) in [
            (protocol::CONFIG, device.config_length() > 0),
            (protocol::INFLIGHT_SHMFD, device.finishes_chains()),
        ] {
            offered |= if there { bit } else { 0 };
        }
        offered
    }

    fn carry_out(&mut self, mut message: Message) -> Result<Answer, PeerError> {
        let number = message.request;
        if !message.descriptors.is_empty() && !takes_descriptors(number) {
            return Err(PeerError::Descriptors { request: number, count: message.descriptors.len() });
        }
        if let Some(needed) = belongs_to(number)
            && self.protocol & needed == 0
        {
            return Err(PeerError::NotOffered { request: number });
        }
        match number {
            request::GET_FEATURES => Answer::number(self.offered()),
            request::SET_FEATURES => self.set_features(&message),
            request::GET_PROTOCOL_FEATURES => Answer::number(self.offered_protocol()),
            request::SET_PROTOCOL_FEATURES => self.set_protocol_features(&message),
            request::SET_OWNER => Ok(Answer::Done),
            request::RESET_OWNER | request::RESET_DEVICE => self.reset(),
            request::GET_QUEUE_NUM => Answer::number(self.sizes.len() as u64),
            request::GET_MAX_MEM_SLOTS => Answer::number(MAX_REGIONS as u64),
            request::SET_MEM_TABLE => self.set_memory(message),
            request::ADD_MEM_REG => self.add_memory(message),
            request::REM_MEM_REG => self.remove_memory(&message),
            request::SET_VRING_NUM => self.set_size(&message),
            request::SET_VRING_BASE => self.set_base(&message),
            request::SET_VRING_ADDR => self.set_addresses(&message),
            request::GET_VRING_BASE => self.stop_ring(&message),
            request::SET_VRING_KICK => self.set_kick(message),
            request::SET_VRING_CALL => {
                let (index, bell) = self.ring_descriptor(&mut message)?;
                self.served.link.set_call(index, bell);
                // What was rung before may have been lost on the way from one descriptor to the other, and a driver that was not told
                // is not told again. One too many does no harm.
                if self.rings[index].live {
                    self.served.link.queue_used(index as u16);
                }
                Ok(Answer::Done)
            }
            request::SET_VRING_ERR => {
                let (index, bell) = self.ring_descriptor(&mut message)?;
                self.served.link.set_error(index, bell);
                Ok(Answer::Done)
            }
            request::SET_VRING_ENABLE => self.enable(&message),
            request::SET_BACKEND_REQ_FD => self.set_channel(message),
            request::GET_CONFIG => self.get_config(&message),
            request::SET_CONFIG => self.set_config(&message),
            request::GET_INFLIGHT_FD => {
                let body = InflightBody::read(message.fields())?;
                let (body, file) = Area::create(body.queues, body.queue_size)?;
                Ok(Answer::Descriptor(body.bytes(message.body.len()), file))
            }
            request::SET_INFLIGHT_FD => self.set_inflight(message),
            _ => Err(PeerError::NotOffered { request: number }),
        }
    }

    fn set_features(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let features = number(message)?;
        let offered = self.offered();
        if features & !offered != 0 {
            return Err(PeerError::Features { features, offered });
        }
        if features == self.features {
            return Ok(Answer::Done);
        }
        self.stopped(|session| {
            session.features = features;
            // Front ends that know nothing of protocol features know nothing of enabling.
            if features & F_PROTOCOL_FEATURES == 0 {
                session.rings.iter_mut().for_each(|ring| ring.enabled = true);
            }
            Ok(())
        })
    }

    fn set_protocol_features(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let features = number(message)?;
        let offered = self.offered_protocol();
        if features & !offered != 0 {
            return Err(PeerError::Features { features, offered });
        }
        self.protocol = features;
        Ok(Answer::Done)
    }

    fn set_memory(&mut self, message: Message) -> Result<Answer, PeerError> {
        let mut fields = message.fields();
        let count = fields.u32()? as usize;
        fields.u32()?;
        if count == 0 || count != message.descriptors.len() {
            return Err(PeerError::Descriptors {
                request: message.request,
                count: message.descriptors.len(),
            });
        }
        let bodies = (0..count).map(|_| RegionBody::read(&mut fields)).collect::<Result<Vec<_>, _>>()?;
        fields.end()?;
        let mut memory = Memory::default();
        for (body, file) in bodies.into_iter().zip(message.descriptors) {
            memory.add(Region::map(body, file, self.bell)?)?;
        }
        self.stopped(|session| {
            session.memory = memory;
            Ok(())
        })
    }

    fn add_memory(&mut self, mut message: Message) -> Result<Answer, PeerError> {
        let body = single_region(&message)?;
        let file = message.descriptor()?;
        self.memory.add(Region::map(body, file, self.bell)?)?;
        self.publish();
        Ok(Answer::Done)
    }

    fn remove_memory(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let body = single_region(message)?;
        let found = self.memory.find(body).ok_or(PeerError::Memory {
            guest: body.guest,
            size: body.size,
            what: "there is no such region to remove".to_owned(),
        })?;
        self.stopped(|session| {
            drop(session.memory.remove(found));
            Ok(())
        })
    }

    fn index(&self, index: u64) -> Result<usize, PeerError> {
        let known = usize::try_from(index).ok().filter(|index| *index < self.rings.len());
        known.ok_or(PeerError::NoRing(index))
    }

    /// A ring's number and a value.
    fn ring_value(&self, message: &Message) -> Result<(usize, u32), PeerError> {
        let mut fields = message.fields();
        let (index, value) = (fields.u32()?, fields.u32()?);
        fields.end()?;
        Ok((self.index(u64::from(index))?, value))
    }

    /// A ring that is not served at the moment, and a value of 16 bits.
    fn idle_ring(&mut self, message: &Message) -> Result<(&mut Ring, usize, u16), PeerError> {
        let (index, value) = self.ring_value(message)?;
        let failed = |what: String| PeerError::Ring { index, what };
        let value = u16::try_from(value).map_err(|_| failed(format!("a value of {value}")))?;
        match &mut self.rings[index] {
            ring if ring.live => Err(failed("it is served at the moment".to_owned())),
            ring => Ok((ring, index, value)),
        }
    }

    fn set_size(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let (index, _) = self.ring_value(message)?;
        let most = self.sizes[index];
        let (ring, index, size) = self.idle_ring(message)?;
        if !size.is_power_of_two() || size > most {
            let what = format!("a size of {size}, and not a power of two up to {most}");
            return Err(PeerError::Ring { index, what });
        }
        ring.size = size;
        Ok(Answer::Done)
    }

    fn set_base(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let (ring, _, base) = self.idle_ring(message)?;
        ring.base = base;
        Ok(Answer::Done)
    }

    fn set_addresses(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let mut fields = message.fields();
        let (index, _flags) = (fields.u32()?, fields.u32()?);
        let (descriptors, used, available, _log) =
            (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        fields.end()?;
        let index = self.index(u64::from(index))?;
        let addresses = Some(Addresses { descriptors, used, available });
        if self.rings[index].addresses == addresses {
            return Ok(Answer::Done);
        }
        self.stopped(|session| {
            session.rings[index].addresses = addresses;
            Ok(())
        })
    }

    fn ring_descriptor(&self, message: &mut Message) -> Result<(usize, Option<EventFd>), PeerError> {
        let value = number(message)?;
        let index = self.index(value & 0xff)?;
        let none = value & NO_DESCRIPTOR != 0;
        if none && message.descriptors.is_empty() {
            return Ok((index, None));
        }
        let fd = message.descriptor()?;
        Ok((index, Some(fd).filter(|_| !none).map(eventfd)))
    }

    fn set_kick(&mut self, mut message: Message) -> Result<Answer, PeerError> {
        let (index, kick) = self.ring_descriptor(&mut message)?;
        if kick.is_none() {
            return Err(PeerError::Ring {
                index,
                what: "polling instead of kicks is not offered".to_owned(),
            });
        }
        self.stop(index)?;
        self.rings[index].kick = kick;
        self.start_ready()
    }

    fn enable(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let (index, value) = self.ring_value(message)?;
        self.rings[index].enabled = value != 0;
        if value == 0 {
            self.stop(index)?;
            self.served.device.use_queue(index, false);
        }
        self.start_ready()
    }

    /// Stops a ring for good, until it is set up again.
    fn stop_ring(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let (index, _) = self.ring_value(message)?;
        let served = self.rings[index].live;
        self.stop(index)?;
        self.served.device.use_queue(index, false);
        let ring = &mut self.rings[index];
        ring.kick = None;
        if let Some(area) = self.inflight.as_ref().filter(|_| served) {
            area.ring(index, ring.size)?.settle();
        }
        let mut bytes = (index as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&u32::from(ring.base).to_ne_bytes());
        Ok(Answer::Bytes(bytes))
    }

    fn reset(&mut self) -> Result<Answer, PeerError> {
        for index in 0..self.rings.len() {
            self.stop(index)?;
            let ring = &mut self.rings[index];
            (ring.kick, ring.base) = (None, 0);
            ring.enabled = self.features & F_PROTOCOL_FEATURES == 0;
        }
        if self.active.take().is_some() {
            self.served.device.reset();
        }
        Ok(Answer::Done)
    }

    fn set_channel(&mut self, mut message: Message) -> Result<Answer, PeerError> {
        let stream = UnixStream::from(message.descriptor()?);
        // Whatever it is, nobody waits for it; what is no socket fails when it is written to.
        stream.set_nonblocking(true).map_err(PeerError::Socket)?;
        self.served.link.set_channel(Some(stream));
        Ok(Answer::Done)
    }

    fn get_config(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let mut fields = message.fields();
        let (offset, size, _flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let room = fields.rest().len();
        if room != size as usize {
            return Err(PeerError::Size { request: message.request, size: message.body.len() });
        }
        let mut bytes = message.body.clone();
        let answer = bytes.split_at_mut(message.body.len() - room).1;
        answer.fill(0);
        // Front ends ask for what the device might have; behind what it has there are zeros.
        let length = self.served.device.config_length();
        let there = length.saturating_sub(offset as usize).min(room);
        if there > 0 {
            self.served.device.read_config(offset as usize, &mut answer[..there]);
        }
        Ok(Answer::Bytes(bytes))
    }

    fn set_config(&mut self, message: &Message) -> Result<Answer, PeerError> {
        let mut fields = message.fields();
        let (offset, size, _flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let data = fields.rest();
        if data.len() != size as usize {
            return Err(PeerError::Size { request: message.request, size: message.body.len() });
        }
        let end = (offset as usize).checked_add(data.len());
        if end.is_none_or(|end| end > self.served.device.config_length()) {
            return Err(PeerError::Config { offset, size });
        }
        self.served.device.write_config(offset as usize, data);
        Ok(Answer::Done)
    }

    fn set_inflight(&mut self, mut message: Message) -> Result<Answer, PeerError> {
        let body = InflightBody::read(message.fields())?;
        let area = Area::open(body, message.descriptor()?, self.bell)?;
        self.stopped(|session| {
            session.inflight = Some(area);
            Ok(())
        })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.stop(index) {
                log::error!("{}: {error}", self.served.name);
            }
        }
        if self.active.is_some() {
            self.served.device.reset();
        }
        self.served.link.clear();
        publish(&self.served.ram, &Memory::default());
    }
}

fn publish(ram: &Ram, memory: &Memory) {
    // Nobody panics with the lock held.
    let lock = ram.atomic().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    lock.replace(memory.to_map());
}

/// The only field of a message.
fn number(message: &Message) -> Result<u64, PeerError> {
    let mut fields = message.fields();
    let value = fields.u64()?;
    fields.end()?;
    Ok(value)
}

/// The only region of a message.
fn single_region(message: &Message) -> Result<RegionBody, PeerError> {
    let mut fields = message.fields();
    fields.u64()?;
    let body = RegionBody::read(&mut fields)?;
    fields.end()?;
    Ok(body)
}
