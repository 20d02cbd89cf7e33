//! Networks to values, asked for the least value whose network holds an address.
//!
//! One path-compressed binary trie a family. Each node keeps the least value at or below it, so a
//! search leaves a subtree as soon as nothing in it can be less than what it has already found. A
//! change copies the nodes from the root to the changed one and shares all others with the clones
//! made before it.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::persistent::Sorted;

/// Values by network. A clone is cheap and shares all that is not changed afterwards.
///
/// The order of `T` decides which of several values that hold an address is the answer. Each value
/// is compared and copied often: it should be small, such as a pointer with its place. What is kept
/// for one network is a `C`: values, or a map by another address.
#[derive(Clone)]
pub struct PrefixMap<T, C = Sorted<T>> {
    every: C,
    v4: Link<u32, T, C>,
    v6: Link<u128, T, C>,
}

type Link<B, T, C> = Option<Arc<Node<B, T, C>>>;

#[derive(Clone)]
struct Node<B, T, C> {
    prefix: Prefix<B>,
    /// Of what is here and in both children.
    least: T,
    /// What belongs to exactly this network; empty where the node only forks.
    contents: C,
    children: [Link<B, T, C>; 2],
}

/// What can be kept for one network.
pub trait Contents<T>: Clone + Default {
    /// The least value in it.
    fn first(&self) -> Option<&T>;
    /// Adds all values to `found`.
    fn collect<'a>(&'a self, found: &mut Vec<&'a T>);
}

impl<T: Clone> Contents<T> for Sorted<T> {
    fn first(&self) -> Option<&T> {
        self.first()
    }

    fn collect<'a>(&'a self, found: &mut Vec<&'a T>) {
        self.collect(found);
    }
}

impl<T: Clone + Ord, C: Contents<T>> Contents<T> for PrefixMap<T, C> {
    fn first(&self) -> Option<&T> {
        let v4 = self.v4.as_ref().map(|node| &node.least);
        let v6 = self.v6.as_ref().map(|node| &node.least);
        self.every.first().into_iter().chain(v4).chain(v6).min()
    }

    fn collect<'a>(&'a self, found: &mut Vec<&'a T>) {
        self.every.collect(found);
        collect(&self.v4, found);
        collect(&self.v6, found);
    }
}

impl<T, C: Default> Default for PrefixMap<T, C> {
    fn default() -> Self {
        Self { every: C::default(), v4: None, v6: None }
    }
}

impl<T: Clone + Ord + fmt::Debug, C: Contents<T>> fmt::Debug for PrefixMap<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: Clone + Ord, C: Contents<T>> PrefixMap<T, C> {
    /// Reports whether nothing is inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.every.first().is_none() && self.v4.is_none() && self.v6.is_none()
    }

    /// All values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut found = Vec::new();
        self.collect(&mut found);
        found.into_iter()
    }

    /// All values whose network has an address in common with `net`; `None` is every address.
    pub fn meeting(&self, net: Option<IpNet>) -> impl Iterator<Item = &T> {
        let mut found = Vec::new();
        self.every.collect(&mut found);
        match net {
            None => {
                collect(&self.v4, &mut found);
                collect(&self.v6, &mut found);
            }
            Some(IpNet::V4(net)) => meet(&self.v4, Prefix::from(net), &mut found),
            Some(IpNet::V6(net)) => meet(&self.v6, Prefix::from(net), &mut found),
        }
        found.into_iter()
    }

    /// Changes what is kept for the addresses of `net`, or for every address of both families.
    pub fn edit<R>(&mut self, net: Option<IpNet>, edit: impl FnOnce(&mut C) -> R) -> R {
        match net {
            None => edit(&mut self.every),
            Some(IpNet::V4(net)) => change(&mut self.v4, net.into(), edit),
            Some(IpNet::V6(net)) => change(&mut self.v6, net.into(), edit),
        }
    }

    /// The least of `best` and what `look` finds in each network that holds all of `net`; `None` is
    /// every address of both families. `look` is given the least found before it.
    pub fn least_by<'a>(
        &'a self,
        net: Option<IpNet>,
        best: Option<&'a T>,
        look: impl Fn(&'a C, Option<&'a T>) -> Option<&'a T>,
    ) -> Option<&'a T> {
        let best = look(&self.every, best);
        match net {
            None => best,
            Some(IpNet::V4(net)) => least(&self.v4, net.into(), best, look),
            Some(IpNet::V6(net)) => least(&self.v6, net.into(), best, look),
        }
    }
}

impl<T: Clone + Ord> PrefixMap<T> {
    /// Adds a value for the addresses of `net`, or for every address of both families.
    pub fn insert(&mut self, net: Option<IpNet>, value: T) {
        self.edit(net, |values| values.insert(value));
    }

    /// Takes out a value of `net` that `probe` finds equal. `probe` says how a value compares to the
    /// sought one, as in [`slice::binary_search_by`].
    pub fn remove(&mut self, net: Option<IpNet>, probe: impl Fn(&T) -> Ordering) -> Option<T> {
        self.edit(net, |values| values.remove(&probe))
    }

