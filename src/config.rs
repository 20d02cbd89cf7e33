//! The process's own configuration: APISIX's `config.yaml`, with a `streamgate:` section of ours.
//!
//! Two forms: the tree as merged and substituted (`config/merge.rs`, `config/env.rs`), and the
//! meant form below. All mistakes are reported at once, each with its path. Reading is pure: text
//! and an [`Environment`] in, a [`Config`] out; [`load`] alone touches files and the process.

mod apisix;
mod changes;
mod defaults;
mod deployment;
mod env;
mod extensions;
mod files;
mod known;
mod listen;
mod load;
mod merge;
mod nginx;
mod ours;
mod parse;
mod per_listen;
mod prometheus;
mod read;
mod registries;
mod report;
mod session_log;
mod snippet;
mod time;
mod upstream_tls;
pub mod variables;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::env::Environment;
pub use self::env::Variables;
pub use self::extensions::CLOSED_A_SECOND;
pub use self::extensions::Extensions;
pub use self::load::load;
pub use self::registries::ConsulRegistry;
pub use self::registries::ConsulSort;
pub use self::registries::DefaultService;
pub use self::registries::DnsRecord;
pub use self::registries::DnsRegistry;
pub use self::registries::EurekaRegistry;
pub use self::registries::NacosRegistry;
pub use self::registries::Registries;
pub use self::registries::RegistryServer;
pub use self::registries::Waits;
pub use self::report::Mistake;
pub use self::report::Mistakes;
pub use self::upstream_tls::CaBundle;
pub use self::upstream_tls::SniSource;
pub use self::upstream_tls::TlsTowards;
pub use self::upstream_tls::UpstreamTlsConfig;
use crate::addr::IpMatcher;
use crate::live::logs::Which;
use crate::session::Transport;
use crate::session::line::Escape;

/// Everything a node needs to know before it reads its first object.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to listen on, in the order written, ranges expanded.
    pub listens: Vec<Listen>,
    /// Where objects come from.
    pub source: Source,
    /// What decides whether an object is accepted.
    pub rules: RulesConfig,
    /// Name resolution.
    pub dns: Dns,
    /// `discovery`: what upstreams with a `discovery_type` take their nodes from.
    pub registries: Registries,
    /// `apisix.ssl` and certificates of outgoing connections.
    pub ssl: SslConfig,
    /// `streamgate.upstream_tls` and `streamgate.upstreams`: how nodes of scheme `tls` are dialled.
    pub upstream_tls: UpstreamTlsConfig,
    /// `streamgate.upstreams`, without `tls`: by id, as in `upstream_tls`.
    pub extensions: BTreeMap<Arc<str>, Extensions>,
    /// The metrics server; absent where `enable_export_server` is false.
    pub prometheus: Option<Prometheus>,
    /// `apisix.status`: the `/status` server.
    pub status: Option<SocketAddr>,
    /// `apisix.control`: the control API; absent where `enable_control` is false.
    pub control: Option<Control>,
    /// Worker threads, one core each.
    pub workers: usize,
    /// `enable_cpu_affinity`: each worker stays on a core.
    pub cpu_affinity: bool,
    /// `worker_shutdown_timeout`: how long QUIT lets sessions finish.
    pub shutdown_timeout: Duration,
    /// `nginx_config.stream.real_ip_from`: peers whose PROXY header replaces the client address.
    pub real_ip_from: Vec<IpMatcher>,
    /// `nginx_config.error_log_level` as a tracing level: `error`, `warn`, `info`, `debug`.
    pub log_level: Box<str>,
    /// `nginx_config.stream.access_log*`.
    pub access_log: AccessLog,
    /// `streamgate.session_log`.
    pub session_log: SessionLog,
    /// `apisix.disable_upstream_healthcheck`.
    pub disable_healthcheck: bool,
    /// Limits of the process.
    pub limits: Limits,
    /// Sentences for the operator about what was accepted but has no effect here.
    pub warnings: Vec<String>,
}

