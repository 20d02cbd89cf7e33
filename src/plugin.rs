//! What runs between the choice of a route and the choice of a node.
//!
//! Plugins are an enum, not trait objects: the pipeline is known. Until a plugin is built, one that
//! could refuse or redirect sessions refuses them all, so that nothing is let through unchecked.

use crate::session::Inbound;

/// A plugin of a route, ready to run.
#[derive(Clone, Debug)]
pub enum Plugin {
    /// `prometheus`: the route has `apisix_stream_*` series.
    Prometheus {
        /// `prefer_name`: the route label is its name where it has one.
        prefer_name: bool,
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

impl Plugin {
    /// Decides about a session before a node is chosen.
    #[must_use]
    pub fn preread(&self, inbound: &Inbound) -> Decision {
        let _ = inbound;
        match self {
            Self::Prometheus { .. } => Decision::Pass,
            Self::Unbuilt { name } => Decision::Deny {
                code: 503,
                why: format!(
                    "plugin {name} is configured but not built into this version; refusing rather than ignoring it"
                ),
            },
        }
    }
}
