//! How the configuration source is doing: written by `source`, read by status and metrics pages.
//!
//! Times are kept as milliseconds since a start the maker gives, so that this module reads no clock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Directories that `apisix_etcd_modify_indexes` lists (`apisix/plugins/prometheus/exporter.lua`).
pub const DIRECTORIES: [&str; 8] =
    ["consumers", "global_rules", "protos", "routes", "services", "ssls", "stream_routes", "upstreams"];

/// What is known of the source; every field may be read while another thread writes.
#[derive(Debug)]
pub struct SourceStatus {
    start: Instant,
    reachable: AtomicBool,
    contact: Moment,
    event: Moment,
    applied: AtomicI64,
    seen: AtomicI64,
    reconnects: AtomicU64,
    cluster: AtomicU64,
    modified: [AtomicI64; DIRECTORIES.len()],
    last_error: Mutex<Option<SourceError>>,
}

/// What went wrong last, kept until the source works again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceError {
    /// For the operator.
    pub sentence: String,
    /// Since when this sentence holds, after the start given to [`SourceStatus::new`].
    pub since: Duration,
}

impl SourceStatus {
    /// A source that has not been reached yet; times count from `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            reachable: AtomicBool::new(false),
            contact: Moment::default(),
            event: Moment::default(),
            applied: AtomicI64::new(0),
            seen: AtomicI64::new(0),
            reconnects: AtomicU64::new(0),
            cluster: AtomicU64::new(0),
            modified: Default::default(),
            last_error: Mutex::new(None),
        }
    }

    /// The source answered at `now`: it is reachable, what went wrong before is over.
    pub fn contact(&self, now: Instant) {
        self.contact.set(now.saturating_duration_since(self.start));
        if !self.reachable.swap(true, Relaxed) {
            *self.error_slot() = None;
        }
    }

    /// The source cannot be used, or what it holds cannot be read.
    pub fn fail(&self, now: Instant, reachable: bool, sentence: String) {
        self.reachable.store(reachable, Relaxed);
        let since = now.saturating_duration_since(self.start);
        let mut slot = self.error_slot();
        if slot.as_ref().is_none_or(|error| error.sentence != sentence) {
            *slot = Some(SourceError { sentence, since });
        }
    }

    /// What went wrong before is over.
    pub fn recover(&self) {
        *self.error_slot() = None;
    }

    /// A change was handed on at `now`.
    pub fn event(&self, now: Instant) {
        self.event.set(now.saturating_duration_since(self.start));
    }

    /// Everything up to `revision` was handed on.
    pub fn apply(&self, revision: i64) {
        self.applied.store(revision, Relaxed);
    }

    /// The revision the server said it is at.
    pub fn see(&self, revision: i64) {
        self.seen.store(revision, Relaxed);
    }

    /// Another connection is tried after the first.
    pub fn reconnect(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }

    /// The cluster the data comes from.
    pub fn set_cluster(&self, id: u64) {
        self.cluster.store(id, Relaxed);
    }

    /// An object below `directory` was written at `revision`; other directories than
    /// [`DIRECTORIES`] are not counted.
    pub fn modify(&self, directory: &str, revision: i64) {
        let names = DIRECTORIES.iter().zip(&self.modified);
        if let Some((_, cell)) = names.into_iter().find(|(name, _)| **name == directory) {
            cell.fetch_max(revision, Relaxed);
        }
    }

    /// A full read begins: what directories were at is forgotten.
    pub fn forget_modifications(&self) {
        self.modified.iter().for_each(|cell| cell.store(0, Relaxed));
    }

    /// `apisix_etcd_reachable`.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.reachable.load(Relaxed)
    }

    /// How long before `now` the source last answered; none: never.
    #[must_use]
    pub fn contact_age(&self, now: Instant) -> Option<Duration> {
        self.contact.age(now.saturating_duration_since(self.start))
    }

    /// How long before `now` the last change was handed on; none: never.
    #[must_use]
    pub fn event_age(&self, now: Instant) -> Option<Duration> {
        self.event.age(now.saturating_duration_since(self.start))
    }

    /// When the source last answered, counted from the start; none: never.
    #[must_use]
    pub fn contact_since_start(&self) -> Option<Duration> {
        self.contact.since_start()
    }

    /// When the last change was handed on, counted from the start; none: never.
    #[must_use]
    pub fn event_since_start(&self) -> Option<Duration> {
        self.event.since_start()
    }

    /// The revision everything up to which was handed on; 0: nothing yet.
    #[must_use]
    pub fn applied_revision(&self) -> i64 {
        self.applied.load(Relaxed)
    }

    /// The revision the server last said it is at; writes outside the prefix count too.
    #[must_use]
    pub fn seen_revision(&self) -> i64 {
        self.seen.load(Relaxed)
    }

    /// Connections tried after the first.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Relaxed)
    }

    /// The etcd cluster the data comes from; 0: none yet, or a file.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.cluster.load(Relaxed)
    }

    /// What is wrong now.
    #[must_use]
    pub fn last_error(&self) -> Option<SourceError> {
        self.error_slot().clone()
    }

    /// Each of [`DIRECTORIES`] with the highest revision an object of it was written at. Unlike in
    /// APISIX the figure does not fall when that object is deleted, until the next full read.
    pub fn modify_indexes(&self) -> impl Iterator<Item = (&'static str, i64)> {
        DIRECTORIES.into_iter().zip(self.modified.iter().map(|cell| cell.load(Relaxed)))
    }

    fn error_slot(&self) -> std::sync::MutexGuard<'_, Option<SourceError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since the start plus one; 0 is never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, since_start: Duration) {
        self.0.store(millis(since_start) + 1, Relaxed);
    }

    fn since_start(&self) -> Option<Duration> {
        self.0.load(Relaxed).checked_sub(1).map(Duration::from_millis)
    }

    fn age(&self, since_start: Duration) -> Option<Duration> {
        let at = self.0.load(Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(millis(since_start).saturating_sub(at)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> (SourceStatus, Instant) {
        let start = tokio::time::Instant::now().into_std();
        (SourceStatus::new(start), start)
    }

    #[test]
    fn ages_count_from_the_last_time() {
        let (status, start) = started();
        assert_eq!(status.contact_age(start), None);
        status.contact(start);
        assert_eq!(status.contact_age(start), Some(Duration::ZERO));
        status.contact(start + Duration::from_secs(2));
        assert_eq!(status.contact_age(start + Duration::from_secs(5)), Some(Duration::from_secs(3)));
        assert_eq!(status.event_age(start), None);
    }

    #[test]
    fn error_keeps_its_first_time_and_goes_with_contact() {
        let (status, start) = started();
        status.contact(start);
        status.fail(start + Duration::from_secs(1), false, "down".into());
        status.fail(start + Duration::from_secs(2), false, "down".into());
        assert!(!status.reachable());
        let expected = SourceError { sentence: "down".into(), since: Duration::from_secs(1) };
        assert_eq!(status.last_error(), Some(expected));
        status.contact(start + Duration::from_secs(3));
        assert!(status.reachable() && status.last_error().is_none());
    }

    #[test]
    fn directories_keep_their_highest_revision() {
        let (status, _) = started();
        for (directory, revision) in [("upstreams", 7), ("upstreams", 5), ("gen_id", 9), ("ssls", 2)] {
            status.modify(directory, revision);
        }
        let seen: Vec<_> = status.modify_indexes().filter(|(_, revision)| *revision > 0).collect();
        assert_eq!(seen, [("ssls", 2), ("upstreams", 7)]);
        status.forget_modifications();
        assert!(status.modify_indexes().all(|(_, revision)| revision == 0));
    }
}