/// One socket address to accept on, with what it does.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in config.yaml")]
pub struct Listen {
    /// As written in config.yaml: the key of per-listen settings, shown in logs.
    pub written: Arc<str>,
    /// Concrete address; port 0 lets the system choose (ours, for tests).
    pub addr: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// Terminates TLS.
    pub tls: bool,
    /// Routes by the ClientHello without decrypting.
    pub tls_passthrough: bool,
    /// A PROXY header is expected.
    pub proxy_protocol: bool,
    /// A PROXY header is sent to nodes.
    pub proxy_protocol_to_upstream: bool,
    /// TCP with `tls` or `tls_passthrough`: the time from the accept, or from the end of the PROXY
    /// header, to the end of the TLS handshake; on passthrough to the end of the `ClientHello`.
    pub handshake_timeout: Duration,
    /// TCP with `proxy_protocol`: the time from the accept to the end of the PROXY header.
    pub proxy_protocol_timeout: Duration,
    /// TCP with `proxy_protocol`: a connection without a header is taken as it is.
    pub proxy_protocol_optional: bool,
    /// TCP with `proxy_protocol_to_upstream`: the form of the header that is sent.
    pub proxy_protocol_version: ProxyVersion,
    /// TCP with `proxy_protocol_to_upstream`: what the header of version 2 says besides addresses;
    /// none with version 1, which has no room for it.
    pub proxy_protocol_tlvs: ProxyTlvs,
    /// TCP: a FIN of one side leaves the other direction open. False restores APISIX's way.
    pub half_close: bool,
    /// TCP: the idle limit after the first FIN.
    pub half_close_timeout: Duration,
    /// UDP: replaces the upstream's idle timeout.
    pub idle_timeout: Option<Duration>,
    /// UDP: an association ends after so many answers.
    pub responses: Option<u32>,
}

/// The form of a PROXY header that is sent (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ProxyVersion {
    /// A line of text, all that nginx and so APISIX sends.
    #[default]
    V1,
    /// Binary, with room for TLVs.
    V2,
}

/// The TLVs of a PROXY header of version 2 (section 2.2 of its specification).
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an entry of the list in config.yaml")]
pub struct ProxyTlvs {
    /// `PP2_TYPE_AUTHORITY`: the server name the client asked for.
    pub sni: bool,
    /// `PP2_TYPE_ALPN`: the protocol.
    pub alpn: bool,
    /// `PP2_TYPE_UNIQUE_ID`: an id of the session.
    pub unique_id: bool,
    /// Those of the header that the client's connection brought are passed on.
    pub received: bool,
}

impl ProxyTlvs {
    /// Every one.
    pub const ALL: Self = Self { sni: true, alpn: true, unique_id: true, received: true };
    /// None at all.
    pub const NONE: Self = Self { sni: false, alpn: false, unique_id: false, received: false };
}

/// `apisix.control`: where the control API is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Control {
    /// The address; APISIX's default is 127.0.0.1:9090 (`apisix/cli/ops.lua`, `control_server_addr`).
    pub addr: SocketAddr,
    /// It stands in config.yaml: then the node does not start without it.
    pub written: bool,
}

/// Where objects come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// `config_provider: etcd`.
    Etcd(Box<EtcdConfig>),
    /// `config_provider: yaml` or `json`: the path of `apisix.yaml` or `apisix.json`.
    File(PathBuf),
}

/// `deployment.etcd`.
#[derive(Clone, Eq, PartialEq)]
pub struct EtcdConfig {
    /// `http://` or `https://` endpoints, without a path.
    pub hosts: Vec<Box<str>>,
    /// Verbatim, such as `/apisix`; objects live below `{prefix}/`.
    pub prefix: Box<str>,
    /// User and password, where both are set.
    pub auth: Option<(Box<str>, Box<str>)>,
    /// Deadline of one request.
    pub timeout: Duration,
    /// `tls.verify`.
    pub tls_verify: bool,
    /// `tls.sni`: replaces the host of the endpoint in SNI and verification.
    pub tls_sni: Option<Box<str>>,
    /// `tls.cert` and `tls.key`: paths.
    pub tls_cert: Option<(PathBuf, PathBuf)>,
    /// CA bundle: `apisix.ssl.ssl_trusted_certificate`, resolved; absent: none was found.
    pub trusted: Option<PathBuf>,
}

/// Without the password.
impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("hosts", &self.hosts)
            .field("prefix", &self.prefix)
            .field("user", &self.auth.as_ref().map(|(user, _)| user))
            .field("timeout", &self.timeout)
            .field("tls_verify", &self.tls_verify)
            .field("tls_sni", &self.tls_sni)
            .field("tls_cert", &self.tls_cert)
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}

