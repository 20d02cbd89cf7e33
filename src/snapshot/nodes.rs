//! The nodes of an upstream with their addresses.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::addr::Host;
use crate::balance::{Checked, Named, Pool, PoolNode, PoolSettings, Target};
use crate::certs::towards::PoolTls;
use crate::config::Extensions;
use crate::health::Cell;
use crate::live::{CheckedStats, Live};
use crate::number::{gcd, lcm};
use crate::resource::{Checks, Identity, Key, Kind, Node, Object, Scheme, Upstream};
use crate::snapshot::UpstreamSettings;
use crate::store::Store;

/// Addresses taken of one name at most.
const MAX_ADDRESSES: usize = 64;

/// The nodes of an upstream: those written in it, or those that its registry knows now; `None` before
/// the registry has answered.
pub(super) fn written<'a>(upstream: &'a Upstream, store: &'a Store) -> Option<&'a [Node]> {
    match &upstream.discovery {
        Some(service) => store.instances(service).map(|nodes| &**nodes),
        None => Some(&upstream.nodes),
    }
}

/// The names that nodes carry; one may come twice.
pub(super) fn names(nodes: &[Node]) -> impl Iterator<Item = &str> {
    nodes.iter().filter_map(|node| match &node.host {
        Host::Name(name) => Some(&**name),
        Host::Ip(_) => None,
    })
}

/// What pools are made with.
#[derive(Debug)]
pub(super) struct Means<'a> {
    pub(super) store: &'a Store,
    pub(super) live: &'a Live,
    pub(super) settings: &'a UpstreamSettings,
}

/// A pool of the nodes whose addresses are known.
pub(super) fn pool(id: Arc<str>, upstream: &Upstream, means: &Means<'_>, seed: u64) -> Pool {
    let Means { store, live, .. } = means;
    let written = written(upstream, store);
    let of_names = written.unwrap_or_default();
    let tls = tls(&id, upstream, means);
    let labels = upstream.extensions.as_deref().cloned().unwrap_or_default();
    let extensions = match means.settings.extensions.get(&id) {
        Some(own) => own.or(&labels),
        None => labels,
    };
    let settings = PoolSettings {
        timeouts: upstream.timeout.unwrap_or_default(),
        attempts: attempts(upstream, of_names),
        retry_timeout: upstream.retry_timeout,
        unfit: tls.as_ref().err().map(|why| why.as_str().into()),
        pending: written.is_none() || names(of_names).any(|name| store.addresses(name).is_none()),
        close_on_down: extensions.close_on_down.unwrap_or(0),
    };
    let tls = tls.unwrap_or_default();
    let checks = upstream.checks.as_ref().filter(|_| means.settings.checks);
    let mut targets = checks.map(|checks| Targets::new(&id, checks, live));
    // Without names there are as many addresses as nodes.
    let mut nodes: Vec<PoolNode> = Vec::with_capacity(of_names.len());
    for (addr, node, weight) in addressed(of_names, store) {
        let label: Arc<str> = match node.host {
            Host::Ip(_) => format!("{}:{}", node.written, node.port).into(),
            Host::Name(_) => addr.to_string().into(),
        };
        // Two names may share an address: then it carries the weight of both.
        let same = |other: &&mut PoolNode| other.label == label && other.priority == node.priority;
        if let Some(other) = nodes.iter_mut().find(same) {
            other.weight = other.weight.saturating_add(weight);
            continue;
        }
        let stats = live.nodes.entry((id.clone(), label.clone()), Default::default);
        let tls = tls.as_ref().map(|tls| Arc::new(tls.node(host(node))));
        let health = targets.as_mut().map(|targets| targets.cell(addr, node));
        let closes = settings.close_on_down > 0;
        let leash = closes.then(|| live.leashes.entry((id.clone(), label.clone()), Default::default));
        nodes.push(PoolNode { addr, label, weight, priority: node.priority, stats, tls, health, leash });
    }
    let checked = targets.map(|targets| targets.checked(extensions));
    let named = named(of_names, store);
    let pool = Pool::new(id, &upstream.balancer, settings, nodes, seed)
        .with_names(named)
        .with_service(upstream.discovery.clone());
    match checked {
        Some(checked) => pool.with_checks(checked),
        None => pool,
    }
}

/// Each name of the nodes once, with what the resolver says of it.
fn named(nodes: &[Node], store: &Store) -> Vec<Named> {
    let mut found: Vec<Named> = Vec::new();
    for name in names(nodes) {
        if !found.iter().any(|other| *other.name == *name) {
            found.push(Named { name: name.into(), addresses: store.addresses(name).cloned() });
        }
    }
    found
}

/// Collects what there is to probe.
#[derive(Debug)]
struct Targets<'a> {
    pool: &'a Arc<str>,
    checks: &'a Arc<Checks>,
    live: &'a Live,
    stats: Arc<CheckedStats>,
    found: Vec<Target>,
    places: HashMap<SocketAddr, usize>,
}

