//! Why a connection goes where it goes: the rule that won, and what kept each other from winning.

use std::cmp::Reverse;
use std::fmt;

use super::tier::Entry;
use super::{Matcher, Order, Query, Rule};
use crate::sni::SniPattern;

/// The answer to a query with its reasons.
#[derive(Debug)]
pub struct Explanation<'a, T> {
    /// The first rule that holds.
    pub winner: Option<(&'a Order, &'a T)>,
    /// Other rules, those that came nearest first, in order among equals.
    pub others: Vec<FellOut<'a, T>>,
    /// Those for which there was no room, by reason.
    pub rest: Vec<Rest>,
}

/// A rule that did not win.
#[derive(Debug)]
pub struct FellOut<'a, T> {
    /// Its place.
    pub order: &'a Order,
    /// What it would have given.
    pub value: &'a T,
    /// What kept it from winning; `Display` is the sentence for the operator.
    pub why: Why<'a>,
}

/// What kept a rule from winning: the first condition that fails, or its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why<'a> {
    /// All conditions hold, the winner comes earlier.
    Later,
    /// All conditions hold, a more exact server name won.
    LessExact(&'a Rule),
    /// The client is another.
    RemoteAddr(&'a Rule, Query<'a>),
    /// None of its server names is that of the connection.
    Sni(&'a Rule, Query<'a>),
    /// The local address is another.
    ServerAddr(&'a Rule, Query<'a>),
    /// The local port is another.
    ServerPort(&'a Rule, Query<'a>),
}

/// Rules that fell out alike and are not listed one by one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rest {
    /// How many.
    pub count: usize,
    /// What they have in common, such as `for other ports`.
    pub what: &'static str,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = if self.count == 1 { "rule" } else { "rules" };
        write!(f, "{} {rules} {}", self.count, self.what)
    }
}

/// What [`Rest`] says, by [`Why::distance`].
const GROUPS: [&str; 6] = [
    "that would match but come later in the order",
    "that would match but name the server less exactly",
    "for other clients",
    "for other server names",
    "for other local addresses",
    "for other ports",
];

impl Why<'_> {
    /// How far from winning the rule was.
    fn distance(self) -> usize {
        match self {
            Self::Later => 0,
            Self::LessExact(_) => 1,
            Self::RemoteAddr(..) => 2,
            Self::Sni(..) => 3,
            Self::ServerAddr(..) => 4,
            Self::ServerPort(..) => 5,
        }
    }
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later => f.write_str("would match, but comes later in the order"),
            Self::LessExact(rule) if rule.snis.is_empty() => {
                f.write_str("would match, but has no sni, and a route with one comes first")
            }
            Self::LessExact(rule) => {
                write!(f, "would match, but sni {} is less exact than the winner's", Snis(rule))
            }
            Self::RemoteAddr(rule, query) => {
                let net = rule.remote_addr.map(|net| net.to_string()).unwrap_or_default();
                write!(f, "remote_addr {net} does not contain {}", query.client)
            }
            Self::ServerAddr(rule, query) => {
                let net = rule.server_addr.map(|net| net.to_string()).unwrap_or_default();
                write!(f, "server_addr {net} does not contain {}", query.server.ip())
            }
            Self::ServerPort(rule, query) => {
                let port = rule.server_port.unwrap_or_default();
                write!(f, "server_port {port} is not {}", query.server.port())
            }
            Self::Sni(rule, query) => match query.sni {
                Some(name) => write!(f, "sni {} does not accept {name}", Snis(rule)),
                None => write!(f, "sni {} needs a TLS server name, and the client sent none", Snis(rule)),
            },
        }
    }
}

/// Writes the patterns of a rule, the first few of many.
struct Snis<'a>(&'a Rule);

impl fmt::Display for Snis<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let snis = &self.0.snis;
        for (index, pattern) in snis.iter().take(SHOWN).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{pattern}")?;
        }
        if snis.len() > SHOWN { write!(f, " and {} more", snis.len() - SHOWN) } else { Ok(()) }
    }
}

impl<T> Matcher<T> {
    /// Says which rule takes the query and why no other does. At most `limit` others are listed one
    /// by one. Looks at every rule.
    #[must_use]
    pub fn explain<'a>(&'a self, query: &Query<'a>, limit: usize) -> Explanation<'a, T> {
        let winner = self.first(query);
        let won = winner.and_then(|entry| exactness(&entry.record.rule, query));
        let mut others: Vec<FellOut<'a, T>> = self
            .entries()
            .into_iter()
            .filter(|entry| winner != Some(*entry))
            .map(|entry: &Entry<T>| FellOut {
                order: &entry.record.order,
                value: &entry.record.value,
                why: why(&entry.record.rule, *query, won),
            })
            .collect();
        others.sort_by_key(|other| other.why.distance());
        let mut counts = [0; GROUPS.len()];
        for other in others.drain(limit.min(others.len())..) {
            counts[other.why.distance()] += 1;
        }
        let rest = counts.into_iter().zip(GROUPS).map(|(count, what)| Rest { count, what });
        Explanation {
            winner: winner.map(|entry| (&entry.record.order, &entry.record.value)),
            others,
            rest: rest.filter(|rest| rest.count > 0).collect(),
        }
    }
}

/// Why a rule that did not win did not; `won` is how exactly the winner named the server.
fn why<'a>(rule: &'a Rule, query: Query<'a>, won: Option<Exactness>) -> Why<'a> {
    if rule.server_port.is_some_and(|port| port != query.server.port()) {
        return Why::ServerPort(rule, query);
    }
    if rule.server_addr.is_some_and(|net| !net.contains(query.server.ip())) {
        return Why::ServerAddr(rule, query);
    }
    let Some(exactness) = exactness(rule, &query) else {
        return Why::Sni(rule, query);
    };
    if rule.remote_addr.is_some_and(|net| !net.contains(query.client)) {
        return Why::RemoteAddr(rule, query);
    }
    if won.is_some_and(|won| won < exactness) { Why::LessExact(rule) } else { Why::Later }
}

/// The tier of a rule for a name; smaller ones are asked first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Exactness {
    Name,
    Ending(Reverse<usize>),
    Unnamed,
}

/// The first tier in which the rule would be met; none where it does not accept the server name.
fn exactness(rule: &Rule, query: &Query<'_>) -> Option<Exactness> {
    if rule.snis.is_empty() {
        return Some(Exactness::Unnamed);
    }
    let name = query.sni?;
    let accepting = rule.snis.iter().filter(|pattern| pattern.accepts(name));
    accepting
        .map(|pattern| match pattern {
            SniPattern::Exact(_) => Exactness::Name,
            SniPattern::Suffix(ending) => Exactness::Ending(Reverse(ending.len())),
        })
        .min()
}
