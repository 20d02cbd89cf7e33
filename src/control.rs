//! The loop that turns events into published snapshots.
//!
//! The first event after quiet publishes at once; what arrives while a snapshot is built goes into
//! the next one, so a burst costs few builds and an edit no waiting. Old snapshots are kept until
//! nobody reads them and are freed here: no worker frees 100,000 routes in the middle of traffic.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::live::node_state::{HeldRead, NodeState};
use crate::metrics::Metrics;
use crate::net::clock::unix_ms;
use crate::resource::{Discovery, Kind};
use crate::snapshot::{Builder, Published, Snapshot};
use crate::store::{Batch, Changes, Store};

/// Events taken together at most before a snapshot is published.
const MOST_BATCHES: usize = 4096;

/// How often snapshots that nobody reads are looked for, and held reads for their end.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Host names, sorted. A name that stays keeps its allocation, one that went and came back has
/// another: a reader that missed the time between still sees that its addresses were forgotten.
pub type Names = Arc<[Arc<str>]>;

/// Services of registries, sorted; as for [`Names`].
pub type Services = Arc<[Arc<Discovery>]>;

/// What the loop works on.
#[derive(Debug)]
pub struct Control {
    /// All objects.
    pub store: Store,
    /// Makes snapshots of them.
    pub builder: Builder,
    /// Where they go.
    pub published: Published,
    /// Names worth resolving, for the resolver.
    pub wanted: watch::Sender<Names>,
    /// Services worth asking registries for.
    pub wanted_services: watch::Sender<Services>,
    /// Told after each publication: whoever keeps something for each pool looks at the snapshot anew.
    pub changed: watch::Sender<()>,
    /// Counts publications.
    pub metrics: Metrics,
    /// Shows what is held back.
    pub state: Arc<NodeState>,
    /// Told once, when the first full state has been published.
    pub first: Option<oneshot::Sender<()>>,
}

/// Runs until `stop`, or until every sender of events is gone.
pub async fn run(
    mut control: Control,
    mut events: mpsc::Receiver<Batch>,
    mut accept_state: mpsc::Receiver<()>,
    stop: CancellationToken,
) {
    let mut retired: Vec<Arc<Snapshot>> = Vec::new();
    let mut housekeeping = Instant::now() + HOUSEKEEPING;
    let mut batches = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            received = events.recv_many(&mut batches, MOST_BATCHES) => {
                if received == 0 {
                    return;
                }
                let begun = Instant::now();
                control.take(&mut batches, begun, &mut retired);
            }
            Some(()) = accept_state.recv() => control.obey(&mut retired),
            () = sleep_until(housekeeping) => {
                housekeeping = Instant::now() + HOUSEKEEPING;
                retired.retain(|old| Arc::strong_count(old) > 1);
                control.release_overdue(&mut retired);
            }
        }
    }
}

impl Control {
    fn take(&mut self, batches: &mut Vec<Batch>, begun: Instant, retired: &mut Vec<Arc<Snapshot>>) {
        let now = unix_ms();
        let first = !self.store.is_loaded();
        let held_before = self.store.held();
        let mut all = Changes::default();
        for batch in batches.drain(..) {
            let changes = self.store.apply(batch, now);
            all.keys.extend(changes.keys);
            all.names.extend(changes.names);
            all.services.extend(changes.services);
            all.refused.extend(changes.refused);
        }
        if let Some(held) = self.store.held().filter(|_| held_before.is_none()) {
            tracing::error!(
                revision = held.revision,
                would_remove = held.would_remove,
                "a full read of the configuration would remove {} stream_routes, more than half; it is held back \
                 and the present state keeps serving. If it is right, run `streamgate accept-state`; it takes \
                 effect by itself in 10 minutes",
                held.would_remove,
            );
        }
        self.publish(&all, begun, retired);
        self.report(&all);
        if first && self.store.is_loaded() {
            if let Some(first) = self.first.take() {
                // Whoever waited for it may be stopping already.
                let _ = first.send(());
            }
            tracing::info!(
                revision = self.store.revision(),
                routes = self.published.load().route_count(),
                rejected = self.store.rejected().count(),
                took_ms = begun.elapsed().as_millis(),
                "first configuration loaded",
            );
        }
    }

