//! Networks to values, asked for the least value whose network holds an address.
//!
//! One path-compressed binary trie a family. Each node keeps the least value at or below it, so a
//! search leaves a subtree as soon as nothing in it can be less than what it has already found. A
//! change copies the nodes from the root to the changed one and shares all others with the clones
//! made before it.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::slice;
use std::sync::Arc;

use ipnet::IpNet;

/// Values by network. A clone is cheap and shares all that is not changed afterwards.
///
/// The order of `T` decides which of several values that hold an address is the answer. Each value
/// is compared and copied often: it should be small, such as a pointer with its place.
#[derive(Clone)]
pub struct PrefixMap<T> {
    every: Values<T>,
    v4: Link<u32, T>,
    v6: Link<u128, T>,
}

type Link<B, T> = Option<Arc<Node<B, T>>>;

#[derive(Clone)]
struct Node<B, T> {
    prefix: Prefix<B>,
    /// Of the values here and in both children.
    least: T,
    /// Those of exactly this network; none where the node only forks.
    values: Values<T>,
    children: [Link<B, T>; 2],
}

/// Values of one network, ascending. Nearly always there is at most one, which then needs no heap.
#[derive(Clone)]
enum Values<T> {
    None,
    One(T),
    Many(Vec<T>),
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { every: Values::None, v4: None, v6: None }
    }
}

impl<T: fmt::Debug> fmt::Debug for PrefixMap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T> PrefixMap<T> {
    /// Reports whether nothing is inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.every.as_slice().is_empty() && self.v4.is_none() && self.v6.is_none()
    }

    /// All values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut found: Vec<&T> = self.every.as_slice().iter().collect();
        collect(&self.v4, &mut found);
        collect(&self.v6, &mut found);
        found.into_iter()
    }

    /// All values whose network has an address in common with `net`; `None` is every address.
    pub fn meeting(&self, net: Option<IpNet>) -> impl Iterator<Item = &T> {
        let mut found: Vec<&T> = self.every.as_slice().iter().collect();
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
}

impl<T: Clone + Ord> PrefixMap<T> {
    /// Adds a value for the addresses of `net`, or for every address of both families.
    pub fn insert(&mut self, net: Option<IpNet>, value: T) {
        match net {
            None => self.every.insert(value),
            Some(IpNet::V4(net)) => insert(&mut self.v4, net.into(), value),
            Some(IpNet::V6(net)) => insert(&mut self.v6, net.into(), value),
        }
    }

    /// Takes out the value of `net` that `probe` finds equal. `probe` says how a value compares to
    /// the sought one, as in [`slice::binary_search_by`].
    pub fn remove(&mut self, net: Option<IpNet>, probe: impl Fn(&T) -> Ordering) -> Option<T> {
        match net {
            None => self.every.remove(&probe),
            Some(IpNet::V4(net)) => remove(&mut self.v4, net.into(), &probe),
            Some(IpNet::V6(net)) => remove(&mut self.v6, net.into(), &probe),
        }
    }

    /// The least value that `accept` takes among those whose network holds `address` and `below`,
    /// which is what other maps have given before. A refused value gives way to the next in order.
    pub fn least<'a>(
        &'a self,
        address: IpAddr,
        below: Option<&'a T>,
        accept: impl Fn(&T) -> bool,
    ) -> Option<&'a T> {
        self.least_around(Some(address.into()), below, accept)
    }

    /// Like [`Self::least`], among the values whose network holds all of `net`; `None` is every
    /// address of both families.
    pub fn least_around<'a>(
        &'a self,
        net: Option<IpNet>,
        below: Option<&'a T>,
        accept: impl Fn(&T) -> bool,
    ) -> Option<&'a T> {
        let best = self.every.least(below, &accept);
        match net {
            None => best,
            Some(IpNet::V4(net)) => least(&self.v4, net.into(), best, &accept),
            Some(IpNet::V6(net)) => least(&self.v6, net.into(), best, &accept),
        }
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

impl<T> Values<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(value) => slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl<T: Ord> Values<T> {
    fn insert(&mut self, value: T) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(value),
            Self::One(other) if other <= value => Self::Many(vec![other, value]),
            Self::One(other) => Self::Many(vec![value, other]),
            Self::Many(mut values) => {
                values.insert(values.partition_point(|other| *other <= value), value);
                Self::Many(values)
            }
        }
    }

    fn remove(&mut self, probe: &impl Fn(&T) -> Ordering) -> Option<T> {
        let at = self.as_slice().binary_search_by(probe).ok()?;
        let (rest, taken) = match std::mem::replace(self, Self::None) {
            Self::None => return None,
            Self::One(value) => (Self::None, value),
            Self::Many(mut values) => {
                let taken = values.remove(at);
                let rest = if values.len() == 1 { values.pop() } else { None };
                (rest.map_or(Self::Many(values), Self::One), taken)
            }
        };
        *self = rest;
        Some(taken)
    }

    fn least<'a>(&'a self, below: Option<&'a T>, accept: &impl Fn(&T) -> bool) -> Option<&'a T> {
        let less = |value: &&T| below.is_none_or(|below| *value < below);
        self.as_slice().iter().take_while(less).find(|value| accept(value)).or(below)
    }
}

impl<B: Bits, T: Clone + Ord> Node<B, T> {
    fn leaf(prefix: Prefix<B>, value: T) -> Self {
        Self { prefix, least: value.clone(), values: Values::One(value), children: [None, None] }
    }

