//! Taking events in.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Changes, Entry, Event, Held, Refused, Rejected, Store};
use crate::matcher::Order;
use crate::resource::{Discovery, Key, Kind, Node, Object, Parsed, Remark};

impl Store {
    /// Takes a batch in. `now_unix_ms` dates refusals and holds.
    pub fn apply(&mut self, batch: Batch, now_unix_ms: u64) -> Changes {
        let mut turn = Turn { now: now_unix_ms, changes: Changes::default() };
        for event in batch.events {
            match event {
                Event::Put { key, value, revision } => self.put(key, value, revision, &mut turn),
                Event::Delete { key, revision } => self.delete(key, revision, &mut turn),
                Event::Resync { objects, revision } => {
                    self.resync(objects, revision, &mut turn);
                }
                Event::Nodes { service, nodes } => self.discovered(service, nodes, &mut turn),
                Event::Addresses { name, addresses, .. } => self.resolved(name, addresses, &mut turn),
            }
        }
        // Address events carry no revision, and one older than what is here changes nothing.
        self.revision = self.revision.max(batch.revision);
        turn.changes
    }

    fn put(&mut self, key: Key, value: Bytes, revision: i64, turn: &mut Turn) {
        if self.loaded && revision <= self.revision {
            return;
        }
        if let Some(held) = &mut self.held {
            held.put(key.clone(), value.clone(), revision);
        }
        let order = etcd_order(&key);
        self.accept(Candidate { key, raw: value, revision, order }, turn);
    }

    fn delete(&mut self, key: Key, revision: i64, turn: &mut Turn) {
        if self.loaded && revision <= self.revision {
            return;
        }
        if let Some(held) = &mut self.held {
            held.delete(&key);
        }
        self.remove(key, turn);
    }

    /// A full read. One that would take away most routes is held back: it is more often a restored
    /// or wrong etcd than a wish.
    fn resync(&mut self, objects: Vec<(Key, Bytes, i64)>, revision: i64, turn: &mut Turn) {
        // A restored etcd counts lower: the read decides, not the larger number.
        self.revision = revision;
        // Whoever edits a file means it; only etcd changes behind one's back.
        if self.loaded && !self.config.standalone {
            let since = self.held.as_ref().map_or(turn.now, |held| held.state().since_unix_ms);
            let mut held = Held::new(objects, revision, since);
            if held.is_drastic(self.objects.keys()) {
                self.held = Some(held);
                return;
            }
            self.held = None;
            self.replace(held.into_objects(), turn);
        } else {
            self.replace(objects, turn);
        }
        self.loaded = true;
    }

    /// Lets a held full read take effect, because an operator said so or its time is over.
    pub fn accept_held(&mut self, now_unix_ms: u64) -> Changes {
        let mut turn = Turn { now: now_unix_ms, changes: Changes::default() };
        if let Some(held) = self.held.take() {
            self.replace(held.into_objects(), &mut turn);
        }
        turn.changes
    }

