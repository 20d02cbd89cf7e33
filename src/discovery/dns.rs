//! Services in DNS: SRV records, or the addresses of a name with a port.
//!
//! `service_name` is `host` or `host:port` (`apisix/discovery/dns/init.lua`). Records are asked for in the order
//! of `discovery.dns.order`; the first kind that is found counts. `/etc/hosts` does not. What SRV records say of
//! weights and priorities is in `targets`.

mod targets;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};

use self::targets::Target;
use super::follow::AFTER_FAILURE;
use super::{Found, Registry, RegistryError};
use crate::addr::{Host, HostPort};
use crate::config::{DnsRecord, DnsRegistry};
use crate::net::dns::{Answer, Failure, RESOLV_CONF, Resolver, Settings};
use crate::resource::{Discovery, Node};

/// Answers are asked for again after their TTL within these bounds.
const TTL: [Duration; 2] = [Duration::from_secs(1), Duration::from_hours(1)];
/// How many aliases of a service are followed.
const MOST_ALIASES: usize = 8;
/// Targets of a service that count, and addresses of each.
const MOST_TARGETS: usize = 512;
const MOST_ADDRESSES: usize = 64;

/// The servers of `discovery.dns`.
#[derive(Clone, Debug)]
pub(super) struct Dns {
    resolver: Resolver,
    order: Arc<[DnsRecord]>,
}

impl Dns {
    /// Fails where `resolv_conf` names no server.
    pub(super) fn new(config: &DnsRegistry) -> Result<Self, Failure> {
        let resolver = Resolver::new(&Settings {
            servers: &config.servers,
            resolv_conf: config.resolv_conf.as_deref().unwrap_or(Path::new(RESOLV_CONF)),
            search: true,
            hosts: false,
            timeout: config.timeout,
        })?;
        Ok(Self { resolver, order: config.order.as_slice().into() })
    }

    /// What knows the instances of one service.
    pub(super) fn service(&self, service: &Arc<Discovery>) -> Service {
        let HostPort { host, port } = HostPort::parse_apisix(&service.service_name);
        let [pause, _] = AFTER_FAILURE;
        Service {
            dns: self.clone(),
            followed: service.clone(),
            host,
            port: port.filter(|port| *port > 0),
            last: None,
            pause,
            told: BTreeSet::new(),
        }
    }
}

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    dns: Dns,
    /// For messages.
    followed: Arc<Discovery>,
    host: Host,
    port: Option<u16>,
    /// The kind of records that was found last.
    last: Option<DnsRecord>,
    /// Until the next question, where there are no instances.
    pause: Duration,
    /// What the log has been told of records that are left out.
    told: BTreeSet<String>,
}

/// Records of a service, from a lookup that was answered.
struct Records {
    targets: Vec<Target>,
    ttl: Duration,
}

impl Registry for Service {
    async fn instances(&mut self, _patience: Duration) -> Result<Found, RegistryError> {
        let found = match &self.host {
            Host::Ip(ip) => Ok(Records { targets: vec![Target::address(*ip)], ttl: TTL[1] }),
            Host::Name(name) => self.records(&name.clone()).await,
        };
        let Records { targets, ttl } = found.map_err(|failure| RegistryError(failure.to_string()))?;
        let mut complaints = BTreeSet::new();
        let nodes = targets::nodes(&targets, self.port, &mut complaints);
        self.complain(complaints);
        let again = self.again(&nodes, ttl);
        Ok(Found { nodes, again: again.mul_f64(1.0 + 0.1 * rand::random::<f64>()) })
    }
}

impl Service {
    fn again(&mut self, nodes: &[Node], ttl: Duration) -> Duration {
        let [first, longest] = AFTER_FAILURE;
        if !nodes.is_empty() {
            self.pause = first;
            return ttl.clamp(TTL[0], TTL[1]);
        }
        let now = self.pause;
        self.pause = (now * 2).min(longest);
        now
    }

    /// Tells what is left out, once for as long as it is so.
    fn complain(&mut self, complaints: BTreeSet<String>) {
        for complaint in complaints.difference(&self.told) {
            tracing::warn!("service {}: {complaint}", self.followed);
        }
        self.told = complaints;
    }

