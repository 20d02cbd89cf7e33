//! What runs between the choice of a route and the choice of a node.
//!
//! Plugins are an enum, not trait objects: the pipeline is known. Until a plugin is built, one that
//! could refuse or redirect sessions refuses them all, so that nothing is let through unchecked.

use std::sync::Arc;

use crate::resource::PluginConf;
use crate::session::Inbound;

/// A plugin of a route, ready to run.
#[derive(Clone, Debug)]
pub enum Plugin {
    /// `prometheus`: the route has `apisix_stream_*` series.
    Prometheus {
        /// `prefer_name`: the route label is its name where it has one.
        prefer_name: bool,
    },
    /// A plugin of a service whose configuration cannot be used.
    Unusable {
        /// Its name.
        name: Box<str>,
        /// What is wrong with it.
        why: Box<str>,
    },
    /// A plugin that is not built yet and would refuse or redirect sessions.
    Unbuilt {
        /// Its name.
        name: Box<str>,
    },
}

/// What a plugin says about a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Go on.
    Pass,
    /// Close it; the code is the one `apisix_stream_status` shows.
    Deny {
        /// 403, 503, …
        code: u16,
        /// For the log.
        why: String,
    },
}

/// Plugins in the order they run, and sentences about those that do nothing yet. A plugin that is
/// switched off (`_meta.disable`) or not enabled (`stream_plugins`) is left out, as in APISIX.
#[must_use]
pub fn compile(confs: &[&PluginConf]) -> (Arc<[Plugin]>, Vec<String>) {
    let mut confs: Vec<_> = confs.iter().filter(|conf| conf.enabled && !conf.disabled).collect();
    confs.sort_by_key(|conf| std::cmp::Reverse(priority(&conf.name)));
    let (mut plugins, mut degraded) = (Vec::new(), Vec::new());
    for conf in confs {
        if let Some(why) = &conf.broken {
            degraded.push(format!("plugin {}: {why}; its sessions are refused", conf.name));
            plugins.push(Plugin::Unusable { name: conf.name.clone(), why: why.clone() });
            continue;
        }
        match &*conf.name {
            "prometheus" => {
                let prefer_name = conf.conf.get("prefer_name").and_then(serde_json::Value::as_bool);
                plugins.push(Plugin::Prometheus { prefer_name: prefer_name.unwrap_or(false) });
            }
            // It only reports: leaving it out loses lines, not traffic.
            "syslog" => degraded.push("plugin syslog is not built yet: no lines are sent".into()),
            name => {
                degraded.push(format!("plugin {name} is not built yet: its sessions are refused"));
                plugins.push(Plugin::Unbuilt { name: name.into() });
            }
        }
    }
    // Of nothing, one for all: a conversion would allocate for each route.
    (if plugins.is_empty() { Arc::default() } else { plugins.into() }, degraded)
}

/// The fixed priority of a stream plugin, higher first (`apisix/stream/plugins/*.lua`).
fn priority(name: &str) -> i32 {
    match name {
        "ip-restriction" => 3000,
        "limit-conn" => 1003,
        "mqtt-proxy" => 1000,
        "traffic-split" => 966,
        "prometheus" => 500,
        "syslog" => 401,
        _ => 0,
    }
}

impl Plugin {
    /// Decides about a session before a node is chosen.
    #[must_use]
    pub fn preread(&self, inbound: &Inbound) -> Decision {
        let _ = inbound;
        match self {
            Self::Prometheus { .. } => Decision::Pass,
            Self::Unusable { name, why } => {
                Decision::Deny { code: 500, why: format!("plugin {name} cannot be used: {why}") }
            }
            Self::Unbuilt { name } => Decision::Deny {
                code: 503,
                why: format!(
                    "plugin {name} is configured but not built into this version; refusing rather than ignoring it"
                ),
            },
        }
    }
}
