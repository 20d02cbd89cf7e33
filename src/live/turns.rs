//! Whose turn it is among shares of different weight: nginx's smooth algorithm
//! (`ngx_stream_upstream_round_robin.c`), one state for all workers and every version of a configuration
//! with the same weights. No I/O, no clock.

use std::sync::{Mutex, PoisonError};

/// Turns of shares.
#[derive(Debug)]
pub struct Turns {
    weights: Box<[i64]>,
    credits: Mutex<Box<[i64]>>,
}

impl Turns {
    /// Turns of these weights. One of 0 gets none, unless all are: then all count as equal.
    #[must_use]
    pub fn new(weights: &[u32]) -> Self {
        let equal = weights.iter().all(|weight| *weight == 0);
        let weight = |weight: &u32| if equal { 1 } else { i64::from(*weight) };
        let credits = Mutex::new(vec![0; weights.len()].into());
        Self { weights: weights.iter().map(weight).collect(), credits }
    }

    /// The place of the share whose turn it is, which thereby had it.
    pub fn next(&self) -> usize {
        let mut credits = self.credits.lock().unwrap_or_else(PoisonError::into_inner);
        for (credit, weight) in credits.iter_mut().zip(&self.weights) {
            *credit += weight;
        }
        let place = most(&credits, &self.weights);
        if let Some(credit) = credits.get_mut(place) {
            *credit -= self.weights.iter().sum::<i64>();
        }
        place
    }

    /// What [`Self::next`] would give.
    #[must_use]
    pub fn preview(&self) -> usize {
        let credits = self.credits.lock().unwrap_or_else(PoisonError::into_inner);
        let gained: Vec<i64> =
            credits.iter().zip(&self.weights).map(|(credit, weight)| credit + weight).collect();
        most(&gained, &self.weights)
    }
}

/// The place of the first that has most.
fn most(credits: &[i64], weights: &[i64]) -> usize {
    let mut best: Option<(usize, i64)> = None;
    for (place, (credit, weight)) in credits.iter().zip(weights).enumerate() {
        if *weight > 0 && best.is_none_or(|(_, most)| *credit > most) {
            best = Some((place, *credit));
        }
    }
    best.map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(weights: &[u32], expected: &str) {
        let turns = Turns::new(weights);
        let found: String = expected
            .chars()
            .map(|_| {
                let [foreseen, again] = [turns.preview(), turns.preview()];
                let place = turns.next();
                assert_eq!((foreseen, again), (place, place), "looking ahead moves nothing");
                "ABCD".as_bytes()[place] as char
            })
            .collect();
        assert_eq!(found, expected, "{weights:?}");
    }

    #[test]
    fn turns_are_smooth_and_rounds_exact() {
        check(&[9, 1], "AAAAABAAAAAAAAABAAAA");
        check(&[1, 1, 1], "ABCABC");
        check(&[3, 0, 1], "AACAAACA");
        check(&[0, 1], "BBB");
        check(&[0, 0], "ABAB");
        check(&[7], "AA");
        check(&[u32::MAX, u32::MAX], "ABAB");
    }

    #[test]
    fn no_share_is_ever_far_from_what_it_is_due() {
        let weights = [333_u32, 667, 7, 1000];
        let turns = Turns::new(&weights);
        let mut counts = [0_i64; 4];
        for taken in 1..=10_000_i64 {
            counts[turns.next()] += 1;
            for (count, weight) in counts.iter().zip(weights) {
                let due = taken * i64::from(weight) / 2007;
                assert!((count - due).abs() <= 2, "{counts:?} after {taken}");
            }
        }
    }
}