/// What decides whether an object is accepted.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct RulesConfig {
    /// `stream_plugins`.
    pub stream_plugins: Vec<Box<str>>,
    /// `xrpc.protocols[].name`.
    pub xrpc_protocols: Vec<Box<str>>,
    /// `data_encryption.keyring`: entries of 16 or 32 bytes.
    pub keyring: Vec<Box<str>>,
    /// The `plugins` key of etcd counts (`enable_admin` is false).
    pub plugins_key_counts: bool,
    /// Objects come from a file: unknown plugins reject, as in APISIX.
    pub standalone: bool,
    /// The variables of the process, which `$env://` references in objects name.
    pub environment: Variables,
}

impl RulesConfig {
    /// Every plugin and protocol that is known enabled, APISIX's default keyring, objects of etcd:
    /// what judges objects where no config.yaml is given.
    #[must_use]
    pub fn everything() -> Self {
        let owned = |names: &[&str]| names.iter().copied().map(Box::from).collect();
        Self {
            stream_plugins: owned(&[
                "ip-restriction",
                "limit-bandwidth",
                "limit-conn",
                "limit-rate",
                "mqtt-proxy",
                "traffic-split",
                "prometheus",
                "syslog",
            ]),
            xrpc_protocols: owned(&["redis", "dubbo"]),
            keyring: owned(&["qeddd145sfvddff3", "edd1c9f0985e76a2"]),
            plugins_key_counts: false,
            standalone: false,
            environment: Variables::default(),
        }
    }
}

/// Without the keys.
impl fmt::Debug for RulesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RulesConfig")
            .field("stream_plugins", &self.stream_plugins)
            .field("xrpc_protocols", &self.xrpc_protocols)
            .field("keyring_entries", &self.keyring.len())
            .field("plugins_key_counts", &self.plugins_key_counts)
            .field("standalone", &self.standalone)
            .field("environment", &self.environment)
            .finish_non_exhaustive()
    }
}

/// Name resolution.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dns {
    /// `dns_resolver`; empty: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// `dns_resolver_valid`: replaces every TTL.
    pub valid: Option<Duration>,
    /// `resolver_timeout`.
    pub timeout: Duration,
    /// `enable_resolv_search_opt`.
    pub search: bool,
    /// `enable_ipv6`.
    pub ipv6: bool,
}

/// `apisix.ssl`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SslConfig {
    /// Used for TLS clients that send no server name.
    pub fallback_sni: Option<Box<str>>,
    /// CA bundle for outgoing connections.
    pub trusted: Option<PathBuf>,
}

/// `plugin_attr.prometheus`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prometheus {
    /// `export_addr`.
    pub addr: SocketAddr,
    /// `export_uri`.
    pub uri: Box<str>,
    /// `metric_prefix`.
    pub prefix: Box<str>,
    /// `metrics.<name>.extra_labels`.
    pub extra_labels: Vec<ExtraLabels>,
    /// `streamgate.metrics.max_series`: lines of the `streamgate_*` family before folding.
    pub max_series: usize,
}

/// Labels added to one metric: each its name and the variable it shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExtraLabels {
    /// The metric, without its prefix.
    pub metric: Box<str>,
    /// Label and variable.
    pub labels: Vec<(Box<str>, Box<str>)>,
}

/// `nginx_config.stream.access_log*`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccessLog {
    /// `enable_access_log`.
    pub enabled: bool,
    /// The file, made absolute.
    pub path: PathBuf,
    /// The format with nginx variables.
    pub format: Box<str>,
    /// `access_log_format_escape`.
    pub escape: Escape,
}

/// `streamgate.session_log`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionLog {
    /// `sessions`: those that a line is written of when they end.
    pub which: Which,
    /// `path`: its file, made absolute; absent: the log of the process.
    pub path: Option<PathBuf>,
    /// `sample`: the share of normal endings, 0 to 1; absent: each.
    pub sample: Option<f64>,
    /// `long_sessions`: how often a session that still lives is told of; absent: never.
    pub long: Option<Duration>,
}

/// Limits of the process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// UDP associations of the whole process (`streamgate.udp.max_associations`).
    pub udp_associations: usize,
    /// TCP sessions (`streamgate.max_sessions`); absent: from the descriptor limit.
    pub sessions: Option<usize>,
}

#[cfg(test)]
mod tests;