impl<'a> Targets<'a> {
    fn new(pool: &'a Arc<str>, checks: &'a Arc<Checks>, live: &'a Live) -> Self {
        let stats = live.checked.entry(pool.clone(), Default::default);
        Self { pool, checks, live, stats, found: Vec::new(), places: HashMap::new() }
    }

    /// What is known of a node: of the address that is probed for it.
    fn cell(&mut self, addr: SocketAddr, node: &Node) -> Arc<Cell> {
        let active = &self.checks.active;
        let addr = SocketAddr::new(addr.ip(), active.port.unwrap_or(addr.port()));
        let place = *self.places.entry(addr).or_insert(self.found.len());
        if let Some(target) = self.found.get(place) {
            return target.cell.clone();
        }
        let make = || Cell::new(self.stats.down.clone());
        let cell = self.live.targets.entry((self.pool.clone(), addr), make);
        let host = active.host.as_deref().unwrap_or_else(|| host(node)).into();
        self.found.push(Target { addr, host, cell: cell.clone() });
        cell
    }

    fn checked(self, extensions: Extensions) -> Checked {
        Checked { checks: self.checks.clone(), extensions, targets: self.found.into(), stats: self.stats }
    }
}

/// The host of a node as a server name: an IPv6 address without its brackets.
fn host(node: &Node) -> &str {
    node.written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&node.written)
}

/// How TLS is spoken to the nodes of an upstream, where it is; the error says why it cannot be.
fn tls(id: &str, upstream: &Upstream, means: &Means<'_>) -> Result<Option<PoolTls>, String> {
    if upstream.scheme != Scheme::Tls {
        return Ok(None);
    }
    let own = upstream.tls.as_ref();
    let identity = match own.and_then(|tls| tls.client_cert_id.as_ref()) {
        Some(ssl) => Some(client_certificate(ssl, means.store)?),
        None => own.and_then(|tls| tls.identity.as_ref()),
    };
    means.settings.towards.pool(id, identity).map(Some)
}

/// The certificate of an `ssls` object of type client; its status does not matter
/// (`apisix/init.lua:549-576`).
fn client_certificate<'a>(id: &Arc<str>, store: &'a Store) -> Result<&'a Identity, String> {
    let key = Key::new(Kind::Ssl, id.clone());
    match store.entry(&key).map(|entry| &entry.object) {
        Some(Object::Ssl(ssl)) if ssl.client_type => ssl.identities.first().ok_or_else(|| {
            format!("its tls.client_cert_id names ssl {id}, which holds no certificate that can be shown")
        }),
        Some(_) => Err(format!("its tls.client_cert_id names ssl {id}, whose type is not client")),
        None => Err(match store.rejection(&key) {
            Some(rejected) => {
                format!("its tls.client_cert_id names ssl {id}, which is rejected: {}", rejected.reason)
            }
            None => format!("its tls.client_cert_id names ssl {id}, which does not exist"),
        }),
    }
}

/// One attempt for the first node and, unless `retries` says otherwise, one for each further node;
/// a name counts once, however many addresses it has (`apisix/balancer.lua:215`).
fn attempts(upstream: &Upstream, nodes: &[Node]) -> u32 {
    let further = u32::try_from(nodes.len().saturating_sub(1)).unwrap_or(u32::MAX);
    upstream.retries.unwrap_or(further).saturating_add(1)
}

/// Every address with its node and weight. All addresses of a name weigh together exactly what the
/// name does: weights are multiplied by the least common multiple of the counts and then reduced.
fn addressed<'a>(nodes: &'a [Node], store: &'a Store) -> impl Iterator<Item = (SocketAddr, &'a Node, u32)> {
    let resolved: Vec<(&Node, Vec<IpAddr>)> = nodes
        .iter()
        .map(|node| match &node.host {
            Host::Ip(ip) => (node, vec![*ip]),
            Host::Name(name) => {
                let all = store.addresses(name).map(|all| all.iter().take(MAX_ADDRESSES).copied().collect());
                (node, all.unwrap_or_default())
            }
        })
        .collect();
    let multiple = resolved.iter().fold(1, |multiple, (_, all)| lcm(multiple, all.len().max(1) as u64));
    let weight = move |node: &Node, count: usize| u64::from(node.weight) * (multiple / count.max(1) as u64);
    let divisor =
        resolved.iter().fold(0, |divisor, (node, all)| gcd(divisor, weight(node, all.len()))).max(1);
    // Without names the weights stay as written: chash depends on them.
    let divisor = if multiple == 1 { 1 } else { divisor };
    resolved.into_iter().flat_map(move |(node, all)| {
        let weight = u32::try_from(weight(node, all.len()) / divisor).unwrap_or(u32::MAX);
        all.into_iter().map(move |ip| (SocketAddr::new(ip, node.port), node, weight))
    })
}
