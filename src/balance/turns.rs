//! Weighted turns: nginx's smooth algorithm (`ngx_stream_upstream_round_robin.c`).
//!
//! At each pick every candidate gains its weight; the one that has most is taken and pays the sum of
//! the weights. Nodes 5:1:1 give A A B A C A A, never five A in a row.

use super::ring::gcd;

/// Work done at most to begin somewhere in the round: candidates looked at.
const WARM_UP: u64 = 2048;

/// Whose turn it is among the members of a set.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    members: Box<[Turn]>,
    /// The sum of weights of those that competed last.
    total: i64,
}

#[derive(Clone, Debug)]
struct Turn {
    index: usize,
    weight: i64,
    credit: i64,
}

impl Turns {
    /// Turns of these nodes and weights. `seed` decides where the round begins, so that gateways
    /// started together do not all send their first sessions to the same node.
    pub(super) fn new(members: &[(u32, u32)], seed: u64) -> Self {
        let count = members.len().max(1) as u64;
        let mut members: Vec<_> = members.iter().map(|(index, weight)| (*index, *weight)).collect();
        let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        let round: u64 = members.iter().map(|(_, weight)| u64::from(weight / divisor)).sum();
        members.rotate_left(usize::try_from(seed % count).unwrap_or(0));
        let turn =
            |(index, weight): (u32, u32)| Turn { index: index as usize, weight: weight.into(), credit: 0 };
        let mut turns = Self { members: members.into_iter().map(turn).collect(), total: 0 };
        let skipped = (seed / count) % round.min(WARM_UP / count).max(1);
        for _ in 0..skipped {
            turns.next(|_| true);
        }
        turns
    }

    /// The candidate whose turn it is. Others neither gain nor lose.
    pub(super) fn next(&mut self, candidate: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut total, mut count) = (0, 0);
        // Plain numbers, no references: this loop is what a pick costs.
        let (mut best, mut most) = (None, i64::MIN);
        for (place, turn) in self.members.iter_mut().enumerate() {
            if candidate(turn.index) {
                turn.credit += turn.weight;
                total += turn.weight;
                count += 1;
                if turn.credit > most {
                    (best, most) = (Some(place), turn.credit);
                }
            }
        }
        if total != self.total {
            self.total = total;
            best = self.forgive(candidate, total.saturating_mul(count));
        }
        let best = self.members.get_mut(best?)?;
        best.credit -= total;
        Some(best.index)
    }

    /// Others compete than before: whoever waited long beside a heavy one, or was ahead, shall not have the
    /// next thousand sessions, or none of them. `most` is more credit than ever arises among these alone.
    /// The place of the one whose turn it is.
    fn forgive(&mut self, candidate: impl Fn(usize) -> bool, most: i64) -> Option<usize> {
        let mut best: Option<(i64, usize)> = None;
        for (place, turn) in self.members.iter_mut().enumerate() {
            if candidate(turn.index) {
                turn.credit = turn.credit.clamp(-most, most);
                if best.is_none_or(|(credit, _)| turn.credit > credit) {
                    best = Some((turn.credit, place));
                }
            }
        }
        best.map(|(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(weights: &[u32], picks: usize, expected: &str) {
        let members: Vec<_> = (0..).zip(weights.iter().copied()).collect();
        let mut turns = Turns::new(&members, 0);
        let found: String = (0..picks)
            .filter_map(|_| turns.next(|_| true))
            .map(|index| "ABCD".as_bytes()[index] as char)
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn turns_are_smooth() {
        check(&[5, 1, 1], 7, "AABACAA");
        check(&[1, 1, 1], 6, "ABCABC");
        check(&[3, 1], 8, "AABAAABA");
    }

    #[test]
    fn every_round_is_exact_wherever_it_begins() {
        let members = [(0, 3), (1, 5), (2, 1)];
        for seed in 0..50 {
            let mut turns = Turns::new(&members, seed);
            let mut counts = [0; 3];
            for _ in 0..9 {
                counts[turns.next(|_| true).unwrap()] += 1;
            }
            assert_eq!(counts, [3, 5, 1], "seed {seed}");
        }
    }

    #[test]
    fn seeds_begin_everywhere() {
        for members in [[(0, 1), (1, 1), (2, 1)], [(0, 3), (1, 2), (2, 2)]] {
            let first = |seed| Turns::new(&members, seed).next(|_| true).unwrap();
            let mut firsts: Vec<_> = (0..20).map(first).collect();
            firsts.sort_unstable();
            firsts.dedup();
            assert_eq!(firsts, [0, 1, 2]);
        }
    }
}
