//! Which node of an upstream gets a session.
//!
//! Nodes are grouped by priority; a lower group is used when the higher one yields nothing. Within a
//! group, nodes of weight 0 take sessions only when health checks leave no node with a weight (with
//! chash: when no node has one). Nodes that a session tried before are skipped. A node that is alone is always used, as in APISIX's fast
//! path (`apisix/balancer.lua:250`).
//!
//! All workers share one state behind one lock a set of nodes, so that turns and counts are those of
//! the whole process (APISIX: of each worker). Sessions in flight are counted in [`Stats`], which
//! outlive the pool: a changed upstream goes on with the counts it has.

mod checked;
mod preview;
mod ring;
mod set;
mod turns;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::certs::towards::NodeTls;
use crate::drain::Leash;
use crate::health::Cell;
use crate::live::Stats;
use crate::resource::{Balancer, Discovery, HashKey, Timeouts};
use crate::session::Inbound;
use crate::template::Template;
pub use checked::{Checked, Target};
use set::{Method, Set};

/// A node that can be dialled.
#[derive(Clone, Debug)]
pub struct PoolNode {
    /// Where to connect.
    pub addr: SocketAddr,
    /// `host:port` as configured (for a name: with the address it resolved to); chash hashes it.
    pub label: Arc<str>,
    /// Share of new sessions.
    pub weight: u32,
    /// Higher ones are used first.
    pub priority: i64,
    /// What happened on it.
    pub stats: Arc<Stats>,
    /// How TLS is spoken with it, where the upstream's scheme is tls.
    pub tls: Option<Arc<NodeTls>>,
    /// What health checks say of it, where the upstream has any.
    pub health: Option<Arc<Cell>>,
    /// The leash of its sessions, where they end when it goes down or leaves the upstream.
    pub leash: Option<Arc<Leash>>,
}

impl PoolNode {
    /// Reports whether health checks let it through.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.health.as_ref().is_none_or(|health| health.is_usable())
    }
}

/// How the nodes of a pool are tried and dialled.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Connect and idle limits.
    pub timeouts: Timeouts,
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// No attempt after the first begins later than this.
    pub retry_timeout: Option<Duration>,
    /// Why TLS cannot be spoken to nodes though it has to be: no session may go there.
    pub unfit: Option<Arc<str>>,
    /// Some node is a name without an answer yet: sessions that find no node wait for it.
    pub pending: bool,
    /// Sessions a second that are closed when their node goes down or leaves the upstream; 0: none.
    pub close_on_down: u32,
}

/// An upstream ready for sessions: its nodes with their addresses, and the state of its balancer.
/// Shared by all workers.
#[derive(Debug)]
pub struct Pool {
    /// Id of the upstream, or of the route or service it is written in.
    pub id: Arc<str>,
    /// How to try and dial.
    pub settings: PoolSettings,
    nodes: Vec<PoolNode>,
    /// Highest priority first.
    groups: Vec<Group>,
    /// What chash hashes; none for the others.
    key: Option<Key>,
    degraded: Option<String>,
    method: Method,
    checked: Option<Box<Checked>>,
    names: Box<[Named]>,
    service: Option<Arc<Discovery>>,
}

/// A host name that nodes are written with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Named {
    /// The name as written.
    pub name: Arc<str>,
    /// Its addresses; `None` before the first answer of the resolver, empty where it does not exist.
    pub addresses: Option<Arc<[IpAddr]>>,
}

/// The nodes of one priority.
#[derive(Debug)]
struct Group {
    weighted: Set,
    /// Those of weight 0, which count as equal.
    spare: Set,
}

/// What chash hashes.
#[derive(Debug)]
enum Key {
    Variable(Box<str>),
    Template(Template),
    Client,
}

/// The nodes a session has tried, by label: it may go on in a newer pool of the same upstream.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// Nearly every session ends with it; it needs no heap.
    first: Option<Arc<str>>,
    /// Ascending.
    further: Vec<Arc<str>>,
}

/// A chosen node.
#[derive(Debug)]
pub struct Picked {
    /// The node.
    pub node: PoolNode,
    /// The session in the balancer's counts.
    pub assigned: Assigned,
}

/// The statistics of a node, where a session counts as its own until this is dropped.
#[derive(Debug)]
pub struct Assigned(Arc<Stats>);

impl Pool {
    /// A pool of these nodes, of which no two have the same label. `seed` decides where a round
    /// begins.
    #[must_use]
    pub fn new(
        id: Arc<str>,
        balancer: &Balancer,
        settings: PoolSettings,
        nodes: Vec<PoolNode>,
        seed: u64,
    ) -> Self {
        let method = match balancer {
            Balancer::RoundRobin | Balancer::Unknown(_) => Method::Turns,
            Balancer::Ewma => Method::Fastest,
            Balancer::Chash(_) => Method::Hash,
            Balancer::LeastConn => Method::Fewest,
        };
        let mut priorities: Vec<i64> = nodes.iter().map(|node| node.priority).collect();
        priorities.sort_unstable_by(|a, b| b.cmp(a));
        priorities.dedup();
        let groups: Vec<_> =
            priorities.into_iter().map(|priority| Group::new(&nodes, priority, method, seed)).collect();
        let coarse = groups.iter().any(|group| group.weighted.is_coarse());
        let degraded = degraded(balancer, coarse);
        let (key, names) = (Key::of(balancer), Box::default());
        Self { id, settings, nodes, groups, key, degraded, method, checked: None, names, service: None }
    }

