//! `streamgate.listens.<listen>`: settings of a listen that APISIX does not have.
//!
//! The key is the listen as written, so one entry may concern several: the ports of a range, and
//! one text that stands under tcp and udp. A setting that none of them could obey is a mistake: it
//! would be silently without effect.

use std::time::Duration;

use super::Listen;
use super::ProxyTlvs;
use super::ProxyVersion;
use super::read::Node;
use crate::session::Transport;

/// What a listen must be to obey a setting, and what the operator is told where it is not.
type Need = (fn(&Listen) -> bool, &'static str);

const TCP: Need = (|listen| listen.transport == Transport::Tcp, "is for tcp, and this listen is udp");
const UDP: Need = (|listen| listen.transport == Transport::Udp, "is for udp, and this listen is tcp");
const TLS: Need = (
    |listen| listen.tls || listen.tls_passthrough,
    "is for listens with tls or tls_passthrough, and this one has neither",
);
const ACCEPTS: Need = (
    |listen| listen.proxy_protocol,
    "is for listens with proxy_protocol: true, and this one expects no PROXY header",
);
const SENDS: Need = (
    |listen| listen.proxy_protocol_to_upstream,
    "is for listens with proxy_protocol_to_upstream: true, and this one sends no PROXY header",
);
const BINARY: Need = (
    |listen| listen.proxy_protocol_version == ProxyVersion::V2,
    "needs proxy_protocol_version: 2; a PROXY header of version 1 has no room for more than addresses",
);

/// Every setting with its needs; the first that is not met is told.
const SETTINGS: &[(&str, &[Need])] = &[
    ("half_close", &[TCP]),
    ("half_close_timeout", &[TCP]),
    ("handshake_timeout", &[TCP, TLS]),
    ("idle_timeout", &[UDP]),
    ("proxy_protocol_optional", &[TCP, ACCEPTS]),
    ("proxy_protocol_timeout", &[TCP, ACCEPTS]),
    ("proxy_protocol_tlvs", &[TCP, SENDS, BINARY]),
    ("proxy_protocol_version", &[TCP, SENDS]),
    ("responses", &[UDP]),
];

/// Settings of the listens written as `key`; absent where they are not written.
#[derive(Debug)]
pub(super) struct PerListen<'a> {
    /// As in `apisix.stream_proxy`.
    pub(super) key: &'a str,
    /// Where they stand.
    pub(super) node: Node<'a>,
    half_close: Option<bool>,
    half_close_timeout: Option<Duration>,
    handshake_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    proxy_protocol_optional: Option<bool>,
    proxy_protocol_timeout: Option<Duration>,
    proxy_protocol_tlvs: Option<ProxyTlvs>,
    proxy_protocol_version: Option<ProxyVersion>,
    responses: Option<u32>,
}

/// Reads the entry `key`.
pub(super) fn read<'a>(key: &'a str, node: Node<'a>) -> PerListen<'a> {
    let known: Vec<_> = SETTINGS.iter().map(|(key, _)| *key).collect();
    node.only(&known);
    PerListen {
        key,
        half_close: node.at("half_close").boolean(),
        half_close_timeout: node.at("half_close_timeout").duration(),
        handshake_timeout: node.at("handshake_timeout").duration(),
        idle_timeout: node.at("idle_timeout").duration(),
        proxy_protocol_optional: node.at("proxy_protocol_optional").boolean(),
        proxy_protocol_timeout: node.at("proxy_protocol_timeout").duration(),
        proxy_protocol_tlvs: tlvs(&node.at("proxy_protocol_tlvs")),
        proxy_protocol_version: version(&node.at("proxy_protocol_version")),
        responses: node.at("responses").integer(1..=u32::MAX.into()).and_then(|n| u32::try_from(n).ok()),
        node,
    }
}

fn version(node: &Node<'_>) -> Option<ProxyVersion> {
    match node.integer(1..=2) {
        Some(1) => Some(ProxyVersion::V1),
        // What cannot be read is told already; with 2 no other setting is blamed for it.
        _ => (!node.is_absent()).then_some(ProxyVersion::V2),
    }
}

fn tlvs(node: &Node<'_>) -> Option<ProxyTlvs> {
    let mut found = ProxyTlvs::NONE;
    for item in node.items()? {
        let place = match item.choice(&["sni", "alpn", "unique_id", "received"]) {
            Some("sni") => &mut found.sni,
            Some("alpn") => &mut found.alpn,
            Some("unique_id") => &mut found.unique_id,
            Some("received") => &mut found.received,
            _ => continue,
        };
        if std::mem::replace(place, true) {
            item.mistake("stands twice in the list; once is enough");
        }
    }
    Some(found)
}

impl PerListen<'_> {
    /// Gives the settings to the listens they are written for.
    pub(super) fn apply(&self, listens: &mut [&mut Listen]) {
        for listen in &mut *listens {
            match listen.transport {
                Transport::Tcp => self.apply_tcp(listen),
                Transport::Udp => {
                    listen.idle_timeout = self.idle_timeout.or(listen.idle_timeout);
                    listen.responses = self.responses.or(listen.responses);
                }
            }
        }
        for (key, needs) in SETTINGS {
            let node = self.node.at(key);
            if !node.is_absent()
                && let Some(text) = unmet(needs, listens)
            {
                node.mistake(text);
            }
        }
    }

    fn apply_tcp(&self, listen: &mut Listen) {
        set(&mut listen.half_close, self.half_close);
        set(&mut listen.half_close_timeout, self.half_close_timeout);
        set(&mut listen.handshake_timeout, self.handshake_timeout);
        set(&mut listen.proxy_protocol_optional, self.proxy_protocol_optional);
        set(&mut listen.proxy_protocol_timeout, self.proxy_protocol_timeout);
        set(&mut listen.proxy_protocol_version, self.proxy_protocol_version);
        if listen.proxy_protocol_version == ProxyVersion::V2 {
            listen.proxy_protocol_tlvs = self.proxy_protocol_tlvs.unwrap_or(ProxyTlvs::ALL);
        }
    }
}

fn set<T>(place: &mut T, written: Option<T>) {
    if let Some(written) = written {
        *place = written;
    }
}

/// The first need that no listen meets which meets those before it.
fn unmet(needs: &[Need], listens: &[&mut Listen]) -> Option<&'static str> {
    let mut left: Vec<&Listen> = listens.iter().map(|listen| &**listen).collect();
    needs.iter().find_map(|(met, text)| {
        left.retain(|listen| met(listen));
        left.is_empty().then_some(*text)
    })
}
