//! What decides whether an object is accepted, and the way every object takes.

use std::fmt;
use std::sync::Arc;

use super::keyring::Keyring;
use super::schema::Schemas;
use super::{Key, Kind, Object, document, misc, service, ssl, stream_route, upstream};
use crate::config::{RulesConfig, Variables};

/// What decides whether an object is accepted: the part of config.yaml that matters, and the schemas.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `stream_plugins`, or what the `plugins` key of etcd put in their place.
    pub(super) stream_plugins: Arc<[Box<str>]>,
    /// Of those that APISIX does not have, what config.yaml enables.
    own_plugins: Vec<Box<str>>,
    pub(super) xrpc_protocols: Vec<Box<str>>,
    pub(super) keyring: Keyring,
    /// What `$env://` stands for.
    pub(super) environment: Variables,
    pub(super) standalone: bool,
    pub(super) schemas: &'static Schemas,
}

/// Plugins that APISIX does not have (SG-121).
const OWN_PLUGINS: [&str; 2] = ["limit-bandwidth", "limit-rate"];

fn is_own(name: &str) -> bool {
    OWN_PLUGINS.contains(&name)
}

/// An accepted object.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// About parts that were dropped, have no effect or mean something else than in APISIX; the rest
    /// of the object counts.
    pub warnings: Vec<Remark>,
    /// Set where APISIX accepts the object and this program cannot serve it: why. To be treated as
    /// rejected at run time.
    pub unusable: Option<Remark>,
}

/// A sentence about an object that was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remark {
    /// The id of the difference to APISIX that is behind it (docs/compatibility.md), if one is.
    pub rule: Option<&'static str>,
    /// For the operator.
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why an object is refused: a sentence for each mistake, with its JSON pointer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejection {
    /// At least one.
    pub mistakes: Vec<String>,
    /// The id of the difference to APISIX that is behind it, where APISIX decides otherwise.
    pub rule: Option<&'static str>,
}

impl Rejection {
    /// The same, where APISIX does something else.
    pub(super) fn by(self, rule: &'static str) -> Self {
        Self { rule: Some(rule), ..self }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mistakes.join("; "))
    }
}

impl std::error::Error for Rejection {}

impl From<Vec<String>> for Rejection {
    fn from(mistakes: Vec<String>) -> Self {
        Self { mistakes, rule: None }
    }
}

impl From<String> for Rejection {
    fn from(mistake: String) -> Self {
        Self { mistakes: vec![mistake], rule: None }
    }
}

/// What is said about an object while it is read.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) warnings: Vec<Remark>,
    pub(super) unusable: Option<Remark>,
}

impl Notes {
    /// Something is odd, and is so in APISIX too.
    pub(super) fn warn(&mut self, text: String) {
        self.warnings.push(Remark { rule: None, text });
    }

    /// Something is otherwise than in APISIX, by a rule of docs/compatibility.md.
    pub(super) fn differs(&mut self, rule: &'static str, text: String) {
        self.warnings.push(Remark { rule: Some(rule), text });
    }

    /// The first reason stays.
    pub(super) fn unusable(&mut self, rule: Option<&'static str>, text: String) {
        self.unusable.get_or_insert(Remark { rule, text });
    }
}

impl Rules {
    /// The rules of a configuration.
    #[must_use]
    pub fn new(config: &RulesConfig) -> Self {
        Self {
            stream_plugins: config.stream_plugins.clone().into(),
            own_plugins: config.stream_plugins.iter().filter(|name| is_own(name)).cloned().collect(),
            xrpc_protocols: config.xrpc_protocols.clone(),
            keyring: Keyring::new(&config.keyring),
            environment: config.environment.clone(),
            standalone: config.standalone,
            schemas: Schemas::shared(),
        }
    }

    /// The same rules with another list of enabled stream plugins, as the `plugins` key sets it
    /// (`apisix/plugin.lua:387`). Objects read under the old list have to be read again.
    ///
    /// The control plane that writes the key does not know `limit-rate` and `limit-bandwidth`: of them config.yaml decides
    /// alone.
    #[must_use]
    pub fn with_stream_plugins(&self, names: &[Box<str>]) -> Self {
        let others = names.iter().filter(|name| !is_own(name));
        let stream_plugins = others.chain(&self.own_plugins).cloned().collect();
        Self { stream_plugins, ..self.clone() }
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
}
