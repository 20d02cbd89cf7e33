//! When to try again: at once at first, ever less often while nothing works, never all together.

use std::time::Duration;

/// Counts failures in a row and says how long to wait after each.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    shortest: Duration,
    longest: Duration,
    /// Endpoints to try in turn: a round of them counts as one failure.
    endpoints: u32,
    failures: u32,
    last: Duration,
}

impl Pace {
    /// Waits between `shortest` and `longest`, growing with each round over `endpoints`.
    pub(super) fn new(shortest: Duration, longest: Duration, endpoints: usize) -> Self {
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX).max(1);
        Self { shortest, longest, endpoints, failures: 0, last: Duration::ZERO }
    }

    /// How long to wait after a session that worked for `lasted` (zero: it never did), with `random`
    /// in 0..=1. One that lasted longer than the wait before it makes good for earlier failures;
    /// shorter ones do not, so a session that always dies at once is not tried without pause.
    pub(super) fn after(&mut self, lasted: Duration, random: f64) -> Duration {
        if lasted > self.last {
            self.failures = 0;
        }
        let rounds = (self.failures / self.endpoints).min(16);
        self.failures = self.failures.saturating_add(1);
        let whole = self.shortest.saturating_mul(1 << rounds).min(self.longest);
        self.last = whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(endpoints: usize, lasted: &[u64], expected: &[u64]) {
        let mut pace = Pace::new(Duration::from_millis(50), Duration::from_secs(5), endpoints);
        let waits: Vec<_> =
            lasted.iter().map(|millis| pace.after(Duration::from_millis(*millis), 1.0).as_millis()).collect();
        let expected: Vec<_> = expected.iter().map(|millis| u128::from(*millis)).collect();
        assert_eq!(waits, expected);
    }

    #[test]
    fn waits_grow_to_their_cap() {
        check(1, &[0; 9], &[50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_round_over_all_endpoints_counts_once() {
        check(3, &[0; 7], &[50, 50, 50, 100, 100, 100, 200]);
    }

    #[test]
    fn only_a_session_longer_than_the_last_wait_makes_good() {
        check(1, &[0, 0, 0, 100, 900, 0], &[50, 100, 200, 400, 50, 100]);
    }

    #[test]
    fn half_of_the_wait_is_random() {
        let mut pace = Pace::new(Duration::from_millis(50), Duration::from_secs(5), 1);
        assert_eq!(pace.after(Duration::ZERO, 0.0), Duration::from_millis(25));
    }
}
