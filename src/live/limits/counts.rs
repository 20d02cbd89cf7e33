//! How many sessions each key has.

use std::collections::HashMap;
use std::sync::Arc;

use super::{LimitKey, Table};

/// One limit on sessions at the same time.
#[derive(Debug)]
pub struct CountLimit {
    pub(super) id: u64,
    pub(super) counts: Arc<Counts>,
}

/// Of all limits.
#[derive(Debug, Default)]
pub(super) struct Counts(Table<HashMap<Arc<str>, Held>>);

#[derive(Debug)]
struct Held {
    sessions: u64,
    /// The key again, for places to share.
    key: Arc<str>,
}

/// A map that has this much room for nothing gives it back.
const ROOM_TO_KEEP: usize = 256;

impl Counts {
    pub(super) fn len(&self) -> usize {
        self.0.sum(HashMap::len)
    }
}

impl CountLimit {
    /// An empty key.
    #[must_use]
    pub fn key(&self) -> LimitKey {
        LimitKey::of(self.id)
    }

    /// Counts a session in where its key then has at most `most`; otherwise tells how many it has. The
    /// number is that of the session: the first has 1.
    pub fn enter(self: &Arc<Self>, key: &LimitKey, most: u64) -> Result<(u64, Place), u64> {
        let key = self.counts.0.name(key);
        let Some(mut part) = self.counts.0.part(&key) else { return Err(0) };
        let sessions = part.get(&*key).map_or(0, |held| held.sessions);
        if sessions >= most {
            return Err(sessions);
        }
        let key = if let Some(held) = part.get_mut(&*key) {
            held.sessions += 1;
            held.key.clone()
        } else {
            let text: Arc<str> = key.into();
            part.insert(text.clone(), Held { sessions: 1, key: text.clone() });
            text
        };
        Ok((sessions + 1, Place { limit: self.clone(), key }))
    }

    /// How many sessions the key has.
    #[must_use]
    pub fn sessions(&self, key: &LimitKey) -> u64 {
        let key = self.counts.0.name(key);
        let part = self.counts.0.part(&key);
        part.and_then(|part| part.get(&*key).map(|held| held.sessions)).unwrap_or(0)
    }
}

/// A session's place in a count, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    limit: Arc<CountLimit>,
    key: Arc<str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(mut part) = self.limit.counts.0.part(&self.key) else { return };
        if let Some(held) = part.get_mut(&self.key) {
            held.sessions = held.sessions.saturating_sub(1);
            if held.sessions == 0 {
                part.remove(&self.key);
            }
        }
        if part.capacity() > ROOM_TO_KEEP && part.len() < part.capacity() / 8 {
            let room = part.len() * 2;
            part.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::thread;

    use super::*;
    use crate::live::limits::Limits;

    fn key(limit: &CountLimit, text: &str) -> LimitKey {
        let mut key = limit.key();
        key.write_str(text).unwrap();
        key
    }

    #[test]
    fn a_place_is_given_back_and_nothing_is_left() {
        let limits = Limits::default();
        let limit = limits.count("stream_routes/1 {}");
        let a = key(&limit, "a");
        let (first, place) = limit.enter(&a, 2).unwrap();
        let (second, other) = limit.enter(&a, 2).unwrap();
        assert_eq!((first, second), (1, 2));
        assert_eq!(limit.enter(&a, 2).unwrap_err(), 2);
        assert_eq!(limit.enter(&key(&limit, "b"), 2).unwrap().0, 1);
        drop(place);
        assert_eq!(limit.enter(&a, 2).unwrap().0, 2);
        drop(other);
        assert_eq!(limits.remembered().0, 0);
    }

    #[test]
    fn a_limit_is_one_configuration_of_one_object() {
        let limits = Limits::default();
        let first = limits.count("stream_routes/1 {}");
        let (_, _place) = first.enter(&key(&first, "a"), 9).unwrap();
        let other = limits.count("stream_routes/2 {}");
        assert_eq!(other.sessions(&key(&other, "a")), 0);
        // Nobody holds it but the place of a session.
        drop(first);
        let again = limits.count("stream_routes/1 {}");
        assert_eq!(again.sessions(&key(&again, "a")), 1);
    }

    #[test]
    fn long_keys_take_little_and_are_told_apart() {
        let limits = Limits::default();
        let limit = limits.count("");
        let long = |end| key(&limit, &("é".repeat(10_000) + end));
        let (_, place) = limit.enter(&long("a"), 9).unwrap();
        assert!(place.key.len() < 128, "{}", place.key);
        assert_eq!((limit.sessions(&long("a")), limit.sessions(&long("b"))), (1, 0));
        assert_eq!(long("a").shown().len(), 128);
    }

    #[test]
    fn room_of_a_crowd_is_given_back() {
        let limits = Limits::default();
        let limit = limits.count("");
        let places: Vec<_> =
            (0..100_000).map(|at| limit.enter(&key(&limit, &at.to_string()), 1).unwrap()).collect();
        assert_eq!(limits.remembered().0, places.len());
        drop(places);
        assert!(limits.counts.0.sum(HashMap::capacity) <= 64 * 2 * ROOM_TO_KEEP);
    }

    #[test]
    fn no_more_than_allowed_enter_at_once() {
        let limits = Limits::default();
        let limit = limits.count("");
        let entered: Vec<_> = thread::scope(|scope| {
            let enter = || (0..1000).filter_map(|_| limit.enter(&key(&limit, "a"), 1500).ok()).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(enter)).collect();
            threads.into_iter().flat_map(|thread| -> Vec<_> { thread.join().unwrap() }).collect()
        });
        let mut numbers: Vec<u64> = entered.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=1500).collect::<Vec<_>>());
        drop(entered);
        assert_eq!(limits.remembered().0, 0);
    }
}