    /// The least of `best` and the values whose network holds all of `net`; `None` is every address
    /// of both families.
    pub fn least<'a>(&'a self, net: Option<IpNet>, best: Option<&'a T>) -> Option<&'a T> {
        self.least_by(net, best, |values, best| best.into_iter().chain(values.first()).min())
    }
}

/// The first bits of an address; the others are zero.
#[derive(Clone, Copy)]
struct Prefix<B> {
    bits: B,
    length: u8,
}

impl From<ipnet::Ipv4Net> for Prefix<u32> {
    fn from(net: ipnet::Ipv4Net) -> Self {
        Self { bits: net.network().to_bits(), length: net.prefix_len() }
    }
}

impl From<ipnet::Ipv6Net> for Prefix<u128> {
    fn from(net: ipnet::Ipv6Net) -> Self {
        Self { bits: net.network().to_bits(), length: net.prefix_len() }
    }
}

/// The bits of an address of one family.
trait Bits: Copy {
    /// How many leading bits are equal.
    fn common(self, other: Self) -> u8;
    /// The bit after `index` others, as a place among children.
    fn bit(self, index: u8) -> usize;
    /// The first `length` bits, the others zero.
    fn first(self, length: u8) -> Self;
}

macro_rules! bits {
    ($($int:ty),*) => {$(
        impl Bits for $int {
            #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
            fn common(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }

            fn bit(self, index: u8) -> usize {
                usize::from(self & (1 << (<$int>::BITS - 1 - u32::from(index))) != 0)
            }

            fn first(self, length: u8) -> Self {
                self & !<$int>::MAX.checked_shr(u32::from(length)).unwrap_or(0)
            }
        }
    )*};
}

bits!(u32, u128);

impl<B: Bits> Prefix<B> {
    /// How many leading bits both have in common.
    fn common(self, other: Self) -> u8 {
        self.bits.common(other.bits).min(self.length).min(other.length)
    }

    /// Reports whether every address of `other` begins with these bits.
    fn holds(self, other: Self) -> bool {
        self.common(other) == self.length
    }

    fn first(self, length: u8) -> Self {
        Self { bits: self.bits.first(length), length }
    }
}

impl<B: Bits, T: Clone + Ord, C: Contents<T>> Node<B, T, C> {
    /// A node of fewer bits that has only `child` below.
    fn fork(child: Arc<Self>, length: u8) -> Self {
        let side = child.prefix.bits.bit(length);
        let mut fork = Self {
            prefix: child.prefix.first(length),
            least: child.least.clone(),
            contents: C::default(),
            children: [None, None],
        };
        fork.children[side] = Some(child);
        fork
    }

    /// Edits what belongs to `prefix`, which this node holds.
    fn change<R>(&mut self, prefix: Prefix<B>, edit: impl FnOnce(&mut C) -> R) -> R {
        if self.prefix.length == prefix.length {
            edit(&mut self.contents)
        } else {
            change(&mut self.children[prefix.bits.bit(self.prefix.length)], prefix, edit)
        }
    }

    /// The least of what is here and below, where anything is.
    fn measured(&self) -> Option<&T> {
        let below = self.children.iter().flatten().map(|child| &child.least);
        self.contents.first().into_iter().chain(below).min()
    }
}

/// Edits what belongs to `prefix`, in a new node where there is none. No node stays that is of no use.
fn change<B: Bits, T: Clone + Ord, C: Contents<T>, R>(
    link: &mut Link<B, T, C>,
    prefix: Prefix<B>,
    edit: impl FnOnce(&mut C) -> R,
) -> R {
    if let Some(node) = link.take_if(|node| !node.prefix.holds(prefix)) {
        let length = node.prefix.common(prefix);
        *link = Some(Arc::new(Node::fork(node, length)));
    }
    let Some(node) = link else {
        let mut contents = C::default();
        let done = edit(&mut contents);
        let least = contents.first().cloned();
        *link = least.map(|least| Arc::new(Node { prefix, least, contents, children: [None, None] }));
        return done;
    };
    let node = Arc::make_mut(node);
    let done = node.change(prefix, edit);
    // A node without contents is there to fork: with one child left it has no use.
    let forks = node.children.iter().flatten().count() == 2;
    if !forks && node.contents.first().is_none() {
        let [zero, one] = &mut node.children;
        *link = zero.take().or(one.take());
    } else if let Some(least) = node.measured().filter(|least| **least != node.least).cloned() {
        node.least = least;
    }
    done
}

fn least<'a, B: Bits, T: Ord, C>(
    mut link: &'a Link<B, T, C>,
    prefix: Prefix<B>,
    mut best: Option<&'a T>,
    look: impl Fn(&'a C, Option<&'a T>) -> Option<&'a T>,
) -> Option<&'a T> {
    while let Some(node) = link {
        if !node.prefix.holds(prefix) || best.is_some_and(|best| *best <= node.least) {
            break;
        }
        best = look(&node.contents, best);
        if node.prefix.length == prefix.length {
            break;
        }
        link = &node.children[prefix.bits.bit(node.prefix.length)];
    }
    best
}

