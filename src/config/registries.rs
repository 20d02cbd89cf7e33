//! `discovery`: the registries that upstreams with a `discovery_type` take their nodes from.
//!
//! A registry is there where its section is (`apisix/discovery/init.lua`). Each has a type and a file of its own.

mod dns;

pub use self::dns::DnsRecord;
pub use self::dns::DnsRegistry;
use super::Dns;
use super::files::Files;
use super::read::Node;

/// What can be asked for the instances of services.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Registries {
    /// `discovery.dns`.
    pub dns: Option<DnsRegistry>,
}

impl Registries {
    /// Reports whether upstreams with this `discovery_type` are served.
    #[must_use]
    pub fn serve(&self, kind: &str) -> bool {
        match kind {
            "dns" => self.dns.is_some(),
            _ => false,
        }
    }
}

/// Reads the section, and says which registries in it are not built.
pub(super) fn read(root: &Node<'_>, dns: &Dns, files: &Files<'_>) -> Registries {
    const BUILT: &[&str] = &["dns"];
    let section = root.at("discovery");
    for (kind, node) in section.entries().filter(|(kind, _)| !BUILT.contains(kind)) {
        node.warn(format!("discovery by {kind} is not built; upstreams that use it have no node"));
    }
    Registries { dns: dns::read(&section.at("dns"), dns, files) }
}
