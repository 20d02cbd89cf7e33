//! What is counted beside the statistics of routes and nodes: sessions that matched no route, the
//! listens, and the APISIX series that are fed by each [`Outcome`].
//!
//! Whoever ends a session calls [`Totals::record`] once, before the outcome goes to the log, so a
//! log that cannot follow never costs a count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::live::listen_stats::ListenStats;
use crate::live::recent::{Labels, Recent};
use crate::live::series::Series;
use crate::live::{Registry, Stats};
use crate::session::{Outcome, Transport};

/// Series with extra labels of one metric are no more than these; what comes after has them empty.
/// A label such as `$remote_addr` would else take all memory.
const MAX_EXTRA_SERIES: usize = 10_000;

/// Bytes of the value of such a label; clients choose some of them.
const LONGEST_VALUE: usize = 256;

/// A label added to an APISIX metric and the session variable it shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExtraLabel {
    /// The label.
    pub name: Box<str>,
    /// The variable, with or without its `$`.
    pub variable: Box<str>,
}

/// One series of `apisix_stream_connection_total`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionKey {
    /// Id or name of the route.
    pub route: Arc<str>,
    /// Values of the extra labels, in their order.
    pub extra: Box<[Box<str>]>,
}

/// One series of `apisix_stream_status`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StatusKey {
    /// The code.
    pub code: &'static str,
    /// The address of the listen.
    pub listen_addr: Arc<str>,
    /// `ip:port` of the node last tried; empty where none was.
    pub node: Arc<str>,
    /// Values of the extra labels, in their order.
    pub extra: Box<[Box<str>]>,
}

/// One series of `streamgate_plugin_refusals_total`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RefusalKey {
    /// Id of the route.
    pub route: Arc<str>,
    /// Name of the plugin.
    pub plugin: &'static str,
}

/// The counters of a node that belong to no route.
#[derive(Debug, Default)]
pub struct Totals {
    /// Sessions that ended before a route was found.
    pub unrouted: Arc<Stats>,
    /// `apisix_stream_connection_total`.
    pub connections: Series<ConnectionKey>,
    /// Labels added to it.
    pub connection_labels: Box<[ExtraLabel]>,
    /// `apisix_stream_status`.
    pub status: Series<StatusKey>,
    /// Labels added to it.
    pub status_labels: Box<[ExtraLabel]>,
    /// Sessions that a plugin refused. Here and not in [`Stats`], of which each of 100,000 routes
    /// has its own: few routes have such a plugin, and of those few refuse.
    pub refusals: Series<RefusalKey>,
    listens: Registry<(Transport, Arc<str>), ListenStats>,
    no_node: Arc<str>,
    /// How often series were forgotten.
    sweeps: AtomicU64,
}

impl Totals {
    /// Totals whose APISIX series carry these extra labels.
    #[must_use]
    pub fn new(connection_labels: Vec<ExtraLabel>, status_labels: Vec<ExtraLabel>) -> Self {
        Self {
            connection_labels: connection_labels.into(),
            status_labels: status_labels.into(),
            ..Self::default()
        }
    }

    /// The counters of a listen, which live as long as somebody holds them.
    #[must_use]
    pub fn listen(&self, transport: Transport, addr: Arc<str>, written: &Arc<str>) -> Arc<ListenStats> {
        let key = (transport, addr.clone());
        self.listens.entry(key, || ListenStats::new(addr, written.clone(), transport))
    }

    /// The listens, by address.
    #[must_use]
    pub fn listens(&self) -> Vec<Arc<ListenStats>> {
        let mut listens = self.listens.held();
        listens.sort_by(|a, b| (&a.addr, a.transport).cmp(&(&b.addr, b.transport)));
        listens
    }

