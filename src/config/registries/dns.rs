//! `discovery.dns`, with the limits of `apisix/discovery/dns/schema.lua`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::super::Dns;
use super::super::apisix;
use super::super::files::Files;
use super::super::read::Node;

/// The order where none is written (`apisix/discovery/dns/init.lua`).
const ORDER: &[DnsRecord] =
    &[DnsRecord::Last, DnsRecord::Srv, DnsRecord::A, DnsRecord::Aaaa, DnsRecord::Cname];

/// Service discovery by DNS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsRegistry {
    /// `servers`; empty where `resolv_conf` is written instead.
    pub servers: Vec<SocketAddr>,
    /// `resolv_conf`: a file with the servers and the search list.
    pub resolv_conf: Option<PathBuf>,
    /// `order`: which records are asked for first; without AAAA where `apisix.enable_ipv6` is false.
    pub order: Vec<DnsRecord>,
    /// `apisix.resolver_timeout`: for one look-up.
    pub timeout: Duration,
}

/// An entry of `order`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DnsRecord {
    /// Whatever was found last.
    Last,
    /// Targets with weights, priorities and ports (RFC 2782).
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Another name, under which all is looked for again.
    Cname,
}

impl DnsRecord {
    const NAMES: [(&str, Self); 5] = [
        ("last", Self::Last),
        ("SRV", Self::Srv),
        ("A", Self::A),
        ("AAAA", Self::Aaaa),
        ("CNAME", Self::Cname),
    ];

    fn read(node: &Node<'_>) -> Option<Self> {
        let name = node.choice(&Self::NAMES.map(|(name, _)| name))?;
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, record)| record)
    }
}

/// The registry, where its section is written.
pub(super) fn read(section: &Node<'_>, dns: &Dns, files: &Files<'_>) -> Option<DnsRegistry> {
    section.value()?;
    let (servers, resolv_conf) = (section.at("servers"), section.at("resolv_conf"));
    match (servers.is_absent(), resolv_conf.is_absent()) {
        (true, true) => section.mistake("has neither servers nor resolv_conf; write one of them"),
        (false, false) => section.mistake("has both servers and resolv_conf; only one of them is allowed"),
        _ => {}
    }
    let items = servers.items();
    if items.as_ref().is_some_and(Vec::is_empty) {
        servers.mistake("is an empty list; write at least one server");
    }
    let mut order = order(&section.at("order"));
    order.retain(|record| dns.ipv6 || *record != DnsRecord::Aaaa);
    Some(DnsRegistry {
        servers: items.unwrap_or_default().iter().filter_map(apisix::dns_server).collect(),
        resolv_conf: files.existing(&resolv_conf, &files.env.cwd),
        order,
        timeout: dns.timeout,
    })
}

fn order(node: &Node<'_>) -> Vec<DnsRecord> {
    let Some(items) = node.items() else { return ORDER.to_vec() };
    if items.is_empty() {
        node.mistake("is an empty list; leave the key out for last, SRV, A, AAAA, CNAME");
    }
    let mut order = Vec::with_capacity(items.len());
    for item in &items {
        match DnsRecord::read(item) {
            Some(record) if order.contains(&record) => item.mistake("stands in the list already"),
            Some(record) => order.push(record),
            None => {}
        }
    }
    order
}