    /// The same, with the host names that its nodes are written with.
    #[must_use]
    pub fn with_names(self, names: Vec<Named>) -> Self {
        Self { names: names.into(), ..self }
    }

    /// The same, its nodes being the instances of this service.
    #[must_use]
    pub fn with_service(self, service: Option<Arc<Discovery>>) -> Self {
        Self { service, ..self }
    }

    /// Why it has no node that can be dialled, where that is so: what has to be mended.
    #[must_use]
    pub fn why_empty(&self) -> String {
        if !self.nodes.is_empty() {
            // Of chash alone, as in APISIX: the ring has no points for the others.
            return "the nodes that have a weight are down, and those of weight 0 take no key".into();
        }
        let mut why = Vec::new();
        for Named { name, addresses } in &self.names {
            match addresses.as_deref() {
                None => why.push(format!("host name {name} has not been answered for")),
                Some([]) => why.push(format!("host name {name} has no address")),
                Some(_) => {}
            }
        }
        if let (Some(service), []) = (&self.service, why.as_slice()) {
            why.push(if self.settings.pending {
                format!("the registry of service {service} has not answered")
            } else {
                format!("service {service} has no instance that can be used")
            });
        }
        if why.is_empty() { "none of its nodes can be used".into() } else { why.join(", ") }
    }

    /// The host names that its nodes are written with, each once, in their order.
    #[must_use]
    pub fn names(&self) -> &[Named] {
        &self.names
    }

    /// The same, with health checks.
    #[must_use]
    pub fn with_checks(self, checked: Checked) -> Self {
        Self { checked: Some(Box::new(checked)), ..self }
    }

    /// Its health checks.
    #[must_use]
    pub fn checked(&self) -> Option<&Checked> {
        self.checked.as_deref()
    }

    /// The nodes in their configured order.
    #[must_use]
    pub fn nodes(&self) -> &[PoolNode] {
        &self.nodes
    }

    /// How nodes are chosen: APISIX's word.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self.method {
            Method::Turns => "roundrobin",
            Method::Hash => "chash",
            Method::Fewest => "least_conn",
            Method::Fastest => "ewma",
        }
    }

    /// Reports whether nodes are chosen by their sessions. APISIX then treats a node that is alone as one
    /// of several (`apisix/balancer.lua:250`).
    #[must_use]
    pub fn counts_sessions(&self) -> bool {
        self.method == Method::Fewest
    }

    /// Reports whether nodes are chosen by how long it takes to connect to them.
    #[must_use]
    pub fn measures_connects(&self) -> bool {
        self.method == Method::Fastest
    }

    /// What the balancer does otherwise than configured, as a sentence for the operator.
    #[must_use]
    pub fn degraded(&self) -> Option<&str> {
        self.degraded.as_deref()
    }

    /// The node for a session that tried `tried` in vain, which is noted there. Nodes that health checks
    /// took out are left out, unless all are; that is counted.
    ///
    /// `None` where every node was tried; a node that is alone is given again and again, as APISIX
    /// does, so callers count attempts.
    pub fn pick(&self, inbound: &Inbound, now: Instant, tried: &mut Tried) -> Option<Picked> {
        match &self.checked {
            // Asking each node costs more than the choice.
            Some(checked) if checked.stats.down.count() > 0 => {
                // A session that is sent on counts once.
                let first = tried.is_empty() && self.nodes.len() > 1;
                let picked = self.pick_where(inbound, now, PoolNode::is_usable, tried);
                if first && picked.as_ref().is_some_and(|picked| !picked.node.is_usable()) {
                    checked.stats.all_down.add_one();
                }
                picked
            }
            _ => self.pick_where(inbound, now, |_| true, tried),
        }
    }

    /// The same, with another opinion of which nodes are usable. It is asked with the balancer's lock
    /// held: it must be quick and not pick.
    pub fn pick_where(
        &self,
        inbound: &Inbound,
        now: Instant,
        usable: impl Fn(&PoolNode) -> bool,
        tried: &mut Tried,
    ) -> Option<Picked> {
        let picked = match &*self.nodes {
            [alone] => Some(Picked::new(alone)),
            nodes => {
                let wanted = Wanted { hash: self.key.as_ref().map_or(0, |key| key.hash(inbound)), now };
                self.choose(nodes, wanted, usable, tried)
            }
        }?;
        tried.note(&picked.node);
        Some(picked)
    }

    fn choose(
        &self,
        nodes: &[PoolNode],
        wanted: Wanted,
        usable: impl Fn(&PoolNode) -> bool,
        tried: &Tried,
    ) -> Option<Picked> {
        // Nearly always some node is well and none was tried.
        if tried.is_empty()
            && let Some(picked) = self.among(nodes, &usable, &usable, wanted)
        {
            return Some(picked);
        }
        let filtered = nodes.iter().any(&usable);
        let healthy = |node: &PoolNode| !filtered || usable(node);
        self.among(nodes, healthy, |node| !tried.contains(node) && healthy(node), wanted)
    }

    fn among(
        &self,
        nodes: &[PoolNode],
        healthy: impl Fn(&PoolNode) -> bool,
        candidate: impl Fn(&PoolNode) -> bool,
        wanted: Wanted,
    ) -> Option<Picked> {
        self.groups.iter().find_map(|group| group.set(nodes, &healthy).pick(nodes, &candidate, wanted))
    }
}