    fn replace(&mut self, objects: Vec<(Key, Bytes, i64)>, turn: &mut Turn) {
        // The list of enabled plugins decides how routes parse, so it goes first.
        let (lists, objects): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|(key, ..)| key.kind == Kind::Plugins);
        let mut gone: HashSet<Key> = self.objects.keys().chain(self.rejected.keys()).cloned().collect();
        for (position, (key, value, revision)) in lists.into_iter().chain(objects).enumerate() {
            gone.remove(&key);
            let order = if self.given_order { file_order(position, &key) } else { etcd_order(&key) };
            let new = Candidate { key, raw: value, revision, order };
            if !self.knows(&new) {
                self.accept(new, turn);
            }
        }
        let mut gone: Vec<Key> = gone.into_iter().collect();
        gone.sort();
        for key in gone {
            self.remove(key, turn);
        }
    }

    /// Reports whether this is the version that was taken in or refused last. The revision alone does
    /// not say: etcd restored, or filled again by the same script, has other values at the same ones.
    fn knows(&self, new: &Candidate) -> bool {
        if let Some(old) = self.rejected.get(&new.key) {
            return old.rejected.revision == new.revision && old.order == new.order && old.raw == new.raw;
        }
        self.objects.get(&new.key).is_some_and(|old| {
            old.revision == new.revision && old.order == new.order && old.digest == digest(&new.raw)
        })
    }

    /// Parses a new version and commits it, or keeps the previous one.
    fn accept(&mut self, new: Candidate, turn: &mut Turn) {
        match self.rules.parse(&new.key, &new.raw) {
            Ok(Parsed { object, warnings, unusable: None }) => self.commit(new, object, warnings, turn),
            Ok(Parsed { unusable: Some(why), .. }) => self.refuse(new, why, turn),
            Err(why) => self.refuse(new, Remark { rule: why.rule, text: why.to_string() }, turn),
        }
    }

    fn commit(&mut self, new: Candidate, object: Object, warnings: Vec<Remark>, turn: &mut Turn) {
        let Candidate { key, raw, revision, order } = new;
        let digest = digest(&raw);
        let bytes = (is_shown(&object) || has_plugins(&object)).then(|| Arc::from(&*raw));
        // Of nothing, one for all: a conversion would allocate for each object.
        let warnings = if warnings.is_empty() { Arc::default() } else { warnings.into() };
        let entry = Entry { revision, order, object, warnings, bytes, digest };
        self.rejected.remove(&key);
        let new = self.objects.insert(key.clone(), entry).is_none();
        *self.counts.entry(key.kind).or_default() += usize::from(new);
        let list = key.kind == Kind::Plugins;
        turn.changes.keys.push(key);
        if list {
            self.plugins_changed(turn);
        }
    }

    fn refuse(&mut self, new: Candidate, why: Remark, turn: &mut Turn) {
        let Candidate { key, raw, revision, order } = new;
        let since_unix_ms = self.rejected.get(&key).map_or(turn.now, |old| old.rejected.since_unix_ms);
        let previous_serves = self.objects.contains_key(&key);
        let Remark { rule, text } = why;
        let reason = text.into();
        let rejected = Rejected { key: key.clone(), revision, reason, rule, since_unix_ms, previous_serves };
        turn.changes.refused.push(rejected.clone());
        turn.changes.keys.push(key.clone());
        self.rejected.insert(key, Refused { rejected, raw, order });
    }

    fn remove(&mut self, key: Key, turn: &mut Turn) {
        let was_refused = self.rejected.remove(&key).is_some();
        let was_there = self.objects.remove(&key).is_some();
        if let Some(count) = self.counts.get_mut(&key.kind).filter(|_| was_there) {
            *count -= 1;
        }
        if was_refused || was_there {
            let list = key.kind == Kind::Plugins;
            turn.changes.keys.push(key);
            if list {
                self.plugins_changed(turn);
            }
        }
    }

    fn resolved(&mut self, name: Arc<str>, addresses: Arc<[IpAddr]>, turn: &mut Turn) {
        if self.addresses.get(&name) != Some(&addresses) {
            self.addresses.insert(name.clone(), addresses);
            turn.changes.names.push(name);
        }
    }

    fn discovered(&mut self, service: Arc<Discovery>, nodes: Arc<[Node]>, turn: &mut Turn) {
        if self.services.get(&service) != Some(&nodes) {
            self.services.insert(service.clone(), nodes);
            turn.changes.services.push(service);
        }
    }

    /// Another list of enabled stream plugins: everything that names plugins is parsed anew.
    fn plugins_changed(&mut self, turn: &mut Turn) {
        if !self.config.plugins_key_counts {
            return;
        }
        let list = self.objects.get(&Key::new(Kind::Plugins, "")).map(|entry| &entry.object);
        let names = match list {
            Some(Object::Plugins(names)) => names,
            _ => &*self.config.stream_plugins,
        };
        self.rules = self.rules.with_stream_plugins(names);
        let carrying = self.objects.iter().filter(|(_, entry)| has_plugins(&entry.object));
        let accepted = carrying.filter_map(|(key, entry)| {
            let raw = Bytes::copy_from_slice(entry.bytes.as_ref()?);
            Some((key.clone(), raw, entry.revision, entry.order.clone()))
        });
        let refused =
            self.rejected.iter().filter(|(key, _)| key.kind != Kind::Plugins).map(|(key, refused)| {
                (key.clone(), refused.raw.clone(), refused.rejected.revision, refused.order.clone())
            });
        let again: Vec<_> = accepted.chain(refused).collect();
        for (key, raw, revision, order) in again {
            self.accept(Candidate { key, raw, revision, order }, turn);
        }
    }

    /// Forgets the addresses of a name that nobody asks for.
    pub fn forget_name(&mut self, name: &str) {
        self.addresses.remove(name);
    }

    /// Forgets the instances of a service that nobody asks for.
    pub fn forget_service(&mut self, service: &Discovery) {
        self.services.remove(service);
    }

    /// Forgets the instances of services that nobody asks for any more.
    pub fn retain_services(&mut self, wanted: impl Fn(&Discovery) -> bool) {
        self.services.retain(|service, _| wanted(service));
    }

    /// Forgets the addresses of names that nobody asks for any more.
    pub fn retain_names(&mut self, wanted: impl Fn(&str) -> bool) {
        self.addresses.retain(|name, _| wanted(name));
    }
}

/// One application of events: when it is, and what it has changed so far.
struct Turn {
    now: u64,
    changes: Changes,
}

/// A version that asks to be accepted.
struct Candidate {
    key: Key,
    raw: Bytes,
    revision: i64,
    order: Order,
}

/// The same for the same bytes while the process lives.
fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Reports whether the control API shows it as it was written. As in APISIX stream_routes are not among
/// them: of 100,000 the bytes would be a tenth of the memory.
pub(super) fn is_shown(object: &Object) -> bool {
    matches!(object, Object::Upstream(_) | Object::Service(_) | Object::PluginMetadata(_))
}

fn has_plugins(object: &Object) -> bool {
    match object {
        Object::StreamRoute(route) => !route.plugins.is_empty(),
        Object::Service(service) => !service.plugins.is_empty(),
        _ => false,
    }
}

/// Objects of etcd are in the order of their keys' bytes, as after APISIX's initial load.
fn etcd_order(key: &Key) -> Order {
    Order(key.id.as_bytes().into())
}

/// Objects of a file are in its order. Eight bytes sort as the number does.
fn file_order(position: usize, key: &Key) -> Order {
    Order([&(position as u64).to_be_bytes()[..], key.id.as_bytes()].concat().into())
}
