//! Findings about routes and their order.

use std::collections::HashMap;
use std::sync::Arc;

use streamgate::matcher::Order;
use streamgate::resource::{Key, Kind, Object};
use streamgate::snapshot::Route;

use super::{Finding, Level};
use crate::cli::load::Loaded;

/// Pairs of overlapping routes that are listed.
const PAIRS: usize = 100;

/// Routes that can never win, and pairs whose winner APISIX lets depend on when they arrived.
/// The order of a file is APISIX's too.
pub(super) fn findings(loaded: &Loaded, from_file: bool) -> Vec<Finding> {
    let routes: HashMap<&Order, &Arc<Route>> =
        loaded.snapshot.rules().map(|(order, _, route)| (order, route)).collect();
    let mut findings = shadowed(loaded, &routes);
    if !from_file {
        findings.extend(overlapping(loaded, &routes));
    }
    findings
}

fn shadowed(loaded: &Loaded, routes: &HashMap<&Order, &Arc<Route>>) -> Vec<Finding> {
    let found = loaded.snapshot.shadowed();
    found
        .iter()
        .filter_map(|shadowed| {
            let route = routes.get(shadowed.order)?;
            let by: Vec<&str> =
                shadowed.by.iter().filter_map(|order| routes.get(order)).map(|route| &*route.id).collect();
            Some(Finding {
                level: Level::Warn,
                rule: None,
                object: Key::new(Kind::StreamRoute, route.id.clone()).to_string(),
                sentence: format!("never matches: {} comes earlier and takes all it would", by.join(" or ")),
            })
        })
        .collect()
}

fn overlapping(loaded: &Loaded, routes: &HashMap<&Order, &Arc<Route>>) -> Vec<Finding> {
    let overlaps = loaded.snapshot.overlaps(PAIRS, |first, second| {
        let (first, second) = (created(loaded, first), created(loaded, second));
        !matches!((first, second), (Some(first), Some(second)) if first <= second)
    });
    let mut findings: Vec<Finding> = overlaps
        .pairs
        .iter()
        .filter_map(|(first, second)| {
            let (first, second) = (routes.get(first)?, routes.get(second)?);
            let known = created(loaded, first).is_some() && created(loaded, second).is_some();
            let why = if known {
                format!(
                    "{} was created earlier: a running APISIX picks it, and {} after a restart",
                    second.id, first.id
                )
            } else {
                "which one a running APISIX picks depends on when each was created".to_owned()
            };
            Some(Finding {
                level: if known { Level::Changes } else { Level::Warn },
                rule: Some("SG-030"),
                object: Key::new(Kind::StreamRoute, first.id.clone()).to_string(),
                sentence: format!(
                    "overlaps stream_routes/{}; streamgate picks {} (key order). {why}",
                    second.id, first.id
                ),
            })
        })
        .collect();
    if !overlaps.complete {
        findings.push(Finding {
            level: Level::Warn,
            rule: Some("SG-030"),
            object: "stream_routes".into(),
            sentence: format!("more routes overlap than the {PAIRS} pairs listed here"),
        });
    }
    findings
}

/// When the route was created, where the object says so (the Admin API writes it).
fn created(loaded: &Loaded, route: &Route) -> Option<i64> {
    match &loaded.store.entry(&Key::new(Kind::StreamRoute, route.id.clone()))?.object {
        Object::StreamRoute(route) => route.create_time,
        _ => None,
    }
}
