//! What `check` asks of all rules at once: which can never win, and which pairs their order decides.

use std::collections::BTreeSet;
use std::collections::HashMap;

use super::tier::Entry;
use super::{Matcher, Order, Rule, patterns};
use crate::addr::PrefixMap;
use crate::sni::SniPattern;

/// A rule that can never win.
#[derive(Debug, Eq, PartialEq)]
pub struct Shadowed<'a> {
    /// Its place.
    pub order: &'a Order,
    /// Earlier rules that hold wherever it does: one for each of its server names, each once.
    pub by: Vec<&'a Order>,
}

/// Pairs of rules that some connection satisfies both of.
#[derive(Debug)]
pub struct Overlaps<'a> {
    /// The earlier rule of each pair, which wins, and the later one.
    pub pairs: Vec<(&'a Order, &'a Order)>,
    /// False where there may be more than the caller wanted, or more pairs than are worth looking at.
    pub complete: bool,
}

/// Pairs looked at before [`Matcher::overlaps`] gives up: about a second.
const PAIRS: usize = 10_000_000;

/// Rules by server-name pattern and port, then by client, whatever their local address.
type Index<'a, T> = HashMap<(Option<&'a SniPattern>, Option<u16>), PrefixMap<&'a Entry<T>>>;

impl<T> Matcher<T> {
    /// The rules that can never win, because earlier ones hold wherever they do. Rules that only
    /// several earlier ones of the same server name cover together are not found.
    #[must_use]
    pub fn shadowed(&self) -> Vec<Shadowed<'_>> {
        let shadow = |entry| self.shadow(entry).map(|by| Shadowed { order: order(entry), by });
        self.entries().into_iter().filter_map(shadow).collect()
    }

    /// Pairs of rules that can both hold with the same exactness of the server name, so that their
    /// order alone decides, and that `matters` (given the earlier and the later value) asks for.
    /// Stops at `limit` pairs, and where very many rules overlap.
    pub fn overlaps(&self, limit: usize, matters: impl Fn(&T, &T) -> bool) -> Overlaps<'_> {
        let index = self.index();
        let mut pairs = BTreeSet::new();
        let mut budget = PAIRS;
        let mut complete = true;
        for entry in self.entries() {
            for rival in rivals(&index, entry) {
                let (first, second) = if rival < entry { (rival, entry) } else { (entry, rival) };
                let (one, other) = (&first.record, &second.record);
                if local_addresses_meet(&one.rule, &other.rule) && matters(&one.value, &other.value) {
                    pairs.insert((first, second));
                }
                budget -= 1;
                complete = budget > 0 && pairs.len() <= limit;
                if !complete {
                    break;
                }
            }
            if !complete {
                break;
            }
        }
        let pairs = pairs.into_iter().take(limit).map(|(first, second)| (order(first), order(second)));
        Overlaps { pairs: pairs.collect(), complete }
    }

    /// For each tier the rule stands in, an earlier rule that covers it; none where one is missing.
    fn shadow<'a>(&'a self, entry: &'a Entry<T>) -> Option<Vec<&'a Order>> {
        let mut by = Vec::new();
        for pattern in patterns(&entry.record.rule) {
            let first = self.tier(pattern)?.first_around(&entry.record.rule)?;
            if first >= entry {
                return None;
            }
            if !by.contains(&order(first)) {
                by.push(order(first));
            }
        }
        Some(by)
    }

    fn index(&self) -> Index<'_, T> {
        let mut index = Index::new();
        for entry in self.entries() {
            let rule = &entry.record.rule;
            for pattern in patterns(rule) {
                let clients: &mut PrefixMap<_> = index.entry((pattern, rule.server_port)).or_default();
                clients.insert(rule.remote_addr.map(|net| net.network()), entry);
            }
        }
        index
    }
}

fn order<T>(entry: &Entry<T>) -> &Order {
    &entry.record.order
}

/// The rules that may take connections from `entry`, or it from them: the earlier ones for the same
/// port, and all those for any port, as these do not look for ports themselves.
fn rivals<'a, T>(index: &Index<'a, T>, entry: &'a Entry<T>) -> impl Iterator<Item = &'a Entry<T>> {
    let rule = &entry.record.rule;
    let net = rule.remote_addr.map(|net| net.network());
    patterns(rule).flat_map(move |pattern| {
        let meeting =
            move |port| index.get(&(pattern, port)).into_iter().flat_map(move |map| map.meeting(net));
        let same_port = meeting(rule.server_port).filter(move |other| **other < entry);
        let any_port = rule.server_port.into_iter().flat_map(move |_| meeting(None));
        same_port.chain(any_port).copied()
    })
}

fn local_addresses_meet(one: &Rule, other: &Rule) -> bool {
    match (one.server_addr, other.server_addr) {
        (Some(one), Some(other)) => {
            let (one, other) = (one.network(), other.network());
            one.contains(&other) || other.contains(&one)
        }
        _ => true,
    }
}
