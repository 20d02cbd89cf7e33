//! What a node counts about itself, declared in one list over the `metrics` facade.
//!
//! The recorder is a value, never installed in the process: two nodes in one test do not mix. Every
//! handle is made once and kept, so counting is one atomic. Statistics of routes and nodes are not
//! here (`crate::live`): the exporter behind this page cannot delete a series.
//!
//! The exporter keeps each sample of a histogram until somebody drains it: [`Metrics::upkeep`] has
//! to be called every few seconds, or memory grows while nothing scrapes.

use std::fmt::Write as _;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Upper bounds of the build-time histogram, in seconds.
const BUILD_BUCKETS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// How a metric is written down in the list.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// The full name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What is measured; `Count` for pieces.
    pub unit: Unit,
    /// Its HELP line.
    pub help: &'static str,
}

/// A gauge for each kind of object.
#[derive(Clone, Debug)]
pub struct ByKind(Vec<(&'static str, Gauge)>);

impl ByKind {
    /// Sets the gauge of one kind; one that was not declared is ignored.
    pub fn set(&self, kind: &str, value: usize) {
        if let Some((_, gauge)) = self.0.iter().find(|(known, _)| *known == kind) {
            gauge.set(count(value));
        }
    }
}

/// Declares the handles, and the list that describes them.
macro_rules! metrics {
    ($($field:ident: $handle:ident = ($name:literal, $unit:ident, $help:literal),)*) => {
        /// The handles of a node's metrics. Cloning shares them.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $handle,)*
            page: PrometheusHandle,
        }

        /// Every metric of the list.
        pub const DECLARED: &[Declared] = &[$(Declared {
            name: $name,
            kind: <$handle as Handle>::KIND,
            unit: Unit::$unit,
            help: $help,
        },)*];

        impl Metrics {
            fn declare(recorder: &PrometheusRecorder, kinds: &[&'static str]) -> Self {
                Self {
                    $($field: {
                        <$handle as Handle>::describe(recorder, $name, Unit::$unit, $help);
                        <$handle as Handle>::register(recorder, $name, kinds)
                    },)*
                    page: recorder.handle(),
                }
            }
        }
    };
}

metrics! {
    config_revision: Gauge = ("streamgate_config_revision", Count,
        "Revision of the configuration that routes sessions"),
    source_revision: Gauge = ("streamgate_source_revision", Count,
        "Newest revision the source of objects told of"),
    last_event_age: Gauge = ("streamgate_last_event_age_seconds", Seconds,
        "Time since a change of objects was applied, or since the start"),
    last_contact_age: Gauge = ("streamgate_last_contact_age_seconds", Seconds,
        "Time since the source of objects answered, or since the start"),
    source_up: Gauge = ("streamgate_source_up", Count,
        "1 while the source of objects answers"),
    ready: Gauge = ("streamgate_ready", Count,
        "1 from the first applied state on"),
    held_read: Gauge = ("streamgate_full_read_held", Count,
        "1 while a full read that would remove most routes is held back"),
    snapshot_build: Histogram = ("streamgate_snapshot_build_seconds", Seconds,
        "Time to build a snapshot"),
    snapshot_build_last: Gauge = ("streamgate_snapshot_build_last_seconds", Seconds,
        "Time the present snapshot took to build"),
    publishes: Counter = ("streamgate_snapshots_published_total", Count,
        "Snapshots that began to route sessions"),
    loaded_objects: ByKind = ("streamgate_loaded_objects", Count,
        "Objects that serve, by kind"),
    rejected_objects: ByKind = ("streamgate_rejected_objects", Count,
        "Objects whose present version is refused, by kind"),
    degraded_routes: Gauge = ("streamgate_degraded_routes", Count,
        "Routes that are served only in part"),
    etcd_reconnects: Counter = ("streamgate_etcd_reconnects_total", Count,
        "Times the watch was set up again after it broke"),
    discovery_failing: Gauge = ("streamgate_discovery_failing", Count,
        "Services of registries that could not be asked for the last time"),
    accept_errors: Counter = ("streamgate_accept_errors_total", Count,
        "Failed accepts, such as for want of descriptors"),
    steered: Counter = ("streamgate_connections_steered_total", Count,
        "Connections that a worker passed on to one with fewer sessions"),
    bulk_flows: Counter = ("streamgate_bulk_flows_total", Count,
        "Times a direction of a session began to be spliced instead of copied"),
    pipes_refused: Counter = ("streamgate_pipes_refused_total", Count,
        "Times a bulk flow was copied because there was no pipe for splice"),
    sessions_active: Gauge = ("streamgate_tcp_sessions", Count,
        "TCP sessions that live"),
    sessions_limit: Gauge = ("streamgate_tcp_sessions_limit", Count,
        "TCP sessions that may live at once"),
    session_limit_hits: Counter = ("streamgate_session_limit_hits_total", Count,
        "Connections refused because of that limit"),
    udp_associations: Gauge = ("streamgate_udp_associations", Count,
        "UDP associations that live"),
    udp_associations_limit: Gauge = ("streamgate_udp_associations_limit", Count,
        "UDP associations that may live at once"),
    udp_evictions: Counter = ("streamgate_udp_evictions_total", Count,
        "UDP associations ended early to make room for new ones"),
    udp_dropped: Counter = ("streamgate_udp_datagrams_dropped_total", Count,
        "Datagrams the system refused to send on, either way"),
    udp_over_rate: Counter = ("streamgate_udp_datagrams_over_rate_total", Count,
        "Datagrams dropped because limit-bandwidth lets no more pass, either way"),
    udp_errors: Counter = ("streamgate_udp_upstream_errors_total", Count,
        "Errors that nodes sent back for datagrams, such as ICMP port unreachable"),
    limit_keys_forgotten: Counter = ("streamgate_limit_keys_forgotten_total", Count,
        "Keys of limit-rate forgotten before their time, because there were too many"),
    outcomes_dropped: Counter = ("streamgate_log_outcomes_dropped_total", Count,
        "Sessions not told of in the log: it could not keep up, or they were datagrams in a flood"),
    access_lines_dropped: Counter = ("streamgate_access_log_lines_dropped_total", Count,
        "Lines of the access log that were lost because its file was too slow or could not be written"),
    session_lines_dropped: Counter = ("streamgate_session_log_lines_dropped_total", Count,
        "Lines of the session log that were lost because its file was too slow or could not be written"),
    log_lines_dropped: Counter = ("streamgate_log_lines_dropped_total", Count,
        "Log lines dropped because their reader was too slow"),
}

impl Metrics {
    /// All metrics at 0. `kinds` are the values of the `kind` label, `version` is that of the program.
    #[must_use]
    pub fn new(kinds: &[&'static str], version: &'static str) -> Self {
        let builder = PrometheusBuilder::new();
        // Only an empty list of buckets is refused, and this one is not empty.
        let name = Matcher::Full("streamgate_snapshot_build_seconds".into());
        let builder =
            builder.set_buckets_for_metric(name, &BUILD_BUCKETS).unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let build_info = "streamgate_build_info";
        Gauge::describe(&recorder, build_info, Unit::Count, "1, with the version of the program");
        gauge(&recorder, build_info, vec![Label::new("version", version)]).set(1.0);
        Self::declare(&recorder, kinds)
    }

    /// Notes that a snapshot began to route sessions.
    pub fn published(&self, revision: i64, build: Duration) {
        self.config_revision.set(number(revision));
        self.snapshot_build.record(build.as_secs_f64());
        self.snapshot_build_last.set(build.as_secs_f64());
        self.publishes.increment(1);
    }

    /// Drains the samples of histograms into their buckets. To be called every few seconds.
    pub fn upkeep(&self) {
        self.page.run_upkeep();
    }

    /// Appends all metrics in Prometheus's text format, sorted by name.
    pub fn render(&self, out: &mut String) {
        let page = self.page.render();
        let mut families: Vec<&str> = page.split("\n\n").filter(|family| !family.is_empty()).collect();
        families.sort_unstable();
        for family in families {
            let mut lines: Vec<&str> = family.lines().collect();
            // Labels come in the order of a hash map; buckets of a histogram in theirs.
            if !family.contains("_bucket{") {
                lines.sort_unstable_by_key(|line| (!line.starts_with('#'), *line));
            }
            for line in lines {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{line}");
            }
        }
    }
}

/// A count as the floating-point number Prometheus takes.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers; exact to 2^53")]
pub fn count(value: usize) -> f64 {
    value as f64
}

/// A revision as the floating-point number Prometheus takes.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers; exact to 2^53")]
pub fn number(value: i64) -> f64 {
    value as f64
}

/// What the list can hold.
trait Handle {
    const KIND: &'static str;
    fn describe(recorder: &PrometheusRecorder, name: &'static str, unit: Unit, help: &'static str);
    fn register(recorder: &PrometheusRecorder, name: &'static str, kinds: &[&'static str]) -> Self;
}

const METADATA: Metadata<'static> = Metadata::new("streamgate", Level::INFO, None);

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: Vec<Label>) -> Gauge {
    recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
}

impl Handle for Counter {
    const KIND: &'static str = "counter";

    fn describe(recorder: &PrometheusRecorder, name: &'static str, unit: Unit, help: &'static str) {
        recorder.describe_counter(KeyName::from_const_str(name), Some(unit), help.into());
    }

    fn register(recorder: &PrometheusRecorder, name: &'static str, _: &[&'static str]) -> Self {
        recorder.register_counter(&Key::from_static_name(name), &METADATA)
    }
}

