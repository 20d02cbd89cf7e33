//! The statistics of routes and of the nodes of upstreams, made from the present snapshot.
//!
//! Every series of a loaded route exists, at 0 too; those of a deleted one are gone with it. The
//! number of lines is capped: routes, and nodes, are shown in their order until their share of the
//! cap is used up, what is left is summed under the label `_overflow`. Routes and nodes have half
//! of the cap each and may use what the other leaves.
//!
//! Sessions that ended before a route was found are under `route=""`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::admin::text::{self, Kind};
use crate::balance::{Pool, PoolNode};
use crate::live::{Histogram, Stats};
use crate::session::{ConnectFailure, End};
use crate::snapshot::Route;

/// The label of what did not fit below the cap.
const OVERFLOW: &str = "_overflow";

/// Lines of a histogram: ten bounds, `+Inf`, sum and count.
const HISTOGRAM_LINES: usize = 13;

/// The lines of one label set, which may sum several statistics.
struct Row<'a> {
    labels: String,
    stats: Vec<&'a Stats>,
}

/// What the lines of a kind of row are named, and which there are.
struct Shape {
    connections: Family,
    active: Family,
    /// What `active` shows.
    living: fn(&Stats) -> u64,
    bytes: Family,
    connect: Family,
    duration: Option<Family>,
    /// Endings that can happen there. Others are shown only where they have been counted.
    possible: fn(End) -> bool,
}

struct Family {
    name: &'static str,
    help: &'static str,
}

const ROUTES: Shape = Shape {
    connections: Family {
        name: "streamgate_connections_total",
        help: "Sessions that ended, by stream_route, reason and whose doing it was",
    },
    active: Family { name: "streamgate_active_connections", help: "Sessions that live, by stream_route" },
    living: Stats::active,
    bytes: Family {
        name: "streamgate_bytes_total",
        help: "Bytes received from clients and sent to them, counted while sessions live",
    },
    connect: Family { name: "streamgate_connect_seconds", help: "Time to connect to a node" },
    duration: Some(Family { name: "streamgate_session_seconds", help: "Time from accept to close" }),
    possible: on_route,
};

const NODES: Shape = Shape {
    connections: Family {
        name: "streamgate_node_connections_total",
        help: "Sessions and attempts that ended at a node, by reason and whose doing it was",
    },
    active: Family { name: "streamgate_node_active_connections", help: "Sessions that live, by node" },
    living: Stats::in_flight,
    bytes: Family {
        name: "streamgate_node_bytes_total",
        help: "Bytes received from clients for a node and sent to them from it",
    },
    connect: Family { name: "streamgate_node_connect_seconds", help: "Time to connect, by node" },
    duration: None,
    possible: on_node,
};

const CONNECT_FAILURES: Family = Family {
    name: "streamgate_connect_failures_total",
    help: "Attempts to reach a node that failed, by reason",
};

/// Appends the families of routes and nodes, in at most about `max_lines` samples.
pub(crate) fn render<'a>(
    out: &mut String,
    unrouted: &Stats,
    routes: impl Iterator<Item = &'a Arc<Route>>,
    pools: impl Iterator<Item = &'a Arc<Pool>>,
    max_lines: usize,
) {
    let (routes, nodes): (Vec<_>, Vec<_>) = (routes.collect(), pools.flat_map(distinct_nodes).collect());
    let needed = |rows: usize, shape: &Shape| rows * shape.lines();
    let for_nodes = needed(nodes.len(), &NODES).min(max_lines / 2);
    let for_routes = needed(routes.len(), &ROUTES).min(max_lines - for_nodes);
    let routes = route_rows(&routes, for_routes / ROUTES.lines());
    let nodes = node_rows(&nodes, (max_lines - for_routes) / NODES.lines());
    let unlikely = |end| on_route(end) || end == End::NodeDown;
    let before = End::ALL.iter().copied().filter(|end| !unlikely(*end) || unrouted.ended_count(*end) > 0);
    ROUTES.render(out, &routes, |out| {
        for end in before {
            end_line(
                out,
                ROUTES.connections.name,
                &text::labels(&[("route", "")]),
                end,
                unrouted.ended_count(end),
            );
        }
    });
    NODES.render(out, &nodes, |_| {});
    connect_failures(out, &nodes);
}

