//! Sessions that plugins refused.
//!
//! Each plugin of a loaded route that may refuse has its series, at 0 too: an alert must see the first
//! refusal. What most routes do not have costs them nothing (`Totals::refusals`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admin::text::{self, Kind};
use crate::live::totals::{RefusalKey, Totals};
use crate::snapshot::Route;

/// The label of what did not fit below the cap.
const OVERFLOW: &str = "_overflow";

const NAME: &str = "streamgate_plugin_refusals_total";

/// Appends the family, in about `max_lines` samples at most.
pub(crate) fn render<'a>(
    out: &mut String,
    routes: impl Iterator<Item = &'a Arc<Route>>,
    totals: &Totals,
    max_lines: usize,
) {
    text::family(out, NAME, Kind::Counter, "Sessions that a plugin refused, by stream_route and plugin");
    let mut rest: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut lines = 0;
    for route in routes {
        for armed in route.plugins.iter().filter(|armed| !armed.class.reports) {
            let plugin = armed.class.name;
            let count = totals.refusals.get(&RefusalKey { route: route.id.clone(), plugin });
            if lines < max_lines {
                lines += 1;
                text::sample(out, NAME, &text::labels(&[("route", &route.id), ("plugin", plugin)]), count);
            } else {
                *rest.entry(plugin).or_default() += count;
            }
        }
    }
    for (plugin, count) in rest {
        text::sample(out, NAME, &text::labels(&[("route", OVERFLOW), ("plugin", plugin)]), count);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::live::Live;
    use crate::plugin::{Armed, Attached, Plugins};
    use crate::resource::{Key, Kind as ObjectKind, PluginConf, Remark};
    use crate::snapshot::Target;

    fn route(id: &str, plugins: &[&str]) -> Arc<Route> {
        let key = Key::new(ObjectKind::StreamRoute, id);
        let armed = plugins.iter().filter_map(|name| {
            let conf = PluginConf {
                name: (*name).into(),
                conf: json!({}).into(),
                disabled: false,
                enabled: true,
                broken: Some(Remark { rule: None, text: "of a test".into() }),
                secret: false,
                split: None,
            };
            let attached = Attached { owner: key.clone(), conf: &conf };
            Armed::new(&attached, &Live::default(), &mut Vec::new()).map(Arc::new)
        });
        Arc::new(Route {
            id: id.into(),
            revision: 1,
            name: None,
            service: None,
            service_name: None,
            stats: Arc::default(),
            target: Target::Nothing,
            plugins: Plugins::new(armed.collect()),
            tls_passthrough: false,
            degraded: Arc::default(),
        })
    }

    #[track_caller]
    fn check(max_lines: usize, expected: &[&str]) {
        let routes = [
            route("plain", &[]),
            route("told", &["prometheus"]),
            route("a", &["limit-conn", "prometheus", "ip-restriction"]),
            route("b", &["ip-restriction"]),
            route("c", &["ip-restriction"]),
        ];
        let totals = Totals::default();
        for route in ["a", "c", "c", "gone"] {
            totals.refusals.count(&RefusalKey { route: route.into(), plugin: "ip-restriction" });
        }
        let mut out = String::new();
        render(&mut out, routes.iter(), &totals, max_lines);
        let samples: Vec<_> = out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples, expected);
    }

    #[test]
    fn plugins_that_may_refuse_have_a_series_from_the_start() {
        check(
            100,
            &[
                r#"streamgate_plugin_refusals_total{route="a",plugin="ip-restriction"} 1"#,
                r#"streamgate_plugin_refusals_total{route="a",plugin="limit-conn"} 0"#,
                r#"streamgate_plugin_refusals_total{route="b",plugin="ip-restriction"} 0"#,
                r#"streamgate_plugin_refusals_total{route="c",plugin="ip-restriction"} 2"#,
            ],
        );
    }

    #[test]
    fn beyond_the_cap_routes_are_summed() {
        check(
            1,
            &[
                r#"streamgate_plugin_refusals_total{route="a",plugin="ip-restriction"} 1"#,
                r#"streamgate_plugin_refusals_total{route="_overflow",plugin="ip-restriction"} 2"#,
                r#"streamgate_plugin_refusals_total{route="_overflow",plugin="limit-conn"} 0"#,
            ],
        );
    }
}
