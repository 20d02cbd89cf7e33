//! Certificate objects on their way into the snapshot.

use std::sync::Arc;

use super::Builder;
use crate::certs::Served;
use crate::resource::{Key, Object};
use crate::store::Store;

impl Builder {
    /// Puts a certificate object in its place, or takes it out; reports whether it is another one now.
    pub(super) fn place_ssl(&mut self, key: &Key, store: &Store) -> bool {
        let now = store.entry(key).and_then(|entry| match &entry.object {
            Object::Ssl(ssl) => Some((entry.order.clone(), ssl.clone())),
            _ => None,
        });
        let before = self.ssls.remove(&key.id);
        let changed = match (&before, &now) {
            (Some((order, ssl)), Some((new_order, new))) => order != new_order || !Arc::ptr_eq(ssl, new),
            (before, now) => before.is_some() || now.is_some(),
        };
        if changed {
            if let Some((order, ssl)) = &before {
                self.snapshot.certificates.remove(order, ssl);
                self.snapshot.shown.remove(&key.id);
            }
            if let Some((_, ssl)) = now.as_ref().filter(|(_, ssl)| ssl.client_type) {
                self.snapshot.shown.insert(key.id.clone(), ssl.clone());
            }
            if let Some((order, ssl)) = &now
                && let Some(served) = Served::new(ssl, &self.crypto)
            {
                self.snapshot.certificates.insert(order.clone(), ssl.clone(), Arc::new(served));
            }
        }
        if let Some(now) = now {
            self.ssls.insert(key.id.clone(), now);
        }
        changed
    }
}
