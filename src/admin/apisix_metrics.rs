//! APISIX's own stream series, with its names, labels, help texts and conditions, so that boards
//! and alerts made for it keep working. The facts are those of
//! `apisix/plugins/prometheus/exporter.lua` of 3.18 and of pages seen from one.
//!
//! A family without samples is not told at all, and one that has them is never folded. Families are
//! sorted by name.

use crate::admin::healthcheck;
use crate::admin::text::{self, Kind};
use crate::config::Prometheus;
use crate::live::listen_stats::{Bandwidth, ListenStats};
use crate::live::node_state::NodeState;
use crate::live::totals::{ExtraLabel, Totals};
use crate::snapshot::Snapshot;

/// What the series are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) totals: &'a Totals,
    pub(crate) state: &'a NodeState,
    pub(crate) hostname: &'a str,
    /// What keys of objects begin with.
    pub(crate) etcd_prefix: &'a str,
}

/// The extra labels that the configuration gives a metric, for [`Totals::new`].
#[must_use]
pub fn extra_labels(prometheus: Option<&Prometheus>, metric: &str) -> Vec<ExtraLabel> {
    let configured = prometheus.into_iter().flat_map(|prometheus| &prometheus.extra_labels);
    configured
        .filter(|extra| &*extra.metric == metric)
        .flat_map(|extra| &extra.labels)
        .map(|(name, variable)| ExtraLabel { name: name.clone(), variable: variable.clone() })
        .collect()
}

/// Appends the series; `prefix` is `metric_prefix`.
pub(crate) fn render(out: &mut String, prefix: &str, facts: Facts<'_>) {
    let mut page = Page { out, prefix };
    if facts.state.source == "etcd" {
        page.etcd(facts);
    }
    let node = text::labels(&[("hostname", facts.hostname), ("version", env!("CARGO_PKG_VERSION"))]);
    page.family("node_info", Kind::Gauge, "Info of APISIX node", [(node, 1)]);
    page.listens(&facts.totals.listens());
    page.sessions(facts.totals);
    page.upstreams(facts);
}

struct Page<'a> {
    out: &'a mut String,
    prefix: &'a str,
}

