//! The board: what devices are plugged into. [`Board::attach`] is the only way in; dropping the board is the way out.
//!
//! It grants what a device's [`Needs`] ask for and remembers in [`Placed`] where everything went.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::DeviceNode;
use arch::x86_64::acpi::PciSegment;
use arch::x86_64::layout::{self, MemoryMap, PlatformArea};
use catalog::VmSpec;
use device::{
    BarKind, Built, Bus, Counters, Device, Events, Grant, Host, Kept, Line, Naming, Needs, Placed, Ram,
    Region, Space, Span, TableSink, Virtio, VirtioKind, Workers,
};
use hypervisor::{Capabilities, Vm};
use pci::{
    CONFIG_PORTS, CONFIG_PORTS_LENGTH, ConfigPorts, Ecam, Plugged, Reservation, Segment, SegmentGrant,
};
use platform::ioapic::{self, Ioapic};
use spec::{Facts, Kind, Refusal};
use virtio_devices::transport::pci::VirtioPci;

use super::glue::{VmDoorbells, VmInterrupts};
use super::tree;

/// A device in its place.
pub(super) struct Attached {
    pub(super) id: String,
    pub(super) device: Arc<dyn Device>,
    pub(super) placed: Placed,
    /// Whether it is a virtio device behind a PCI function.
    pub(super) virtio: bool,
    _function: Option<Plugged>,
}

/// See the module.
pub(super) struct Board {
    attached: Vec<Attached>,
    segments: Vec<Arc<Segment>>,
    windows: Vec<PciSegment>,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    ioapic: Arc<Ioapic>,
    area: PlatformArea,
    ram: Ram,
    workers: Workers,
    events: Arc<dyn Events>,
}

impl Board {
    /// A board with an interrupt controller, one PCI segment and nothing else.
    pub(super) fn new(
        vm: Arc<dyn Vm>,
        capabilities: &Capabilities,
        map: &MemoryMap,
        ram: Ram,
        events: Arc<dyn Events>,
    ) -> Result<Self, Refusal> {
        let (ports, memory) = (Arc::new(Bus::new(Space::Port)), Arc::new(Bus::new(Space::Memory)));
        let routes = (0..u32::from(ioapic::PINS)).map(|pin| vm.ioapic_route(pin));
        let routes: Vec<_> = routes
            .collect::<Result<_, _>>()
            .map_err(|e| Refusal::host("Cannot set up the interrupt controller", e))?;
        let ioapic = Arc::new(Ioapic::new(routes));

        let windows = segment_windows(map)?;
        let mut segments = Vec::with_capacity(windows.len());
        for window in &windows {
            let doorbells = capabilities.doorbells.then(|| -> Arc<dyn pci::Doorbells> {
                // A driver notifies with 16 bits (virtio 1.3 §4.1.5.2) where the hypervisor must know the width.
                let length = if capabilities.doorbell_any_length { 0 } else { 2 };
                Arc::new(VmDoorbells { vm: vm.clone(), length })
            });
            let grant = SegmentGrant {
                low: window.mmio32,
                high: window.mmio64,
                memory: memory.clone(),
                msi: Arc::new(VmInterrupts(vm.clone())),
                doorbells,
            };
            let segment =
                Segment::new(window.number, grant).map_err(|e| bug("Cannot set up a PCI segment", e))?;
            let ecam = layout::ecam(window.number)
                .ok_or_else(|| Refusal::invalid(format!("Invalid PCI segment id: {}", window.number)))?;
            memory
                .claim(ecam.base, ecam.length, Arc::new(Ecam::new(segment.clone())), Region::Window(0))
                .map_err(|e| bug("Cannot set up a PCI segment", e))?;
            segments.push(segment);
        }
        if let Some(first) = segments.first() {
            ports
                .claim(
                    CONFIG_PORTS,
                    CONFIG_PORTS_LENGTH,
                    Arc::new(ConfigPorts::new(first.clone())),
                    Region::Window(0),
                )
                .map_err(|e| bug("Cannot set up PCI configuration ports", e))?;
        }
        let workers = Workers::new(events.clone());
        let area = PlatformArea::new(map);
        let mut board = Board {
            attached: Vec::new(),
            segments,
            windows,
            ports,
            memory,
            ioapic,
            area,
            ram,
            workers,
            events,
        };
        board.claim_ioapic()?;
        Ok(board)
    }

