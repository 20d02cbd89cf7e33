//! What health checks say: the pages of APISIX's control API (`apisix/control/v1.lua:78-273`) with what
//! APISIX does not tell beside it, and the summary for the status page.
//!
//! `why`, `by` and `since` of a node, `all_down` and `sent_to_down` of an upstream are ours.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::balance::{Checked, Pool, Target};
use crate::health::Cell;
use crate::net::clock::rfc3339;
use crate::resource::{Key, Kind};
use crate::snapshot::Snapshot;

/// What a node has that nothing was found out about.
const NO_CHANGE: &str = "nothing has changed its state since this process knows it";

/// A pool with its checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) checked: &'a Checked,
}

impl Entry<'_> {
    /// The key of the object that the upstream is, or is written in. The id of its pool says which
    /// (`snapshot/build.rs`).
    pub(crate) fn key(&self) -> Key {
        let inside = |kind: Kind| {
            let id = self.pool.id.strip_prefix(kind.directory())?.strip_prefix('/')?;
            Some(Key::new(kind, id))
        };
        let inside = inside(Kind::StreamRoute).or_else(|| inside(Kind::Service));
        inside.unwrap_or_else(|| Key::new(Kind::Upstream, self.pool.id.clone()))
    }

    /// How many of its targets are not used.
    pub(crate) fn down(&self) -> usize {
        self.checked.targets.iter().filter(|target| !target.cell.is_usable()).count()
    }

    /// All are down, so sessions are sent to them all the same.
    pub(crate) fn all_down(&self) -> bool {
        !self.checked.targets.is_empty() && self.down() == self.checked.targets.len()
    }
}

/// Every checked pool: of stream_routes, services, upstreams, each by the bytes of their ids.
pub(crate) fn entries(snapshot: &Snapshot) -> Vec<Entry<'_>> {
    let with_checks = |pool| Some(Entry { pool, checked: Pool::checked(pool)? });
    let mut entries: Vec<_> = snapshot.checked_pools().filter_map(|pool| with_checks(pool)).collect();
    let rank = |kind| match kind {
        Kind::StreamRoute => 0,
        Kind::Service => 1,
        _ => 2,
    };
    entries.sort_by_cached_key(|entry| {
        let key = entry.key();
        (rank(key.kind), key.id)
    });
    entries
}

/// The page of one upstream; `prefix` is that of etcd.
pub(crate) fn page(entry: &Entry<'_>, prefix: &str) -> Value {
    let nodes: Vec<Value> = entry.checked.targets.iter().map(|target| node(entry.checked, target)).collect();
    json!({
        "name": format!("{prefix}/{}", entry.key()),
        "type": entry.checked.checks.active.kind.label(),
        "nodes": list(nodes),
        "all_down": entry.all_down(),
        "sent_to_down": entry.checked.stats.all_down.count(),
    })
}

fn node(checked: &Checked, target: &Target) -> Value {
    let standing = target.cell.standing();
    let mut node = json!({
        "ip": target.addr.ip().to_string(),
        "port": target.addr.port(),
        "hostname": &*target.host,
        "status": standing.state.label(),
        "counter": {
            "success": standing.success,
            "http_failure": standing.http_failure,
            "tcp_failure": standing.tcp_failure,
            "timeout_failure": standing.timeout_failure,
        },
    });
    if let Some(header) = &checked.checks.active.host_header {
        node["hostheader"] = (**header).into();
    }
    let why = Why::of(&target.cell);
    node["since"] = json!(why.since);
    node["by"] = json!(why.by);
    node["why"] = json!(why.sentence);
    node["last_result"] = json!(target.cell.heard_unix_ms().map(rfc3339));
    node
}

/// Why a target is in its state.
#[derive(Debug)]
pub(crate) struct Why {
    /// Since when; `None` where nothing has changed its state yet.
    pub(crate) since: Option<String>,
    /// Who found it out.
    pub(crate) by: Option<&'static str>,
    /// A sentence.
    pub(crate) sentence: String,
}

impl Why {
    pub(crate) fn of(cell: &Cell) -> Self {
        match cell.cause() {
            Some(cause) => Self {
                since: Some(rfc3339(cause.since_unix_ms)),
                by: Some(cause.by.label()),
                sentence: cause.why.to_string(),
            },
            None => Self { since: None, by: None, sentence: NO_CHANGE.into() },
        }
    }
}

/// A list as Lua's encoder writes it: an empty one is `{}`.
pub(crate) fn list(items: Vec<Value>) -> Value {
    if items.is_empty() { json!({}) } else { items.into() }
}

/// Upstreams of which some node is down, for `/streamgate/status`.
pub(crate) fn upstreams_down(snapshot: &Snapshot) -> Vec<Value> {
    let entries = entries(snapshot);
    let down = entries.iter().filter(|entry| entry.down() > 0);
    down.map(|entry| {
        json!({
            "upstream": &*entry.pool.id,
            "down": entry.down(),
            "of": entry.checked.targets.len(),
            "all_down": entry.all_down(),
        })
    })
    .collect()
}

/// The pages as a table for browsers.
pub(crate) fn html(pages: &[Value]) -> String {
    const HEADINGS: &[&str] = &[
        "upstream",
        "check",
        "ip",
        "port",
        "status",
        "success",
        "tcp failure",
        "http failure",
        "timeout failure",
        "since",
        "by",
        "why",
    ];
    let mut out = String::from(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>Health checks</title></head>\n<body>\n\
         <h1>Health checks</h1>\n<table border=\"1\">\n<tr>",
    );
    // Writing to a String cannot fail; so below.
    for heading in HEADINGS {
        let _ = write!(out, "<th>{heading}</th>");
    }
    out.push_str("</tr>\n");
    for page in pages {
        for node in page["nodes"].as_array().into_iter().flatten() {
            let counter = &node["counter"];
            let cells = [
                &page["name"],
                &page["type"],
                &node["ip"],
                &node["port"],
                &node["status"],
                &counter["success"],
                &counter["tcp_failure"],
                &counter["http_failure"],
                &counter["timeout_failure"],
                &node["since"],
                &node["by"],
                &node["why"],
            ];
            out.push_str("<tr>");
            for cell in cells {
                let _ = write!(out, "<td>{}</td>", escaped(cell));
            }
            out.push_str("</tr>\n");
        }
    }
    out.push_str("</table>\n</body></html>\n");
    out
}

/// A text for HTML; causes may quote what a node answered.
fn escaped(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