    /// Counts an ending where no route does, a refusal by its plugin, and in the APISIX series where its route has them.
    pub fn record(&self, outcome: &Outcome, recent: &mut Recent) {
        if outcome.route.is_none() {
            self.unrouted.ended(outcome.end);
        }
        if let Some((denied, route)) = outcome.denied.zip(outcome.route.as_ref()) {
            self.refusals.count(&RefusalKey { route: route.clone(), plugin: denied.plugin });
        }
        let Some(route) = &outcome.apisix_label else { return };
        if self.connection_labels.is_empty() && self.status_labels.is_empty() {
            return self.record_plain(route, outcome, recent);
        }
        let extra = values(&self.connection_labels, outcome);
        count(&self.connections, |extra| ConnectionKey { route: route.clone(), extra }, extra);
        let status = |extra| StatusKey {
            code: outcome.apisix_code(),
            listen_addr: outcome.listen_addr.clone(),
            node: outcome.node.as_ref().unwrap_or(&self.no_node).clone(),
            extra,
        };
        count(&self.status, status, values(&self.status_labels, outcome));
    }

    /// Counts in series that have no extra labels.
    fn record_plain(&self, route: &Arc<str>, outcome: &Outcome, recent: &mut Recent) {
        let labels = Labels {
            route: route.clone(),
            listen_addr: outcome.listen_addr.clone(),
            node: outcome.node.as_ref().unwrap_or(&self.no_node).clone(),
            code: outcome.apisix_code(),
        };
        recent.count(&labels, self.sweeps.load(Relaxed), || {
            let Labels { route, listen_addr, node, code } = labels.clone();
            let connection = ConnectionKey { route, extra: Box::default() };
            let status = StatusKey { code, listen_addr, node, extra: Box::default() };
            Some([self.connections.counter(&connection)?, self.status.counter(&status)?])
        });
    }

    /// Forgets the series of routes and nodes that are loaded no more, so that configurations that
    /// come and go do not add up. `has_label` is asked for the labels of APISIX's series.
    pub fn sweep(
        &self,
        has_route: impl Fn(&str) -> bool,
        has_label: impl Fn(&str) -> bool,
        has_node: impl Fn(&str) -> bool,
    ) {
        self.refusals.retain(|key| has_route(&key.route));
        self.connections.retain(|key| has_label(&key.route));
        self.status.retain(|key| key.node.is_empty() || has_node(&key.node));
        // Afterwards: who looks a counter up in the middle looks again.
        self.sweeps.fetch_add(1, Relaxed);
        self.listens.sweep();
    }
}

fn values(labels: &[ExtraLabel], outcome: &Outcome) -> Box<[Box<str>]> {
    let value = |label: &ExtraLabel| {
        let name = label.variable.trim_start_matches('$');
        let mut text = outcome.inbound.variable(name).map(|value| value.to_string()).unwrap_or_default();
        text.truncate(text.floor_char_boundary(LONGEST_VALUE));
        text.into()
    };
    labels.iter().map(value).collect()
}

