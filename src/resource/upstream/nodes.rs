//! The nodes of an upstream, in the order written.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::Value;

use super::super::Node;
use super::super::explain::brief;
use super::super::rules::Notes;
use super::clamped;
use crate::addr::{Host, HostPort};

/// Reads both forms. A node no session could be sent to is dropped alone, with a warning.
pub(super) fn parse(written: Value, owner: &str, notes: &mut Notes) -> Vec<Node> {
    let mut kept = Kept::default();
    let mut keep = |key: &str, node: Result<Node, String>| match node {
        Ok(node) => kept.insert(node),
        Err(why) => notes.differs("SG-004", format!("{owner}: node {key} {why}; it is left out")),
    };
    match written {
        Value::Object(map) => {
            for (key, weight) in &map {
                let HostPort { host, port } = HostPort::parse_apisix(key);
                let written =
                    if port.is_some() { key.rsplit_once(':').map_or("", |(host, _)| host) } else { key };
                keep(&format!("{key:?}"), node((host, written), port, weight, None));
            }
        }
        Value::Array(list) => {
            for entry in &list {
                let host = entry.get("host").and_then(Value::as_str).unwrap_or_default();
                let port = entry.get("port").and_then(Value::as_f64).and_then(port);
                let weight = entry.get("weight").unwrap_or(&Value::Null);
                keep(
                    &format!("{host:?}"),
                    node((Host::parse(host), host), port, weight, entry.get("priority")),
                );
            }
        }
        other => notes
            .warn(format!("{owner}: nodes is {}, which nothing resolves; there is no node", brief(&other))),
    }
    kept.nodes.shrink_to_fit();
    kept.nodes
}

/// A port of an object, which may be written as `80.0`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked before")]
pub(in super::super) fn port(number: f64) -> Option<u16> {
    (1.0..65536.0).contains(&number).then_some(number as u16)
}

fn node(
    (host, written): (Host, &str),
    port: Option<u16>,
    weight: &Value,
    priority: Option<&Value>,
) -> Result<Node, String> {
    if let Host::Name(name) = &host {
        usable(name)?;
    }
    let port = port.filter(|port| *port != 0);
    let port = port.ok_or("has no port from 1 to 65535, and a stream has no default one")?;
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, as wanted here")]
    let priority = priority.and_then(Value::as_f64).unwrap_or_default() as i64;
    let bare = matches!(host, Host::Ip(IpAddr::V6(_))) && !written.starts_with('[');
    let written = if bare { format!("[{written}]").into() } else { written.into() };
    Ok(Node { host, written, port, weight: clamped(weight.as_f64().unwrap_or_default()), priority })
}

impl Node {
    /// An instance that a registry tells of. The error reads on after what names it.
    pub fn discovered(host: &str, port: u16, weight: u32) -> Result<Self, String> {
        node((Host::parse(host), host), Some(port), &Value::from(weight), None)
    }
}

/// The characters of host names; whether it resolves is found out later.
fn usable(name: &str) -> Result<(), String> {
    let odd = name.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.'));
    match odd {
        _ if name.is_empty() => Err("has no host".into()),
        _ if name.starts_with('.') || name.len() > 254 => Err("has a host that is no name".into()),
        Some(odd) => Err(format!("has {odd:?} in its host, where no host name may have it")),
        None => Ok(()),
    }
}

/// The nodes so far. As in APISIX, within one priority the last weight of an address counts
/// (`apisix/balancer.lua:60`).
#[derive(Default)]
struct Kept {
    nodes: Vec<Node>,
    places: HashMap<(Host, u16, i64), usize>,
}

impl Kept {
    fn insert(&mut self, node: Node) {
        let place =
            *self.places.entry((node.host.clone(), node.port, node.priority)).or_insert(self.nodes.len());
        match self.nodes.get_mut(place) {
            Some(earlier) => earlier.weight = node.weight,
            None => self.nodes.push(node),
        }
    }
}
