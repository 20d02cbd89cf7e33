//! Which UDP datagrams belong together: the table of associations.
//!
//! The first datagram of a client makes an association, further ones find it, answers count on it,
//! silence ends it. The table is full at a cap; then the association that waits longest and has had
//! its answer makes room, for one that was never answered may be about to be (nginx has neither cap
//! nor this order; an address-spoofing flood would take every association that works).
//!
//! Entries stand in lists by (idle limit, answered or not), the one that moved last at the end. So a
//! datagram costs one move in a list and no timer, the next deadline is the least of the first
//! entries, and so is the longest idle one. There are as many lists as different limits: a handful.
//! Pure: no I/O, no clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// What makes datagrams one association.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Key {
    /// The listening socket, by a number of the caller's.
    pub socket: u64,
    /// Who wrote.
    pub client: SocketAddr,
    /// The local address written to.
    pub local: SocketAddr,
}

/// When an association ends by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// After so long without a datagram either way.
    pub idle: Duration,
    /// After so many answers; absent: no number ends it.
    pub responses: Option<NonZeroU32>,
}

/// Names an association as long as it lives; afterwards it names nothing, even where a later one of
/// the same client took its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Id {
    slot: usize,
    serial: u64,
}

/// What an answer means for its association.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// More may come.
    More,
    /// It was the last one that was to come.
    Last,
}

/// The associations of one worker, each with a `T` of the caller's.
#[derive(Debug)]
pub struct Table<T> {
    capacity: usize,
    serial: u64,
    index: HashMap<Key, usize>,
    entries: Vec<Option<Entry<T>>>,
    free: Vec<usize>,
    lists: Vec<List>,
}

#[derive(Debug)]
struct Entry<T> {
    key: Key,
    serial: u64,
    limits: Limits,
    answers: u32,
    moved: Instant,
    list: usize,
    before: Option<usize>,
    after: Option<usize>,
    value: T,
}

/// Entries with the same limit, longest idle first.
#[derive(Clone, Copy, Debug)]
struct List {
    idle: Duration,
    answered: bool,
    first: Option<usize>,
    last: Option<usize>,
}