/// Failed attempts by node; of most nodes there are none to show.
fn connect_failures(out: &mut String, nodes: &[Row<'_>]) {
    begin(out, &CONNECT_FAILURES, Kind::Counter);
    for row in nodes {
        for failure in ConnectFailure::ALL {
            let count = row.sum(|stats| stats.failed_count(failure));
            if count > 0 {
                let (name, labels, reason) = (CONNECT_FAILURES.name, &row.labels, failure.label());
                let _ = writeln!(out, "{name}{{{labels},reason=\"{reason}\"}} {count}");
            }
        }
    }
}

/// Endings of sessions whose route is known; that a node went down is shown where it happened.
fn on_route(end: End) -> bool {
    !matches!(
        end,
        End::NoRoute
            | End::TlsNoSni
            | End::TlsNoCertificate
            | End::TlsFailed
            | End::ProxyHeader
            | End::Limit
            | End::NodeDown
    )
}

/// Endings of sessions whose node is known.
fn on_node(end: End) -> bool {
    matches!(
        end,
        End::ClientClosed
            | End::UpstreamClosed
            | End::ClientReset
            | End::UpstreamReset
            | End::IdleTimeout
            | End::HalfClosedTimeout
            | End::ConnectFailed
            | End::RetryDeadline
            | End::Drained
            | End::Internal
    )
}

fn route_rows<'a>(routes: &[&'a Arc<Route>], fitting: usize) -> Vec<Row<'a>> {
    let (shown, rest) = routes.split_at(shown(routes.len(), fitting));
    let mut rows: Vec<_> = shown
        .iter()
        .map(|route| Row { labels: text::labels(&[("route", &route.id)]), stats: vec![&*route.stats] })
        .collect();
    overflow(&mut rows, &[("route", OVERFLOW)], rest.iter().map(|route| &*route.stats).collect());
    rows
}

/// One row a node. An upstream may list an address twice: their sum is one row, since a page with
/// the same series twice is refused whole by Prometheus.
fn node_rows<'a>(nodes: &[(&'a Pool, &'a PoolNode)], fitting: usize) -> Vec<Row<'a>> {
    let (shown, rest) = nodes.split_at(shown(nodes.len(), fitting));
    let mut rows: Vec<Row<'a>> = Vec::with_capacity(shown.len() + 1);
    let mut places: HashMap<(&str, &str), usize> = HashMap::new();
    for (pool, node) in shown {
        let place = *places.entry((&*pool.id, &*node.label)).or_insert(rows.len());
        if let Some(row) = rows.get_mut(place) {
            row.stats.push(&node.stats);
        } else {
            let labels = text::labels(&[("upstream", &pool.id), ("node", &node.label)]);
            rows.push(Row { labels, stats: vec![&node.stats] });
        }
    }
    let rest = rest.iter().map(|(_, node)| &*node.stats).collect();
    overflow(&mut rows, &[("upstream", OVERFLOW), ("node", OVERFLOW)], rest);
    rows
}

/// The nodes of a pool, those once that share their statistics.
fn distinct_nodes(pool: &Arc<Pool>) -> impl Iterator<Item = (&Pool, &PoolNode)> {
    let nodes = pool.nodes();
    let is_first = |(place, node): &(usize, &PoolNode)| {
        !nodes[..*place].iter().any(|earlier| Arc::ptr_eq(&earlier.stats, &node.stats))
    };
    nodes.iter().enumerate().filter(is_first).map(|(_, node)| (&**pool, node))
}