fn collect<'a, B, T, C: Contents<T>>(link: &'a Link<B, T, C>, found: &mut Vec<&'a T>) {
    if let Some(node) = link {
        node.contents.collect(found);
        node.children.iter().for_each(|child| collect(child, found));
    }
}

fn meet<'a, B: Bits, T, C: Contents<T>>(
    mut link: &'a Link<B, T, C>,
    prefix: Prefix<B>,
    found: &mut Vec<&'a T>,
) {
    while let Some(node) = link {
        if prefix.holds(node.prefix) {
            return collect(link, found);
        }
        if !node.prefix.holds(prefix) {
            return;
        }
        node.contents.collect(found);
        link = &node.children[prefix.bits.bit(node.prefix.length)];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rule = (Option<IpNet>, u16);

    /// Networks that nest often: few address bits, every mask length.
    fn net() -> impl Strategy<Value = Option<IpNet>> {
        let v4 = (any::<u8>(), any::<u8>(), 0..=32u8)
            .prop_map(|(a, b, length)| IpNet::new([a & 3, b & 3, 0, b & 1].into(), length).unwrap());
        let v6 = (any::<u16>(), 0..=128u8)
            .prop_map(|(a, length)| IpNet::new([a & 7, 0, 0, 0, 0, 0, 0, a & 3].into(), length).unwrap());
        prop_oneof![1 => Just(None), 6 => v4.prop_map(Some), 3 => v6.prop_map(Some)]
    }

    fn holds(outer: Option<IpNet>, inner: Option<IpNet>) -> bool {
        match (outer, inner) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(outer), Some(inner)) => outer.trunc().contains(&inner.trunc()),
        }
    }

    #[track_caller]
    fn check(map: &PrefixMap<u16>, rules: &[Rule], asked: Option<IpNet>) {
        let around = |(net, _): &&Rule| holds(*net, asked);
        let expected = rules.iter().filter(around).map(|(_, value)| value).min();
        assert_eq!(map.least(asked, None), expected, "{asked:?} in {rules:?}");
        let bound = 7;
        let expected = expected.map_or(&bound, |found| found.min(&bound));
        assert_eq!(map.least(asked, Some(&bound)), Some(expected));

        let meets = |(net, _): &&Rule| holds(*net, asked) || holds(asked, *net);
        let mut expected: Vec<_> = rules.iter().filter(meets).map(|(_, value)| *value).collect();
        let mut found: Vec<_> = map.meeting(asked).copied().collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "meeting {asked:?} in {rules:?}");
    }

    proptest! {
        #[test]
        fn answers_as_a_scan_does(
            rules in prop::collection::vec((net(), any::<u16>()), 0..60),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
            asked in prop::collection::vec(net(), 1..20),
        ) {
            let mut map = PrefixMap::default();
            for (net, value) in &rules {
                map.insert(*net, *value);
            }
            let before = map.clone();
            let mut left = rules.clone();
            for index in gone {
                if !left.is_empty() {
                    let (net, value) = left.swap_remove(index.index(left.len()));
                    prop_assert_eq!(map.remove(net, |other| other.cmp(&value)), Some(value));
                }
            }
            for net in asked {
                check(&map, &left, net);
                check(&before, &rules, net);
            }
            prop_assert_eq!(map.iter().count(), left.len());
            for (net, value) in left {
                map.remove(net, |other| other.cmp(&value));
            }
            prop_assert!(map.is_empty(), "nodes are left over: {map:?}");
        }
    }

    /// How many nodes there are, and how many of them fork without values.
    fn nodes<B, T: Clone>(link: &Link<B, T, Sorted<T>>) -> (usize, usize) {
        link.as_ref().map_or((0, 0), |node| {
            let below = node.children.iter().map(nodes).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            (below.0 + 1, below.1 + usize::from(node.contents.first().is_none()))
        })
    }

    #[test]
    fn removal_gives_forks_back() {
        let mut map = PrefixMap::default();
        let net = |text: &str| Some(text.parse::<IpNet>().unwrap());
        map.insert(net("10.0.0.0/24"), 1);
        map.insert(net("10.0.1.0/24"), 2);
        assert_eq!(nodes(&map.v4), (3, 1));
        assert_eq!(map.remove(net("10.0.0.0/24"), |value| value.cmp(&1)), Some(1));
        assert_eq!(nodes(&map.v4), (1, 0));
        assert_eq!(map.remove(net("10.0.1.0/25"), |value| value.cmp(&2)), None);
        assert_eq!(map.least(net("10.0.1.200/32"), None), Some(&2));
    }

    #[test]
    fn an_absent_value_is_not_removed() {
        let mut map = PrefixMap::default();
        map.insert(None, 5);
        assert_eq!(map.remove(None, |value| value.cmp(&4)), None);
        assert_eq!(map.remove(Some("::/0".parse().unwrap()), |value| value.cmp(&5)), None);
        assert_eq!(map.least(Some("::1/128".parse().unwrap()), None), Some(&5));
    }
}
