//! Findings about single objects.

use std::collections::BTreeSet;
use std::sync::Arc;

use streamgate::balance::Pool;
use streamgate::plugin::{Choice, Plugin};
use streamgate::resource::{Key, Kind, Object, PluginConf, Remark, Upstream};
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
        reached.extend(route.plugins.choices().filter_map(|choice| match choice {
            Choice::Upstream(id) => Some(Key::new(Kind::Upstream, id.clone())),
            Choice::Inline(_) => None,
        }));
    }
    reached
}

fn by_kind(loaded: &Loaded, key: &Key, entry: &Entry) -> Vec<Finding> {
    match &entry.object {
        Object::StreamRoute(route) => {
            // Not in force beside an upstream_id.
            let inline = route.upstream.iter().filter(|_| route.upstream_id.is_none());
            let unresolved = route.service_id.is_some();
            let own = inline.flat_map(|own| upstreams::findings(loaded, key, own, unresolved));
            own.chain(in_plugins(&route.plugins).flat_map(|own| upstreams::findings(loaded, key, own, false)))
                .collect()
        }
        Object::Service(service) => {
            let inline = service.upstream.iter();
            let own = inline.flat_map(|own| upstreams::findings(loaded, key, own, true));
            own.chain(
                in_plugins(&service.plugins).flat_map(|own| upstreams::findings(loaded, key, own, false)),
            )
            .collect()
        }
        Object::Upstream(upstream) => upstreams::findings(loaded, key, upstream, false),
        _ => Vec::new(),
    }
}

/// Upstreams written in traffic-split, whose names APISIX resolves.
fn in_plugins(plugins: &[PluginConf]) -> impl Iterator<Item = &Upstream> {
    let splits = plugins.iter().filter_map(|conf| conf.split.as_ref());
    splits.flat_map(|split| split.inline().map(|(.., upstream)| &**upstream))
}

/// What only the route merged with its service shows.
fn of_route(loaded: &Loaded, route: &Route) -> Vec<Finding> {
    let key = Key::new(Kind::StreamRoute, route.id.clone());
    let unusable: Vec<(String, &str)> = route
        .plugins
        .iter()
        .filter(|armed| matches!(armed.plugin, Plugin::Unusable(_)))
        .map(|armed| (format!("plugin {}: ", armed.class.name), armed.rule.unwrap_or("SG-050")))
        .collect();
    let mut findings: Vec<Finding> = route
        .degraded
        .iter()
        // Told where the object was read.
        .filter(|sentence| !sentence.contains(": _meta.filter"))
        .map(|sentence| {
            let broken = unusable.iter().find(|(start, _)| sentence.starts_with(start.as_str()));
            let rule = broken.map_or("SG-050", |(_, rule)| rule);
            finding(Level::Changes, Some(rule), &key, sentence.clone())
        })
        .collect();
    let missing = matches!(route.target, Target::MissingService(_));
    let own = (missing || route.plugins.pass_some()).then(|| loaded.snapshot.pool(&route.target));
    if let Some((end, why)) = own.and_then(closed) {
        let sentence = format!("its connections are closed ({}): {why}", end.label());
        findings.push(finding(Level::Warn, None, &key, sentence));
    }
    findings.extend(route.plugins.choices().filter_map(|choice| of_choice(loaded, &key, choice)));
    findings
}

/// What is wrong with an upstream that traffic-split chooses. APISIX closes every session that asks the rule
/// of a missing one.
fn of_choice(loaded: &Loaded, key: &Key, choice: &Choice) -> Option<Finding> {
    let chosen = loaded.snapshot.chosen(choice);
    let (level, rule) = match &chosen {
        Err(_) => (Level::Changes, Some("SG-130")),
        Ok(_) => (Level::Warn, None),
    };
    let id = chosen.as_ref().ok().map(|pool| format!("upstream {}: ", pool.id)).unwrap_or_default();
    let (end, why) = closed(chosen)?;
    let sentence =
        format!("the share of its connections that goes there is closed ({}): {id}{why}", end.label());
    Some(finding(level, rule, key, sentence))
}

/// Why every session that goes to this pool is closed, where that is known beforehand.
fn closed(pool: Result<&Arc<Pool>, (End, String)>) -> Option<(End, String)> {
    match pool {
        Err((end, why)) => Some((end, why)),
        Ok(pool) if pool.settings.unfit.is_some() => {
            Some((End::UpstreamTls, pool.settings.unfit.as_deref().unwrap_or_default().to_owned()))
        }
        Ok(pool) if !pool.nodes().is_empty() => None,
        Ok(pool) => Some((End::NoNode, pool.why_empty())),
    }
}
