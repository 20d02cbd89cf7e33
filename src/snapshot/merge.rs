//! A route and its service become one (`apisix/plugin.lua:765`, `apisix/init.lua:1409`).

use std::sync::Arc;

use crate::plugin::traffic_split::TrafficSplit;
use crate::plugin::{Attached, Stage};
use crate::resource::{Key, Kind, Service, StreamRoute, Upstream};

/// Where the merged route takes its upstream from.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// An `upstreams` object.
    Id(&'a Arc<str>),
    /// Written inside the route.
    Route(&'a Arc<Upstream>),
    /// Written inside the service of this id.
    Service(&'a Arc<str>),
    /// The service does not exist.
    MissingService(&'a Arc<str>),
    /// Nowhere.
    Nothing,
}

/// A route with what its service adds.
#[derive(Debug)]
pub(super) struct Merged<'a> {
    /// The service in force.
    pub(super) service: Option<&'a Arc<Service>>,
    /// Where the upstream comes from.
    pub(super) origin: Origin<'a>,
    /// Plugins by name; the route's configuration of a plugin replaces the service's whole.
    pub(super) plugins: Vec<Attached<'a>>,
}

/// Merges. `service` is the object that `service_id` names, where it exists.
pub(super) fn merge<'a>(route: &'a StreamRoute, service: Option<&'a Arc<Service>>) -> Merged<'a> {
    let of_route = |conf| Attached { owner: Key::new(Kind::StreamRoute, route.id.clone()), conf };
    let own = || route.plugins.iter().map(of_route).collect();
    // An upstream_id switches the service off altogether, plugins included.
    if let Some(id) = &route.upstream_id {
        return Merged { service: None, origin: Origin::Id(id), plugins: own() };
    }
    let Some(service_id) = &route.service_id else {
        let origin = route.upstream.as_ref().map_or(Origin::Nothing, Origin::Route);
        return Merged { service: None, origin, plugins: own() };
    };
    let Some(service) = service else {
        // What the service says about who may come is not known: nothing may lead around it.
        let mut plugins: Vec<Attached<'_>> = own();
        plugins.retain(|plugin| *plugin.conf.name != *TrafficSplit::NAME);
        return Merged { service: None, origin: Origin::MissingService(service_id), plugins };
    };
    let origin = if let Some(upstream) = &route.upstream {
        Origin::Route(upstream)
    } else if service.upstream.is_some() {
        Origin::Service(service_id)
    } else {
        service.upstream_id.as_ref().map_or(Origin::Nothing, Origin::Id)
    };
    let mut plugins: Vec<Attached<'_>> = own();
    let of_service = |conf| Attached { owner: Key::new(Kind::Service, service_id.clone()), conf };
    let added =
        service.plugins.iter().filter(|plugin| route.plugins.iter().all(|own| own.name != plugin.name));
    plugins.extend(added.map(of_service));
    Merged { service: Some(service), origin, plugins }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::PluginConf;

    fn plugin(name: &str, conf: i64) -> PluginConf {
        PluginConf { name: name.into(), conf: Arc::new(conf.into()), enabled: true, ..PluginConf::default() }
    }

    fn upstream() -> Arc<Upstream> {
        Arc::default()
    }

    #[test]
    fn upstream_id_of_the_route_switches_the_service_off() {
        let service = Arc::new(Service { plugins: vec![plugin("a", 1)], ..Service::default() });
        let route = StreamRoute {
            upstream_id: Some("u".into()),
            service_id: Some("s".into()),
            ..StreamRoute::default()
        };
        let merged = merge(&route, Some(&service));
        assert!(matches!(merged.origin, Origin::Id(id) if &**id == "u"));
        assert!(merged.service.is_none() && merged.plugins.is_empty());
    }

    #[test]
    fn inline_beats_id_after_the_merge() {
        let service = Arc::new(Service {
            upstream_id: Some("u".into()),
            upstream: Some(upstream()),
            ..Service::default()
        });
        let route = StreamRoute { service_id: Some("s".into()), ..StreamRoute::default() };
        assert!(matches!(merge(&route, Some(&service)).origin, Origin::Service(_)));
        let route = StreamRoute { upstream: Some(upstream()), ..route };
        assert!(matches!(merge(&route, Some(&service)).origin, Origin::Route(_)));
        assert!(matches!(merge(&route, None).origin, Origin::MissingService(id) if &**id == "s"));
    }

    #[test]
    fn the_plugin_of_the_route_wins_whole() {
        let service =
            Arc::new(Service { plugins: vec![plugin("a", 1), plugin("b", 1)], ..Service::default() });
        let route = StreamRoute {
            service_id: Some("s".into()),
            plugins: vec![plugin("b", 2)],
            ..StreamRoute::default()
        };
        let merged = merge(&route, Some(&service));
        let seen: Vec<_> = merged
            .plugins
            .iter()
            .map(|one| (one.owner.kind, &*one.conf.name, one.conf.conf.as_i64()))
            .collect();
        assert_eq!(seen, [(Kind::StreamRoute, "b", Some(2)), (Kind::Service, "a", Some(1))]);
    }
}
