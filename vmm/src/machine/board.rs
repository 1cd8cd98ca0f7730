//! The board: what devices are plugged into. [`Board::attach`] is the only way in, at boot and later; [`Board::detach`] is the way
//! out.
//!
//! It grants what a device's [`Needs`] ask for and remembers in [`Placed`] where everything went.

mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::DeviceNode;
use arch::x86_64::acpi::PciSegment;
use arch::x86_64::layout::{self, MemoryMap, PlatformArea};
use catalog::{Plug, VmSpec};
use device::grant::Ring;
use device::{
    BarKind, Built, Bus, Counters, Device, Events, Grant, Host, Kept, Line, Naming, Needs, Placed, Ram,
    Region, Space, Span, TableSink, VirtioKind, Workers,
};
use pci::{
    CONFIG_PORTS, CONFIG_PORTS_LENGTH, ConfigPorts, Ecam, PciError, Plugged, Reservation, Segment,
    SegmentGrant,
};
use platform::ioapic::Ioapic;
use spec::{Facts, Kind, Refusal};
use virtio_devices::transport::pci::{VirtioPci, bar_kind};

use crate::confined;

use super::apertures::Apertures;
use super::glue::{VmDoorbells, VmInterrupts};
use super::names::Names;
use super::saved::{SavedBoard, SavedDevice};
use super::tree;
use super::{Base, Site};
use state::{load, missing};

/// A device in its place. Dropping it takes the device away from the guest, then the device.
pub(super) struct Attached {
    #[allow(dead_code, reason = "held so that the guest sees it")]
    function: Option<Plugged>,
    #[allow(dead_code, reason = "held so that the device answers there")]
    windows: Vec<Window>,
    pub(super) id: String,
    /// The flag that describes it, unless every machine has it.
    pub(super) flag: Option<&'static str>,
    pub(super) device: Arc<dyn Device>,
    pub(super) placed: Placed,
    /// Whether it is a virtio device behind a PCI function.
    pub(super) virtio: bool,
    /// Whether it may be taken out while the machine runs.
    pub(super) removable: bool,
    /// The guest was asked to let go of it.
    pub(super) leaving: bool,
}

/// A window at which a device answers until it is dropped.
struct Window {
    bus: Arc<Bus>,
    base: u64,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.bus.release(self.base);
    }
}

/// How a device is to be plugged in.
pub(super) struct Plan<'a> {
    /// Its name.
    pub(super) id: &'a str,
    /// The flag that describes it, unless every machine has it.
    pub(super) flag: Option<&'static str>,
    /// The PCI segment, for those that go there.
    pub(super) segment: u16,
    /// The slot that it must have.
    pub(super) slot: Option<u8>,
    /// The slot that it had before and gets again if nobody else has it.
    pub(super) before: Option<u8>,
    /// Whether the guest finds it when it starts.
    pub(super) at_boot: bool,
    /// Whether it may be taken out while the machine runs.
    pub(super) removable: bool,
    /// Where it was and how, in a machine that was saved; it must be there again.
    pub(super) saved: Option<SavedDevice>,
}

impl<'a> Plan<'a> {
    /// A device that is there from the beginning and stays.
    pub(super) fn boot(id: &'a str) -> Self {
        Plan {
            id,
            flag: None,
            segment: 0,
            slot: None,
            before: None,
            at_boot: true,
            removable: false,
            saved: None,
        }
    }

    /// The kind of BAR of a virtio device: as it was saved, or as the transport has it.
    fn bar_kind(&self, device: VirtioKind) -> BarKind {
        let saved = self.saved.as_ref().and_then(|saved| saved.placed.pci.as_ref());
        let saved = saved.and_then(|pci| pci.bars.first()).map(|(_, kind, _)| *kind);
        saved.unwrap_or_else(|| bar_kind(device, self.segment, self.at_boot))
    }
}

/// See the module.
pub(super) struct Board {
    attached: Vec<Attached>,
    segments: Vec<Arc<Segment>>,
    windows: Vec<PciSegment>,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    ioapic: Arc<Ioapic>,
    config_ports: Arc<ConfigPorts>,
    area: PlatformArea,
    apertures: Arc<Apertures>,
    ram: Ram,
    workers: Workers,
    events: Arc<dyn Events>,
    /// While a saved machine is built: its devices that have not been plugged in yet.
    saved: Option<SavedBoard>,
}

