//! The ring of consistent hashing, bit for bit that of lua-resty-balancer 0.05.
//!
//! Each node has 160 points for each unit of its weight after division by the greatest common
//! divisor. The n-th point of a node is the CRC-32 of its id (`host:port` with a zero byte for every
//! colon) and the point before it, four bytes little-endian, the first of which is zero
//! (`resty/chash.lua:90`, `chash.c`).

use std::fmt::Write as _;

use super::PoolNode;

/// Points for each unit of weight.
const POINTS: u64 = 160;
/// Points in all before weights are made coarser: 32 MiB.
const MOST_POINTS: u64 = 4 << 20;

/// The points of a set of nodes, ascending.
#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[(u32, u32)]>,
    /// Where the points begin that share their first bits, and an end: points are spread evenly, so
    /// that a search has some eight left to look at.
    starts: Box<[u32]>,
    /// Bits that do not count for `starts`.
    shift: u32,
}

impl Ring {
    /// The ring of `members` with the weights given. Also reports whether the weights had to be made
    /// coarser to keep it within memory.
    pub(super) fn new(nodes: &[PoolNode], members: &[(u32, u32)]) -> (Self, bool) {
        let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        let wanted = |weight: u32| u64::from(weight / divisor) * POINTS;
        let total: u64 = members.iter().map(|(_, weight)| wanted(*weight)).sum();
        let coarse = total > MOST_POINTS;
        let mut points = Vec::new();
        for (index, weight) in members {
            let wanted = wanted(*weight);
            // The product stays below 2^62.
            let count = if coarse { (wanted * MOST_POINTS / total).max(1) } else { wanted };
            let label = nodes.get(*index as usize).map_or("", |node| &node.label);
            points.extend((0..count).zip(hashes(label)).map(|(_, hash)| (hash, *index)));
        }
        points.sort_unstable();
        let bits = (points.len() / 8).checked_ilog2().unwrap_or(0);
        // There are at most 2^23 points or so.
        let start = |first: u64| points.partition_point(|(point, _)| u64::from(*point) < first);
        let starts = (0..=1_u64 << bits)
            .map(|place| u32::try_from(start(place << (32 - bits))).unwrap_or(u32::MAX))
            .collect();
        (Self { starts, shift: 32 - bits, points: points.into() }, coarse)
    }

    /// The nodes in the order in which a key of this hash tries them; nodes come again and again.
    pub(super) fn from(&self, hash: u32) -> impl Iterator<Item = usize> {
        let start = self.start(hash);
        let (before, after) = self.points.split_at(start);
        after.iter().chain(before).map(|(_, index)| *index as usize)
    }

    /// The place of the first point that is not below `hash`.
    fn start(&self, hash: u32) -> usize {
        let place = hash.checked_shr(self.shift).unwrap_or(0) as usize;
        let [from, to] = [place, place + 1].map(|at| self.starts.get(at).map_or(0, |start| *start as usize));
        let near = self.points.get(from..to).unwrap_or_default();
        from + near.partition_point(|(point, _)| *point < hash)
    }
}

/// The points of a node without end.
fn hashes(label: &str) -> impl Iterator<Item = u32> {
    let mut base = crc32fast::Hasher::new();
    for (index, part) in label.split(':').enumerate() {
        base.update(if index > 0 { b"\0" } else { b"" });
        base.update(part.as_bytes());
    }
    let mut previous = 0_u32;
    std::iter::repeat_with(move || {
        let mut point = base.clone();
        point.update(&previous.to_le_bytes());
        previous = point.finalize();
        previous
    })
}

/// The hash of what a value displays as.
pub(super) fn hash_of(value: impl std::fmt::Display) -> u32 {
    let mut hash = KeyHash::default();
    // Writing to a checksum cannot fail.
    let _ = write!(hash, "{value}");
    hash.finish()
}

/// The hash of the text that is written to it. Keys come in small pieces, such as the parts of an
/// address, and a checksum takes one long piece faster than many short ones.
#[derive(Debug, Default)]
pub(super) struct KeyHash {
    sum: crc32fast::Hasher,
    pending: [u8; 32],
    length: usize,
}

impl KeyHash {
    pub(super) fn finish(mut self) -> u32 {
        self.flush();
        self.sum.finalize()
    }

    fn flush(&mut self) {
        self.sum.update(&self.pending[..self.length]);
        self.length = 0;
    }
}

impl std::fmt::Write for KeyHash {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.length + text.len() > self.pending.len() {
            self.flush();
        }
        match self.pending.get_mut(self.length..self.length + text.len()) {
            Some(place) => {
                place.copy_from_slice(text.as_bytes());
                self.length += text.len();
            }
            None => self.sum.update(text.as_bytes()),
        }
        Ok(())
    }
}

pub(super) fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_search_finds_what_a_search_of_all_points_does() {
        let node = |index: u16| PoolNode {
            addr: ([127, 0, 0, 1], index).into(),
            label: format!("127.0.0.1:{index}").into(),
            weight: 1,
            priority: 0,
            stats: Arc::default(),
            tls: None,
            health: None,
            leash: None,
        };
        for count in [0, 1, 2, 7, 100] {
            let nodes: Vec<_> = (0..count).map(node).collect();
            let members: Vec<_> = (0..u32::from(count)).map(|index| (index, 1)).collect();
            let (ring, _) = Ring::new(&nodes, &members);
            let near = |hash: u32| [hash.wrapping_sub(1), hash, hash.wrapping_add(1)];
            let hashes = ring.points.iter().flat_map(|(point, _)| near(*point)).chain(near(0));
            for hash in hashes {
                assert_eq!(
                    ring.start(hash),
                    ring.points.partition_point(|(point, _)| *point < hash),
                    "{hash}"
                );
            }
        }
    }
}
