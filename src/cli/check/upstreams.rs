//! Findings about an upstream: an object, or one written inside a route or service.

use std::collections::{BTreeMap, BTreeSet};

use streamgate::addr::Host;
use streamgate::config::{Extensions, Registries};
use streamgate::resource::{Balancer, CheckKind, Checks, Key, Kind, Scheme, Upstream};

use super::objects::finding;
use super::{Finding, Level};
use crate::cli::load::Loaded;

/// All of them. `unresolved` where APISIX resolves no names of it: inside a service, and inside a
/// route that has a service.
pub(super) fn findings(loaded: &Loaded, key: &Key, upstream: &Upstream, unresolved: bool) -> Vec<Finding> {
    let mut found = Found { key, findings: Vec::new() };
    tls(upstream, &mut found);
    discovery(loaded, upstream, &mut found);
    checks(upstream, &mut found);
    balancing(loaded, upstream, &mut found);
    weights(upstream, &mut found);
    names(loaded, upstream, unresolved, &mut found);
    found.findings
}

/// What has been found about one object.
struct Found<'a> {
    key: &'a Key,
    findings: Vec<Finding>,
}

impl Found<'_> {
    fn changes(&mut self, rule: &'static str, sentence: impl Into<String>) {
        self.findings.push(finding(Level::Changes, Some(rule), self.key, sentence.into()));
    }

    /// A difference that only makes more sessions succeed.
    fn warn(&mut self, rule: &'static str, sentence: impl Into<String>) {
        self.findings.push(finding(Level::Warn, Some(rule), self.key, sentence.into()));
    }
}

fn tls(upstream: &Upstream, found: &mut Found<'_>) {
    if upstream.scheme == Scheme::Tls {
        found.changes(
            "SG-087",
            "scheme tls: nodes that have only static-RSA, DHE or CBC suites, or TLS 1.1, cannot be reached by TCP",
        );
    }
}

fn discovery(loaded: &Loaded, upstream: &Upstream, found: &mut Found<'_>) {
    let Some(service) = &upstream.discovery else { return };
    let kind = &*service.kind;
    if !Registries::BUILT.contains(&kind) {
        let sentence = format!("discovery by {kind} is not built yet: its sessions are closed (no_node)");
        return found.changes("SG-050", sentence);
    }
    let sentence = if !loaded.registries.has(kind) {
        format!(
            "config.yaml has no section discovery.{kind}: its sessions are closed (no_node), as in APISIX"
        )
    } else if loaded.store.instances(service).is_none_or(|nodes| nodes.is_empty()) {
        format!("service {service} has no instance that can be used: its sessions are closed (no_node)")
    } else {
        return;
    };
    found.findings.push(finding(Level::Warn, None, found.key, sentence));
}

/// Why what is switched on for an upstream does nothing, where that is so.
pub(super) fn idle_extension(extensions: &Extensions, checks: Option<&Checks>) -> Option<String> {
    let words = [("tcp_send", &extensions.tcp_send), ("tcp_expect", &extensions.tcp_expect)];
    let set: Vec<_> = words.iter().filter(|(_, bytes)| bytes.is_some()).map(|(word, _)| *word).collect();
    let why = match checks.map(|checks| checks.active.kind) {
        _ if set.is_empty() => return None,
        Some(CheckKind::Tcp) => return None,
        Some(other) => format!("its active checks are of type {}, not tcp", other.label()),
        None => "the upstream has no checks".into(),
    };
    Some(format!("{} without effect: {why}", set.join(" and ")))
}

