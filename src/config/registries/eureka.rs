//! `discovery.eureka` (`apisix/discovery/eureka/schema.lua`).

use std::time::Duration;

use serde_json::Value;

use super::super::read::Node;
use super::server::RegistryServer;
use super::server::Waits;
use super::server::prefix;
use super::server::seconds;
use super::server::servers;
use super::server::weight;

/// `discovery.eureka`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EurekaRegistry {
    /// `host`; a user and a password in it are sent with each request.
    pub servers: Vec<RegistryServer>,
    /// `prefix`, without its final slash; empty where it is not written.
    pub prefix: Box<str>,
    /// `fetch_interval`.
    pub fetch_interval: Duration,
    /// `weight`: of instances whose metadata have none.
    pub weight: u32,
    /// `timeout`.
    pub waits: Waits,
}

/// Reads the section.
pub(super) fn read(section: &Node<'_>) -> EurekaRegistry {
    let written = section.at("prefix");
    let written = Some(&written).filter(|node| node.value().and_then(Value::as_str) != Some(""));
    EurekaRegistry {
        servers: servers(&section.at("host"), "http://127.0.0.1:8761"),
        prefix: written.and_then(prefix).unwrap_or_default(),
        fetch_interval: seconds(&section.at("fetch_interval")).unwrap_or(Duration::from_secs(30)),
        weight: weight(&section.at("weight"), 0).unwrap_or(100),
        waits: Waits::read(section),
    }
}