    /// The interrupt controller is a device like any other, but everybody's lines lead to it.
    fn claim_ioapic(&mut self) -> Result<(), Refusal> {
        let device: Arc<dyn Device> = self.ioapic.clone();
        let placed = self.place(&device.needs())?;
        self.show("__ioapic", &device, &placed)?;
        let attached = Attached { id: "__ioapic".into(), device, placed, virtio: false, _function: None };
        self.attached.push(attached);
        Ok(())
    }

    /// Plugs in the devices that every machine has.
    pub(super) fn add_platform(&mut self, ram_size: u64) -> Result<(), Refusal> {
        for (id, device) in platform::standard(ram_size) {
            self.attach(id, device, None)?;
        }
        Ok(())
    }

    /// Builds and plugs in the devices that were asked for; automatic names are written back.
    pub(super) fn add_devices(&mut self, spec: &mut VmSpec, kept: &Kept) -> Result<(), Refusal> {
        let facts: Facts = spec.facts();
        let fixed: Vec<(u16, u8)> = spec
            .devices()
            .iter()
            .filter_map(|d| d.common().and_then(|c| Some((c.pci_segment, c.pci_device_id?))))
            .collect();
        for (segment, slot) in fixed {
            if let Some(segment) = self.segments.get(usize::from(segment)) {
                segment.set_aside([slot]);
            }
        }
        let taken: Vec<String> = spec.devices().iter().filter_map(|d| d.common()?.id.clone()).collect();
        let mut count = 0;
        for plug in spec.devices_mut() {
            let id = match plug.naming() {
                Naming::Single(name) => name.to_owned(),
                Naming::Counted(kind) => match plug.common().and_then(|c| c.id.clone()) {
                    Some(id) => id,
                    None => loop {
                        let id = format!("_{kind}{count}");
                        count += 1;
                        if !taken.contains(&id) {
                            break id;
                        }
                    },
                },
            };
            let (segment, slot) =
                plug.common().map_or((0, None), |common| (common.pci_segment, common.pci_device_id));
            if let (Naming::Counted(_), Some(common)) = (plug.naming(), plug.common_mut()) {
                common.id = Some(id.clone());
            }
            let flag = plug.flag();
            let built = plug
                .build(&Host { id: &id, facts: &facts, kept })
                .map_err(|e| e.within(format!("Cannot create device {id:?} (--{flag})")))?;
            match built {
                Built::Nothing => {}
                Built::Device(device) => self.attach(&id, device, None)?,
                Built::Virtio(device) => self.attach_virtio(&id, device, segment, slot)?,
            }
        }
        Ok(())
    }

    fn attach_virtio(
        &mut self,
        id: &str,
        device: Box<dyn Virtio>,
        segment: u16,
        slot: Option<u8>,
    ) -> Result<(), Refusal> {
        // Firmware that boots from a disk may only reach the lower 4 GiB.
        let bar = if segment == 0 && device.kind() == VirtioKind::Block {
            BarKind::Memory32
        } else {
            BarKind::Memory64 { prefetchable: false }
        };
        let function =
            VirtioPci::new(id, device, bar).map_err(|e| bug(&format!("Cannot plug in device {id:?}"), e))?;
        self.attach(id, Box::new(function), Some((segment, slot)))
    }