impl Board {
    /// A board with an interrupt controller, PCI segments with these shares of the windows (below 4 GiB and above), and nothing
    /// else.
    pub(super) fn new(
        site: &Site<'_>,
        base: &Base,
        weights: &(Vec<u32>, Vec<u32>),
        ram: Ram,
        saved: Option<SavedBoard>,
    ) -> Result<Self, Refusal> {
        let (vm, map, capabilities) = (base.vm.clone(), &base.map, site.hypervisor.capabilities());
        let events = site.events.clone();
        let (ports, memory) = (Arc::new(Bus::new(Space::Port)), Arc::new(Bus::new(Space::Memory)));
        let routes = vm.clone();
        let ioapic = Ioapic::new(Box::new(move |pin| Ok(routes.ioapic_route(pin.into())?)));
        let ioapic = Arc::new(ioapic);

        let windows = segment_windows(map, weights)?;
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
            if saved.is_some() {
                segment.gather();
            }
            let ecam = layout::ecam(window.number)
                .ok_or_else(|| Refusal::invalid(format!("Invalid PCI segment id: {}", window.number)))?;
            memory
                .claim(ecam.base, ecam.length, Arc::new(Ecam::new(segment.clone())), Region::Window(0))
                .map_err(|e| bug("Cannot set up a PCI segment", e))?;
            segments.push(segment);
        }
        let first =
            segments.first().ok_or_else(|| Refusal::new(Kind::Bug, "The machine has no PCI segment"))?;
        let config_ports = Arc::new(ConfigPorts::new(first.clone()));
        ports
            .claim(CONFIG_PORTS, CONFIG_PORTS_LENGTH, config_ports.clone(), Region::Window(0))
            .map_err(|e| bug("Cannot set up PCI configuration ports", e))?;
        let workers = Workers::with(events.clone(), site.threads.clone(), confined::quiet());
        let area = PlatformArea::new(map);
        let apertures = Apertures::new(vm, capabilities.ram_slots);
        let mut board = Board {
            attached: Vec::new(),
            segments,
            windows,
            ports,
            memory,
            ioapic,
            config_ports,
            area,
            apertures,
            ram,
            workers,
            events,
            saved,
        };
        board.claim_ioapic()?;
        Ok(board)
    }

    /// The interrupt controller is a device like any other, but everybody's lines lead to it.
    fn claim_ioapic(&mut self) -> Result<(), Refusal> {
        let id = "__ioapic";
        let device: Arc<dyn Device> = self.ioapic.clone();
        let placed = self.place(&device.needs())?;
        if let Some(saved) = self.saved_device(id)? {
            load(id, &*device, saved, &placed)?;
        }
        let windows = self.show(id, &device, &placed)?;
        self.attached.push(Attached {
            function: None,
            windows,
            id: id.into(),
            flag: None,
            device,
            placed,
            virtio: false,
            removable: false,
            leaving: false,
        });
        Ok(())
    }

    /// Plugs in the devices that every machine has.
    pub(super) fn add_platform(&mut self, ram_size: u64) -> Result<(), Refusal> {
        let segments = u16::try_from(self.segments.len()).unwrap_or(u16::MAX);
        let frame = platform::Frame { memory: ram_size, segments, generation: layout::VM_GENERATION };
        for (id, device) in platform::standard(frame) {
            self.attach(Plan::boot(id), Built::Device(device))?;
        }
        Ok(())
    }

    /// Builds and plugs in the devices that were asked for; automatic names are written back.
    pub(super) fn add_devices(
        &mut self,
        spec: &mut VmSpec,
        kept: &Kept,
        names: &mut Names,
    ) -> Result<(), Refusal> {
        let facts: Facts = spec.facts();
        for common in spec.devices().iter().filter_map(|d| d.common()) {
            let fixed = common.pci_device_id.map(|slot| (common.pci_segment, slot));
            let before = || common.id.as_deref().and_then(|id| names.place(id));
            if let Some((segment, slot)) = fixed.or_else(before)
                && let Some(segment) = self.segments.get(usize::from(segment))
            {
                segment.set_aside([slot]);
            }
        }
        let taken: Vec<String> = spec.devices().iter().filter_map(|d| d.common()?.id.clone()).collect();
        let taken = |name: &str| taken.iter().any(|id| id == name);
        for plug in spec.devices_mut() {
            self.add(plug, &facts, kept, names, &taken, true)?;
        }
        self.segments.iter().for_each(|segment| segment.end_aside());
        Ok(())
    }

    /// Builds and plugs in one device; its automatic name is written back and told.
    pub(super) fn add(
        &mut self,
        plug: &mut dyn Plug,
        facts: &Facts,
        kept: &Kept,
        names: &mut Names,
        taken: &dyn Fn(&str) -> bool,
        at_boot: bool,
    ) -> Result<String, Refusal> {
        let id = match plug.naming() {
            Naming::Single(name) => name.to_owned(),
            Naming::Counted(kind) => match plug.common().and_then(|c| c.id.clone()) {
                Some(id) => id,
                None => names.make(kind, taken),
            },
        };
        if let (Naming::Counted(_), Some(common)) = (plug.naming(), plug.common_mut()) {
            common.id = Some(id.clone());
        }
        let (segment, fixed) =
            plug.common().map_or((0, None), |common| (common.pci_segment, common.pci_device_id));
        let before = names.place(&id).filter(|(of, _)| *of == segment).map(|(_, slot)| slot);
        let flag = plug.flag();
        let built = plug
            .build(&Host { id: &id, facts, kept })
            .map_err(|e| e.within(format!("Cannot create device {id:?} (--{flag})")))?;
        let plan = Plan {
            flag: Some(flag),
            segment,
            slot: fixed,
            before,
            at_boot,
            removable: plug.hot(),
            ..Plan::boot(&id)
        };
        self.attach(plan, built)?;
        if let Some(pci) = self.find(&id).and_then(|a| a.placed.pci.as_ref()) {
            names.note(&id, (pci.segment, pci.slot));
        }
        Ok(id)
    }

    /// Plugs a device in: grants what it needs, wires it, and lets the guest see it. On an error nothing of it is left.
    pub(super) fn attach(&mut self, mut plan: Plan<'_>, built: Built) -> Result<(), Refusal> {
        let id = plan.id;
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Refusal::new(Kind::Host, format!("Cannot plug in device {id:?}")).because(e)
        };
        if self.find(id).is_some() {
            return Err(Refusal::new(Kind::Conflict, format!("Identifier {id} is not unique")));
        }
        if !matches!(built, Built::Nothing) {
            plan.saved = self.saved_device(id)?;
        }
        let (mut device, virtio): (Box<dyn Device>, bool) = match built {
            Built::Nothing => return Ok(()),
            Built::Device(device) => (device, false),
            Built::Virtio(device) => {
                let bar = plan.bar_kind(device.kind());
                let function = VirtioPci::new(id, device, bar)
                    .map_err(|e| bug(&format!("Cannot plug in device {id:?}"), e))?;
                (Box::new(function), true)
            }
        };
        let needs = device.needs();
        let mut placed = self.place(&needs)?;
        let mut reservation = None;
        if needs.pci.is_some() {
            let place = self.reserve(&mut plan, &needs)?;
            placed.pci = Some(place.placed().clone());
            reservation = Some(place);
        }
        let (vectors, doorbells) = match &reservation {
            Some(place) => (place.vectors(), place.doorbells().map_err(|e| failed(e.into()))?),
            None => (Vec::new(), Vec::new()),
        };
        let lines: Result<Vec<Arc<dyn Line>>, _> =
            needs.lines.iter().map(|l| self.ioapic.line(l.pin)).collect();
        let lines = lines.map_err(failed)?;
        let apertures = placed.pci.iter().flat_map(|pci| &pci.apertures);
        let apertures = apertures.map(|span| self.apertures.open(*span)).collect();
        let grant = Grant {
            ram: self.ram.clone(),
            vectors,
            lines,
            doorbells,
            apertures,
            workers: self.workers.of(id, needs.calls),
            events: self.events.clone(),
        };
        device.wire(grant).map_err(|e| failed(e.into()))?;
        if let Some(saved) = plan.saved {
            load(id, &*device, saved, &placed)?;
        }
        let device: Arc<dyn Device> = device.into();
        let windows = self.show(id, &device, &placed)?;
        let function = reservation
            .map(|place| place.plug(device.clone()))
            .transpose()
            .map_err(|e| not_plugged(id, e))?;
        if let Some(function) = function.as_ref().filter(|_| plan.removable) {
            function.removable();
        }
        let removable = plan.removable && function.is_some();
        self.attached.push(Attached {
            function,
            windows,
            id: id.to_owned(),
            flag: plan.flag,
            device,
            placed,
            virtio,
            removable,
            leaving: false,
        });
        Ok(())
    }

    /// Takes a device out: it stops, the guest sees it no more, and all it held is given back. Tells where it was.
    pub(super) fn detach(&mut self, id: &str) -> Option<Placed> {
        let at = self.attached.iter().position(|a| a.id == id)?;
        let attached = self.attached.remove(at);
        if let Err(e) = attached.device.stop() {
            log::error!("cannot stop device {id:?}: {e}");
        }
        Some(attached.placed.clone())
    }

    /// Room on PCI for a device: where it was saved, where it is told to be, where it was before, or anywhere.
    fn reserve(&self, plan: &mut Plan<'_>, needs: &Needs) -> Result<Reservation, Refusal> {
        let segment = self
            .segments
            .get(usize::from(plan.segment))
            .ok_or_else(|| Refusal::invalid(format!("Invalid PCI segment id: {}", plan.segment)))?;
        let reservation = match &mut plan.saved {
            Some(SavedDevice { placed: Placed { pci: Some(placed), .. }, function, .. }) => {
                let state =
                    function.take().ok_or_else(|| missing(&format!("the PCI function of {:?}", plan.id)))?;
                Reservation::load(segment, needs, placed, state)
            }
            Some(_) => Err(PciError::NoFunction),
            None => match (plan.slot, plan.before) {
                (None, Some(before)) => Reservation::new(segment, needs, Some(before))
                    // Somebody else was given it meanwhile.
                    .or_else(|_| Reservation::new(segment, needs, None)),
                (slot, _) => Reservation::new(segment, needs, slot),
            },
        };
        reservation.map_err(|e| not_plugged(plan.id, e))
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

    /// Lets a device answer at its windows, as long as what is returned is kept.
    fn show(&self, id: &str, device: &Arc<dyn Device>, placed: &Placed) -> Result<Vec<Window>, Refusal> {
        let mut windows = Vec::with_capacity(placed.windows.len());
        for ((n, need), span) in (0..).zip(&device.needs().windows).zip(&placed.windows) {
            let bus = match need.space {
                Space::Port => &self.ports,
                Space::Memory => &self.memory,
            };
            bus.claim(span.base, span.length, device.clone() as _, Region::Window(n)).map_err(|e| {
                Refusal::new(Kind::Conflict, format!("Cannot plug in device {id:?}")).because(e)
            })?;
            windows.push(Window { bus: bus.clone(), base: span.base });
        }
        Ok(windows)
    }

    /// The device with this name.
    pub(super) fn find(&self, id: &str) -> Option<&Attached> {
        self.attached.iter().find(|a| a.id == id)
    }

    /// All devices.
    pub(super) fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// The same, to note what becomes of them.
    pub(super) fn attached_mut(&mut self) -> &mut [Attached] {
        &mut self.attached
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

    /// Lets all devices run, or none, so that it can be tried again.
    pub(super) fn start(&self) -> Result<(), Refusal> {
        for (nth, attached) in self.attached.iter().enumerate() {
            let Err(e) = attached.device.start() else { continue };
            for (id, e) in self.attached[..nth].iter().filter_map(|a| Some((&a.id, a.device.stop().err()?))) {
                log::error!("cannot stop device {id:?}: {e}");
            }
            return Err(Refusal::host(format!("Cannot start device {:?}", attached.id), e));
        }
        Ok(())
    }

    /// Waits for what [`Board::start`] began. From then on devices can have threads while the guest runs.
    pub(super) fn settle(&self) -> Result<(), Refusal> {
        self.workers.settle().map_err(|e| Refusal::host("Cannot start the thread that starts threads", e))?;
        self.attached.iter().try_for_each(|attached| {
            let settled = attached.device.settle();
            settled.map_err(|e| Refusal::host(format!("Cannot start device {:?}", attached.id), e))
        })
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

    /// Tells the guest that something happened.
    pub(super) fn ring(&self, what: Ring) -> Result<(), Refusal> {
        let bell = self.attached.iter().find_map(|a| a.device.bell());
        bell.ok_or_else(|| Refusal::new(Kind::Bug, "The machine has no event device"))?.ring(what);
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

/// The windows of each segment.
fn segment_windows(map: &MemoryMap, (low, high): &(Vec<u32>, Vec<u32>)) -> Result<Vec<PciSegment>, Refusal> {
    let windows = |e| Refusal::invalid("Cannot divide the PCI address windows").because(e);
    let low = MemoryMap::mmio32_windows(low).map_err(windows)?;
    let high = map.mmio64_windows(high).map_err(windows)?;
    let segments = (0..).zip(low).zip(high);
    Ok(segments.map(|((number, mmio32), mmio64)| PciSegment { number, mmio32, mmio64 }).collect())
}

fn bug(message: &str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Refusal {
    Refusal::new(Kind::Bug, message).because(e)
}

/// What PCI refuses: whoever asked wanted what another has, or what cannot be, or brought a wrong state; or the host is at its limits.
fn not_plugged(id: &str, e: PciError) -> Refusal {
    let kind = match e {
        PciError::SlotTaken { .. } | PciError::SlotsExhausted { .. } => Kind::Conflict,
        PciError::State { .. }
        | PciError::ApertureLength { .. }
        | PciError::ApertureReplay { .. }
        | PciError::Foreign { .. }
        | PciError::Replay { .. }
        | PciError::NoSlot { .. }
        | PciError::NoFunction => Kind::Invalid,
        _ => Kind::Host,
    };
    Refusal::new(kind, format!("Cannot plug in device {id:?}")).because(e)
}
