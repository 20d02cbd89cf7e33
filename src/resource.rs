//! The objects of the configuration: from the bytes in etcd or a file to typed values.
//!
//! An object goes through three gates in APISIX's order: it is JSON and an object, it satisfies its
//! JSON Schema (`schema/*.json`), it passes the checks APISIX makes in code after the schema. What
//! comes out cannot be malformed any more. The rule for strictness: what a running APISIX serves is
//! never refused whole; a bad node or an unknown plugin is dropped alone, with a warning.

mod client_auth;
mod document;
mod explain;
mod identity;
pub mod keyring;
mod misc;
pub mod pem;
mod plugins;
mod reference;
mod rules;
mod schema;
mod service;
mod shape;
mod shown;
mod ssl;
mod stream_route;
mod traffic_split;
mod upstream;
mod validate;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use client_auth::{ClientAuth, provider};
pub use identity::Identity;
pub use rules::{Parsed, Rejection, Remark, Rules};
pub use shown::{Shown, shown};
pub use traffic_split::{Destination, Share, Split, SplitRule};
pub use upstream::{ActiveCheck, CheckKind, Checks, HttpCheck};
pub use validate::validate_line;

use crate::addr::{Host, IpMatcher};
use crate::config::Extensions;
use crate::sni::SniPattern;

/// What an object is: the directory below the prefix it lives in.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `stream_routes`
    StreamRoute,
    /// `upstreams`
    Upstream,
    /// `services`
    Service,
    /// `ssls`
    Ssl,
    /// `plugin_metadata`; the id is the plugin's name.
    PluginMetadata,
    /// `secrets`; the id is `manager/id`.
    Secret,
    /// The single key `plugins`; its id is empty.
    Plugins,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::StreamRoute,
        Self::Upstream,
        Self::Service,
        Self::Ssl,
        Self::PluginMetadata,
        Self::Secret,
        Self::Plugins,
    ];

    /// The directory below the prefix, also the label of metrics and logs.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::StreamRoute => "stream_routes",
            Self::Upstream => "upstreams",
            Self::Service => "services",
            Self::Ssl => "ssls",
            Self::PluginMetadata => "plugin_metadata",
            Self::Secret => "secrets",
            Self::Plugins => "plugins",
        }
    }
}

/// Names one object. Orders by kind, then by the bytes of the id: the order of APISIX's initial load.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// The rest of the etcd key after the directory; may contain slashes.
    pub id: Arc<str>,
}

impl Key {
    /// The key of an object.
    #[must_use]
    pub fn new(kind: Kind, id: impl Into<Arc<str>>) -> Self {
        Self { kind, id: id.into() }
    }

    /// Reads what follows the prefix and its slash, such as `stream_routes/7`. `None` for what is
    /// not ours: HTTP objects, the placeholder keys `stream_routes/` that `apisix init_etcd` writes
    /// (`apisix/cli/etcd.lua:206`), sub-resources of services (`graphql_cost_decorations`).
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        if path == "plugins" {
            return Some(Self::new(Kind::Plugins, ""));
        }
        let (directory, id) = path.split_once('/')?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.directory() == directory)?;
        let ours = !id.is_empty()
            && kind != Kind::Plugins
            && !(kind == Kind::Service && id.contains("/graphql_cost_decorations/"));
        ours.then(|| Self::new(kind, id))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Plugins => f.write_str("plugins"),
            kind => write!(f, "{}/{}", kind.directory(), self.id),
        }
    }
}

/// A parsed object.
#[derive(Clone, Debug)]
pub enum Object {
    /// A `stream_routes` object.
    StreamRoute(Arc<StreamRoute>),
    /// An `upstreams` object.
    Upstream(Arc<Upstream>),
    /// A `services` object.
    Service(Arc<Service>),
    /// An `ssls` object.
    Ssl(Arc<Ssl>),
    /// The value of a `plugin_metadata` object.
    PluginMetadata(Arc<serde_json::Value>),
    /// The value of a `secrets` object.
    Secret(Arc<serde_json::Value>),
    /// Names of the stream plugins that the `plugins` key enables.
    Plugins(Arc<[Box<str>]>),
}

