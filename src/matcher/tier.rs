//! The rules of one server-name pattern, or of none: found by port, local address and client.

use std::cmp::Ordering;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Order, Query, Rule};
use crate::addr::{IpMatcher, PrefixMap};
use crate::persistent::Map;

/// One rule with its value, as all tiers share it.
#[derive(Debug)]
pub(super) struct Record<T> {
    pub(super) order: Order,
    pub(super) rule: Rule,
    pub(super) value: T,
}

/// A record in an index. Compares by the order of its rule.
#[derive(Debug)]
pub(super) struct Entry<T> {
    /// The first bytes of the order: most comparisons need no look at the record.
    head: u64,
    pub(super) record: Arc<Record<T>>,
}

impl<T> Entry<T> {
    pub(super) fn new(record: Arc<Record<T>>) -> Self {
        Self { head: head(&record.order), record }
    }
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { head: self.head, record: self.record.clone() }
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| self.record.order.cmp(&other.record.order))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

/// Eight bytes that compare as the whole order does, where they differ.
fn head(Order(bytes): &Order) -> u64 {
    bytes.iter().chain(std::iter::repeat(&0)).take(8).fold(0, |head, byte| head << 8 | u64::from(*byte))
}

/// Rules by client network.
type Clients<T> = PrefixMap<Entry<T>>;
/// The same by local network.
type Locals<T> = PrefixMap<Entry<T>, Clients<T>>;

/// The rules of one server-name pattern, or those of none.
#[derive(Clone, Debug)]
pub(super) struct Tier<T> {
    any_port: Locals<T>,
    ports: Map<u16, Locals<T>>,
}

impl<T> Default for Tier<T> {
    fn default() -> Self {
        Self { any_port: Locals::default(), ports: Map::default() }
    }
}

impl<T> Tier<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.any_port.is_empty() && self.ports.is_empty()
    }

    /// The first rule that holds; the server name is the caller's business.
    pub(super) fn first(&self, query: &Query<'_>) -> Option<&Entry<T>> {
        let server = IpNet::from(query.server.ip());
        self.least(Some(query.server.port()), Some(server), Some(query.client.into()))
    }

    /// The first rule that holds wherever `rule` does, as far as ports and addresses go.
    pub(super) fn first_around(&self, rule: &Rule) -> Option<&Entry<T>> {
        self.least(rule.server_port, rule.server_addr.map(network), rule.remote_addr.map(network))
    }

    fn least(&self, port: Option<u16>, server: Option<IpNet>, client: Option<IpNet>) -> Option<&Entry<T>> {
        let same_port = port.and_then(|port| self.ports.get(&port));
        let both = [Some(&self.any_port), same_port].into_iter().flatten();
        both.fold(None, |best, locals| {
            locals.least_by(server, best, |clients, best| clients.least(client, best))
        })
    }

    /// Every entry, in no particular order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<T>> {
        self.ports.values().chain([&self.any_port]).flat_map(PrefixMap::iter)
    }
}

impl<T: Clone> Tier<T> {
    pub(super) fn insert(&mut self, entry: Entry<T>) {
        let rule = &entry.record.rule;
        let locals = match rule.server_port {
            None => &mut self.any_port,
            Some(port) => self.ports.entry(port),
        };
        let client = rule.remote_addr.map(network);
        locals.edit(rule.server_addr.map(network), |clients| clients.insert(client, entry));
    }

    /// Reports whether the rule was there.
    pub(super) fn remove(&mut self, order: &Order, rule: &Rule) -> bool {
        let mut removed = false;
        let mut edit = |locals: &mut Locals<T>| {
            let probe = |entry: &Entry<T>| entry.record.order.cmp(order);
            let client = rule.remote_addr.map(network);
            let taken = locals.edit(rule.server_addr.map(network), |clients| clients.remove(client, probe));
            removed = taken.is_some();
            locals.is_empty()
        };
        match rule.server_port {
            None => {
                edit(&mut self.any_port);
            }
            Some(port) => self.ports.remove_if(&port, edit),
        }
        removed
    }
}

fn network(matcher: IpMatcher) -> IpNet {
    matcher.network()
}
