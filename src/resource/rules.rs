//! What decides whether an object is accepted, and the way every object takes.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::document::Document;
use super::keyring::Keyring;
use super::schema::Schemas;
use super::{Key, Kind, Object, Upstream, document, misc, service, ssl, stream_route, upstream};
use crate::config::RulesConfig;

/// What decides whether an object is accepted: the part of config.yaml that matters, and the schemas.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `stream_plugins`, or what the `plugins` key of etcd put in their place.
    pub(super) stream_plugins: Arc<[Box<str>]>,
    pub(super) xrpc_protocols: Vec<Box<str>>,
    pub(super) keyring: Keyring,
    pub(super) standalone: bool,
    pub(super) schemas: &'static Schemas,
    plugins_key_counts: bool,
}

/// An accepted object.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Sentences about parts that were dropped or have no effect; the rest of the object counts.
    pub warnings: Vec<String>,
    /// Set where APISIX accepts the object and this program cannot serve it: why. To be treated as
    /// rejected at run time.
    pub unusable: Option<String>,
}

/// Why an object is refused: a sentence for each mistake, with its JSON pointer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejection {
    /// At least one.
    pub mistakes: Vec<String>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mistakes.join("; "))
    }
}

impl std::error::Error for Rejection {}

impl From<Vec<String>> for Rejection {
    fn from(mistakes: Vec<String>) -> Self {
        Self { mistakes }
    }
}

impl From<String> for Rejection {
    fn from(mistake: String) -> Self {
        Self { mistakes: vec![mistake] }
    }
}

/// What is said about an object while it is read.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) warnings: Vec<String>,
    pub(super) unusable: Option<String>,
}

impl Notes {
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// The first reason stays.
    pub(super) fn unusable(&mut self, why: String) {
        self.unusable.get_or_insert(why);
    }
}

impl Rules {
    /// The rules of a configuration.
    #[must_use]
    pub fn new(config: &RulesConfig) -> Self {
        Self {
            stream_plugins: config.stream_plugins.clone().into(),
            xrpc_protocols: config.xrpc_protocols.clone(),
            keyring: Keyring::new(&config.keyring),
            standalone: config.standalone,
            schemas: Schemas::shared(),
            plugins_key_counts: config.plugins_key_counts,
        }
    }

    /// Whether the `plugins` key replaces the list of enabled stream plugins.
    #[must_use]
    pub fn plugins_key_counts(&self) -> bool {
        self.plugins_key_counts
    }

    /// The same rules with another list of enabled stream plugins, as the `plugins` key sets it
    /// (`apisix/plugin.lua:387`). Objects read under the old list have to be read again.
    #[must_use]
    pub fn with_stream_plugins(&self, names: Arc<[Box<str>]>) -> Self {
        Self { stream_plugins: names, ..self.clone() }
    }

    /// Reads one object.
    ///
    /// Schema first, then the checks APISIX makes in code, in its order. Parts that cannot work are
    /// dropped alone, with a warning.
    pub fn parse(&self, key: &Key, value: &[u8]) -> Result<Parsed, Rejection> {
        let mut notes = Notes::default();
        let value = document::read(value, &mut notes)?;
        let object = match key.kind {
            Kind::StreamRoute => {
                Object::StreamRoute(Arc::new(stream_route::parse(self, &key.id, value, &mut notes)?))
            }
            Kind::Upstream => Object::Upstream(Arc::new(upstream::parse(self, &key.id, value, &mut notes)?)),
            Kind::Service => Object::Service(Arc::new(service::parse(self, &key.id, value, &mut notes)?)),
            Kind::Ssl => Object::Ssl(Arc::new(ssl::parse(self, &key.id, value, &mut notes)?)),
            Kind::PluginMetadata => Object::PluginMetadata(Arc::new(misc::plugin_metadata(value)?)),
            Kind::Secret => Object::Secret(Arc::new(misc::secret(self, value)?)),
            Kind::Plugins => Object::Plugins(misc::plugins(value)?),
        };
        Ok(Parsed { object, warnings: notes.warnings, unusable: notes.unusable })
    }

    /// Reads an upstream written inside something else, such as a rule of traffic-split, whose
    /// schema has been checked already. `owner` names it in warnings.
    #[must_use]
    pub fn inline_upstream(&self, value: &Value, owner: &str) -> (Upstream, Vec<String>) {
        let mut notes = Notes::default();
        let upstream = upstream::inline(self, Document::from(value.clone()), owner, &mut notes);
        (upstream, notes.warnings)
    }
}