impl Handle for Gauge {
    const KIND: &'static str = "gauge";

    fn describe(recorder: &PrometheusRecorder, name: &'static str, unit: Unit, help: &'static str) {
        recorder.describe_gauge(KeyName::from_const_str(name), Some(unit), help.into());
    }

    fn register(recorder: &PrometheusRecorder, name: &'static str, _: &[&'static str]) -> Self {
        gauge(recorder, name, Vec::new())
    }
}

impl Handle for ByKind {
    const KIND: &'static str = "gauge";

    fn describe(recorder: &PrometheusRecorder, name: &'static str, unit: Unit, help: &'static str) {
        Gauge::describe(recorder, name, unit, help);
    }

    fn register(recorder: &PrometheusRecorder, name: &'static str, kinds: &[&'static str]) -> Self {
        let one = |kind: &&'static str| (*kind, gauge(recorder, name, vec![Label::new("kind", *kind)]));
        Self(kinds.iter().map(one).collect())
    }
}

impl Handle for Histogram {
    const KIND: &'static str = "histogram";

    fn describe(recorder: &PrometheusRecorder, name: &'static str, unit: Unit, help: &'static str) {
        recorder.describe_histogram(KeyName::from_const_str(name), Some(unit), help.into());
    }

    fn register(recorder: &PrometheusRecorder, name: &'static str, _: &[&'static str]) -> Self {
        recorder.register_histogram(&Key::from_static_name(name), &METADATA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &Metrics) -> String {
        let mut out = String::new();
        metrics.render(&mut out);
        out
    }

    #[track_caller]
    fn check(page: &str, line: &str) {
        assert!(page.lines().any(|present| present == line), "no line `{line}` in\n{page}");
    }

    #[test]
    fn every_declared_metric_is_there_from_the_start() {
        let metrics = Metrics::new(&["stream_routes", "upstreams"], "1.2.3");
        let page = page(&metrics);
        for declared in DECLARED {
            check(&page, &format!("# HELP {} {}", declared.name, declared.help));
            check(&page, &format!("# TYPE {} {}", declared.name, declared.kind));
        }
        check(&page, r#"streamgate_rejected_objects{kind="stream_routes"} 0"#);
        check(&page, r#"streamgate_rejected_objects{kind="upstreams"} 0"#);
        check(&page, r#"streamgate_build_info{version="1.2.3"} 1"#);
        check(&page, "streamgate_publishes_total 0".replace("publishes", "snapshots_published").as_str());
    }

    #[test]
    fn families_are_sorted_and_told_once() {
        let page = page(&Metrics::new(&["ssls", "services"], "1"));
        let names: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert!(names.is_sorted(), "{names:#?}");
        assert_eq!(names.len(), DECLARED.len() + 1);
    }

    #[test]
    fn a_publish_shows_revision_and_build_time() {
        let metrics = Metrics::new(&[], "1");
        metrics.published(88_213, Duration::from_millis(2));
        metrics.upkeep();
        let page = page(&metrics);
        check(&page, "streamgate_config_revision 88213");
        check(&page, "streamgate_snapshots_published_total 1");
        check(&page, "streamgate_snapshot_build_last_seconds 0.002");
        check(&page, r#"streamgate_snapshot_build_seconds_bucket{le="0.001"} 0"#);
        check(&page, r#"streamgate_snapshot_build_seconds_bucket{le="0.005"} 1"#);
        check(&page, "streamgate_snapshot_build_seconds_count 1");
    }

    #[test]
    fn two_nodes_in_a_process_do_not_mix() {
        let (one, other) = (Metrics::new(&[], "1"), Metrics::new(&[], "1"));
        one.accept_errors.increment(3);
        check(&page(&one), "streamgate_accept_errors_total 3");
        check(&page(&other), "streamgate_accept_errors_total 0");
    }
}