fn count<K: Clone + Eq + std::hash::Hash>(
    series: &Series<K>,
    key: impl Fn(Box<[Box<str>]>) -> K,
    extra: Box<[Box<str>]>,
) {
    let labels = extra.len();
    let wanted = key(extra);
    if labels > 0 && series.len() >= MAX_EXTRA_SERIES && !series.contains(&wanted) {
        series.count(&key((0..labels).map(|_| Box::default()).collect()));
    } else {
        series.count(&wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::{Course, Denied, End, Inbound, Traffic};

    fn outcome(end: End) -> Outcome {
        Outcome {
            inbound: Inbound::new(
                Transport::Tcp,
                "10.0.0.1:5000".parse().unwrap(),
                "10.0.0.2:9100".parse().unwrap(),
            ),
            listen: "9100".into(),
            listen_addr: "0.0.0.0:9100".into(),
            apisix_label: Some("r1".into()),
            denied: None,
            route: Some("r1".into()),
            upstream: None,
            node: None,
            end,
            detail: None,
            traffic: Traffic::default(),
            attempts: 0,
            connect: None,
            duration: Duration::ZERO,
            course: Course::default(),
        }
    }

    #[track_caller]
    fn check(totals: &Totals, connections: &[(&str, u64)], status: &[(&str, &str, u64)]) {
        let seen = totals.connections.read();
        assert_eq!(seen.iter().map(|(key, n)| (&*key.route, *n)).collect::<Vec<_>>(), connections);
        let seen = totals.status.read();
        assert_eq!(seen.iter().map(|(key, n)| (key.code, &*key.node, *n)).collect::<Vec<_>>(), status);
    }

    #[test]
    fn only_routes_with_the_plugin_count_in_the_apisix_series() {
        let totals = Totals::default();
        totals.record(&Outcome { apisix_label: None, ..outcome(End::ClientClosed) }, &mut Recent::default());
        check(&totals, &[], &[]);
        totals.record(
            &Outcome { node: Some("10.1.0.1:80".into()), ..outcome(End::ClientClosed) },
            &mut Recent::default(),
        );
        totals.record(&outcome(End::NoNode), &mut Recent::default());
        totals.record(
            &Outcome {
                denied: Some(Denied { plugin: "ip-restriction", code: 403 }),
                ..outcome(End::PluginDenied)
            },
            &mut Recent::default(),
        );
        totals.record(
            &Outcome {
                denied: Some(Denied { plugin: "ip-restriction", code: 429 }),
                ..outcome(End::PluginDenied)
            },
            &mut Recent::default(),
        );
        check(
            &totals,
            &[("r1", 4)],
            &[("001", "", 1), ("200", "10.1.0.1:80", 1), ("400", "", 1), ("403", "", 1)],
        );
    }

    #[test]
    fn sessions_without_a_route_are_counted_apart() {
        let totals = Totals::default();
        totals.record(&outcome(End::IdleTimeout), &mut Recent::default());
        totals.record(
            &Outcome { route: None, apisix_label: None, ..outcome(End::NoRoute) },
            &mut Recent::default(),
        );
        assert_eq!(totals.unrouted.ended_count(End::NoRoute), 1);
        assert_eq!(totals.unrouted.ended_count(End::IdleTimeout), 0);
    }

    #[test]
    fn extra_labels_show_variables_and_are_bounded() {
        let label = ExtraLabel { name: "client".into(), variable: "$remote_port".into() };
        let totals = Totals::new(vec![label], Vec::new());
        for port in 1..=u16::try_from(MAX_EXTRA_SERIES + 5).unwrap() {
            let mut outcome = outcome(End::ClientClosed);
            outcome.inbound.client.set_port(port);
            totals.record(&outcome, &mut Recent::default());
        }
        let seen = totals.connections.read();
        assert_eq!(seen.len(), MAX_EXTRA_SERIES + 1);
        assert_eq!((&*seen[0].0.extra[0], seen[0].1), ("", 5));
    }

    #[test]
    fn what_is_loaded_no_more_is_swept() {
        let totals = Totals::default();
        totals.record(
            &Outcome { node: Some("10.1.0.1:80".into()), ..outcome(End::ClientClosed) },
            &mut Recent::default(),
        );
        totals.record(&outcome(End::NoNode), &mut Recent::default());
        totals.record(&denied("r1"), &mut Recent::default());
        totals.sweep(|_| false, |_| false, |_| false);
        check(&totals, &[], &[("001", "", 1), ("403", "", 1)]);
        assert!(totals.refusals.is_empty());
    }

    fn denied(route: &str) -> Outcome {
        let denied = Some(Denied { plugin: "ip-restriction", code: 403 });
        Outcome { denied, route: Some(route.into()), ..outcome(End::PluginDenied) }
    }

    #[test]
    fn refusals_are_counted_by_route_and_plugin() {
        let totals = Totals::default();
        totals.record(&outcome(End::ConnectFailed), &mut Recent::default());
        assert!(totals.refusals.is_empty(), "no plugin refused it");
        for route in ["r1", "r2", "r1"] {
            totals.record(&Outcome { apisix_label: None, ..denied(route) }, &mut Recent::default());
        }
        let seen = totals.refusals.read();
        let seen: Vec<_> = seen.iter().map(|(key, count)| (&*key.route, key.plugin, *count)).collect();
        assert_eq!(seen, [("r1", "ip-restriction", 2), ("r2", "ip-restriction", 1)]);
    }

    #[test]
    fn listens_live_while_held() {
        let totals = Totals::default();
        let listen = totals.listen(Transport::Tcp, "0.0.0.0:9100".into(), &"9100".into());
        let guard = listen.enter();
        assert_eq!(totals.listens().iter().map(|listen| listen.active()).collect::<Vec<_>>(), [1]);
        drop((guard, listen));
        assert!(totals.listens().is_empty());
    }
}