    fn publish(&mut self, changes: &Changes, begun: Instant, retired: &mut Vec<Arc<Snapshot>>) {
        let next = Arc::new(self.builder.build(&self.store, changes));
        retired.push(self.published.swap(next));
        let took = begun.elapsed();
        self.metrics.published(self.store.revision(), took);
        // Each worker holds one old snapshot at most, so few are left. Nobody waits for this.
        retired.retain(|old| Arc::strong_count(old) > 1);
        self.state.set_held(self.store.held().map(|held| HeldRead {
            revision: held.revision,
            routes: self.store.count(Kind::StreamRoute),
            removed: held.would_remove,
            since_unix_ms: held.since_unix_ms,
            until_unix_ms: held.until_unix_ms,
        }));
        // Sorting all of them would make every edit cost what the configuration costs.
        if self.builder.names_changed() {
            self.want_names();
        }
        if self.builder.services_changed() {
            self.want_services();
        }
        self.changed.send_replace(());
        // Answers that came too late.
        for service in changes.services.iter().filter(|service| !self.builder.wants_service(service)) {
            self.store.forget_service(service);
        }
        for name in changes.names.iter().filter(|name| !self.builder.wants_name(name)) {
            self.store.forget_name(name);
        }
        tracing::debug!(
            revision = self.store.revision(),
            objects = changes.keys.len(),
            took_us = took.as_micros(),
            "configuration published",
        );
    }

    /// Tells the resolver which names count now, and forgets the addresses of the others.
    fn want_names(&mut self) {
        let names = replace(&self.wanted, self.builder.wanted_names().cloned().collect());
        self.store.retain_names(|name| names.binary_search_by(|other| (**other).cmp(name)).is_ok());
    }

    /// The same for services.
    fn want_services(&mut self) {
        let services = replace(&self.wanted_services, self.builder.wanted_services().cloned().collect());
        self.store
            .retain_services(|service| services.binary_search_by(|other| (**other).cmp(service)).is_ok());
    }

    fn obey(&mut self, retired: &mut Vec<Arc<Snapshot>>) {
        if self.store.held().is_some() {
            let changed = self.accept_held(retired);
            tracing::warn!(changed, "the held configuration was accepted by an operator");
        }
    }

    fn release_overdue(&mut self, retired: &mut Vec<Arc<Snapshot>>) {
        if self.store.held().is_some_and(|held| unix_ms() >= held.until_unix_ms) {
            let changed = self.accept_held(retired);
            tracing::warn!(changed, "nobody answered for 10 minutes: the held configuration takes effect");
        }
    }

    fn report(&mut self, changes: &Changes) {
        self.report_refused();
        self.report_left_out(changes);
    }

    /// Tells of refused objects that a stream_route reaches, as soon as both are so: what only HTTP uses is
    /// not ours to complain of.
    fn report_refused(&mut self) {
        let snapshot = self.published.load();
        let keys = self.builder.take_refused();
        for refused in keys.iter().filter_map(|key| snapshot.rejection(key)) {
            let serving = if refused.previous_serves {
                "the previous version keeps serving"
            } else {
                "nothing serves in its place"
            };
            // Revisions of a file's objects are sums of their content, which tell nobody anything.
            let revision = if self.state.source == "etcd" {
                format!(" revision {}", refused.revision)
            } else {
                String::new()
            };
            tracing::warn!(
                object = %refused.key,
                "rejected {}{revision}: {}; {serving}",
                refused.key,
                refused.reason,
            );
        }
    }

    /// Tells what of a certificate object does not count. From outside nobody sees that a pair of it is
    /// missing, as long as another one serves.
    fn report_left_out(&self, changes: &Changes) {
        for key in changes.keys.iter().filter(|key| key.kind == Kind::Ssl) {
            let warnings = self.store.entry(key).map(|entry| &*entry.warnings).unwrap_or_default();
            // Of the version that was refused there is only the refusal to tell.
            if warnings.is_empty() || changes.refused.iter().any(|refused| refused.key == *key) {
                continue;
            }
            for warning in warnings {
                tracing::warn!(object = %key, "{key}: {warning}");
            }
        }
    }

