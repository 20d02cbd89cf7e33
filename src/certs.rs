//! Certificates to serve, found by server name, and what nodes are dialled with.
//!
//! Everything is made when an object changes; a handshake only looks it up. Which object serves a name is
//! APISIX's choice (`apisix/ssl/router/radixtree_sni.lua:44-227`): the exact name, else the longest ending,
//! among equals the first in order. What is chosen by an ending then has to cover the name with one label
//! alone; where it does not, there is no second choice.
//!
//! - [`Certificates`] name to certificate; `server` how it is served
//! - [`towards`] TLS to nodes; [`verify`] whom a client believes
//!
//! Keys of session tickets are random by nature: making them is the one use of randomness below the rows
//! that do I/O.

mod server;
pub mod shown;
pub mod towards;
pub mod verify;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::matcher::{Matcher, Order, Query, Rule};
use crate::resource::{Names, Ssl};
use crate::sni::SniPattern;

pub use server::{Crypto, Served};

/// Certificate objects by the names they serve. A clone is cheap and shares what is not changed after.
#[derive(Clone, Debug)]
pub struct Certificates<T = Arc<Served>>(Matcher<(Arc<Ssl>, T)>);

impl<T> Default for Certificates<T> {
    fn default() -> Self {
        Self(Matcher::default())
    }
}

impl<T: Clone> Certificates<T> {
    /// The object that serves `name`, which is in lower case and has no final dot.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&T> {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let query = Query { client: nowhere, server: SocketAddr::new(nowhere, 0), sni: Some(name) };
        let (ssl, value) = self.0.find(&query)?;
        covers(&ssl.names, name).then_some(value)
    }

    /// Adds an object, where it serves any name at all. There must be none of this order.
    pub fn insert(&mut self, order: Order, ssl: Arc<Ssl>, value: T) {
        let rule = rule(&ssl);
        if !rule.snis.is_empty() {
            self.0.insert(order, rule, (ssl, value));
        }
    }

    /// Takes an object out that was inserted like this.
    pub fn remove(&mut self, order: &Order, ssl: &Ssl) {
        let rule = rule(ssl);
        if !rule.snis.is_empty() {
            self.0.remove(order, &rule);
        }
    }

    /// Every object that serves names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Ssl>, &T)> {
        self.0.iter().map(|(.., (ssl, value))| (ssl, value))
    }
}

/// The names of an object that serves: enabled, of type server. What no client can send is left out.
fn rule(ssl: &Ssl) -> Rule {
    let served = ssl.enabled && !ssl.client_type;
    let patterns = ssl.names.iter().filter(|_| served).filter_map(|name| name.parse::<SniPattern>().ok());
    let mut snis: Vec<SniPattern> = Vec::new();
    for pattern in patterns {
        // A name may be listed twice.
        if !snis.contains(&pattern) {
            snis.push(pattern);
        }
    }
    Rule { snis, ..Rule::default() }
}

/// The rule of one label: what the client adds to the fixed part of a name has no dot. In a list any of the
/// names may allow it, a long one that has nothing to do with it too (`radixtree_sni.lua:191-199`).
fn covers(names: &Names, name: &str) -> bool {
    let one_label = |pattern: &str| {
        let added = name.len().checked_sub(pattern.len().saturating_sub(1));
        let added = added.and_then(|length| name.as_bytes().get(..length)).unwrap_or_default();
        pattern == name || !added.contains(&b'.')
    };
    match names {
        Names::One(star) if **star == *"*" => true,
        names => names.iter().any(one_label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificates(objects: &[Names]) -> Certificates<usize> {
        let mut certificates = Certificates::default();
        for (at, names) in objects.iter().enumerate() {
            let ssl = Ssl { enabled: true, names: names.clone(), ..Ssl::default() };
            certificates.insert(Order([u8::try_from(at).unwrap()].as_slice().into()), Arc::new(ssl), at);
        }
        certificates
    }

    fn one(name: &str) -> Names {
        Names::One(name.into())
    }

    fn listed(names: &[&str]) -> Names {
        Names::Listed(names.iter().map(|name| Box::from(*name)).collect())
    }

    #[track_caller]
    fn check(objects: &[Names], name: &str, expected: Option<usize>) {
        assert_eq!(certificates(objects).find(name), expected.as_ref(), "{name}");
    }

    #[test]
    fn exact_then_longest_then_star() {
        let objects = [one("*"), one("*.com"), one("*.test.com"), one("a.test.com"), one("a.test.com")];
        check(&objects, "a.test.com", Some(3));
        check(&objects, "b.test.com", Some(2));
        check(&objects, "other.com", Some(1));
        check(&objects, "a.other.org", Some(0));
        check(&objects, "x.b.test.com", None);
    }

    #[test]
    fn a_list_is_covered_by_any_of_its_names() {
        check(&[listed(&["*.a.com", "*.a.com"])], "x.y.a.com", None);
        check(&[listed(&["*.a.com", "long.name.elsewhere.org"])], "x.y.a.com", Some(0));
        check(&[listed(&["*"])], "a.com", None);
        check(&[listed(&["*"])], "localhost", Some(0));
    }

    #[test]
    fn what_was_inserted_can_be_taken_out() {
        let mut certificates = certificates(&[one("a.com"), listed(&["a.com", "*.b.com", "a.com"])]);
        let order = Order([0].as_slice().into());
        certificates.remove(&order, &Ssl { enabled: true, names: one("a.com"), ..Ssl::default() });
        assert_eq!(certificates.find("a.com"), Some(&1));
        let order = Order([1].as_slice().into());
        let second = Ssl { enabled: true, names: listed(&["a.com", "*.b.com", "a.com"]), ..Ssl::default() };
        certificates.remove(&order, &second);
        assert_eq!((certificates.find("a.com"), certificates.iter().count()), (None, 0));
    }
}
