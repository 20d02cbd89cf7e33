//! `discovery`: the registries that upstreams with `discovery_type` take their nodes from.
//!
//! Keys, defaults and bounds are those of `apisix/discovery/<kind>/schema.lua`. A section that cannot be
//! used stops the start, as in APISIX.

mod consul;
mod dns;
mod eureka;
mod nacos;
mod server;

use serde_json::Value;

pub use self::consul::ConsulRegistry;
pub use self::consul::ConsulSort;
pub use self::consul::DefaultService;
pub use self::dns::DnsRecord;
pub use self::dns::DnsRegistry;
pub use self::eureka::EurekaRegistry;
pub use self::nacos::NacosRegistry;
pub use self::server::RegistryServer;
pub use self::server::Waits;
use super::Dns;
use super::files::Files;
use super::read::Node;
use super::read::show;

/// What `discovery` has a section for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Registries {
    /// `discovery.consul`.
    pub consul: Option<ConsulRegistry>,
    /// `discovery.dns`.
    pub dns: Option<DnsRegistry>,
    /// `discovery.eureka`.
    pub eureka: Option<EurekaRegistry>,
    /// `discovery.nacos`.
    pub nacos: Option<NacosRegistry>,
}

impl Registries {
    /// The values of `discovery_type` that there is something behind.
    pub const BUILT: [&'static str; 4] = ["consul", "dns", "eureka", "nacos"];

    /// Reports whether a section says how upstreams of this `discovery_type` get their nodes.
    #[must_use]
    pub fn has(&self, kind: &str) -> bool {
        match kind {
            "consul" => self.consul.is_some(),
            "dns" => self.dns.is_some(),
            "eureka" => self.eureka.is_some(),
            "nacos" => self.nacos.is_some(),
            _ => false,
        }
    }
}

/// Reads the section. `dns`: how names of nodes are resolved.
pub(super) fn read(root: &Node<'_>, dns: &Dns, files: &Files<'_>) -> Registries {
    let discovery = root.at("discovery");
    for (kind, node) in discovery.entries().filter(|(kind, _)| !Registries::BUILT.contains(kind)) {
        node.warn(format!("discovery by {kind} is not built; upstreams that use it have no node"));
    }
    let section = |kind| {
        let section = discovery.at(kind);
        match section.value()? {
            // To Lua an empty list is an empty map.
            Value::Object(_) | Value::Array(_) => Some(section),
            other => {
                section.mistake(format!("is {}; a map is allowed", show(other)));
                None
            }
        }
    };
    Registries {
        consul: section("consul").map(|section| consul::read(&section)),
        dns: section("dns").and_then(|section| dns::read(&section, dns, files)),
        eureka: section("eureka").map(|section| eureka::read(&section)),
        nacos: section("nacos").map(|section| nacos::read(&section)),
    }
}