/// How many of `count` rows are shown one by one where `fitting` rows fit.
fn shown(count: usize, fitting: usize) -> usize {
    if count <= fitting { count } else { fitting.saturating_sub(1) }
}

/// Adds the row that sums `rest`, where there is any. Only now: the labels of 100,000 rows that
/// nobody will see took more memory than the page.
fn overflow<'a>(rows: &mut Vec<Row<'a>>, labels: &[(&str, &str)], rest: Vec<&'a Stats>) {
    if !rest.is_empty() {
        rows.push(Row { labels: text::labels(labels), stats: rest });
    }
}

impl Shape {
    /// Samples of one row: endings, active, two of bytes, histograms.
    fn lines(&self) -> usize {
        let ends = End::ALL.iter().filter(|end| (self.possible)(**end)).count();
        let histograms = 1 + usize::from(self.duration.is_some());
        ends + 3 + histograms * HISTOGRAM_LINES
    }

    fn render(&self, out: &mut String, rows: &[Row<'_>], more_endings: impl FnOnce(&mut String)) {
        begin(out, &self.connections, Kind::Counter);
        for row in rows {
            for end in End::ALL {
                let ended = row.sum(|stats| stats.ended_count(*end));
                if ended > 0 || (self.possible)(*end) {
                    end_line(out, self.connections.name, &row.labels, *end, ended);
                }
            }
        }
        more_endings(out);
        begin(out, &self.active, Kind::Gauge);
        for row in rows {
            text::sample(out, self.active.name, &row.labels, row.sum(self.living));
        }
        begin(out, &self.bytes, Kind::Counter);
        for row in rows {
            let (name, labels) = (self.bytes.name, &row.labels);
            let (received, sent) = (row.sum(|stats| stats.bytes().0), row.sum(|stats| stats.bytes().1));
            // As in `sample`: writing to a String cannot fail.
            let _ = writeln!(out, "{name}{{{labels},direction=\"received\"}} {received}");
            let _ = writeln!(out, "{name}{{{labels},direction=\"sent\"}} {sent}");
        }
        histograms(out, &self.connect, rows, |stats| &stats.connect);
        if let Some(duration) = &self.duration {
            histograms(out, duration, rows, |stats| &stats.duration);
        }
    }
}

impl Row<'_> {
    fn sum(&self, value: impl Fn(&Stats) -> u64) -> u64 {
        self.stats.iter().fold(0, |sum, stats| sum.wrapping_add(value(stats)))
    }
}

fn begin(out: &mut String, family: &Family, kind: Kind) {
    text::family(out, family.name, kind, family.help);
}

fn end_line(out: &mut String, name: &str, labels: &str, end: End, value: u64) {
    let (reason, side) = (end.label(), end.side().label());
    let _ = writeln!(out, "{name}{{{labels},end=\"{reason}\",side=\"{side}\"}} {value}");
}

fn histograms(
    out: &mut String,
    family: &Family,
    rows: &[Row<'_>],
    of: impl for<'s> Fn(&'s Stats) -> &'s Histogram,
) {
    begin(out, family, Kind::Histogram);
    for row in rows {
        let Some(first) = row.stats.first() else { continue };
        let (mut counts, mut sum) = ([0_u64; 11], 0.0);
        for stats in &row.stats {
            let (more, seconds) = of(stats).read();
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
            sum += seconds;
        }
        histogram(out, (family.name, &row.labels), of(first).bounds(), (&counts, sum));
    }
}

