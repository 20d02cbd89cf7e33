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
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// What makes datagrams one association.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Key {
    /// The listening socket, by a number of the caller's.
    pub socket: u64,
    /// Who wrote.
    pub client: SocketAddr,
    /// The local address written to.
    pub local: SocketAddr,
}

impl Hash for Key {
    /// In one piece: what the derived one does with each field in turn took half of a look-up.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let bits = |addr: SocketAddr| match addr.ip() {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let ports = u64::from(self.client.port()) << 16 | u64::from(self.local.port());
        let mut bytes = [0; 48];
        bytes[..16].copy_from_slice(&bits(self.client).to_ne_bytes());
        bytes[16..32].copy_from_slice(&bits(self.local).to_ne_bytes());
        bytes[32..40].copy_from_slice(&ports.to_ne_bytes());
        bytes[40..].copy_from_slice(&self.socket.to_ne_bytes());
        state.write(&bytes);
    }
}

/// When an association ends by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// After so long without a datagram either way.
    pub idle: Duration,
    /// After so many answers; absent: no number ends it.
    pub responses: Option<NonZeroU32>,
}

/// Names an association as long as it lives; afterwards it names nothing, even where a later one
/// took its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Id {
    slot: u32,
    /// How many associations the place had before, modulo 2^32.
    generation: u32,
}

impl Id {
    /// As a number, to be given back by the system.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    /// What [`Id::to_bits`] made.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let (slot, generation) = ((bits >> 32) as u32, bits as u32);
        Self { slot, generation }
    }
}

/// What answers mean for their association.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answered {
    /// How many of them are to be passed on: all, but for those beyond the limit.
    pub taken: u32,
    /// The last of these is the last one that was to come.
    pub last: bool,
}

/// The associations of one worker, each with a `T` of the caller's.
#[derive(Debug)]
pub struct Table<T> {
    capacity: usize,
    index: HashMap<Key, u32>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    lists: Vec<List>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    key: Key,
    limits: Limits,
    answers: u32,
    moved: Instant,
    list: usize,
    before: Option<u32>,
    after: Option<u32>,
    value: T,
}

/// Entries with the same limit, longest idle first.
#[derive(Clone, Copy, Debug)]
struct List {
    idle: Duration,
    answered: bool,
    first: Option<u32>,
    last: Option<u32>,
}

impl<T> Table<T> {
    /// An empty table for at most `capacity` associations, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.clamp(1, u32::MAX as usize),
            index: HashMap::new(),
            slots: Vec::new(),
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

    /// The association that datagrams of a client belong to, if there is one.
    /// Call [`Table::expire`] first: what is over is still found here.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<Id> {
        let slot = *self.index.get(key)?;
        Some(Id { slot, generation: self.slots.get(slot as usize)?.generation })
    }

    /// Datagrams of its client: an association that still lives has moved `now`.
    pub fn touch(&mut self, id: Id, now: Instant) -> Option<&mut T> {
        self.entry_mut(id)?;
        self.moved(id.slot, now);
        self.value_mut(id)
    }

    /// A new association. One of the same key must not be there; make room before
    /// ([`Table::evict`]) where the table is full.
    pub fn insert(&mut self, key: Key, limits: Limits, value: T, now: Instant) -> Id {
        debug_assert!(!self.index.contains_key(&key), "a second association of {key:?}");
        let list = self.list(limits.idle, false);
        let entry = Entry { key, limits, answers: 0, moved: now, list, before: None, after: None, value };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, entry: None });
            // The capacity is clamped to what fits.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.slots[slot as usize];
        place.entry = Some(entry);
        let id = Id { slot, generation: place.generation };
        self.index.insert(key, slot);
        self.append(slot, list);
        id
    }

    /// The value of an association that still lives.
    pub fn value_mut(&mut self, id: Id) -> Option<&mut T> {
        Some(&mut self.entry_mut(id)?.value)
    }

    /// Answers of the upstream, `count` of them. `None` where the association is gone.
    pub fn answered(&mut self, id: Id, count: u32, now: Instant) -> Option<Answered> {
        let entry = self.entry_mut(id)?;
        let left = entry.limits.responses.map_or(u32::MAX, |limit| limit.get() - entry.answers);
        let taken = count.min(left);
        let last = entry.limits.responses.is_some() && taken == left;
        entry.answers = entry.answers.saturating_add(taken);
        self.moved(id.slot, now);
        Some(Answered { taken, last })
    }

    /// Who wrote first, and to which address.
    #[must_use]
    pub fn key(&self, id: Id) -> Option<&Key> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        Some(&slot.entry.as_ref()?.key)
    }

    /// Ends an association.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.entry_mut(id)?;
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
        let slots: Vec<u32> =
            self.index.iter().filter(|(key, _)| key.socket == socket).map(|(_, slot)| *slot).collect();
        slots.into_iter().filter_map(|slot| self.take(slot)).collect()
    }

    fn entry_mut(&mut self, id: Id) -> Option<&mut Entry<T>> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.entry.as_mut()
    }

    fn at(&self, slot: u32) -> Option<&Entry<T>> {
        self.slots.get(slot as usize)?.entry.as_ref()
    }

    fn at_mut(&mut self, slot: u32) -> Option<&mut Entry<T>> {
        self.slots.get_mut(slot as usize)?.entry.as_mut()
    }

    fn moved_at(&self, slot: u32) -> Option<Instant> {
        self.at(slot).map(|entry| entry.moved)
    }

    fn first_deadline(&self) -> Option<(Instant, u32)> {
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
    fn moved(&mut self, slot: u32, now: Instant) {
        let Some(entry) = self.at_mut(slot) else { return };
        // One batch is worked off with one reading of the clock: it may lie before the last answer.
        entry.moved = entry.moved.max(now);
        let (idle, answered) = (entry.limits.idle, entry.answers > 0);
        self.unlink(slot);
        let list = self.list(idle, answered);
        self.append(slot, list);
    }

    fn append(&mut self, slot: u32, list: usize) {
        let before = self.lists[list].last.replace(slot);
        match before.and_then(|before| self.at_mut(before)) {
            Some(entry) => entry.after = Some(slot),
            None => self.lists[list].first = Some(slot),
        }
        if let Some(entry) = self.at_mut(slot) {
            (entry.list, entry.before, entry.after) = (list, before, None);
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(&Entry { list, before, after, .. }) = self.at(slot) else { return };
        match before.and_then(|before| self.at_mut(before)) {
            Some(entry) => entry.after = after,
            None => self.lists[list].first = after,
        }
        match after.and_then(|after| self.at_mut(after)) {
            Some(entry) => entry.before = before,
            None => self.lists[list].last = before,
        }
    }

    fn take(&mut self, slot: u32) -> Option<T> {
        self.unlink(slot);
        let place = self.slots.get_mut(slot as usize)?;
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.index.remove(&entry.key);
        self.free.push(slot);
        Some(entry.value)
    }
}

#[cfg(test)]
mod tests;
