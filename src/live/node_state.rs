//! How this node stands: ready or not, what is held back, and how its source of objects is doing.
//! Times are in milliseconds since 1970, given by whoever knows the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::registries::Failing;
use super::source_status::SourceStatus;

/// The state of the node.
#[derive(Debug)]
pub struct NodeState {
    /// `etcd` or `file`.
    pub source: &'static str,
    /// When the process began; the times of `status` count from there.
    pub started_unix_ms: u64,
    /// Written by whoever reads the source.
    pub status: Arc<SourceStatus>,
    /// Written by whoever asks registries.
    pub discovery: Arc<Failing>,
    ready: AtomicBool,
    held: ArcSwapOption<HeldRead>,
}

/// What keeps the source, or a registry, from being read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// A sentence for the operator.
    pub text: String,
    /// Since when.
    pub since_unix_ms: u64,
}

/// A full read that would remove most routes, kept back until somebody agrees or time is over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeldRead {
    /// The revision of the read.
    pub revision: i64,
    /// Routes that serve.
    pub routes: usize,
    /// How many of them the read would remove.
    pub removed: usize,
    /// Since when it is held.
    pub since_unix_ms: u64,
    /// When it is taken without anybody agreeing.
    pub until_unix_ms: u64,
}

impl NodeState {
    /// A node that has read nothing yet.
    #[must_use]
    pub fn new(source: &'static str, started_unix_ms: u64, status: Arc<SourceStatus>) -> Self {
        Self {
            source,
            started_unix_ms,
            status,
            discovery: Arc::default(),
            ready: AtomicBool::new(false),
            held: ArcSwapOption::empty(),
        }
    }

    /// A first state serves. Nothing makes a ready node unready again.
    pub fn set_ready(&self) {
        self.ready.store(true, Relaxed);
    }

    /// A full read is kept back, or is not any more.
    pub fn set_held(&self, held: Option<HeldRead>) {
        self.held.store(held.map(Arc::new));
    }

    /// Reports whether a first state serves.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Reports whether the source answered last time.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.status.reachable()
    }

    /// When the source answered last; before the first time, when the process began.
    #[must_use]
    pub fn contact_unix_ms(&self) -> u64 {
        self.unix_ms(self.status.contact_since_start())
    }

    /// When a change was applied last; before the first time, when the process began.
    #[must_use]
    pub fn event_unix_ms(&self) -> u64 {
        self.unix_ms(self.status.event_since_start())
    }

    /// The newest revision the source told of.
    #[must_use]
    pub fn source_revision(&self) -> i64 {
        self.status.seen_revision()
    }

    /// What keeps the source from being read.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        let error = self.status.last_error()?;
        Some(Problem { text: error.sentence, since_unix_ms: self.unix_ms(Some(error.since)) })
    }

    fn unix_ms(&self, since_start: Option<Duration>) -> u64 {
        let since_start = since_start.unwrap_or_default().as_millis();
        self.started_unix_ms.saturating_add(u64::try_from(since_start).unwrap_or(u64::MAX))
    }

    /// The full read that is kept back.
    #[must_use]
    pub fn held(&self) -> Option<Arc<HeldRead>> {
        self.held.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_source_count_from_the_start() {
        let start = tokio::time::Instant::now().into_std();
        let at = |seconds| start + Duration::from_secs(seconds);
        let state = NodeState::new("etcd", 1_000, Arc::new(SourceStatus::new(start)));
        assert_eq!((state.contact_unix_ms(), state.problem(), state.reachable()), (1_000, None, false));
        state.status.contact(at(2));
        assert_eq!((state.contact_unix_ms(), state.reachable()), (3_000, true));
        state.status.fail(at(4), false, "timed out".into());
        let problem = Problem { text: "timed out".into(), since_unix_ms: 5_000 };
        assert_eq!((state.problem(), state.reachable()), (Some(problem), false));
    }
}
