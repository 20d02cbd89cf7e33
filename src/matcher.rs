//! Ordered rules over client address, local address, port and server name, to a `T`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::addr::IpMatcher;
use crate::sni::SniPattern;

/// The place of a rule: rules are tried in ascending order of these bytes. For objects of etcd they
/// are the bytes of the key, for those of a file its position; nothing is ever renumbered.
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
#[derive(Clone, Copy, Debug)]
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
    rules: Vec<(Order, Rule, T)>,
}

impl<T> Default for Matcher<T> {
    fn default() -> Self {
        Self { rules: Vec::new() }
    }
}

impl<T: Clone> Matcher<T> {
    /// Adds a rule. There must be none of this order.
    pub fn insert(&mut self, order: Order, rule: Rule, value: T) {
        let at = self.rules.partition_point(|(other, ..)| *other < order);
        self.rules.insert(at, (order, rule, value));
    }

    /// Removes the rule of this order, which was inserted with these conditions.
    pub fn remove(&mut self, order: &Order, _rule: &Rule) {
        self.rules.retain(|(other, ..)| other != order);
    }

    /// The value of the first rule that holds.
    #[must_use]
    pub fn find(&self, query: &Query<'_>) -> Option<&T> {
        let holds = |rule: &Rule| {
            rule.remote_addr.is_none_or(|net| net.contains(query.client))
                && rule.server_addr.is_none_or(|net| net.contains(query.server.ip()))
                && rule.server_port.is_none_or(|port| port == query.server.port())
                && rule.snis.is_empty()
        };
        self.rules.iter().find(|(_, rule, _)| holds(rule)).map(|(.., value)| value)
    }
}
