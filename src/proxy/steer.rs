//! Which worker serves a connection.
//!
//! The kernel spreads connections over the workers by a hash of their addresses, which is even on
//! average but not for a hundred that stay for days. A worker that has clearly more sessions than
//! another passes new ones on to it; in the common case nothing is passed on and a connection costs
//! one look at a few counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A worker passes connections on when it has more sessions than another by so many…
const MARGIN: usize = 16;
/// …and this part of what the other has: connections come and go at random.
const MARGIN_PART: usize = 8;

/// Sessions of each worker.
#[derive(Clone, Debug)]
pub(super) struct Loads(Arc<Vec<Load>>);

/// On a cache line of its own: its worker writes it for each connection.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Load(AtomicUsize);

/// A session counted in its worker's load.
#[derive(Debug)]
pub(super) struct Seat {
    loads: Loads,
    worker: usize,
}

impl Loads {
    /// `count` workers without sessions.
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new((0..count).map(|_| Load::default()).collect()))
    }

    /// Counts a session in; the seat counts it out.
    pub(super) fn enter(&self, worker: usize) -> Seat {
        if let Some(load) = self.0.get(worker) {
            load.0.fetch_add(1, Relaxed);
        }
        Seat { loads: self.clone(), worker }
    }

    /// The worker that a new connection of `worker` goes to, where that is another one.
    pub(super) fn better(&self, worker: usize) -> Option<usize> {
        let mine = self.of(worker);
        let (least, other) = self.0.iter().map(|load| load.0.load(Relaxed)).zip(0..).min()?;
        (mine > least + MARGIN + least / MARGIN_PART).then_some(other)
    }

    fn of(&self, worker: usize) -> usize {
        self.0.get(worker).map_or(0, |load| load.0.load(Relaxed))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(load) = self.loads.0.get(self.worker) {
            load.0.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_to_a_worker_with_clearly_fewer() {
        let loads = Loads::new(3);
        let enter = |worker, count| (0..count).map(|_| loads.enter(worker)).collect::<Vec<_>>();
        let first = enter(0, MARGIN + 5);
        let second = enter(1, 5);
        let _third = enter(2, 8);
        assert_eq!(loads.better(0), None, "a few more are by chance");
        let _one_more = loads.enter(0);
        assert_eq!((loads.better(0), loads.better(1), loads.better(2)), (Some(1), None, None));
        drop((first, second));
        assert_eq!(loads.better(0), None);
        let _many = [enter(0, 1000), enter(1, 900), enter(2, 900)];
        assert_eq!(loads.better(0), None, "a tenth more is by chance, too");
    }
}