/// Which connections go where.
#[derive(Clone, Debug, Default)]
pub struct StreamRoute {
    /// From the key; what the body says is ignored.
    pub id: Arc<str>,
    /// Shown beside the id.
    pub name: Option<Box<str>>,
    /// When the Admin API wrote it first, in seconds since 1970; absent where it did not.
    pub create_time: Option<i64>,
    /// Addresses of clients it takes; all where absent.
    pub remote_addr: Option<IpMatcher>,
    /// Local addresses it takes; all where absent.
    pub server_addr: Option<IpMatcher>,
    /// The local port it takes; all where absent.
    pub server_port: Option<u16>,
    /// TLS server names it takes (`sni` or `snis`, lower-cased); empty: any, and connections without TLS.
    pub snis: Vec<SniPattern>,
    /// On a mixed listen: forward undecrypted.
    pub tls_passthrough: bool,
    /// The upstream written inside.
    pub upstream: Option<Arc<Upstream>>,
    /// Key of an `upstreams` object.
    pub upstream_id: Option<Arc<str>>,
    /// Key of a `services` object.
    pub service_id: Option<Arc<str>>,
    /// Plugins in the order written.
    pub plugins: Vec<PluginConf>,
    /// xRPC.
    pub protocol: Option<Protocol>,
}

/// `protocol` of a stream_route: xRPC.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// `redis`, `dubbo`.
    pub name: Box<str>,
    /// Set on a subordinate route, which never matches a connection itself.
    pub superior_id: Option<Arc<str>>,
}

/// One entry of `plugins`, checked by its schema where the plugin is known.
#[derive(Clone, Debug, Default)]
pub struct PluginConf {
    /// The plugin.
    pub name: Box<str>,
    /// Its configuration with defaults filled in and references to secrets replaced.
    pub conf: Arc<serde_json::Value>,
    /// `_meta.disable`.
    pub disabled: bool,
    /// The plugin is in the list of enabled stream plugins; where not, APISIX ignores it.
    pub enabled: bool,
    /// Why the configuration cannot be used, though APISIX accepts it: a plugin of a service under etcd,
    /// which APISIX does not check before it fails each session (SG-001), or a reference to a secret with
    /// nothing behind it (SG-133). It refuses every session of its routes.
    pub broken: Option<Remark>,
    /// It holds what references stood for: no value of it may be shown.
    pub secret: bool,
    /// What a `traffic-split` in force says.
    pub split: Option<Arc<Split>>,
}

/// What routes share.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// From the key.
    pub id: Arc<str>,
    /// Shown beside the id.
    pub name: Option<Box<str>>,
    /// The upstream written inside.
    pub upstream: Option<Arc<Upstream>>,
    /// Key of an `upstreams` object.
    pub upstream_id: Option<Arc<str>>,
    /// Plugins in the order written.
    pub plugins: Vec<PluginConf>,
}

/// A set of nodes and how one is chosen and dialled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Upstream {
    /// From the key; empty for one written inside a route or service.
    pub id: Arc<str>,
    /// Shown beside the id.
    pub name: Option<Box<str>>,
    /// In the order written. Nodes without a usable port are dropped with a warning.
    pub nodes: Vec<Node>,
    /// Set where the nodes come from service discovery instead.
    pub discovery: Option<Arc<Discovery>>,
    /// How a node is chosen.
    pub balancer: Balancer,
    /// Attempts after the first; absent: one for each further node.
    pub retries: Option<u32>,
    /// No retry begins later than this after the first attempt; absent or 0 in the object: no limit.
    pub retry_timeout: Option<Duration>,
    /// Absent: 60 s to connect, 600 s idle (nginx's defaults).
    pub timeout: Option<Timeouts>,
    /// What is spoken to the node.
    pub scheme: Scheme,
    /// TLS material towards nodes.
    pub tls: Option<UpstreamTls>,
    /// Health checks.
    pub checks: Option<Arc<Checks>>,
    /// What its labels that begin with `streamgate/` switch on.
    pub extensions: Option<Box<Extensions>>,
}

