//! Ordered rules over client address, local address, port and server name, to a `T`.
//!
//! Rules stand in tiers by their server-name pattern: the exact name, then the wildcards from the
//! longest ending to the shortest, then the rules that name no server. The first tier that has a
//! rule whose other conditions hold decides, and in it the rule that comes first in order
//! (`apisix/stream/router/ip_port.lua:163`; resty-radixtree 2.9.2 `radixtree.lua:826`).
//!
//! Everything is persistent: a clone costs a few reference counts, a change copies a few nodes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

mod analysis;
mod explain;
mod tier;

use crate::addr::IpMatcher;
use crate::persistent::Map;
use crate::sni::SniPattern;
use tier::{Entry, Record, Tier};

pub use analysis::{Overlaps, Shadowed};
pub use explain::{Explanation, FellOut, Rest, Why};

/// The place of a rule: rules are tried in ascending order of these bytes. For objects of etcd they
/// are the bytes of the id, for those of a file its position; nothing is ever renumbered. Orders
/// that differ in their first eight bytes compare fastest.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Order(pub Arc<[u8]>);

/// The conditions of one route; every one that is present must hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// Clients.
    pub remote_addr: Option<IpMatcher>,
    /// Local addresses.
    pub server_addr: Option<IpMatcher>,
    /// The local port.
    pub server_port: Option<u16>,
    /// Server names, any of them; empty: any, and none.
    pub snis: Vec<SniPattern>,
}

/// What a rule is asked about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Query<'a> {
    /// The client.
    pub client: IpAddr,
    /// The local address of the connection.
    pub server: SocketAddr,
    /// The server name: lower case, no final dot.
    pub sni: Option<&'a str>,
}

/// The rules. A clone is cheap and shares all that is not changed afterwards.
#[derive(Clone, Debug)]
pub struct Matcher<T> {
    len: usize,
    /// Rules without server names.
    plain: Tier<T>,
    names: Map<Arc<str>, Tier<T>>,
    endings: Map<Arc<str>, Tier<T>>,
    /// Which endings there are to look for, longest first.
    lengths: Vec<EndingLength>,
}

/// How many different endings of one length there are.
#[derive(Clone, Debug)]
struct EndingLength {
    /// In bytes.
    length: usize,
    /// Of those that begin with a dot, as nearly all do: they are looked for at dots alone.
    dotted: usize,
    /// Of the others.
    other: usize,
}

impl<T> Default for Matcher<T> {
    fn default() -> Self {
        Self {
            len: 0,
            plain: Tier::default(),
            names: Map::default(),
            endings: Map::default(),
            lengths: Vec::new(),
        }
    }
}

impl<T> Matcher<T> {
    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reports whether there is no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of the first rule that holds.
    #[must_use]
    pub fn find(&self, query: &Query<'_>) -> Option<&T> {
        self.first(query).map(|entry| &entry.record.value)
    }

    /// Every rule in order, with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&Order, &Rule, &T)> {
        self.entries().into_iter().map(|entry| {
            let Record { order, rule, value } = &*entry.record;
            (order, rule, value)
        })
    }

    fn first(&self, query: &Query<'_>) -> Option<&Entry<T>> {
        if let Some(name) = query.sni {
            let exact = self.names.get(name).and_then(|tier| tier.first(query));
            if let Some(found) = exact.or_else(|| self.first_ending(name, query)) {
                return Some(found);
            }
        }
        self.plain.first(query)
    }

    fn first_ending(&self, name: &str, query: &Query<'_>) -> Option<&Entry<T>> {
        let fitting = self.lengths.partition_point(|entry| entry.length > name.len());
        self.lengths.get(fitting..)?.iter().find_map(|entry| {
            let ending = name.get(name.len() - entry.length..)?;
            let count = if ending.starts_with('.') { entry.dotted } else { entry.other };
            if count == 0 { None } else { self.endings.get(ending)?.first(query) }
        })
    }

    fn tier(&self, pattern: Option<&SniPattern>) -> Option<&Tier<T>> {
        match pattern {
            None => Some(&self.plain),
            Some(SniPattern::Exact(name)) => self.names.get(&**name),
            Some(SniPattern::Suffix(ending)) => self.endings.get(&**ending),
        }
    }

    fn tiers(&self) -> impl Iterator<Item = &Tier<T>> {
        self.names.values().chain(self.endings.values()).chain([&self.plain])
    }

    /// Every rule once, in order.
    fn entries(&self) -> Vec<&Entry<T>> {
        let mut entries: Vec<_> = self.tiers().flat_map(Tier::entries).collect();
        entries.sort_unstable();
        entries.dedup();
        entries
    }
}

impl<T: Clone> Matcher<T> {
    /// Adds a rule. There must be none of this order.
    pub fn insert(&mut self, order: Order, rule: Rule, value: T) {
        let entry = Entry::new(Arc::new(Record { order, rule, value }));
        for pattern in patterns(&entry.record.rule) {
            self.enter(pattern, entry.clone());
        }
        self.len += 1;
    }

    /// Removes the rule of this order, which was inserted with these conditions.
    pub fn remove(&mut self, order: &Order, rule: &Rule) {
        let mut removed = false;
        for pattern in patterns(rule) {
            removed |= self.leave(pattern, order, rule);
        }
        self.len -= usize::from(removed);
    }

    fn enter(&mut self, pattern: Option<&SniPattern>, entry: Entry<T>) {
        match pattern {
            None => self.plain.insert(entry),
            Some(SniPattern::Exact(name)) => self.names.entry((**name).into()).insert(entry),
            Some(SniPattern::Suffix(ending)) => {
                let tier = self.endings.entry((**ending).into());
                let is_new = tier.is_empty();
                tier.insert(entry);
                if is_new {
                    *self.endings_like(ending) += 1;
                }
            }
        }
    }

    /// Reports whether the rule was there.
    fn leave(&mut self, pattern: Option<&SniPattern>, order: &Order, rule: &Rule) -> bool {
        let mut removed = false;
        let mut emptied = false;
        let mut edit = |tier: &mut Tier<T>| {
            removed = tier.remove(order, rule);
            emptied = tier.is_empty();
            emptied
        };
        match pattern {
            None => {
                edit(&mut self.plain);
            }
            Some(SniPattern::Exact(name)) => self.names.remove_if(&**name, edit),
            Some(SniPattern::Suffix(ending)) => {
                self.endings.remove_if(&**ending, edit);
                if emptied {
                    *self.endings_like(ending) -= 1;
                    self.lengths.retain(|entry| entry.dotted + entry.other > 0);
                }
            }
        }
        removed
    }

    /// The count that `ending` belongs to.
    fn endings_like(&mut self, ending: &str) -> &mut usize {
        let length = ending.len();
        let at = self.lengths.partition_point(|entry| entry.length > length);
        if self.lengths.get(at).is_none_or(|entry| entry.length != length) {
            self.lengths.insert(at, EndingLength { length, dotted: 0, other: 0 });
        }
        let entry = &mut self.lengths[at];
        if ending.starts_with('.') { &mut entry.dotted } else { &mut entry.other }
    }
}

/// The tiers a rule stands in, each once: `None` is that of the rules without server names.
fn patterns(rule: &Rule) -> impl Iterator<Item = Option<&SniPattern>> {
    let named = rule.snis.iter().enumerate();
    let distinct =
        named.filter(|(at, pattern)| !rule.snis[..*at].contains(pattern)).map(|(_, pattern)| Some(pattern));
    distinct.chain(rule.snis.is_empty().then_some(None))
}

#[cfg(test)]
mod tests;
