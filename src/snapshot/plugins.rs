//! The plugins of a route: its own, and those that its service lends it.

use std::sync::Arc;

use super::merge::Merged;
use crate::live::Live;
use crate::plugin::{Armed, Attached, Plugins};
use crate::resource::{Key, Kind, Service};

/// The plugins of a service, made once for each version of it: a thousand routes share one list of ten
/// thousand addresses.
#[derive(Debug, Default)]
pub(super) struct Kit {
    made: Vec<(Arc<Armed>, Vec<String>)>,
    /// All of them, for the routes that have none of their own.
    together: Plugins,
}

impl Kit {
    /// Makes them.
    pub(super) fn new(service: &Service, live: &Live) -> Self {
        let arm = |conf| {
            let owner = Key::new(Kind::Service, service.id.clone());
            let mut degraded = Vec::new();
            let armed = Armed::new(&Attached { owner, conf }, live, &mut degraded)?;
            Some((Arc::new(armed), degraded))
        };
        let made: Vec<_> = service.plugins.iter().filter_map(arm).collect();
        let together = Plugins::new(made.iter().map(|(armed, _)| armed.clone()).collect());
        Self { made, together }
    }
}

/// The plugins of a route; `kit` has those of its service. Sentences about what is asked for and not given
/// go to `degraded`.
pub(super) fn of(merged: &Merged<'_>, kit: Option<&Kit>, live: &Live, degraded: &mut Vec<String>) -> Plugins {
    let of_service = |one: &&Attached<'_>| one.owner.kind == Kind::Service;
    let lent = merged.plugins.iter().filter(of_service);
    let lent = lent.filter_map(|one| kit?.made.iter().find(|(armed, _)| *armed.class.name == *one.conf.name));
    let mut all = Vec::new();
    for one in merged.plugins.iter().filter(|one| !of_service(one)) {
        all.extend(Armed::new(one, live, degraded).map(Arc::new));
    }
    let own = all.len();
    for (armed, sentences) in lent {
        degraded.extend_from_slice(sentences);
        all.push(armed.clone());
    }
    match kit {
        Some(kit) if own == 0 && all.len() == kit.made.len() => kit.together.clone(),
        _ => Plugins::new(all),
    }
}
