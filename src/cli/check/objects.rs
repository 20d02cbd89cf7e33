//! Findings about single objects.

use std::collections::BTreeSet;

use streamgate::resource::{Balancer, HashKey, Key, Kind, Object, PluginConf, Upstream};
use streamgate::snapshot::Target;
use streamgate::store::{Entry, Rejected};

use super::{Finding, Level};
use crate::cli::load::Loaded;

/// Everything that can be said of an object without looking at another route.
pub(super) fn findings(loaded: &Loaded) -> Vec<Finding> {
    let reached = reached(loaded);
    let mut findings: Vec<Finding> =
        loaded.store.rejected().map(|rejected| refused(loaded, rejected)).collect();
    for (key, entry) in loaded.store.entries() {
        // What only HTTP uses is not ours to judge.
        if reached.contains(key) {
            findings.extend(entry.warnings.iter().map(|sentence| warning(key, sentence)));
            findings.extend(by_kind(key, entry));
        }
    }
    for route in loaded.snapshot.routes() {
        let key = Key::new(Kind::StreamRoute, route.id.clone());
        findings.extend(route.degraded.iter().map(|sentence| Finding {
            level: Level::Changes,
            rule: Some("SG-050"),
            object: key.to_string(),
            sentence: sentence.clone(),
        }));
        if let Err((end, why)) = loaded.snapshot.pool(&route.target) {
            findings.push(finding(
                Level::Warn,
                None,
                &key,
                format!("its connections are closed ({}): {why}", end.label()),
            ));
        }
    }
    findings
}

fn finding(level: Level, rule: Option<&'static str>, key: &Key, sentence: String) -> Finding {
    Finding { level, rule, object: key.to_string(), sentence }
}

/// A warning of the parser's may begin with the id of a rule: then it is a change of behaviour.
fn warning(key: &Key, sentence: &str) -> Finding {
    match sentence.strip_prefix("SG-").and_then(|rest| rest.split_once(": ")) {
        Some((number, rest)) => Finding {
            level: Level::Changes,
            rule: None,
            object: key.to_string(),
            sentence: format!("SG-{number} {rest}"),
        },
        None => finding(Level::Warn, None, key, sentence.to_owned()),
    }
}

fn refused(loaded: &Loaded, rejected: &Rejected) -> Finding {
    // The snapshot lists those that a stream_route reaches.
    let ours = loaded.snapshot.rejected().iter().any(|other| other.key == rejected.key);
    if ours {
        finding(Level::Rejected, None, &rejected.key, rejected.reason.to_string())
    } else {
        let sentence = format!("{}; no stream_route reaches it", rejected.reason);
        finding(Level::Unused, None, &rejected.key, sentence)
    }
}

/// Objects that sessions can meet: routes, their services, and the upstreams they name.
fn reached(loaded: &Loaded) -> BTreeSet<Key> {
    let mut reached = BTreeSet::new();
    for route in loaded.snapshot.routes() {
        reached.insert(Key::new(Kind::StreamRoute, route.id.clone()));
        reached.extend(route.service.iter().map(|id| Key::new(Kind::Service, id.clone())));
        if let Target::Upstream(id) = &route.target {
            reached.insert(Key::new(Kind::Upstream, id.clone()));
        }
    }
    reached
}

fn by_kind(key: &Key, entry: &Entry) -> Vec<Finding> {
    match &entry.object {
        Object::StreamRoute(route) => {
            let mut findings = not_enforced(key, &route.plugins);
            findings.extend(route.upstream.iter().flat_map(|upstream| of_upstream(key, upstream)));
            findings
        }
        Object::Service(service) => {
            let mut findings = not_enforced(key, &service.plugins);
            let enforced = service.plugins.iter().filter(|plugin| plugin.enabled && !plugin.disabled);
            findings.extend(enforced.map(|plugin| {
                let sentence = format!(
                    "plugin {} of a service is validated and gets its defaults here; APISIX's stream side does neither",
                    plugin.name
                );
                finding(Level::Changes, Some("SG-036"), key, sentence)
            }));
            findings.extend(service.upstream.iter().flat_map(|upstream| of_upstream(key, upstream)));
            findings
        }
        Object::Upstream(upstream) => of_upstream(key, upstream),
        _ => Vec::new(),
    }
}

fn not_enforced(key: &Key, plugins: &[PluginConf]) -> Vec<Finding> {
    let idle = plugins.iter().filter(|plugin| !plugin.enabled && !plugin.disabled);
    idle.map(|plugin| {
        let sentence =
            format!("carries {}, absent from stream_plugins: NOT ENFORCED (as in APISIX)", plugin.name);
        finding(Level::Warn, None, key, sentence)
    })
    .collect()
}

fn of_upstream(key: &Key, upstream: &Upstream) -> Vec<Finding> {
    let mut findings = Vec::new();
    let has_names = upstream.nodes.iter().any(|node| node.host.ip().is_none());
    match &upstream.balancer {
        Balancer::Unknown(name) => findings.push(finding(
            Level::Changes,
            Some("SG-020"),
            key,
            format!("type {name:?} is no balancer: nodes take turns; APISIX fails each session"),
        )),
        Balancer::Ewma => findings.push(finding(
            Level::Changes,
            Some("SG-021"),
            key,
            "type ewma: nodes take turns for now; APISIX fails each stream session".into(),
        )),
        Balancer::Chash(_) if has_names => findings.push(finding(
            Level::Changes,
            Some("SG-022"),
            key,
            "chash over host names: the ring is made of resolved addresses, so keys map to other nodes than in APISIX"
                .into(),
        )),
        Balancer::Chash(HashKey::Nothing) => findings.push(finding(
            Level::Warn,
            None,
            key,
            "hash_on names something no stream has: the client address is hashed (as in APISIX)".into(),
        )),
        _ => {}
    }
    if upstream.discovery.is_some() {
        let sentence = "service discovery is not built yet: its sessions are closed (no_node)";
        findings.push(finding(Level::Changes, Some("SG-050"), key, sentence.into()));
    }
    if upstream.checks.is_some() {
        let sentence = "checks are not run yet: every node counts as healthy";
        findings.push(finding(Level::Changes, Some("SG-050"), key, sentence.into()));
    }
    findings
}