/// What a session brings to the choice.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// Of its key, for chash.
    hash: u32,
    /// For ewma.
    now: Instant,
}

impl Group {
    fn new(nodes: &[PoolNode], priority: i64, method: Method, seed: u64) -> Self {
        let members = (0..).zip(nodes).filter(|(_, node)| node.priority == priority);
        let (weighted, spare): (Vec<_>, Vec<_>) =
            members.map(|(index, node)| (index, node.weight)).partition(|(_, weight)| *weight > 0);
        let spare: Vec<_> = spare.into_iter().map(|(index, _)| (index, 1)).collect();
        Self {
            weighted: Set::new(nodes, &weighted, method, seed),
            spare: Set::new(nodes, &spare, method, seed),
        }
    }

    /// The nodes that compete. APISIX builds the picker of healthy nodes alone, but the ring of chash
    /// of all: there a node of weight 0 has no points whatever befalls the others
    /// (`apisix/balancer.lua:131`).
    fn set(&self, nodes: &[PoolNode], healthy: impl Fn(&PoolNode) -> bool) -> &Set {
        let mut weighted = self.weighted.members(nodes);
        let has_weight =
            if self.weighted.is_ring() { weighted.next().is_some() } else { weighted.any(healthy) };
        if has_weight { &self.weighted } else { &self.spare }
    }
}

impl Key {
    fn of(balancer: &Balancer) -> Option<Self> {
        let Balancer::Chash(key) = balancer else { return None };
        Some(match key {
            HashKey::Variable(name) => Self::Variable(name.clone()),
            HashKey::Template(text) => Self::Template(Template::new(text)),
            HashKey::Nothing => Self::Client,
        })
    }

    /// The hash of what the key is for this session; of the client's address where it is nothing
    /// (`apisix/balancer/chash.lua:31`). An empty value is a value.
    fn hash(&self, inbound: &Inbound) -> u32 {
        let client = || ring::hash_of(inbound.client_ip());
        match self {
            Self::Client => client(),
            Self::Variable(name) => inbound.variable(name).map_or_else(client, ring::hash_of),
            Self::Template(template) => {
                let mut key = ring::KeyHash::default();
                let resolved = template.render(&mut key, |name| inbound.variable(name));
                if resolved > 0 { key.finish() } else { client() }
            }
        }
    }
}

impl Tried {
    /// How many nodes there are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.further.len()
    }

    /// Reports whether no node was tried yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn contains(&self, node: &PoolNode) -> bool {
        self.first
            .as_ref()
            .is_some_and(|first| *first == node.label || self.further.binary_search(&node.label).is_ok())
    }

    /// Counts a node as tried.
    pub fn note(&mut self, node: &PoolNode) {
        match &self.first {
            None => self.first = Some(node.label.clone()),
            Some(first) if *first == node.label => {}
            Some(_) => {
                if let Err(at) = self.further.binary_search(&node.label) {
                    self.further.insert(at, node.label.clone());
                }
            }
        }
    }
}

impl Picked {
    fn new(node: &PoolNode) -> Self {
        node.stats.assign();
        Self { node: node.clone(), assigned: Assigned(node.stats.clone()) }
    }
}

impl std::ops::Deref for Assigned {
    type Target = Stats;

    #[inline]
    fn deref(&self) -> &Stats {
        &self.0
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.0.unassign();
    }
}

fn degraded(balancer: &Balancer, coarse: bool) -> Option<String> {
    match balancer {
        Balancer::Unknown(name) => Some(format!(
            "type `{name}` is no balancer, APISIX fails every session of it; sessions are spread by roundrobin; \
             set roundrobin, chash, least_conn or ewma"
        )),
        Balancer::Chash(_) if coarse => Some(
            "the weights make a hash ring too large, keys are placed otherwise than by APISIX; \
             divide the weights of all nodes"
                .into(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
