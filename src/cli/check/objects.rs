//! Findings about single objects.

use std::collections::BTreeSet;

use streamgate::plugin::Plugin;
use streamgate::resource::{Key, Kind, Object, Remark};
use streamgate::session::End;
use streamgate::snapshot::{Route, Target};
use streamgate::store::{Entry, Rejected};

use super::{Finding, Level, upstreams};
use crate::cli::load::Loaded;

/// Everything that can be said of an object without looking at another route.
pub(super) fn findings(loaded: &Loaded) -> Vec<Finding> {
    let reached = reached(loaded);
    let mut findings: Vec<Finding> =
        loaded.store.rejected().map(|rejected| refused(loaded, rejected)).collect();
    for (key, entry) in loaded.store.entries() {
        // What only HTTP uses is not ours to judge. Certificates belong to no route.
        if reached.contains(key) || key.kind == Kind::Ssl {
            findings.extend(entry.warnings.iter().map(|remark| remarked(key, remark)));
            findings.extend(by_kind(loaded, key, entry));
        }
    }
    for route in loaded.snapshot.routes() {
        findings.extend(of_route(loaded, route));
    }
    findings
}

/// A finding about one object.
pub(super) fn finding(level: Level, rule: Option<&'static str>, key: &Key, sentence: String) -> Finding {
    Finding { level, rule, object: key.to_string(), sentence }
}

/// What reading the object left: with a rule behind it a change of behaviour, else worth a look.
fn remarked(key: &Key, remark: &Remark) -> Finding {
    let level = if remark.rule.is_some() { Level::Changes } else { Level::Warn };
    finding(level, remark.rule, key, remark.text.clone())
}

fn refused(loaded: &Loaded, rejected: &Rejected) -> Finding {
    // The snapshot lists those that a stream_route reaches.
    let ours = loaded.snapshot.rejection(&rejected.key).is_some();
    if ours {
        finding(Level::Rejected, rejected.rule, &rejected.key, rejected.reason.to_string())
    } else {
        let sentence = format!("{}; no stream_route reaches it", rejected.reason);
        finding(Level::Unused, rejected.rule, &rejected.key, sentence)
    }
}

/// Objects that sessions can meet: routes, their services, the upstreams they name.
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

fn by_kind(loaded: &Loaded, key: &Key, entry: &Entry) -> Vec<Finding> {
    match &entry.object {
        Object::StreamRoute(route) => {
            // Not in force beside an upstream_id.
            let inline = route.upstream.iter().filter(|_| route.upstream_id.is_none());
            let unresolved = route.service_id.is_some();
            inline.flat_map(|own| upstreams::findings(loaded, key, own, unresolved)).collect()
        }
        Object::Service(service) => {
            let inline = service.upstream.iter();
            inline.flat_map(|own| upstreams::findings(loaded, key, own, true)).collect()
        }
        Object::Upstream(upstream) => upstreams::findings(loaded, key, upstream, false),
        _ => Vec::new(),
    }
}

/// What only the route merged with its service shows.
fn of_route(loaded: &Loaded, route: &Route) -> Vec<Finding> {
    let key = Key::new(Kind::StreamRoute, route.id.clone());
    let unusable: Vec<String> = route
        .plugins
        .iter()
        .filter(|armed| matches!(armed.plugin, Plugin::Unusable(_)))
        .map(|armed| format!("plugin {}: ", armed.class.name))
        .collect();
    let mut findings: Vec<Finding> = route
        .degraded
        .iter()
        .map(|sentence| {
            let broken = unusable.iter().any(|start| sentence.starts_with(start.as_str()));
            let rule = if broken { "SG-001" } else { "SG-050" };
            finding(Level::Changes, Some(rule), &key, sentence.clone())
        })
        .collect();
    if let Some((end, why)) = closed(loaded, &route.target) {
        let sentence = format!("its connections are closed ({}): {why}", end.label());
        findings.push(finding(Level::Warn, None, &key, sentence));
    }
    findings
}

/// Why every session of a route with this target is closed, where that is known beforehand.
fn closed(loaded: &Loaded, target: &Target) -> Option<(End, String)> {
    match loaded.snapshot.pool(target) {
        Err((end, why)) => Some((end, why.clone())),
        Ok(pool) if pool.settings.unfit.is_some() => {
            Some((End::UpstreamTls, pool.settings.unfit.as_deref().unwrap_or_default().to_owned()))
        }
        Ok(pool) if !pool.nodes().is_empty() => None,
        Ok(pool) => Some((End::NoNode, pool.why_empty())),
    }
}