fn histogram(
    out: &mut String,
    (name, labels): (&str, &str),
    bounds: &[f64; 10],
    (counts, sum): (&[u64; 11], f64),
) {
    let mut below = 0;
    for (bound, count) in bounds.iter().zip(counts) {
        below += count;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
    }
    let all: u64 = counts.iter().sum();
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {all}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::balance::PoolSettings;
    use crate::plugin::Plugins;
    use crate::resource::{Balancer, Timeouts};
    use crate::snapshot::Target;

    fn route(id: &str) -> Arc<Route> {
        Arc::new(Route {
            id: id.into(),
            revision: 1,
            name: None,
            service: None,
            service_name: None,
            stats: Arc::default(),
            target: Target::Nothing,
            plugins: Plugins::default(),
            tls_passthrough: false,
            degraded: Arc::default(),
        })
    }

    fn pool(id: &str, nodes: &[(&str, &Arc<Stats>)]) -> Arc<Pool> {
        let settings = PoolSettings {
            timeouts: Timeouts::default(),
            attempts: 1,
            retry_timeout: None,
            unfit: None,
            pending: false,
            close_on_down: 0,
        };
        let node = |(label, stats): &(&str, &Arc<Stats>)| PoolNode {
            addr: label.parse().unwrap(),
            label: (*label).into(),
            weight: 1,
            priority: 0,
            stats: Arc::clone(stats),
            tls: None,
            health: None,
            leash: None,
        };
        let nodes = nodes.iter().map(node).collect();
        Arc::new(Pool::new(id.into(), &Balancer::RoundRobin, settings, nodes, 0))
    }

    fn page(routes: &[Arc<Route>], pools: &[Arc<Pool>], max_lines: usize) -> String {
        let mut out = String::new();
        render(&mut out, &Stats::default(), routes.iter(), pools.iter(), max_lines);
        out
    }

    fn samples(page: &str) -> impl Iterator<Item = &str> {
        page.lines().filter(|line| !line.starts_with('#'))
    }

    #[track_caller]
    fn check(page: &str, line: &str) {
        assert_eq!(page.lines().filter(|present| *present == line).count(), 1, "`{line}` in\n{page}");
    }

    #[test]
    fn numbers_of_a_route_are_shown() {
        let route = route("r1");
        route.stats.ended(End::ClientClosed);
        route.stats.ended(End::ConnectFailed);
        route.stats.add_received(10);
        route.stats.add_sent(20);
        route.stats.connect.record(Duration::from_millis(3));
        route.stats.duration.record(Duration::from_secs(2));
        let _live = route.stats.enter();
        let page = page(&[route], &[], 1000);
        check(&page, r#"streamgate_connections_total{route="r1",end="client_closed",side="client"} 1"#);
        check(&page, r#"streamgate_connections_total{route="r1",end="connect_failed",side="upstream"} 1"#);
        check(&page, r#"streamgate_active_connections{route="r1"} 1"#);
        check(&page, r#"streamgate_bytes_total{route="r1",direction="received"} 10"#);
        check(&page, r#"streamgate_bytes_total{route="r1",direction="sent"} 20"#);
        check(&page, r#"streamgate_connect_seconds_bucket{route="r1",le="0.002"} 0"#);
        check(&page, r#"streamgate_connect_seconds_bucket{route="r1",le="0.005"} 1"#);
        check(&page, r#"streamgate_connect_seconds_bucket{route="r1",le="+Inf"} 1"#);
        check(&page, r#"streamgate_connect_seconds_sum{route="r1"} 0.003"#);
        check(&page, r#"streamgate_session_seconds_count{route="r1"} 1"#);
    }

    #[test]
    fn every_series_of_a_loaded_route_and_node_is_there_at_0() {
        let stats = Arc::default();
        let page = page(&[route("r1")], &[pool("u1", &[("10.0.0.1:80", &stats)])], 1000);
        check(&page, r#"streamgate_connections_total{route="r1",end="no_node",side="gateway"} 0"#);
        check(&page, r#"streamgate_connections_total{route="",end="no_route",side="gateway"} 0"#);
        check(
            &page,
            r#"streamgate_node_connections_total{upstream="u1",node="10.0.0.1:80",end="connect_failed",side="upstream"} 0"#,
        );
        check(&page, r#"streamgate_node_connect_seconds_count{upstream="u1",node="10.0.0.1:80"} 0"#);
        let of_route = samples(&page).filter(|line| line.contains(r#"route="r1""#)).count();
        assert_eq!(of_route, ROUTES.lines());
        let of_node = samples(&page).filter(|line| line.contains(r#"node="10.0.0.1:80""#)).count();
        assert_eq!(of_node, NODES.lines());
    }

    #[test]
    fn a_deleted_route_has_no_series() {
        let (kept, gone) = (route("kept"), route("gone"));
        assert!(page(&[kept.clone(), gone], &[], 1000).contains("gone"));
        assert!(!page(&[kept], &[], 1000).contains("gone"));
    }

    #[test]
    fn each_family_is_told_once_and_stays_together() {
        let stats = Arc::default();
        let page = page(&[route("a"), route("b")], &[pool("u", &[("10.0.0.1:80", &stats)])], 1000);
        let mut current = "";
        let mut seen = Vec::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap();
                assert!(!seen.contains(&current), "{current} twice");
                seen.push(current);
            } else if !line.starts_with('#') {
                assert!(line.starts_with(current), "{line} under {current}");
            }
        }
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn beyond_the_cap_routes_are_summed() {
        let routes: Vec<_> = (0..10).map(|i| route(&format!("r{i}"))).collect();
        for route in &routes {
            route.stats.ended(End::UpstreamClosed);
            route.stats.duration.record(Duration::from_secs(1));
        }
        let cap = 4 * ROUTES.lines();
        let page = page(&routes, &[], cap);
        check(&page, r#"streamgate_connections_total{route="r2",end="upstream_closed",side="upstream"} 1"#);
        check(
            &page,
            r#"streamgate_connections_total{route="_overflow",end="upstream_closed",side="upstream"} 7"#,
        );
        check(&page, r#"streamgate_session_seconds_sum{route="_overflow"} 7"#);
        assert!(!page.contains(r#""r3""#));
        let of_routes = samples(&page).filter(|line| !line.contains(r#"route="""#)).count();
        assert_eq!(of_routes, cap);
    }

    #[test]
    fn routes_and_nodes_share_the_cap() {
        let stats = Arc::default();
        let routes: Vec<_> = (0..100).map(|i| route(&format!("r{i}"))).collect();
        let pools: Vec<_> = (0..100).map(|i| pool(&format!("u{i}"), &[("10.0.0.1:80", &stats)])).collect();
        let page = page(&routes, &pools, 1000);
        let routes = samples(&page).filter(|line| line.contains("route=\"r")).count() / ROUTES.lines();
        let nodes = samples(&page).filter(|line| line.contains("upstream=\"u")).count() / NODES.lines();
        assert!(routes >= 8 && nodes >= 17, "{routes} routes and {nodes} nodes");
        assert!(samples(&page).count() <= 1010);
        check(&page, r#"streamgate_node_active_connections{upstream="_overflow",node="_overflow"} 0"#);
    }

    #[test]
    fn a_node_listed_twice_is_one_series() {
        let (one, other) = (Arc::new(Stats::default()), Arc::new(Stats::default()));
        one.add_sent(1);
        other.add_sent(2);
        let nodes = [("10.0.0.1:80", &one), ("10.0.0.1:80", &other), ("10.0.0.1:80", &one)];
        let page = page(&[], &[pool("u1", &nodes)], 1000);
        check(&page, r#"streamgate_node_bytes_total{upstream="u1",node="10.0.0.1:80",direction="sent"} 3"#);
    }

    #[test]
    fn labels_are_escaped() {
        let page = page(&[route("a\"b\\")], &[], 1000);
        check(&page, r#"streamgate_active_connections{route="a\"b\\"} 0"#);
    }

    #[test]
    fn an_ending_before_the_route_is_counted_without_one() {
        let unrouted = Stats::default();
        unrouted.ended(End::TlsFailed);
        let mut out = String::new();
        render(&mut out, &unrouted, [].iter(), [].iter(), 1000);
        check(&out, r#"streamgate_connections_total{route="",end="tls_failed",side="client"} 1"#);
    }
}