impl Page<'_> {
    fn family<N: std::fmt::Display>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (String, N)>,
    ) {
        let name = format!("{}{name}", self.prefix);
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        text::family(self.out, &name, kind, help);
        for (labels, value) in samples {
            text::sample(self.out, &name, &labels, value);
        }
    }

    fn etcd(&mut self, facts: Facts<'_>) {
        let status = &facts.state.status;
        let highest = status.modify_indexes().map(|(_, index)| index).max();
        let mut indexes =
            vec![("max_modify_index", highest.unwrap_or_default()), ("prev_index", facts.snapshot.revision)];
        indexes.extend(status.modify_indexes());
        indexes.push(("x_etcd_index", facts.state.source_revision()));
        // Its library sorts all samples.
        indexes.sort_unstable();
        let samples = indexes.into_iter().map(|(key, index)| (text::labels(&[("key", key)]), index));
        self.family("etcd_modify_indexes", Kind::Gauge, "Etcd modify index for APISIX keys", samples);
        self.family(
            "etcd_reachable",
            Kind::Gauge,
            "Config server etcd reachable from APISIX, 0 is unreachable",
            [(String::new(), u8::from(facts.state.reachable()))],
        );
    }

    /// A TCP and a UDP listen on one address are one `listen_addr`.
    fn listens(&mut self, listens: &[std::sync::Arc<ListenStats>]) {
        let mut sums: Vec<(&str, u64, Bandwidth)> = Vec::new();
        for listen in listens {
            let (active, moved) = (listen.active(), listen.bandwidth());
            match sums.last_mut() {
                Some((addr, sum, bandwidth)) if **addr == *listen.addr => {
                    *sum += active;
                    *bandwidth = added(*bandwidth, moved);
                }
                _ => sums.push((&listen.addr, active, moved)),
            }
        }
        self.family(
            "stream_active_connections",
            Kind::Gauge,
            "Number of stream sessions currently being proxied per listening address",
            sums.iter().map(|(addr, active, _)| (text::labels(&[("listen_addr", addr)]), *active)),
        );
        let bandwidth = sums.iter().flat_map(|(addr, _, bandwidth)| {
            directions(*bandwidth).map(|(kind, side, bytes)| {
                (text::labels(&[("listen_addr", addr), ("type", kind), ("side", side)]), bytes)
            })
        });
        self.family(
            "stream_bandwidth",
            Kind::Counter,
            "Total bandwidth in bytes proxied by the stream subsystem in APISIX",
            // As there: a direction that has moved nothing has no line.
            bandwidth.filter(|(_, bytes)| *bytes > 0),
        );
    }

    fn sessions(&mut self, totals: &Totals) {
        let with = |pairs: &[(&str, &str)], names: &[ExtraLabel], values: &[Box<str>]| {
            let mut labels = text::labels(pairs);
            for (extra, value) in names.iter().zip(values) {
                text::label(&mut labels, &extra.name, value);
            }
            labels
        };
        self.family(
            "stream_connection_total",
            Kind::Counter,
            "Total number of connections handled per stream route in APISIX",
            totals.connections.read().into_iter().map(|(key, count)| {
                (with(&[("route", &key.route)], &totals.connection_labels, &key.extra), count)
            }),
        );
        self.family(
            "stream_status",
            Kind::Counter,
            "Stream sessions per termination status in APISIX",
            totals.status.read().into_iter().map(|(key, count)| {
                let pairs = [("code", key.code), ("listen_addr", &*key.listen_addr), ("node", &*key.node)];
                (with(&pairs, &totals.status_labels, &key.extra), count)
            }),
        );
    }

    /// What health checks say of each node.
    fn upstreams(&mut self, facts: Facts<'_>) {
        let entries = healthcheck::entries(facts.snapshot);
        let samples = entries.iter().flat_map(|entry| {
            let name = format!("{}/{}", facts.etcd_prefix, entry.key());
            entry.checked.targets.iter().map(move |target| {
                let (ip, port) = (target.addr.ip().to_string(), target.addr.port().to_string());
                let labels = text::labels(&[("name", &name), ("ip", &ip), ("port", &port)]);
                (labels, u8::from(target.cell.is_usable()))
            })
        });
        self.family("upstream_status", Kind::Gauge, "Upstream status from health check", samples);
    }
}

fn added(one: Bandwidth, other: Bandwidth) -> Bandwidth {
    Bandwidth {
        received: one.received + other.received,
        sent: one.sent + other.sent,
        upstream_received: one.upstream_received + other.upstream_received,
        upstream_sent: one.upstream_sent + other.upstream_sent,
    }
}

