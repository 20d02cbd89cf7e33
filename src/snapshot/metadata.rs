//! What is said of a plugin for all its configurations: `plugin_metadata`.

use std::sync::Arc;

use serde_json::Value;

use crate::persistent::Map;
use crate::resource::{Key, Kind, Object};
use crate::store::Store;

/// Brings one in line with the store. Of a refused version nothing changes.
pub(super) fn keep(kept: &mut Map<Arc<str>, Arc<Value>>, key: &Key, store: &Store) {
    if key.kind != Kind::PluginMetadata {
        return;
    }
    match store.entry(key).map(|entry| &entry.object) {
        // Readers tell by the allocation whether there is something new.
        Some(Object::PluginMetadata(value)) if kept.get(&key.id) != Some(value) => {
            kept.insert(key.id.clone(), value.clone());
        }
        Some(_) => {}
        None => kept.remove(&key.id),
    }
}
