//! Findings about listens and objects that do not fit each other.

use std::sync::Arc;

use streamgate::config::{Config, Listen};
use streamgate::matcher::Rule;
use streamgate::resource::{Key, Kind};
use streamgate::session::Transport;
use streamgate::snapshot::Route;
use streamgate::sni::SniPattern;

use super::objects::finding;
use super::upstreams::idle_extension;
use super::{Finding, Level};
use crate::cli::load::Loaded;

/// All of them.
pub(super) fn findings(config: &Config, loaded: &Loaded) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, rule, route) in loaded.snapshot.rules() {
        let key = Key::new(Kind::StreamRoute, route.id.clone());
        let told = of_route(config, loaded, rule, route);
        findings.extend(told.into_iter().map(|(level, sentence)| finding(level, None, &key, sentence)));
    }
    let told = |id: &str, why: String| Finding {
        level: Level::Warn,
        rule: None,
        object: "config.yaml".into(),
        sentence: format!("streamgate.upstreams.{id}: {why}"),
    };
    for id in config.upstream_tls.upstreams.keys() {
        if let Some(why) = without_effect(loaded, id) {
            findings.push(told(id, format!("{why}; tls has no effect")));
        }
    }
    for (id, extensions) in &config.extensions {
        let why = match loaded.snapshot.pools().find(|pool| *pool.id == **id) {
            None if config.upstream_tls.upstreams.contains_key(id) => None,
            None => Some("no stream_route reaches an upstream of this id; it has no effect".into()),
            Some(pool) => idle_extension(extensions, pool.checked().map(|checked| &*checked.checks)),
        };
        findings.extend(why.map(|why| told(id, why)));
    }
    findings
}

fn of_route(config: &Config, loaded: &Loaded, rule: &Rule, route: &Arc<Route>) -> Vec<(Level, String)> {
    let of_port = |listen: &&Listen| {
        listen.addr.port() == 0 || rule.server_port.is_none_or(|port| port == listen.addr.port())
    };
    let listens: Vec<&Listen> = config.listens.iter().filter(of_port).collect();
    if let Some(port) = rule.server_port.filter(|_| listens.is_empty()) {
        // It may be there for other nodes on the same etcd.
        return vec![(Level::Unused, format!("server_port {port} is that of no listen in config.yaml"))];
    }
    let listens: Vec<&Listen> =
        listens.into_iter().filter(|listen| listen.transport == Transport::Tcp).collect();
    let mut told = Vec::new();
    if route.tls_passthrough && !listens.iter().any(|listen| listen.tls_passthrough) {
        let instead = if listens.iter().any(|listen| listen.tls) {
            "its TLS is ended there"
        } else {
            "TLS is not looked at"
        };
        let sentence = format!("tls_passthrough: no listen that it can match has tls_passthrough; {instead}");
        told.push((Level::Warn, sentence));
    }
    let ends = |listen: &&Listen| listen.tls && !(listen.tls_passthrough && route.tls_passthrough);
    if listens.iter().any(ends) {
        let uncovered = rule.snis.iter().filter(|pattern| !covered(loaded, pattern));
        told.extend(uncovered.map(|pattern| {
            let sentence = format!(
                "no ssl has a certificate for {pattern}: its clients are refused where TLS ends (tls_no_certificate)"
            );
            (Level::Warn, sentence)
        }));
    }
    told
}

/// Reports whether a client of this pattern can get a certificate.
fn covered(loaded: &Loaded, pattern: &SniPattern) -> bool {
    let certificates = loaded.snapshot.certificates();
    match pattern {
        SniPattern::Exact(name) => certificates.find(name).is_some(),
        // Any name will do: which ones come is the clients' business.
        SniPattern::Suffix(ending) => {
            certificates.find(&format!("x{ending}")).is_some()
                || certificates.iter().any(|(ssl, _)| ssl.names.iter().any(|name| name.ends_with(&**ending)))
        }
    }
}

/// Why `tls` of a part of `streamgate.upstreams` does nothing.
fn without_effect(loaded: &Loaded, id: &str) -> Option<&'static str> {
    match loaded.snapshot.pools().find(|pool| *pool.id == *id) {
        None => Some("no stream_route reaches an upstream of this id"),
        Some(pool) => {
            let plain = pool.settings.unfit.is_none() && pool.nodes().iter().all(|node| node.tls.is_none());
            plain.then_some("the upstream is not of scheme tls")
        }
    }
}
