//! Measures a disk without a VM: a driver in this process keeps a queue of random 4 KiB reads or writes full.
//!
//! `cargo run --release -p virtio-devices --example block_speed -- IMAGE [read|write] [depth] [seconds] [key=value,…] [polling]`
//!
//! `polling` is how many microseconds the disk looks for work at most before its thread sleeps.
//!
//! It shows what queue handling and I/O engine cost; exits and interrupts, which a VM adds, are an eventfd and nothing here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use device::virtio::feature;
use device::worker::Workers;
use device::{Built, DriverLink, Events, Host, Kept, LiveQueue, Ram, Request, VirtioGrant};
use spec::{Facts, Spec};
use virtio_devices::block::DiskSpec;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 128;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x5000;
const HEADERS: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
const BLOCK: u64 = 4096;

struct Nobody(AtomicU64);

impl DriverLink for Nobody {
    fn queue_used(&self, _: u16) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        eprintln!("the device needs a reset");
    }
}

impl Events for Nobody {
    fn record(&self, _: &str, _: &str, _: &[(&str, &str)]) {}
    fn request(&self, _: Request) {}
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().context("which image?")?;
    let write = match arguments.next().as_deref() {
        None | Some("read") => false,
        Some("write") => true,
        Some(other) => bail!("{other}: read or write?"),
    };
    let depth: u16 = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let keys = arguments.next().filter(|keys| !keys.is_empty());
    let keys = keys.map(|keys| format!(",{keys}")).unwrap_or_default();
    let polling = Duration::from_micros(arguments.next().map_or(Ok(0), |text| text.parse())?);
    let mut spec = DiskSpec::parse(&format!("path={image},image_type=raw{keys}"))?;
    let blocks = std::fs::metadata(&image)?.len() / BLOCK;

    let host = Host { id: "_disk0", facts: &Facts::default(), kept: &Kept::default() };
    let Built::Virtio(mut disk) = spec.build_polling(&host, polling)? else { bail!("no disk was built") };
    let map: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)])?;
    let ram = Ram::new(map.clone());
    let nobody = Arc::new(Nobody(AtomicU64::new(0)));
    disk.connect(VirtioGrant {
        ram: ram.clone(),
        link: nobody.clone(),
        workers: Workers::new(nobody.clone()),
        events: nobody.clone(),
    });
    disk.activate(disk.features())?;
    let kick = EventFd::new(EFD_NONBLOCK)?;
    let mut queue = Queue::new(SIZE)?;
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_event_idx(disk.features() & feature::RING_EVENT_IDX != 0);
    queue.set_ready(true);

    for slot in 0..u64::from(depth) {
        let (header, data) = (HEADERS + slot * 32, DATA + slot * BLOCK);
        map.write_obj(u32::from(write), GuestAddress(header))?;
        let direction = if write { 0 } else { 2 };
        let parts = [(header, 16, 1), (data, BLOCK as u32, direction | 1), (header + 16, 1, 2u16)];
        for (n, (address, length, flags)) in parts.into_iter().enumerate() {
            let index = slot * 3 + n as u64;
            let at = DESCRIPTORS + index * 16;
            map.write_obj(address, GuestAddress(at))?;
            map.write_obj(length, GuestAddress(at + 8))?;
            map.write_obj(flags, GuestAddress(at + 12))?;
            map.write_obj(index as u16 + 1, GuestAddress(at + 14))?;
        }
    }
    let live = LiveQueue::new(queue, ram, kick.try_clone()?, nobody.clone(), 0);
    disk.start_queue(0, live)?;

    let base = map.get_host_address(GuestAddress(0))?;
    // SAFETY: these are aligned and within the 64 MiB mapped, which live as long as `map`.
    let word = |at: u64| unsafe { &*base.add(at as usize).cast::<AtomicU16>() };
    let (mut random, mut next, mut seen, mut done, mut kicks) =
        (88_172_645_463_325_252u64, 0u16, 0u16, 0u64, 0u64);
    let mut offer = |slot: u16, next: &mut u16| -> anyhow::Result<()> {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let sector = random % blocks * (BLOCK / 512);
        map.write_obj(sector, GuestAddress(HEADERS + u64::from(slot) * 32 + 8))?;
        word(AVAILABLE + 4 + 2 * u64::from(*next % SIZE)).store(slot * 3, Ordering::Relaxed);
        *next = next.wrapping_add(1);
        Ok(())
    };
    let publish = |old: u16, new: u16, kicks: &mut u64| -> anyhow::Result<()> {
        word(AVAILABLE + 2).store(new, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = word(USED + 4 + 8 * u64::from(SIZE)).load(Ordering::Relaxed);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            *kicks += 1;
            kick.write(1)?;
        }
        Ok(())
    };
    for slot in 0..depth {
        offer(slot, &mut next)?;
    }
    publish(0, next, &mut kicks)?;
    let start = Instant::now();
    let time = Duration::from_secs(seconds);
    while start.elapsed() < time {
        let used = word(USED + 2).load(Ordering::Acquire);
        if used == seen {
            std::hint::spin_loop();
            continue;
        }
        let old = next;
        while seen != used {
            let head = word(USED + 4 + 8 * u64::from(seen % SIZE)).load(Ordering::Relaxed);
            offer(head / 3, &mut next)?;
            seen = seen.wrapping_add(1);
            done += 1;
        }
        publish(old, next, &mut kicks)?;
    }
    let elapsed = start.elapsed();
    disk.stop_queue(0).context("the queue did not stop")?;
    let spent = cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID)? - cpu_time(libc::CLOCK_THREAD_CPUTIME_ID)?;
    let rate = done as f64 / elapsed.as_secs_f64();
    println!(
        "{rate:.0} requests/s, {:.0} ns of the disk's threads per request, {kicks} kicks, {} interrupts, {:?}",
        spent.as_nanos() as f64 / done as f64,
        nobody.0.load(Ordering::Relaxed),
        disk.counters().unwrap_or_default()
    );
    Ok(())
}

/// CPU time used so far.
fn cpu_time(clock: libc::clockid_t) -> anyhow::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid structure to be filled.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}
