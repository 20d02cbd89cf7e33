//! Stopping in phases: running, draining until a deadline, now.
//!
//! One [`Drain`] gives the signal, every [`Watch`] hears it, and [`Drain::finished`] waits until the
//! last `Watch` is dropped. Whoever must be waited for holds one: the workers do, for their sessions.

mod leash;

use std::future;

use tokio::sync::watch;
use tokio::time::{self, Instant};

pub use leash::Leash;

/// How far a stop has come; it never goes back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Phase {
    /// No stop.
    #[default]
    Running,
    /// Nothing new begins; what runs may finish until the deadline.
    Draining {
        /// When the rest ends by force.
        deadline: Instant,
    },
    /// Everything ends.
    Now,
}

/// Gives the signal.
#[derive(Debug, Default)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

impl Drain {
    /// Running.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A listener of the signal.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { phase: self.phase.subscribe() }
    }

    /// Begins to drain. Called again, only an earlier deadline counts.
    pub fn start(&self, deadline: Instant) {
        self.phase.send_if_modified(|phase| {
            let earlier = match *phase {
                Phase::Running => true,
                Phase::Draining { deadline: present } => deadline < present,
                Phase::Now => false,
            };
            if earlier {
                *phase = Phase::Draining { deadline };
            }
            earlier
        });
    }

    /// Ends everything.
    pub fn now(&self) {
        self.phase.send_replace(Phase::Now);
    }

    /// Waits until every [`Watch`] is gone.
    pub async fn finished(&self) {
        self.phase.closed().await;
    }
}

/// Hears the signal, and is waited for while it exists.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
}

impl Watch {
    /// How far the stop has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until nothing new may begin.
    pub async fn draining(&mut self) {
        if self.phase.wait_for(|phase| *phase != Phase::Running).await.is_err() {
            // Nobody is left to give the signal: it never comes.
            future::pending::<()>().await;
        }
    }

    /// Waits until everything has to end: the deadline has passed, or there is none to wait for.
    pub async fn ended(&mut self) {
        loop {
            let phase = *self.phase.borrow_and_update();
            let deadline = match phase {
                Phase::Running => None,
                Phase::Draining { deadline } => Some(deadline),
                Phase::Now => return,
            };
            tokio::select! {
                changed = self.phase.changed() => if changed.is_err() { break },
                () = until(deadline) => return,
            }
        }
        let Phase::Draining { deadline } = self.phase() else { return future::pending().await };
        time::sleep_until(deadline).await;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_what_still_runs() {
        let (drain, begin) = (Drain::new(), Instant::now());
        let mut watch = drain.watch();
        drain.start(begin + Duration::from_secs(10));
        watch.draining().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        watch.ended().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_only_gets_nearer() {
        let (drain, begin) = (Drain::new(), Instant::now());
        let watch = drain.watch();
        let at = |seconds| begin + Duration::from_secs(seconds);
        drain.start(at(10));
        drain.start(at(20));
        assert_eq!(watch.phase(), Phase::Draining { deadline: at(10) });
        drain.start(at(5));
        assert_eq!(watch.phase(), Phase::Draining { deadline: at(5) });
        drain.now();
        drain.start(at(30));
        assert_eq!(watch.phase(), Phase::Now);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_reaches_who_waits_for_the_deadline() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drain.start(Instant::now() + Duration::from_secs(10));
        let mut ended = task::spawn(watch.ended());
        assert_pending!(ended.poll());
        drain.now();
        assert_ready!(ended.poll());
    }

    #[test]
    fn finished_waits_for_every_watch() {
        let drain = Drain::new();
        let (first, second) = (drain.watch(), drain.watch());
        let mut finished = task::spawn(drain.finished());
        drop(first);
        assert_pending!(finished.poll());
        drop(second);
        assert_ready!(finished.poll());
    }
}
