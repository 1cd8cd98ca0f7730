//! A driver on another processor that gives a device no rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::Bench;
use crate::{Ledger, Ram, Virtio};

/// How long it goes on: a device that it keeps from anything else gets on in the end, and its test tells.
const PATIENCE: Duration = Duration::from_secs(20);

/// Offers another chain as soon as one was given back, whoever that disturbs.
#[derive(Debug)]
pub struct Again(Arc<AtomicBool>);

impl Again {
    /// Has queue `i` never run dry, once it was kicked: what is in its available ring is there again and again, a ring's half ahead. Its device
    /// must give back each chain at once.
    pub fn new<V: Virtio>(bench: &mut Bench<V>, i: usize) -> Again {
        let tired = Arc::new(AtomicBool::new(false));
        for (n, state) in bench.stop().into_iter().enumerate() {
            let q = &bench.queues[n];
            let ledger = Offers {
                ram: bench.ram.clone(),
                index: GuestAddress(q.avail().0 + 2),
                ahead: q.size / 2,
                begun: Instant::now(),
                tired: tired.clone(),
            };
            let ledger = (n == i).then(|| -> Box<dyn Ledger> { Box::new(ledger) });
            bench.start_with(n, state.next_avail, ledger);
        }
        Again(tired)
    }

    /// Whether it has not grown tired.
    pub fn goes_on(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

/// Sees to it that there is more whenever something is done.
struct Offers {
    ram: Ram,
    index: GuestAddress,
    ahead: u16,
    begun: Instant,
    tired: Arc<AtomicBool>,
}

impl Ledger for Offers {
    fn taken(&mut self, _: u16) {}

    fn giving_back(&mut self, _: u16) {}

    fn given_back(&mut self, _: u16, used: u16) {
        if self.begun.elapsed() < PATIENCE {
            let index = used.wrapping_add(self.ahead);
            self.ram.map().store(index, self.index, Ordering::Release).expect("inside memory");
        } else {
            self.tired.store(true, Ordering::Relaxed);
        }
    }
}
