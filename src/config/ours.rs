//! The section `streamgate:`, which APISIX ignores. Strict: an unknown key is a mistake.

use std::path::PathBuf;

use super::Limits;
use super::Listen;
use super::per_listen;
use super::per_listen::PerListen;
use super::read::Node;

/// `streamgate.metrics.max_series` where it is not set.
const MAX_SERIES: usize = 200_000;
/// `streamgate.udp.max_associations` where it is not set.
const MAX_ASSOCIATIONS: usize = 65_536;
/// Above this a count is surely a slip: no process holds so many.
const ABSURD: u64 = 1 << 32;

const KNOWN: &[&str] = &[
    "allow_port_zero",
    "ignored_directives",
    "listens",
    "max_sessions",
    "metrics",
    "session_log",
    "standalone_file",
    "udp",
    "upstream_tls",
    "upstreams",
];

/// What the section says.
#[derive(Debug)]
pub(super) struct Ours<'a> {
    /// Per listen, as keyed.
    listens: Vec<PerListen<'a>>,
    /// Snippet directives that may stand without effect.
    pub(super) ignored_directives: Vec<(Box<str>, Node<'a>)>,
    /// Lines of the `streamgate_*` family.
    pub(super) max_series: usize,
    /// Limits of the process.
    pub(super) limits: Limits,
    /// Where the objects of the file provider are.
    pub(super) standalone_file: Option<(PathBuf, Node<'a>)>,
    /// Whether a listen may leave its port to the system.
    pub(super) allow_port_zero: bool,
}

/// Reads the section.
pub(super) fn read<'a>(section: &Node<'a>) -> Ours<'a> {
    section.only(KNOWN);
    let metrics = section.at("metrics");
    metrics.only(&["max_series"]);
    let udp = section.at("udp");
    udp.only(&["max_associations"]);
    let directives = section.at("ignored_directives").items().unwrap_or_default();
    let standalone_file = section.at("standalone_file");
    Ours {
        listens: section.at("listens").entries().map(|(key, node)| per_listen::read(key, node)).collect(),
        ignored_directives: directives
            .into_iter()
            .filter_map(|node| Some((node.string()?.into(), node)))
            .collect(),
        max_series: count(&metrics.at("max_series")).unwrap_or(MAX_SERIES),
        limits: Limits {
            udp_associations: count(&udp.at("max_associations")).unwrap_or(MAX_ASSOCIATIONS),
            sessions: count(&section.at("max_sessions")),
        },
        standalone_file: standalone_file.string().map(|text| (text.into(), standalone_file)),
        allow_port_zero: section.at("allow_port_zero").boolean().unwrap_or(false),
    }
}

fn count(node: &Node<'_>) -> Option<usize> {
    node.integer(1..=ABSURD).and_then(|number| usize::try_from(number).ok())
}

impl Ours<'_> {
    /// Gives each listen its settings. A key that matches none is a mistake: it would be silently
    /// without effect.
    pub(super) fn apply(&self, listens: &mut [Listen]) {
        for settings in &self.listens {
            let mut matching: Vec<_> =
                listens.iter_mut().filter(|listen| *listen.written == *settings.key).collect();
            if matching.is_empty() {
                settings.node.mistake(unmatched(listens));
            } else {
                settings.apply(&mut matching);
            }
        }
    }
}

fn unmatched(listens: &[Listen]) -> String {
    const SHOWN: usize = 12;
    let mut written: Vec<&str> = Vec::new();
    for listen in listens {
        if !written.contains(&&*listen.written) {
            written.push(&listen.written);
        }
    }
    let more = if written.len() > SHOWN { ", …" } else { "" };
    written.truncate(SHOWN);
    format!(
        "no listen is written so in apisix.stream_proxy; its key is the listen as written there: {}{more}",
        written.join(", ")
    )
}