impl<T> Table<T> {
    /// An empty table for at most `capacity` associations, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            serial: 0,
            index: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            lists: Vec::new(),
        }
    }

    /// How many associations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Reports whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Reports whether a new association would have to take the place of another.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// A datagram of a client: its association, if it has one, which has moved `now`.
    /// Call [`Table::expire`] first: what is over at `now` is still found here.
    pub fn touch(&mut self, key: &Key, now: Instant) -> Option<&mut T> {
        let slot = *self.index.get(key)?;
        self.moved(slot, now);
        self.entry_mut(slot).map(|entry| &mut entry.value)
    }

    /// A new association. One of the same key must not be there; make room before
    /// ([`Table::evict`]) where the table is full.
    pub fn insert(&mut self, key: Key, limits: Limits, value: T, now: Instant) -> Id {
        debug_assert!(!self.index.contains_key(&key), "a second association of {key:?}");
        self.serial += 1;
        let serial = self.serial;
        let list = self.list(limits.idle, false);
        let entry =
            Entry { key, serial, limits, answers: 0, moved: now, list, before: None, after: None, value };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[slot] = Some(entry);
        self.index.insert(key, slot);
        self.append(slot, list);
        Id { slot, serial }
    }

    /// The value of an association that still lives.
    pub fn value_mut(&mut self, id: Id) -> Option<&mut T> {
        let entry = self.entry_mut(id.slot)?;
        (entry.serial == id.serial).then_some(&mut entry.value)
    }

    /// An answer of the upstream. `None` where the association is gone.
    pub fn answered(&mut self, id: Id, now: Instant) -> Option<Answer> {
        let entry = self.entry_mut(id.slot).filter(|entry| entry.serial == id.serial)?;
        entry.answers = entry.answers.saturating_add(1);
        let last = entry.limits.responses.is_some_and(|limit| entry.answers >= limit.get());
        self.moved(id.slot, now);
        Some(if last { Answer::Last } else { Answer::More })
    }

    /// Ends an association.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.entry_mut(id.slot).filter(|entry| entry.serial == id.serial)?;
        self.take(id.slot)
    }

    /// Ends the longest idle association that has had an answer; where none has, the longest idle.
    pub fn evict(&mut self) -> Option<T> {
        let longest = |answered: bool| {
            let firsts = self.lists.iter().filter(|list| list.answered == answered);
            firsts.filter_map(|list| list.first).min_by_key(|slot| self.moved_at(*slot))
        };
        let slot = longest(true).or_else(|| longest(false))?;
        self.take(slot)
    }

    /// Ends one association whose idle limit is reached at `now`; call until `None`.
    pub fn expire(&mut self, now: Instant) -> Option<T> {
        let (deadline, slot) = self.first_deadline()?;
        if deadline <= now { self.take(slot) } else { None }
    }

    /// When [`Table::expire`] will next have something to do, if no datagram comes before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.first_deadline().map(|(deadline, _)| deadline)
    }

    /// Ends every association of a listening socket.
    pub fn remove_socket(&mut self, socket: u64) -> Vec<T> {
        let slots: Vec<usize> =
            self.index.iter().filter(|(key, _)| key.socket == socket).map(|(_, slot)| *slot).collect();
        slots.into_iter().filter_map(|slot| self.take(slot)).collect()
    }

    fn entry(&self, slot: usize) -> Option<&Entry<T>> {
        self.entries.get(slot)?.as_ref()
    }

    fn entry_mut(&mut self, slot: usize) -> Option<&mut Entry<T>> {
        self.entries.get_mut(slot)?.as_mut()
    }

    fn moved_at(&self, slot: usize) -> Option<Instant> {
        self.entry(slot).map(|entry| entry.moved)
    }

    fn first_deadline(&self) -> Option<(Instant, usize)> {
        let deadline = |list: &List| {
            let slot = list.first?;
            Some((self.moved_at(slot)? + list.idle, slot))
        };
        self.lists.iter().filter_map(deadline).min_by_key(|(deadline, _)| *deadline)
    }

    /// The list of these properties; one that has become empty is used again.
    fn list(&mut self, idle: Duration, answered: bool) -> usize {
        let same = |list: &List| list.idle == idle && list.answered == answered;
        if let Some(place) = self.lists.iter().position(same) {
            return place;
        }
        let new = List { idle, answered, first: None, last: None };
        if let Some(place) = self.lists.iter().position(|list| list.first.is_none()) {
            self.lists[place] = new;
            return place;
        }
        self.lists.push(new);
        self.lists.len() - 1
    }

    /// Notes that an entry moved: to the end of the list it now belongs to.
    fn moved(&mut self, slot: usize, now: Instant) {
        self.unlink(slot);
        let Some(entry) = self.entry_mut(slot) else { return };
        // One batch is worked off with one reading of the clock: it may lie before the last answer.
        entry.moved = entry.moved.max(now);
        let (idle, answered) = (entry.limits.idle, entry.answers > 0);
        let list = self.list(idle, answered);
        self.append(slot, list);
    }

    fn append(&mut self, slot: usize, list: usize) {
        let before = self.lists[list].last.replace(slot);
        match before.and_then(|before| self.entry_mut(before)) {
            Some(entry) => entry.after = Some(slot),
            None => self.lists[list].first = Some(slot),
        }
        if let Some(entry) = self.entry_mut(slot) {
            (entry.list, entry.before, entry.after) = (list, before, None);
        }
    }

    fn unlink(&mut self, slot: usize) {
        let Some(&Entry { list, before, after, .. }) = self.entry(slot) else { return };
        match before.and_then(|before| self.entry_mut(before)) {
            Some(entry) => entry.after = after,
            None => self.lists[list].first = after,
        }
        match after.and_then(|after| self.entry_mut(after)) {
            Some(entry) => entry.before = before,
            None => self.lists[list].last = before,
        }
    }

    fn take(&mut self, slot: usize) -> Option<T> {
        self.unlink(slot);
        let entry = self.entries.get_mut(slot)?.take()?;
        self.index.remove(&entry.key);
        self.free.push(slot);
        Some(entry.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(client: u16) -> Key {
        Key {
            socket: u64::from(client % 2),
            client: ([127, 0, 0, 1], client).into(),
            local: ([127, 0, 0, 1], 53).into(),
        }
    }

    fn limits(idle: Duration, responses: u32) -> Limits {
        Limits { idle, responses: NonZeroU32::new(responses) }
    }

    #[expect(clippy::disallowed_methods, reason = "a first instant, from which the cases count")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Associations that moved in this order, each with its answers; which one makes room?
    #[track_caller]
    fn check_eviction(answers: &[u32], evicted: u16) {
        let mut table = Table::new(answers.len());
        let mut now = start();
        for (client, count) in (0_u16..).zip(answers) {
            now += SECOND;
            let id = table.insert(key(client), limits(60 * SECOND, 0), client, now);
            for _ in 0..*count {
                assert_eq!(table.answered(id, now), Some(Answer::More));
            }
        }
        assert!(table.is_full());
        assert_eq!(table.evict(), Some(evicted), "{answers:?}");
        assert!(!table.is_full());
    }

    #[test]
    fn longest_idle_answered_association_makes_room() {
        check_eviction(&[1, 1, 1], 0);
        check_eviction(&[0, 0, 2, 1], 2);
        check_eviction(&[0, 0, 0], 0);
    }

    #[test]
    fn any_datagram_puts_the_end_off() {
        let (mut table, begin) = (Table::new(4), start());
        let id = table.insert(key(1), limits(10 * SECOND, 0), "value", begin);
        assert_eq!(table.next_deadline(), Some(begin + 10 * SECOND));
        assert_eq!(table.touch(&key(1), begin + 4 * SECOND), Some(&mut "value"));
        assert_eq!(table.answered(id, begin + 6 * SECOND), Some(Answer::More));
        assert_eq!(table.next_deadline(), Some(begin + 16 * SECOND));
        assert_eq!(table.expire(begin + 15 * SECOND), None);
        assert_eq!(table.expire(begin + 16 * SECOND), Some("value"));
        assert_eq!(table.next_deadline(), None);
        assert_eq!(table.touch(&key(1), begin + 16 * SECOND), None);
    }

    #[test]
    fn last_answer_is_told() {
        let (mut table, begin) = (Table::new(4), start());
        let id = table.insert(key(1), limits(SECOND, 2), (), begin);
        assert_eq!(table.answered(id, begin), Some(Answer::More));
        assert_eq!(table.answered(id, begin), Some(Answer::Last));
    }

    #[test]
    fn an_old_id_does_not_reach_the_successor() {
        let (mut table, begin) = (Table::new(4), start());
        let old = table.insert(key(1), limits(SECOND, 0), "old", begin);
        assert_eq!(table.remove(old), Some("old"));
        let new = table.insert(key(1), limits(SECOND, 0), "new", begin);
        assert_eq!((table.answered(old, begin), table.remove(old), table.value_mut(old)), (None, None, None));
        assert_eq!(table.value_mut(new), Some(&mut "new"));
    }

    #[test]
    fn a_closed_socket_takes_its_own_only() {
        let (mut table, begin) = (Table::new(4), start());
        for client in 1..=3 {
            table.insert(key(client), limits(SECOND, 0), client, begin);
        }
        let mut gone = table.remove_socket(1);
        gone.sort_unstable();
        assert_eq!(gone, [1, 3]);
        assert_eq!(table.touch(&key(2), begin), Some(&mut 2));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Datagram { client: u16, idle: u64, responses: u32 },
        Answer { nth: usize },
        Remove { nth: usize },
        Wait { seconds: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u16..8, 1_u64..4, 0_u32..3)
                .prop_map(|(client, idle, responses)| Step::Datagram { client, idle: idle * 5, responses }),
            3 => (0_usize..8).prop_map(|nth| Step::Answer { nth }),
            1 => (0_usize..8).prop_map(|nth| Step::Remove { nth }),
            1 => (1_u64..9).prop_map(|seconds| Step::Wait { seconds }),
        ]
    }

    /// The same rules over a plain list.
    struct Model {
        rows: Vec<(Id, Key, Limits, u32, Instant)>,
    }

    impl Model {
        fn evict(&mut self) -> Key {
            let answered = self.rows.iter().any(|row| row.3 > 0);
            let among = self.rows.iter().filter(|row| (row.3 > 0) == answered);
            let id = among.min_by_key(|row| row.4).unwrap().0;
            self.remove(id)
        }

        fn remove(&mut self, id: Id) -> Key {
            let place = self.rows.iter().position(|row| row.0 == id).unwrap();
            self.rows.remove(place).1
        }
    }

    fn play(table: &mut Table<Key>, model: &mut Model, step: &Step, now: Instant) {
        match *step {
            Step::Datagram { client, idle, responses } => {
                let key = key(client);
                if let Some(row) = model.rows.iter_mut().find(|row| row.1 == key) {
                    row.4 = now;
                    assert_eq!(table.touch(&key, now), Some(&mut key.clone()));
                    return;
                }
                assert_eq!(table.touch(&key, now), None);
                if table.is_full() {
                    assert_eq!(table.evict(), Some(model.evict()));
                }
                let limits = limits(Duration::from_secs(idle), responses);
                model.rows.push((table.insert(key, limits, key, now), key, limits, 0, now));
            }
            Step::Answer { nth } => {
                let Some(row) = model.rows.get_mut(nth) else { return };
                (row.3, row.4) = (row.3 + 1, now);
                let last = row.2.responses.is_some_and(|limit| row.3 >= limit.get());
                let id = row.0;
                assert_eq!(table.answered(id, now), Some(if last { Answer::Last } else { Answer::More }));
                if last {
                    assert_eq!(table.remove(id), Some(model.remove(id)));
                }
            }
            Step::Remove { nth } => {
                let Some(&(id, ..)) = model.rows.get(nth) else { return };
                assert_eq!(table.remove(id), Some(model.remove(id)));
            }
            Step::Wait { .. } => {}
        }
    }

    proptest! {
        #[test]
        fn table_does_what_a_plain_list_does(steps in prop::collection::vec(step(), 1..200)) {
            let (mut table, mut model, mut now) = (Table::new(5), Model { rows: Vec::new() }, start());
            for step in &steps {
                let seconds = if let Step::Wait { seconds } = step { *seconds } else { 0 };
                now += Duration::from_secs(seconds) + Duration::from_millis(1);
                let mut gone: Vec<Key> = std::iter::from_fn(|| table.expire(now)).collect();
                let (over, left) = model.rows.drain(..).partition(|row| row.4 + row.2.idle <= now);
                model.rows = left;
                let mut expected: Vec<Key> = Vec::from_iter(over).iter().map(|row: &(Id, Key, _, _, _)| row.1).collect();
                gone.sort_unstable_by_key(|key| key.client);
                expected.sort_unstable_by_key(|key| key.client);
                prop_assert_eq!(gone, expected);
                play(&mut table, &mut model, step, now);
                prop_assert_eq!(table.len(), model.rows.len());
                prop_assert_eq!(table.next_deadline(), model.rows.iter().map(|row| row.4 + row.2.idle).min());
            }
        }
    }
}