    /// The records of the first kind in the order that the name has.
    async fn records(&mut self, name: &str) -> Result<Records, Failure> {
        let order = self.dns.order.clone();
        let (mut asked, mut failure) = (Vec::new(), None);
        for entry in order.iter() {
            let kind = if *entry == DnsRecord::Last { self.last } else { Some(*entry) };
            let Some(kind) = kind.filter(|kind| *kind != DnsRecord::Cname && !asked.contains(kind)) else {
                continue;
            };
            asked.push(kind);
            let found = match kind {
                DnsRecord::Srv => self.srv(name).await,
                DnsRecord::Aaaa => self.addresses(name, &[RecordType::AAAA]).await,
                _ => self.addresses(name, &[RecordType::A]).await,
            };
            match found {
                Ok(Some(found)) => {
                    self.last = Some(kind);
                    return Ok(found);
                }
                Ok(None) => {}
                // Another kind would be another set of nodes, for a fault of a moment.
                Err(error) if error.is_silence() || self.last == Some(kind) => return Err(error),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.last = None;
        Ok(Records { targets: Vec::new(), ttl: TTL[0] })
    }

    async fn addresses(&self, name: &str, kinds: &[RecordType]) -> Result<Option<Records>, Failure> {
        Ok(match self.dns.resolver.first(name, kinds).await? {
            Answer::Nothing(_) => None,
            Answer::Records { data, ttl } => {
                let addresses = data.iter().filter_map(RData::ip_addr).take(MOST_ADDRESSES);
                Some(Records { targets: addresses.map(Target::address).collect(), ttl })
            }
        })
    }

    /// SRV records of a name, or of the name it is an alias of: the client follows aliases to addresses alone.
    async fn srv(&self, name: &str) -> Result<Option<Records>, Failure> {
        let mut name = name.to_owned();
        let mut longest = TTL[1];
        for _ in 0..MOST_ALIASES {
            if let Answer::Records { data, ttl } = self.dns.resolver.first(&name, &[RecordType::SRV]).await? {
                return self.targets(&name, &data, ttl.min(longest)).await;
            }
            if !self.dns.order.contains(&DnsRecord::Cname) {
                break;
            }
            let alias = self.dns.resolver.first(&name, &[RecordType::CNAME]).await?;
            let Answer::Records { data, ttl } = alias else { break };
            let Some(RData::CNAME(target)) = data.first() else { break };
            name = target.0.to_string();
            longest = longest.min(ttl);
        }
        Ok(None)
    }

    async fn targets(&self, name: &str, data: &[RData], ttl: Duration) -> Result<Option<Records>, Failure> {
        let mut found = Records { targets: Vec::with_capacity(data.len()), ttl };
        let mut known: HashMap<String, Vec<IpAddr>> = HashMap::new();
        let all: Vec<&SRV> = data.iter().filter_map(as_srv).collect();
        let names = |srv: &SRV| srv.target.to_string().trim_end_matches('.').eq_ignore_ascii_case(name);
        // Some servers answer the question for any name with a record that leads to it.
        if all.iter().all(|srv| names(srv)) {
            return Ok(None);
        }
        for srv in all.into_iter().take(MOST_TARGETS) {
            // RFC 2782: the service is decidedly not there.
            if srv.target.is_root() {
                continue;
            }
            let target = srv.target.to_string();
            if !known.contains_key(&target) {
                let (addresses, ttl) = self.of_target(&target).await?;
                found.ttl = found.ttl.min(ttl);
                known.insert(target.clone(), addresses);
            }
            let addresses = known.get(&target).cloned().unwrap_or_default();
            found.targets.push(Target::of(srv, addresses));
        }
        Ok(Some(found))
    }

    /// The addresses of a target, by the part of the order that is about addresses.
    async fn of_target(&self, target: &str) -> Result<(Vec<IpAddr>, Duration), Failure> {
        let kinds: Vec<RecordType> = self
            .dns
            .order
            .iter()
            .filter_map(|record| match record {
                DnsRecord::A => Some(RecordType::A),
                DnsRecord::Aaaa => Some(RecordType::AAAA),
                _ => None,
            })
            .collect();
        let kinds = if kinds.is_empty() { vec![RecordType::A] } else { kinds };
        Ok(match self.dns.resolver.first(target, &kinds).await? {
            Answer::Nothing(_) => (Vec::new(), TTL[1]),
            Answer::Records { data, ttl } => {
                (data.iter().filter_map(RData::ip_addr).take(MOST_ADDRESSES).collect(), ttl)
            }
        })
    }
}

fn as_srv(data: &RData) -> Option<&SRV> {
    match data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    }
}
