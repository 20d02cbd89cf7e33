//! The rules of one server-name pattern, or of none: found by port, local address and client.

use std::cmp::Ordering;
use std::sync::Arc;

use ipnet::IpNet;

use super::persistent::Map;
use super::{Order, Query, Rule};
use crate::addr::IpMatcher;
use crate::addr::PrefixMap;

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

/// The rules of one server-name pattern, or those of none.
#[derive(Clone, Debug)]
pub(super) struct Tier<T> {
    /// What is stored under a place, and how many rules; few, as most rules look alike.
    shapes: Vec<(Shape, usize)>,
    clients: Map<Place, PrefixMap<Entry<T>>>,
}

/// Where the rules of one port and local network are.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Place {
    port: Option<u16>,
    server: Option<IpMatcher>,
}

/// What a place asks for. A query looks at one place for each shape that occurs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Shape {
    port: bool,
    /// Family and mask length of the local network.
    server: Option<(bool, u8)>,
}

impl<T> Default for Tier<T> {
    fn default() -> Self {
        Self { shapes: Vec::new(), clients: Map::default() }
    }
}

impl<T> Tier<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
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
        let mut best = None;
        for (shape, _) in &self.shapes {
            if let Some(place) = shape.place(port, server)
                && let Some(clients) = self.clients.get(&place)
            {
                best = clients.least_around(client, best, |_| true);
            }
        }
        best
    }

    /// Every entry, in no particular order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<T>> {
        self.clients.values().flat_map(PrefixMap::iter)
    }
}

impl<T: Clone> Tier<T> {
    pub(super) fn insert(&mut self, entry: Entry<T>) {
        let rule = &entry.record.rule;
        let place = Place::of(rule);
        let shape = Shape::of(place);
        if let Some((_, count)) = self.shapes.iter_mut().find(|(other, _)| *other == shape) {
            *count += 1;
        } else {
            self.shapes.reserve_exact(1);
            self.shapes.push((shape, 1));
        }
        self.clients.entry(place).insert(rule.remote_addr.map(network), entry);
    }

    /// Reports whether the rule was there.
    pub(super) fn remove(&mut self, order: &Order, rule: &Rule) -> bool {
        let place = Place::of(rule);
        let mut removed = false;
        self.clients.remove_if(&place, |clients| {
            let probe = |entry: &Entry<T>| entry.record.order.cmp(order);
            removed = clients.remove(rule.remote_addr.map(network), probe).is_some();
            clients.is_empty()
        });
        if removed {
            let shape = Shape::of(place);
            self.shapes.retain_mut(|(other, count)| {
                *count -= usize::from(*other == shape);
                *count > 0
            });
        }
        removed
    }
}

impl Place {
    fn of(rule: &Rule) -> Self {
        Self { port: rule.server_port, server: rule.server_addr }
    }
}

impl Shape {
    fn of(place: Place) -> Self {
        let server = place.server.map(network);
        Self {
            port: place.port.is_some(),
            server: server.map(|net| (net.addr().is_ipv4(), net.prefix_len())),
        }
    }

    /// The one place of this shape that holds the port and all of the local network. None where the
    /// shape is of the other family or too narrow.
    fn place(self, port: Option<u16>, server: Option<IpNet>) -> Option<Place> {
        let port = if self.port { Some(port?) } else { None };
        let server = match self.server {
            None => None,
            Some((is_v4, length)) => {
                let inner =
                    server.filter(|net| net.addr().is_ipv4() == is_v4 && length <= net.prefix_len())?;
                Some(IpNet::new(inner.addr(), length).ok()?.into())
            }
        };
        Some(Place { port, server })
    }
}

fn network(matcher: IpMatcher) -> IpNet {
    matcher.network()
}
