//! `discovery.nacos` (`apisix/discovery/nacos/schema.lua`).

use std::fmt;
use std::time::Duration;

use super::super::read::Node;
use super::server::RegistryServer;
use super::server::Waits;
use super::server::prefix;
use super::server::seconds;
use super::server::servers;
use super::server::weight;

/// `discovery.nacos`.
#[derive(Clone, Eq, PartialEq)]
pub struct NacosRegistry {
    /// `host`; a user and a password in it are what is logged in with.
    pub servers: Vec<RegistryServer>,
    /// `prefix`, without its final slash.
    pub prefix: Box<str>,
    /// `fetch_interval`.
    pub fetch_interval: Duration,
    /// `weight`: of instances that have none.
    pub weight: u32,
    /// `timeout`.
    pub waits: Waits,
    /// `access_key` and `secret_key`, where both are set: requests are signed.
    pub keys: Option<(Box<str>, Box<str>)>,
}

/// Without the keys.
impl fmt::Debug for NacosRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NacosRegistry")
            .field("servers", &self.servers)
            .field("prefix", &self.prefix)
            .field("fetch_interval", &self.fetch_interval)
            .field("weight", &self.weight)
            .field("waits", &self.waits)
            .field("keys", &self.keys.is_some())
            .finish()
    }
}

/// Reads the section.
pub(super) fn read(section: &Node<'_>) -> NacosRegistry {
    NacosRegistry {
        servers: servers(&section.at("host"), "http://127.0.0.1:8848"),
        prefix: prefix(&section.at("prefix")).unwrap_or_else(|| "/nacos/v1".into()),
        fetch_interval: seconds(&section.at("fetch_interval")).unwrap_or(Duration::from_secs(30)),
        weight: weight(&section.at("weight"), 1).unwrap_or(100),
        waits: Waits::read(section),
        keys: keys(section),
    }
}

fn keys(section: &Node<'_>) -> Option<(Box<str>, Box<str>)> {
    let (access, secret) = (section.at("access_key"), section.at("secret_key"));
    let written = |node: &Node<'_>| node.secret().filter(|text| !text.is_empty()).map(Box::from);
    match (written(&access), written(&secret)) {
        (Some(access), Some(secret)) => Some((access, secret)),
        (Some(_), None) => {
            access.warn("is set without secret_key: requests are not signed, as in APISIX");
            None
        }
        (None, Some(_)) => {
            secret.warn("is set without access_key: requests are not signed, as in APISIX");
            None
        }
        (None, None) => None,
    }
}
