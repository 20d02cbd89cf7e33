//! How this node stands towards its source of objects: written by whoever reads the source and
//! applies it, read by the status pages. Times are arguments, in milliseconds since 1970.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwapOption;

/// The state of the source and of what was made of it.
#[derive(Debug)]
pub struct NodeState {
    /// `etcd` or `file`.
    pub source: &'static str,
    /// When the process began.
    pub started_unix_ms: u64,
    ready: AtomicBool,
    reachable: AtomicBool,
    contact_unix_ms: AtomicU64,
    event_unix_ms: AtomicU64,
    source_revision: AtomicI64,
    problem: ArcSwapOption<Problem>,
    held: ArcSwapOption<HeldRead>,
}

/// What keeps the source from being read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// A sentence for the operator.
    pub text: Arc<str>,
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
    pub fn new(source: &'static str, started_unix_ms: u64) -> Self {
        Self {
            source,
            started_unix_ms,
            ready: AtomicBool::new(false),
            reachable: AtomicBool::new(false),
            contact_unix_ms: AtomicU64::new(started_unix_ms),
            event_unix_ms: AtomicU64::new(started_unix_ms),
            source_revision: AtomicI64::new(0),
            problem: ArcSwapOption::empty(),
            held: ArcSwapOption::empty(),
        }
    }

    /// The source answered, with its present revision (0 where it has none).
    pub fn contacted(&self, now_unix_ms: u64, revision: i64) {
        self.contact_unix_ms.store(now_unix_ms, Relaxed);
        self.source_revision.fetch_max(revision, Relaxed);
        self.reachable.store(true, Relaxed);
        self.problem.store(None);
    }

    /// The source cannot be read. The time of the first of several failures in a row is kept.
    pub fn lost(&self, now_unix_ms: u64, text: impl Into<Arc<str>>) {
        let since = self.problem().map_or(now_unix_ms, |problem| problem.since_unix_ms);
        self.problem.store(Some(Arc::new(Problem { text: text.into(), since_unix_ms: since })));
        self.reachable.store(false, Relaxed);
    }

    /// A change of objects was applied.
    pub fn event(&self, now_unix_ms: u64) {
        self.event_unix_ms.store(now_unix_ms, Relaxed);
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
        self.reachable.load(Relaxed)
    }

    /// When the source answered last; before the first time, when the process began.
    #[must_use]
    pub fn contact_unix_ms(&self) -> u64 {
        self.contact_unix_ms.load(Relaxed)
    }

    /// When a change was applied last; before the first time, when the process began.
    #[must_use]
    pub fn event_unix_ms(&self) -> u64 {
        self.event_unix_ms.load(Relaxed)
    }

    /// The newest revision the source told of.
    #[must_use]
    pub fn source_revision(&self) -> i64 {
        self.source_revision.load(Relaxed)
    }

    /// What keeps the source from being read.
    #[must_use]
    pub fn problem(&self) -> Option<Arc<Problem>> {
        self.problem.load_full()
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
    fn failures_in_a_row_keep_the_time_of_the_first() {
        let state = NodeState::new("etcd", 1_000);
        state.contacted(2_000, 7);
        state.lost(3_000, "connection refused");
        state.lost(4_000, "timed out");
        let problem = state.problem().unwrap();
        assert_eq!((&*problem.text, problem.since_unix_ms), ("timed out", 3_000));
        assert!(!state.reachable());
        state.contacted(5_000, 3);
        assert_eq!((state.problem(), state.reachable()), (None, true));
        assert_eq!((state.contact_unix_ms(), state.source_revision()), (5_000, 7));
    }
}