/// One place to connect to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Node {
    /// An address, or a name to resolve.
    pub host: Host,
    /// The host as written, an IPv6 address in brackets: chash hashes this text, not the address.
    pub written: Box<str>,
    /// The port.
    pub port: u16,
    /// Share of new sessions; a huge value of the object is cut to `u32::MAX`.
    pub weight: u32,
    /// Higher ones are used first.
    pub priority: i64,
}

/// `discovery_type` and what belongs to it: names the service whose instances are the nodes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Discovery {
    /// `dns`, `consul`, …
    pub kind: Box<str>,
    /// The name to look up there.
    pub service_name: Box<str>,
    /// `discovery_args.namespace_id`.
    pub namespace_id: Option<Box<str>>,
    /// `discovery_args.group_name`.
    pub group_name: Option<Box<str>>,
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service_name)?;
        match (&self.namespace_id, &self.group_name) {
            (None, None) => {}
            (Some(namespace), None) => write!(f, " of namespace {namespace}")?,
            (None, Some(group)) => write!(f, " of group {group}")?,
            (Some(namespace), Some(group)) => write!(f, " of namespace {namespace}, group {group},")?,
        }
        write!(f, " by {}", self.kind)
    }
}

/// `type` of an upstream with the key it hashes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Balancer {
    /// Weighted turns.
    #[default]
    RoundRobin,
    /// Consistent hashing of a key.
    Chash(HashKey),
    /// Fewest sessions in flight by weight.
    LeastConn,
    /// Moving average of the time to connect.
    Ewma,
    /// A text APISIX accepts and then fails every session with.
    Unknown(Box<str>),
}

/// What chash hashes. Where it yields nothing, the client address is hashed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HashKey {
    /// `hash_on: vars`: the value of one variable.
    Variable(Box<str>),
    /// `hash_on: vars_combinations`: a template such as `$remote_addr$server_port`.
    Template(Box<str>),
    /// `header`, `cookie`, `consumer`: nothing of the kind exists on a stream.
    Nothing,
}

/// `timeout` of an upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// Each attempt to connect, and again the TLS handshake with the node.
    pub connect: Duration,
    /// No byte either way for so long ends the session: the larger of `send` and `read`.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_mins(1), idle: Duration::from_mins(10) }
    }
}

/// `scheme` of an upstream; only `tls` changes anything on a stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Scheme {
    /// The client's transport, as it is.
    #[default]
    Plain,
    /// TLS over TCP.
    Tls,
}

/// `tls` of an upstream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UpstreamTls {
    /// Key of an `ssls` object of type client.
    pub client_cert_id: Option<Arc<str>>,
    /// `client_cert` and `client_key`, shown to nodes that ask.
    pub identity: Option<Identity>,
}

/// A certificate object.
#[derive(Clone, Debug, Default)]
pub struct Ssl {
    /// From the key.
    pub id: Arc<str>,
    /// `type: client`: for dialling upstreams only.
    pub client_type: bool,
    /// `status` is 1 or absent.
    pub enabled: bool,
    /// Server names it serves, lower-cased, without their final dot.
    pub names: Names,
    /// The first is that of `cert` and `key`, unless it was left out. Each can be served.
    pub identities: Vec<Identity>,
    /// What clients are verified with: `client`.
    pub client: Option<ClientAuth>,
    /// `ssl_protocols`.
    pub versions: Versions,
}

/// `sni` or `snis` of a certificate object. Which of the two it is matters for a bare `*`
/// (`apisix/ssl/router/radixtree_sni.lua:188`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Names {
    /// `sni`.
    One(Box<str>),
    /// `snis`, or none on an object of type client.
    Listed(Vec<Box<str>>),
}

impl Default for Names {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl Names {
    /// Each name as written, lower-cased.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Listed(names) => names.as_slice(),
        }
        .iter()
        .map(|name| &**name)
    }
}

/// TLS versions that a certificate object allows; at least one, 1.1 and older being none.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Versions {
    /// TLS 1.2.
    pub tls12: bool,
    /// TLS 1.3.
    pub tls13: bool,
}

impl Default for Versions {
    fn default() -> Self {
        Self { tls12: true, tls13: true }
    }
}
