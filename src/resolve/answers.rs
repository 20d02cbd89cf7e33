//! The addresses of one name over time. Pure: the time is an argument.
//!
//! What leaves an answer is kept for two TTLs of the last answer that had it: whoever cached that one still
//! serves it, and an address that servers hand out in turns is no change. A name goes empty by an answer
//! alone, never by the clock, and not before it has been empty for a while.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Addresses of one name that are used at most.
pub(super) const MOST: usize = 64;
/// A zone that is being loaded may deny all its names for so long before that counts.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// What is known of a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    /// Those of the last answer, sorted.
    present: Vec<IpAddr>,
    /// The TTL of the last answer that had any.
    ttl: Duration,
    /// Others, with the time when they go.
    leaving: Vec<(IpAddr, Instant)>,
}

impl Answers {
    /// Takes an answer; an empty one says that the name has no address.
    pub(super) fn take(&mut self, mut addresses: Vec<IpAddr>, ttl: Duration, now: Instant) {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MOST);
        let stay = if addresses.is_empty() { GRACE.max(self.ttl * 2) } else { self.ttl * 2 };
        let gone = self.present.iter().filter(|old| !addresses.contains(old));
        self.leaving.extend(gone.map(|old| (*old, now + stay)));
        self.leaving.retain(|(old, until)| *until > now && !addresses.contains(old));
        self.present = addresses;
        if !self.present.is_empty() {
            self.ttl = ttl;
        }
    }

    /// Forgets what has left for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        if !self.present.is_empty() {
            self.leaving.retain(|(_, until)| *until > now);
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_leave(&self) -> Option<Instant> {
        let first = self.leaving.iter().map(|(_, until)| *until).min();
        first.filter(|_| !self.present.is_empty())
    }

    /// What to use, sorted: a rotated answer is no change.
    pub(super) fn serving(&self) -> Vec<IpAddr> {
        let mut leaving = self.leaving.clone();
        leaving.sort_unstable_by_key(|(address, until)| (std::cmp::Reverse(*until), *address));
        let old = leaving.into_iter().map(|(address, _)| address);
        let mut all: Vec<IpAddr> = self.present.iter().copied().chain(old).take(MOST).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers at seconds, each with its TTL; then what is served at other seconds.
    #[track_caller]
    fn check(answers: &[(u64, &[u8], u64)], served: &[(u64, &[u8])]) {
        let began = Instant::now();
        let at = |second| began + Duration::from_secs(second);
        let address = |last: &u8| IpAddr::from([10, 0, 0, *last]);
        let (mut known, mut left) = (Answers::default(), answers.iter().peekable());
        for (second, expected) in served {
            while let Some((when, list, ttl)) = left.next_if(|(when, ..)| when <= second) {
                known.take(list.iter().map(address).collect(), Duration::from_secs(*ttl), at(*when));
            }
            known.expire(at(*second));
            assert_eq!(
                known.serving(),
                expected.iter().map(address).collect::<Vec<_>>(),
                "{answers:?} at {second}"
            );
        }
    }

    #[test]
    fn an_address_stays_two_ttls_after_it_left() {
        check(&[(0, &[1], 10), (10, &[2], 60)], &[(0, &[1]), (10, &[1, 2]), (29, &[1, 2]), (30, &[2])]);
        // What comes back has never left.
        check(&[(0, &[1], 10), (10, &[2], 10), (20, &[1], 10)], &[(20, &[1, 2]), (39, &[1, 2]), (40, &[1])]);
        check(&[(0, &[2, 1, 2], 10), (10, &[1, 2], 10)], &[(0, &[1, 2]), (40, &[1, 2])]);
    }

    #[test]
    fn a_name_goes_empty_by_an_answer_and_not_at_once() {
        check(&[(0, &[1], 5), (5, &[], 0), (34, &[], 0)], &[(5, &[1]), (34, &[1]), (1000, &[1])]);
        check(&[(0, &[1], 5), (5, &[], 0), (35, &[], 0)], &[(34, &[1]), (35, &[])]);
        check(&[(0, &[1], 20), (5, &[], 0), (44, &[], 0), (45, &[], 0)], &[(44, &[1]), (45, &[])]);
        check(&[(0, &[1], 5), (5, &[], 0), (6, &[2], 5)], &[(6, &[1, 2]), (34, &[1, 2]), (35, &[2])]);
        check(&[(0, &[], 0)], &[(0, &[])]);
    }

    #[test]
    fn present_addresses_come_before_those_that_left() {
        let many: Vec<u8> = (1..=100).collect();
        check(&[(0, &many, 10)], &[(0, &many[..MOST])]);
        let later: Vec<u8> = (101..=160).collect();
        let mut both: Vec<u8> = (1..=4).collect();
        both.extend(&later);
        check(&[(0, &many, 10), (10, &later, 10)], &[(10, &both), (30, &later)]);
    }
}