    /// Plugs a device in: grants what it needs, wires it, and lets the guest see it. `pci` says where on PCI, for those that go there.
    fn attach(
        &mut self,
        id: &str,
        mut device: Box<dyn Device>,
        pci: Option<(u16, Option<u8>)>,
    ) -> Result<(), Refusal> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Refusal::new(Kind::Host, format!("Cannot plug in device {id:?}")).because(e)
        };
        let needs = device.needs();
        let mut placed = self.place(&needs)?;
        let mut reservation = None;
        if needs.pci.is_some() {
            let (segment, slot) = pci.unwrap_or_default();
            let segment = self
                .segments
                .get(usize::from(segment))
                .ok_or_else(|| Refusal::invalid(format!("Invalid PCI segment id: {segment}")))?;
            let place = Reservation::new(segment, &needs, slot).map_err(|e| failed(e.into()))?;
            placed.pci = Some(place.placed().clone());
            reservation = Some(place);
        }
        let (vectors, doorbells) = match &reservation {
            Some(place) => (place.vectors(), place.doorbells().map_err(|e| failed(e.into()))?),
            None => (Vec::new(), Vec::new()),
        };
        let lines = needs.lines.iter().map(|l| -> Arc<dyn Line> { self.ioapic.line(l.pin) }).collect();
        let grant = Grant {
            ram: self.ram.clone(),
            vectors,
            lines,
            doorbells,
            workers: self.workers.clone(),
            events: self.events.clone(),
        };
        device.wire(grant).map_err(|e| failed(e.into()))?;
        let device: Arc<dyn Device> = device.into();
        self.show(id, &device, &placed)?;
        let function =
            reservation.map(|place| place.plug(device.clone())).transpose().map_err(|e| failed(e.into()))?;
        let virtio = function.is_some();
        self.attached.push(Attached { id: id.to_owned(), device, placed, virtio, _function: function });
        Ok(())
    }

    /// Finds places for windows and lines.
    fn place(&mut self, needs: &Needs) -> Result<Placed, Refusal> {
        let mut placed = Placed::default();
        for window in &needs.windows {
            placed.windows.push(match window.base {
                Some(base) => Span { base, length: window.length },
                None => self
                    .area
                    .allocate(window.length)
                    .ok_or_else(|| Refusal::new(Kind::Bug, "The platform device area is full"))?,
            });
        }
        placed.lines.extend(needs.lines.iter().map(|l| u32::from(l.pin)));
        Ok(placed)
    }

    /// Lets a device answer at its windows.
    fn show(&self, id: &str, device: &Arc<dyn Device>, placed: &Placed) -> Result<(), Refusal> {
        for ((n, need), span) in (0..).zip(&device.needs().windows).zip(&placed.windows) {
            let bus = match need.space {
                Space::Port => &self.ports,
                Space::Memory => &self.memory,
            };
            bus.claim(span.base, span.length, device.clone() as _, Region::Window(n)).map_err(|e| {
                Refusal::new(Kind::Conflict, format!("Cannot plug in device {id:?}")).because(e)
            })?;
        }
        Ok(())
    }

    pub(super) fn ports(&self) -> Arc<Bus> {
        self.ports.clone()
    }

    pub(super) fn memory(&self) -> Arc<Bus> {
        self.memory.clone()
    }

    pub(super) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.clone()
    }

    pub(super) fn ioapic(&self) -> Arc<Ioapic> {
        self.ioapic.clone()
    }

    pub(super) fn pci_segments(&self) -> Vec<PciSegment> {
        self.windows.clone()
    }

    /// Lets every device describe itself.
    pub(super) fn describe(&self, sink: &mut dyn TableSink) {
        for attached in &self.attached {
            attached.device.describe(&attached.placed, sink);
        }
    }

    pub(super) fn start(&self) -> Result<(), Refusal> {
        for attached in &self.attached {
            attached
                .device
                .start()
                .map_err(|e| Refusal::host(format!("Cannot start device {:?}", attached.id), e))?;
        }
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<(), Refusal> {
        for attached in &self.attached {
            attached
                .device
                .stop()
                .map_err(|e| Refusal::host(format!("Cannot stop device {:?}", attached.id), e))?;
        }
        Ok(())
    }

    pub(super) fn press_power_button(&self) -> Result<(), Refusal> {
        let button = self.attached.iter().find_map(|a| a.device.power_button());
        button.ok_or_else(|| Refusal::new(Kind::Bug, "The machine has no power button"))?.press();
        Ok(())
    }

    pub(super) fn terminal_resized(&self) {
        self.attached.iter().filter_map(|a| a.device.terminal()).for_each(device::grant::Terminal::resized);
    }

    pub(super) fn counters(&self) -> BTreeMap<String, Counters> {
        self.attached.iter().filter_map(|a| Some((a.id.clone(), a.device.counters()?))).collect()
    }

    pub(super) fn tree(&self) -> BTreeMap<String, DeviceNode> {
        tree::build(&self.attached)
    }
}

/// The windows of each segment; today there is one.
fn segment_windows(map: &MemoryMap) -> Result<Vec<PciSegment>, Refusal> {
    let windows = |e| Refusal::invalid("Cannot divide the PCI address windows").because(e);
    let weights = [1];
    let low = MemoryMap::mmio32_windows(&weights).map_err(windows)?;
    let high = map.mmio64_windows(&weights).map_err(windows)?;
    let segments = (0..).zip(low).zip(high);
    Ok(segments.map(|((number, mmio32), mmio64)| PciSegment { number, mmio32, mmio64 }).collect())
}

fn bug(message: &str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Refusal {
    Refusal::new(Kind::Bug, message).because(e)
}