    /// A node of fewer bits that has only `child` below.
    fn fork(child: Arc<Self>, length: u8) -> Self {
        let side = child.prefix.bits.bit(length);
        let mut fork = Self {
            prefix: child.prefix.first(length),
            least: child.least.clone(),
            values: Values::None,
            children: [None, None],
        };
        fork.children[side] = Some(child);
        fork
    }

    /// The least of what is here and below, where anything is.
    fn measured(&self) -> Option<&T> {
        let below = self.children.iter().flatten().map(|child| &child.least);
        self.values.as_slice().first().into_iter().chain(below).min()
    }
}

fn insert<B: Bits, T: Clone + Ord>(link: &mut Link<B, T>, prefix: Prefix<B>, value: T) {
    if let Some(node) = link.take_if(|node| !node.prefix.holds(prefix)) {
        let length = node.prefix.common(prefix);
        *link = Some(Arc::new(Node::fork(node, length)));
    }
    let Some(node) = link else {
        *link = Some(Arc::new(Node::leaf(prefix, value)));
        return;
    };
    let node = Arc::make_mut(node);
    if value < node.least {
        node.least = value.clone();
    }
    if node.prefix.length == prefix.length {
        node.values.insert(value);
    } else {
        insert(&mut node.children[prefix.bits.bit(node.prefix.length)], prefix, value);
    }
}

fn remove<B: Bits, T: Clone + Ord>(
    link: &mut Link<B, T>,
    prefix: Prefix<B>,
    probe: &impl Fn(&T) -> Ordering,
) -> Option<T> {
    let node = Arc::make_mut(link.as_mut().filter(|node| node.prefix.holds(prefix))?);
    let taken = if node.prefix.length == prefix.length {
        node.values.remove(probe)?
    } else {
        remove(&mut node.children[prefix.bits.bit(node.prefix.length)], prefix, probe)?
    };
    // A node without values of its own is there to fork: with one child left it has no use.
    let forks = node.children.iter().flatten().count() == 2;
    if matches!(node.values, Values::None) && !forks {
        let [zero, one] = &mut node.children;
        *link = zero.take().or(one.take());
    } else if let Some(least) = node.measured().cloned() {
        node.least = least;
    }
    Some(taken)
}

fn least<'a, B: Bits, T: Ord>(
    mut link: &'a Link<B, T>,
    prefix: Prefix<B>,
    mut best: Option<&'a T>,
    accept: &impl Fn(&T) -> bool,
) -> Option<&'a T> {
    while let Some(node) = link {
        if !node.prefix.holds(prefix) || best.is_some_and(|best| *best <= node.least) {
            break;
        }
        best = node.values.least(best, accept);
        if node.prefix.length == prefix.length {
            break;
        }
        link = &node.children[prefix.bits.bit(node.prefix.length)];
    }
    best
}

fn collect<'a, B, T>(link: &'a Link<B, T>, found: &mut Vec<&'a T>) {
    if let Some(node) = link {
        found.extend(node.values.as_slice());
        node.children.iter().for_each(|child| collect(child, found));
    }
}

fn meet<'a, B: Bits, T>(mut link: &'a Link<B, T>, prefix: Prefix<B>, found: &mut Vec<&'a T>) {
    while let Some(node) = link {
        if prefix.holds(node.prefix) {
            return collect(link, found);
        }
        if !node.prefix.holds(prefix) {
            return;
        }
        found.extend(node.values.as_slice());
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
    fn check(map: &PrefixMap<u16>, rules: &[Rule], asked: Option<IpNet>, accept: impl Fn(&u16) -> bool) {
        let around = |(net, value): &&Rule| holds(*net, asked) && accept(value);
        let expected = rules.iter().filter(around).map(|(_, value)| value).min();
        assert_eq!(map.least_around(asked, None, &accept), expected, "{asked:?} in {rules:?}");
        let bound = 7;
        let expected = expected.map_or(&bound, |found| found.min(&bound));
        assert_eq!(map.least_around(asked, Some(&bound), &accept), Some(expected));

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
                check(&map, &left, net, |_| true);
                check(&map, &left, net, |value| value % 3 == 0);
                check(&before, &rules, net, |_| true);
            }
            prop_assert_eq!(map.iter().count(), left.len());
            for (net, value) in left {
                map.remove(net, |other| other.cmp(&value));
            }
            prop_assert!(map.is_empty(), "nodes are left over: {map:?}");
        }
    }

    /// How many nodes there are, and how many of them fork without values.
    fn nodes<B, T>(link: &Link<B, T>) -> (usize, usize) {
        link.as_ref().map_or((0, 0), |node| {
            let below = node.children.iter().map(nodes).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            (below.0 + 1, below.1 + usize::from(node.values.as_slice().is_empty()))
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
        assert_eq!(map.least("10.0.1.200".parse().unwrap(), None, |_| true), Some(&2));
    }

    #[test]
    fn an_absent_value_is_not_removed() {
        let mut map = PrefixMap::default();
        map.insert(None, 5);
        assert_eq!(map.remove(None, |value| value.cmp(&4)), None);
        assert_eq!(map.remove(Some("::/0".parse().unwrap()), |value| value.cmp(&5)), None);
        assert_eq!(map.least("::1".parse().unwrap(), None, |_| true), Some(&5));
    }
}