/// Which targets no probe will ever look at. What the schema leaves absent, the checker takes as "never".
fn checks(upstream: &Upstream, found: &mut Found<'_>) {
    let labels = upstream.extensions.as_deref().cloned().unwrap_or_default();
    if let Some(why) = idle_extension(&labels, upstream.checks.as_deref()) {
        found.findings.push(finding(Level::Warn, None, found.key, format!("labels: {why}")));
    }
    let Some(active) = upstream.checks.as_ref().map(|checks| &checks.active) else { return };
    if active.healthy_interval.is_none() {
        let sentence = "checks.active has no `healthy`: nodes in use are never probed (as in APISIX); write \
                        `\"healthy\": {}` for one probe a second";
        found.findings.push(finding(Level::Warn, None, found.key, sentence.into()));
    }
    if active.unhealthy_interval.is_none() {
        found.warn(
            "SG-102",
            "checks.active has no `unhealthy`: a node that was taken out is never probed; it is let in again after a \
             while, in APISIX never",
        );
    }
}

fn balancing(loaded: &Loaded, upstream: &Upstream, found: &mut Found<'_>) {
    match &upstream.balancer {
        Balancer::Ewma => {
            let several = upstream.nodes.len() > 1;
            let there =
                if several { "APISIX fails each stream session" } else { "with one node APISIX does so too" };
            found.changes("SG-021", format!("type ewma works, by the time to connect; {there}"));
        }
        Balancer::Chash(_) => {
            if upstream.nodes.iter().any(|node| node.host.ip().is_none()) {
                found.changes(
                    "SG-022",
                    "chash over host names: every address of a name is in the ring, where APISIX puts one that it \
                     draws for each session; keys go to other nodes",
                );
            }
            let coarse = loaded.snapshot.pools().find(|pool| *pool.id == *pool_id(found.key));
            if let Some(sentence) = coarse.and_then(|pool| pool.degraded()) {
                found.changes("SG-026", sentence);
            }
        }
        _ => {}
    }
}

/// The id that the pool of an object has in the snapshot.
fn pool_id(key: &Key) -> String {
    if key.kind == Kind::Upstream { key.id.to_string() } else { key.to_string() }
}

/// Nodes of weight 0 beside others of their priority.
fn weights(upstream: &Upstream, found: &mut Found<'_>) {
    if upstream.nodes.len() < 2 {
        return;
    }
    let mut groups: BTreeMap<i64, (bool, bool)> = BTreeMap::new();
    for node in &upstream.nodes {
        let (idle, weighted) = groups.entry(node.priority).or_default();
        *idle |= node.weight == 0;
        *weighted |= node.weight > 0;
    }
    let chash = matches!(upstream.balancer, Balancer::Chash(_));
    let mixed = groups.values().any(|(idle, weighted)| *idle && *weighted);
    if mixed && upstream.balancer == Balancer::LeastConn {
        found.warn(
            "SG-025",
            "nodes of weight 0 get no session; APISIX's least_conn tries them when the others failed",
        );
    } else if mixed {
        found.warn(
            "SG-025",
            "some nodes have weight 0: a session tries each other node once, where APISIX may try one again",
        );
    } else if chash && groups.values().any(|(idle, _)| *idle) {
        found.warn(
            "SG-025",
            "chash where every weight is 0: the nodes share the keys equally; APISIX has no ring then",
        );
    }
}

fn names(loaded: &Loaded, upstream: &Upstream, unresolved: bool, found: &mut Found<'_>) {
    let names: BTreeSet<&str> = upstream
        .nodes
        .iter()
        .filter_map(|node| match &node.host {
            Host::Name(name) => Some(&**name),
            Host::Ip(_) => None,
        })
        .collect();
    for name in names {
        if unresolved {
            found.changes(
                "SG-024",
                format!("host name {name} is resolved here; APISIX resolves none in the upstream of a service, and \
                         its sessions fail"),
            );
        }
        let count = loaded.store.addresses(name).map_or(0, |addresses| addresses.len());
        if count > 1 {
            found.warn(
                "SG-023",
                format!("host name {name} has {count} addresses, and each is a node here; APISIX draws one for each \
                         session"),
            );
        }
        if count == 0 {
            let sentence =
                format!("host name {name} does not resolve on this machine: its nodes are left out");
            found.findings.push(finding(Level::Warn, None, found.key, sentence));
        }
    }
}
