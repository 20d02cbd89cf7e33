//! Targets of a service to nodes, as APISIX makes them (`apisix/core/dns/client.lua`, `resolve_srv`;
//! `apisix/discovery/dns/init.lua`). Pure.
//!
//! Weight 0 counts as 1. A target's weight is split evenly over its addresses, and all weights are multiplied by
//! the least common multiple of the address counts, so that they stay whole. The target with the lowest priority
//! is used first (RFC 2782); nodes say it the other way, so priorities are negated.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_resolver::proto::rr::rdata::SRV;

use crate::addr::Host;
use crate::number::lcm;
use crate::resource::Node;

/// Where a record leads.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As messages show it.
    name: String,
    addresses: Vec<IpAddr>,
    /// What an SRV record says: port, weight, priority.
    srv: Option<(u16, u16, u16)>,
}

impl Target {
    /// An A or AAAA record of the service itself.
    pub(super) fn address(address: IpAddr) -> Self {
        Self { name: address.to_string(), addresses: vec![address], srv: None }
    }

    /// An SRV record with the addresses of its target.
    pub(super) fn of(srv: &SRV, addresses: Vec<IpAddr>) -> Self {
        let name = srv.target.to_string();
        Self {
            name: name.strip_suffix('.').unwrap_or(&name).to_owned(),
            addresses,
            srv: Some((srv.port, srv.weight, srv.priority)),
        }
    }
}

/// The nodes, sorted. `port` overrides those of SRV records. What is left out is told in `complaints`.
pub(super) fn nodes(targets: &[Target], port: Option<u16>, complaints: &mut BTreeSet<String>) -> Vec<Node> {
    let counts = targets.iter().map(|target| target.addresses.len() as u64).filter(|count| *count > 0);
    let multiple = counts.fold(1, lcm);
    let mut nodes = Vec::with_capacity(targets.len());
    for Target { name, addresses, srv } in targets {
        if addresses.is_empty() {
            complaints.insert(format!("its SRV target {name} has no address and is left out"));
            continue;
        }
        let (own_port, weight, priority) = srv.unwrap_or((0, 1, 0));
        let Some(port) = port.or(Some(own_port).filter(|port| *port > 0)) else {
            complaints.insert(match srv {
                Some(_) => format!(
                    "its SRV record for {name} has port 0, and service_name has none; the target is left out"
                ),
                None => format!(
                    "its address {name} has no port and is left out; write service_name as host:port, or give the \
                     name SRV records"
                ),
            });
            continue;
        };
        let weight = u64::from(weight.max(1)) * (multiple / addresses.len() as u64).max(1);
        for address in addresses {
            nodes.push(Node {
                host: Host::Ip(*address),
                written: written(*address),
                port,
                weight: u32::try_from(weight).unwrap_or(u32::MAX),
                priority: -i64::from(priority),
            });
        }
    }
    nodes.sort_by_cached_key(|node| (Reverse(node.priority), node.host.clone(), node.port, node.weight));
    nodes
}

/// As the DNS client of APISIX writes it, which is what chash hashes: no group of an IPv6 address is left out.
fn written(address: IpAddr) -> Box<str> {
    match address {
        IpAddr::V4(ip) => ip.to_string().into(),
        IpAddr::V6(ip) => format!("[{}]", ip.segments().map(|group| format!("{group:x}")).join(":")).into(),
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::Name;

    use super::*;

    fn srv(target: &str, addresses: &[&str], of: (u16, u16, u16)) -> Target {
        let (port, weight, priority) = of;
        let target = Name::from_ascii(target).unwrap();
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Target::of(&SRV::new(priority, weight, port, target), addresses)
    }

    /// Nodes as `address:port=weight` with `@priority` where it is not 0, then the complaints.
    #[track_caller]
    fn check(targets: &[Target], port: Option<u16>, expected: &[&str], complaints: &[&str]) {
        let mut told = BTreeSet::new();
        let shown = |node: Node| {
            let priority = if node.priority == 0 { String::new() } else { format!("@{}", node.priority) };
            format!("{}:{}={}{priority}", node.written, node.port, node.weight)
        };
        let nodes: Vec<String> = nodes(targets, port, &mut told).into_iter().map(shown).collect();
        assert_eq!(nodes, expected);
        assert_eq!(told.len(), complaints.len(), "{told:?}");
        for (one, start) in told.iter().zip(complaints) {
            assert!(one.starts_with(start), "{one}");
        }
    }

    // The numbers are those of APISIX's t/discovery/stream/dns.t.
    #[test]
    fn weights_are_split_and_scaled_as_in_apisix() {
        let two =
            |weight| [srv("a.", &["127.0.0.1"], (1980, 60, 1)), srv("b.", &["127.0.0.2"], (1981, weight, 1))];
        check(&two(20), None, &["127.0.0.1:1980=60@-1", "127.0.0.2:1981=20@-1"], &[]);
        check(&two(0), None, &["127.0.0.1:1980=60@-1", "127.0.0.2:1981=1@-1"], &[]);
        check(&two(20), Some(80), &["127.0.0.1:80=60@-1", "127.0.0.2:80=20@-1"], &[]);
        let split =
            [srv("a.", &["127.0.0.1"], (1980, 100, 0)), srv("c.", &["127.0.0.3", "127.0.0.4"], (1980, 0, 0))];
        check(&split, None, &["127.0.0.1:1980=200", "127.0.0.3:1980=1", "127.0.0.4:1980=1"], &[]);
    }

    #[test]
    fn the_lowest_priority_of_records_is_the_highest_of_nodes() {
        let two = [srv("a.", &["127.0.0.1"], (1, 1, 20)), srv("b.", &["127.0.0.2"], (1, 1, 10))];
        check(&two, None, &["127.0.0.2:1=1@-10", "127.0.0.1:1=1@-20"], &[]);
    }

    #[test]
    fn what_has_no_port_or_no_address_is_left_out_and_named() {
        let zero = srv("a.test.", &["127.0.0.1"], (0, 1, 0));
        let empty = srv("b.test.", &[], (1, 1, 0));
        let plain = Target::address("127.0.0.9".parse().unwrap());
        let all = [zero, empty, plain];
        check(
            &all,
            None,
            &[],
            &[
                "its SRV record for a.test has port 0",
                "its SRV target b.test has",
                "its address 127.0.0.9 has",
            ],
        );
        check(
            &all,
            Some(7),
            &["127.0.0.1:7=1", "127.0.0.9:7=1"],
            &["its SRV target b.test has no address and is left out"],
        );
    }

    #[test]
    fn ipv6_is_written_as_apisix_hashes_it() {
        check(&[Target::address("::1".parse().unwrap())], Some(7), &["[0:0:0:0:0:0:0:1]:7=1"], &[]);
    }
}
