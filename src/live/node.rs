//! What is counted for the whole process: accepting, UDP, descriptors.
//! No I/O, no clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::session::TlsFailure;

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Counts so many.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// TLS with clients.
#[derive(Debug, Default)]
pub struct TlsCounters {
    full: Counter,
    resumed: Counter,
    failed: [Counter; TlsFailure::COUNT],
    /// Connections passed on undecrypted.
    pub passed_through: Counter,
}

impl TlsCounters {
    /// Counts a handshake; `resumed`: it went on with an earlier session.
    pub fn done(&self, resumed: bool) {
        if resumed { &self.resumed } else { &self.full }.add_one();
    }

    /// Counts a handshake that failed.
    pub fn failed(&self, failure: TlsFailure) {
        if let Some(counter) = self.failed.get(failure.index()) {
            counter.add_one();
        }
    }

    /// Handshakes in full, and those that went on with earlier sessions.
    #[must_use]
    pub fn done_counts(&self) -> [(&'static str, u64); 2] {
        [("full", self.full.count()), ("resumed", self.resumed.count())]
    }

    /// Handshakes that failed, by their reason.
    pub fn failed_counts(&self) -> impl Iterator<Item = (TlsFailure, u64)> {
        TlsFailure::ALL.iter().zip(&self.failed).map(|(failure, counter)| (*failure, counter.count()))
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Level(AtomicUsize);

impl Level {
    /// Rises by so many.
    pub fn rise(&self, by: usize) {
        self.0.fetch_add(by, Relaxed);
    }

    /// Falls by as many as it rose before.
    pub fn fall(&self, by: usize) {
        self.0.fetch_sub(by, Relaxed);
    }

    /// Where it stands.
    #[must_use]
    pub fn now(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// Lines to syslog servers.
#[derive(Debug, Default)]
pub struct LineCounters {
    /// Handed to the system on their way to a server.
    pub sent: Counter,
    /// Lost above `drop_limit` or `max_pending_entries`.
    pub dropped: Counter,
    /// Lost with a server that did not take them before their configuration or the process ended, or because
    /// no datagram holds them.
    pub failed: Counter,
    /// Not made, because there is no `log_format`.
    pub unformatted: Counter,
    /// Made and not sent yet.
    pub waiting: Level,
    /// Servers that take no lines.
    pub failing: Level,
}

/// Counters of the process, shared by all workers.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// TLS with clients.
    pub tls: TlsCounters,
    /// `accept` failed for the connection at hand; the client had gone before, as a rule.
    pub accept_aborted: Counter,
    /// `accept` failed for want of descriptors or memory, and accepting paused.
    pub accept_paused: Counter,
    /// Connections that one worker accepted and passed on to another with fewer sessions.
    pub steered: Counter,
    /// Times a flow turned bulk and began to be spliced.
    pub bulk_flows: Counter,
    /// Bulk flows that were copied because there was no pipe to splice them through.
    pub pipes_refused: Counter,
    /// UDP associations ended to make room for new ones.
    pub udp_evicted: Counter,
    /// Datagrams from clients that could not be passed on: the send buffer was full.
    pub udp_dropped: Counter,
    /// Datagrams, either way, that were faster than limit-bandwidth allows.
    pub udp_over_rate: Counter,
    /// Datagrams to clients that the system refused to send.
    pub udp_undeliverable: Counter,
    /// Errors that nodes sent back for datagrams, such as ICMP port unreachable.
    pub udp_refused: Counter,
    /// Outcomes that were not logged because the log could not keep up or their rate is bounded.
    pub outcomes_dropped: Counter,
    /// Lines of the access log that were lost: its file was too slow, or could not be written.
    pub access_lines_dropped: Arc<Counter>,
    /// The same of a file of the session log.
    pub session_lines_dropped: Arc<Counter>,
    /// Keys of limit-rate that were forgotten before their buckets were full: there were too many.
    pub limit_keys_forgotten: Arc<Counter>,
    /// Ended sessions that never reached what makes lines of them for others.
    pub reports_dropped: Counter,
    /// Those lines.
    pub lines: LineCounters,
}

/// A number of things that may be in use at the same time, such as descriptors.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// At most `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Takes `amount`, or nothing where that many are not left. Dropping the permit gives it back.
    #[must_use]
    pub fn take(self: &Arc<Self>, amount: usize) -> Option<Permit> {
        let used = self.used.fetch_add(amount, Relaxed);
        let permit = Permit { budget: self.clone(), amount };
        (used.saturating_add(amount) <= self.limit).then_some(permit)
    }

    /// How much there is in all.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How much is taken.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// A part of a [`Budget`] in use.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    amount: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_comes_back() {
        let budget = Budget::new(3);
        let first = budget.take(2).unwrap();
        assert!(budget.take(2).is_none());
        assert_eq!(budget.used(), 2, "a refusal takes nothing");
        let second = budget.take(1).unwrap();
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