/// `type` and `side` of each direction: ingress is what the gateway reads, downstream the client.
fn directions(bandwidth: Bandwidth) -> [(&'static str, &'static str, u64); 4] {
    [
        ("egress", "downstream", bandwidth.sent),
        ("egress", "upstream", bandwidth.upstream_sent),
        ("ingress", "downstream", bandwidth.received),
        ("ingress", "upstream", bandwidth.upstream_received),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::sync::Arc;

    use super::*;
    use crate::admin::control_api::tests::checked;
    use crate::config::ExtraLabels;
    use crate::live::recent::Recent;
    use crate::live::source_status::SourceStatus;
    use crate::session::{Course, Denied, End, Inbound, Outcome, Traffic, Transport};

    fn outcome(listen_addr: &str, node: Option<&str>, end: End) -> Outcome {
        Outcome {
            inbound: Inbound::new(
                Transport::Tcp,
                "10.0.0.1:5000".parse().unwrap(),
                "10.0.0.2:9100".parse().unwrap(),
            ),
            listen: "9100".into(),
            listen_addr: listen_addr.into(),
            apisix_label: Some("my-route".into()),
            denied: None,
            route: Some("r1".into()),
            upstream: None,
            node: node.map(Into::into),
            end,
            detail: None,
            traffic: Traffic::default(),
            attempts: 1,
            connect: None,
            duration: Duration::ZERO,
            course: Course::default(),
        }
    }

    fn facts<'a>(snapshot: &'a Snapshot, totals: &'a Totals, state: &'a NodeState) -> Facts<'a> {
        Facts { snapshot, totals, state, hostname: "vm", etcd_prefix: "/apisix" }
    }

    #[track_caller]
    fn check(prefix: &str, totals: &Totals, state: &NodeState, expected: &str) {
        let mut out = String::new();
        render(&mut out, prefix, facts(&Snapshot::default(), totals, state));
        assert_eq!(out, expected.replace("VERSION", env!("CARGO_PKG_VERSION")));
    }

    const NODE_INFO: &str = "\
# HELP apisix_node_info Info of APISIX node
# TYPE apisix_node_info gauge
apisix_node_info{hostname=\"vm\",version=\"VERSION\"} 1
";

    fn state(source: &'static str) -> NodeState {
        let status = SourceStatus::new(tokio::time::Instant::now().into_std());
        NodeState::new(source, 0, Arc::new(status))
    }

    #[test]
    fn families_without_samples_are_not_told() {
        check("apisix_", &Totals::default(), &state("file"), NODE_INFO);
    }

    #[test]
    fn etcd_has_its_own_families() {
        let state = state("etcd");
        state.status.contact(tokio::time::Instant::now().into_std());
        state.status.see(5360);
        state.status.modify("stream_routes", 5300);
        let etcd = "\
# HELP apisix_etcd_modify_indexes Etcd modify index for APISIX keys
# TYPE apisix_etcd_modify_indexes gauge
apisix_etcd_modify_indexes{key=\"consumers\"} 0
apisix_etcd_modify_indexes{key=\"global_rules\"} 0
apisix_etcd_modify_indexes{key=\"max_modify_index\"} 5300
apisix_etcd_modify_indexes{key=\"prev_index\"} 0
apisix_etcd_modify_indexes{key=\"protos\"} 0
apisix_etcd_modify_indexes{key=\"routes\"} 0
apisix_etcd_modify_indexes{key=\"services\"} 0
apisix_etcd_modify_indexes{key=\"ssls\"} 0
apisix_etcd_modify_indexes{key=\"stream_routes\"} 5300
apisix_etcd_modify_indexes{key=\"upstreams\"} 0
apisix_etcd_modify_indexes{key=\"x_etcd_index\"} 5360
# HELP apisix_etcd_reachable Config server etcd reachable from APISIX, 0 is unreachable
# TYPE apisix_etcd_reachable gauge
apisix_etcd_reachable 1
";
        check("apisix_", &Totals::default(), &state, &format!("{etcd}{NODE_INFO}"));
    }

    #[test]
    fn sessions_and_listens_read_as_in_apisix() {
        let totals = Totals::default();
        let tcp = totals.listen(Transport::Tcp, "127.0.0.1:19100".into(), &"127.0.0.1:19100".into());
        let udp = totals.listen(Transport::Udp, "127.0.0.1:19100".into(), &"127.0.0.1:19100".into());
        let _sessions = (tcp.enter(), udp.enter());
        tcp.add_received(398);
        udp.add_received(2);
        tcp.add_upstream_sent(398);
        totals.record(
            &outcome("127.0.0.1:19100", Some("127.0.0.1:19301"), End::ClientClosed),
            &mut Recent::default(),
        );
        totals.record(
            &outcome("127.0.0.1:19100", Some("127.0.0.1:19301"), End::UpstreamClosed),
            &mut Recent::default(),
        );
        totals.record(
            &outcome("127.0.0.1:19103", Some("127.0.0.1:19399"), End::ConnectFailed),
            &mut Recent::default(),
        );
        totals.record(
            &Outcome {
                denied: Some(Denied { plugin: "ip-restriction", code: 403 }),
                ..outcome("127.0.0.1:19104", None, End::PluginDenied)
            },
            &mut Recent::default(),
        );
        let stream = "\
# HELP apisix_stream_active_connections Number of stream sessions currently being proxied per listening address
# TYPE apisix_stream_active_connections gauge
apisix_stream_active_connections{listen_addr=\"127.0.0.1:19100\"} 2
# HELP apisix_stream_bandwidth Total bandwidth in bytes proxied by the stream subsystem in APISIX
# TYPE apisix_stream_bandwidth counter
apisix_stream_bandwidth{listen_addr=\"127.0.0.1:19100\",type=\"egress\",side=\"upstream\"} 398
apisix_stream_bandwidth{listen_addr=\"127.0.0.1:19100\",type=\"ingress\",side=\"downstream\"} 400
# HELP apisix_stream_connection_total Total number of connections handled per stream route in APISIX
# TYPE apisix_stream_connection_total counter
apisix_stream_connection_total{route=\"my-route\"} 4
# HELP apisix_stream_status Stream sessions per termination status in APISIX
# TYPE apisix_stream_status counter
apisix_stream_status{code=\"200\",listen_addr=\"127.0.0.1:19100\",node=\"127.0.0.1:19301\"} 2
apisix_stream_status{code=\"403\",listen_addr=\"127.0.0.1:19104\",node=\"\"} 1
apisix_stream_status{code=\"502\",listen_addr=\"127.0.0.1:19103\",node=\"127.0.0.1:19399\"} 1
";
        check("apisix_", &totals, &state("file"), &format!("{NODE_INFO}{stream}"));
    }

    #[test]
    fn nodes_with_checks_read_as_in_apisix() {
        let mut out = String::new();
        render(&mut out, "apisix_", facts(&checked(1), &Totals::default(), &state("file")));
        let upstreams = "\
# HELP apisix_upstream_status Upstream status from health check
# TYPE apisix_upstream_status gauge
apisix_upstream_status{name=\"/apisix/stream_routes/2\",ip=\"127.0.0.1\",port=\"3\"} 1
apisix_upstream_status{name=\"/apisix/upstreams/h1\",ip=\"127.0.0.1\",port=\"1\"} 1
apisix_upstream_status{name=\"/apisix/upstreams/h1\",ip=\"127.0.0.1\",port=\"2\"} 0
";
        assert!(out.ends_with(upstreams), "{out}");
    }

    #[test]
    fn prefix_and_extra_labels_are_those_of_the_configuration() {
        let prometheus = Prometheus {
            addr: "127.0.0.1:0".parse().unwrap(),
            uri: "/metrics".into(),
            prefix: "gw_".into(),
            extra_labels: vec![ExtraLabels {
                metric: "stream_connection_total".into(),
                labels: vec![("client".into(), "$remote_addr".into())],
            }],
            max_series: 1000,
        };
        let labels = |metric| extra_labels(Some(&prometheus), metric);
        let totals = Totals::new(labels("stream_connection_total"), labels("stream_status"));
        totals.record(&outcome("0.0.0.0:1", None, End::ClientClosed), &mut Recent::default());
        let mut out = String::new();
        let state = state("file");
        render(&mut out, &prometheus.prefix, facts(&Snapshot::default(), &totals, &state));
        assert!(
            out.contains("gw_stream_connection_total{route=\"my-route\",client=\"10.0.0.1\"} 1\n"),
            "{out}"
        );
        assert!(
            out.contains("gw_stream_status{code=\"200\",listen_addr=\"0.0.0.0:1\",node=\"\"} 1\n"),
            "{out}"
        );
        assert!(!out.contains("apisix_"), "{out}");
    }
}
