//! Findings about an upstream: an object, or one written inside a route or service.

use std::collections::{BTreeMap, BTreeSet};

use streamgate::addr::Host;
use streamgate::config::Registries;
use streamgate::resource::{Balancer, Key, Kind, Scheme, Upstream};

use super::objects::finding;
use super::{Finding, Level};
use crate::cli::load::Loaded;

/// All of them. `unresolved` where APISIX resolves no names of it: inside a service, and inside a
/// route that has a service.
pub(super) fn findings(loaded: &Loaded, key: &Key, upstream: &Upstream, unresolved: bool) -> Vec<Finding> {
    let mut found = Found { key, findings: Vec::new() };
    tls(upstream, &mut found);
    discovery(loaded, upstream, &mut found);
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
    let Some(kind) = upstream.discovery.as_ref().map(|discovery| &*discovery.kind) else { return };
    if !Registries::BUILT.contains(&kind) {
        let sentence = format!("discovery by {kind} is not built yet: its sessions are closed (no_node)");
        found.changes("SG-050", sentence);
    } else if !loaded.registries.has(kind) {
        let sentence =
            format!("config.yaml has no section discovery.{kind}: its sessions are closed (no_node)");
        found.findings.push(finding(Level::Warn, None, found.key, sentence));
    }
}

fn balancing(loaded: &Loaded, upstream: &Upstream, found: &mut Found<'_>) {
    match &upstream.balancer {
        Balancer::Ewma => {
            let several = upstream.nodes.len() > 1;
            let there =
                if several { "APISIX fails each stream session" } else { "with one node APISIX does so too" };
            found.changes("SG-021", format!("type ewma: nodes take turns; {there}"));
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
