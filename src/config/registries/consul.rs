//! `discovery.consul` (`apisix/discovery/consul/schema.lua`).

use std::fmt;
use std::time::Duration;

use super::super::read::Node;
use super::server::RegistryServer;
use super::server::millis;
use super::server::seconds;
use super::server::servers;
use super::server::weight;

/// `discovery.consul`.
#[derive(Clone, Eq, PartialEq)]
pub struct ConsulRegistry {
    /// `servers`, without paths and users.
    pub servers: Vec<RegistryServer>,
    /// `token`: sent as `X-Consul-Token`; empty: none.
    pub token: Box<str>,
    /// `timeout.connect`.
    pub connect: Duration,
    /// `timeout.read`: for an answer that need not wait.
    pub read: Duration,
    /// `timeout.wait`: how long Consul may hold a blocking query.
    pub wait: Duration,
    /// `keepalive`: changes are waited for. Off: services are asked for every `fetch_interval`.
    pub keepalive: bool,
    /// `fetch_interval`.
    pub fetch_interval: Duration,
    /// `weight`: of instances of which Consul tells none.
    pub weight: u32,
    /// `sort_type`.
    pub sort: ConsulSort,
    /// `skip_services`, and `consul` itself: they have no instances.
    pub skip_services: Vec<Box<str>>,
    /// `default_service`: the only node of services without instances.
    pub default_service: Option<DefaultService>,
}

/// In which order instances stand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ConsulSort {
    /// By host, then by port: `host_sort`, `combine_sort`, and `origin`, for Consul promises no order.
    #[default]
    Host,
    /// By port, then by host: `port_sort`.
    Port,
}

/// `default_service`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DefaultService {
    /// A name or an address.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
}

/// Without the token.
impl fmt::Debug for ConsulRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulRegistry")
            .field("servers", &self.servers)
            .field("token", &!self.token.is_empty())
            .field("connect", &self.connect)
            .field("read", &self.read)
            .field("wait", &self.wait)
            .field("keepalive", &self.keepalive)
            .field("fetch_interval", &self.fetch_interval)
            .field("weight", &self.weight)
            .field("sort", &self.sort)
            .field("skip_services", &self.skip_services)
            .field("default_service", &self.default_service)
            .finish()
    }
}

/// Reads the section.
pub(super) fn read(section: &Node<'_>) -> ConsulRegistry {
    let timeout = section.at("timeout");
    let part = |key| millis(&timeout.at(key)).unwrap_or(Duration::from_secs(2));
    let sort = section.at("sort_type").choice(&["origin", "host_sort", "port_sort", "combine_sort"]);
    warn_of_the_idle(section);
    ConsulRegistry {
        servers: bare_servers(&section.at("servers")),
        token: token(&section.at("token")),
        connect: part("connect"),
        read: part("read"),
        wait: wait(&timeout.at("wait")),
        keepalive: section.at("keepalive").boolean().unwrap_or(true),
        fetch_interval: seconds(&section.at("fetch_interval")).unwrap_or(Duration::from_secs(3)),
        weight: weight(&section.at("weight"), 1).unwrap_or(1),
        sort: if sort == Some("port_sort") { ConsulSort::Port } else { ConsulSort::Host },
        skip_services: skipped(&section.at("skip_services")),
        default_service: default_service(&section.at("default_service")),
    }
}

/// APISIX takes no path either (`apisix/discovery/consul/init.lua`).
fn bare_servers(list: &Node<'_>) -> Vec<RegistryServer> {
    let servers = servers(list, "http://127.0.0.1:8500");
    if servers.iter().any(|server| !server.path.is_empty() || server.auth.is_some()) {
        list.mistake("has more than scheme, host and port; write a token as discovery.consul.token");
    }
    servers
}

fn token(node: &Node<'_>) -> Box<str> {
    let token = node.secret().unwrap_or_default();
    if token.bytes().any(|byte| !byte.is_ascii_graphic()) {
        node.mistake("has characters that no token of Consul's has");
    }
    token.into()
}

/// Consul holds a query for ten minutes at most (<https://developer.hashicorp.com/consul/api-docs/features/blocking>).
fn wait(node: &Node<'_>) -> Duration {
    const MOST: Duration = Duration::from_mins(10);
    seconds(node).unwrap_or(Duration::from_mins(1)).min(MOST)
}

fn skipped(list: &Node<'_>) -> Vec<Box<str>> {
    let mut skipped = list.strings();
    skipped.push("consul".into());
    skipped
}

fn default_service(section: &Node<'_>) -> Option<DefaultService> {
    if section.is_absent() {
        return None;
    }
    let (host, port) = (section.at("host"), section.at("port"));
    for (node, example) in [(&host, "10.0.0.1"), (&port, "3306")] {
        if node.is_absent() {
            node.mistake(format!("is missing; write such as {example}, or no default_service"));
        }
    }
    let text = host.string();
    let odd =
        |text: &&str| text.bytes().any(|byte| !(byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte)));
    if let Some(odd) = text.filter(|text| text.is_empty() || odd(text)) {
        host.mistake(format!("is {odd:?}, which is no host"));
    }
    let port = port.integer(1..=65_535).and_then(|port| u16::try_from(port).ok());
    Some(DefaultService { host: text?.into(), port: port? })
}

fn warn_of_the_idle(section: &Node<'_>) {
    let dump = section.at("dump");
    if !dump.is_absent() {
        dump.warn("has no effect: nothing is written; instances are asked for at each start");
    }
}