    fn accept_held(&mut self, retired: &mut Vec<Arc<Snapshot>>) -> usize {
        let changes = self.store.accept_held(unix_ms());
        self.publish(&changes, Instant::now(), retired);
        self.report(&changes);
        changes.keys.len()
    }
}

/// Tells a list where it is another one than before; what stays keeps its allocation.
fn replace<T: ?Sized + Ord>(list: &watch::Sender<Arc<[Arc<T>]>>, mut now: Vec<Arc<T>>) -> Vec<Arc<T>> {
    now.sort();
    list.send_if_modified(|before| {
        let changed = **before != *now;
        if changed {
            *before = now.iter().map(|one| kept(before, one).unwrap_or(one).clone()).collect();
        }
        changed
    });
    now
}

/// The allocation of `one` in a sorted list.
fn kept<'a, T: ?Sized + Ord>(list: &'a [Arc<T>], one: &Arc<T>) -> Option<&'a Arc<T>> {
    list.get(list.binary_search(one).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RulesConfig;
    use crate::live::Live;
    use crate::live::source_status::SourceStatus;
    use crate::resource::Key;
    use crate::store::Event;

    fn route(revision: i64, names: &[&str]) -> Batch {
        let nodes: Vec<String> = names.iter().map(|name| format!(r#""{name}:1":1"#)).collect();
        let value = format!(r#"{{"upstream":{{"nodes":{{{}}}}}}}"#, nodes.join(",")).into();
        let put = Event::Put { key: Key::new(Kind::StreamRoute, "r"), value, revision };
        Batch { events: vec![put], revision }
    }

    #[test]
    fn a_name_that_comes_back_is_told_from_one_that_stays() {
        let (wanted, names) = watch::channel(Names::from([]));
        let status = Arc::new(SourceStatus::new(Instant::now().into_std()));
        let mut control = Control {
            store: Store::new(RulesConfig::default()),
            builder: Builder::new(Arc::new(Live::default()), 0),
            published: Published::default(),
            wanted,
            wanted_services: watch::channel(Services::from([])).0,
            changed: watch::channel(()).0,
            metrics: Metrics::new(&[], ""),
            state: Arc::new(NodeState::new("etcd", 0, status)),
            first: None,
        };
        let mut of_a = |revision, wanted: &[&str]| {
            control.take(&mut vec![route(revision, wanted)], Instant::now(), &mut Vec::new());
            let names = names.borrow().clone();
            assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), wanted);
            names.iter().find(|name| &***name == "a").cloned()
        };
        let first = of_a(1, &["a"]).unwrap();
        assert!(Arc::ptr_eq(&first, &of_a(2, &["a", "b"]).unwrap()));
        assert_eq!(of_a(3, &["b"]), None);
        assert!(!Arc::ptr_eq(&first, &of_a(4, &["a", "b"]).unwrap()));
    }

    #[test]
    fn refusals_of_what_only_http_uses_are_not_told() {
        let put = |kind, id: &str, value: &'static str, revision| Event::Put {
            key: Key::new(kind, id),
            value: value.into(),
            revision,
        };
        let events = vec![
            put(Kind::StreamRoute, "r", r#"{"upstream_id":"ours"}"#, 1),
            put(Kind::Upstream, "ours", r#"{"nodes":7}"#, 2),
            put(Kind::Upstream, "http", r#"{"nodes":7}"#, 3),
            put(Kind::Service, "http", r#"{"upstream":7}"#, 4),
        ];
        let mut store = Store::new(RulesConfig::default());
        let changes = store.apply(Batch { events, revision: 4 }, 0);
        assert_eq!(changes.refused.len(), 3, "{:?}", changes.refused);
        let mut builder = Builder::new(Arc::new(Live::default()), 0);
        let mut told = |store: &Store, changes| {
            builder.build(store, changes);
            builder.take_refused().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(&store, &changes), ["upstreams/ours"]);
        let late = put(Kind::StreamRoute, "late", r#"{"upstream_id":"http"}"#, 5);
        let changes = store.apply(Batch { events: vec![late], revision: 5 }, 0);
        assert_eq!(told(&store, &changes), ["upstreams/http"], "now a route reaches it");
    }
}
