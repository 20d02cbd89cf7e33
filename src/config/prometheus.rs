//! `plugin_attr.prometheus`: the metrics server.

use super::ExtraLabels;
use super::Prometheus;
use super::apisix::server_address;
use super::ours::Ours;
use super::read::Node;

/// Families whose extra labels concern streams; those of HTTP are none of our business.
const STREAM_FAMILIES: &[&str] = &["stream_", "redis_"];

/// The server, or `None` where it is off.
pub(super) fn read(root: &Node<'_>, stream_plugins: &[Box<str>], ours: &Ours<'_>) -> Option<Prometheus> {
    let section = root.at("plugin_attr").at("prometheus");
    let enabled = section.at("enable_export_server");
    if section.is_absent() || !enabled.boolean().unwrap_or(false) {
        if stream_plugins.iter().any(|name| **name == *"prometheus") {
            enabled.mistake(
                "L4 prometheus metric should be exposed via export server: set it to true, or take prometheus \
                 out of stream_plugins",
            );
        }
        return None;
    }
    let uri = section.at("export_uri");
    let path = uri.string().unwrap_or("/apisix/prometheus/metrics");
    if !path.starts_with('/') {
        uri.mistake(format!("is {path:?}; a path that begins with / is allowed"));
    }
    let prefix = section.at("metric_prefix");
    let name = prefix.string().unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) {
        prefix.mistake(format!("is {name:?}; letters, digits, _ and : are allowed, no digit first"));
    }
    let addr = server_address(&section.at("export_addr"), ("127.0.0.1", 9091), ours.allow_port_zero)?;
    Some(Prometheus {
        addr,
        uri: path.into(),
        prefix: name.into(),
        extra_labels: extra_labels(&section.at("metrics")),
        max_series: ours.max_series,
    })
}

/// `metrics.<name>.extra_labels`, each a map of one label to `$variable` (`exporter.lua`, `extra_labels`).
fn extra_labels(metrics: &Node<'_>) -> Vec<ExtraLabels> {
    let mut found = Vec::new();
    for (metric, node) in metrics.entries() {
        if !STREAM_FAMILIES.iter().any(|family| metric.starts_with(family)) {
            continue;
        }
        let items = node.at("extra_labels").items().unwrap_or_default();
        let labels: Vec<_> = items.iter().flat_map(labels).collect();
        if !labels.is_empty() {
            found.push(ExtraLabels { metric: metric.into(), labels });
        }
    }
    found
}

fn labels(item: &Node<'_>) -> Vec<(Box<str>, Box<str>)> {
    let read = |(label, node): (&str, Node<'_>)| {
        let text = node.string()?;
        let Some(variable) = text.strip_prefix('$').filter(|name| !name.is_empty()) else {
            node.mistake(format!("is {text:?}; a variable such as $upstream_addr is allowed"));
            return None;
        };
        Some((label.into(), variable.into()))
    };
    item.entries().filter_map(read).collect()
}
