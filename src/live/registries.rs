//! Which services of registries cannot be asked for now, and why.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::node_state::Problem;

/// The services whose registry fails.
#[derive(Debug, Default)]
pub struct Failing(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    given: u64,
    failing: BTreeMap<u64, (Box<str>, Problem)>,
}

impl Failing {
    /// A number for whoever follows a service: one that comes back is followed by another before the
    /// former is gone.
    pub fn follower(&self) -> u64 {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.given += 1;
        entries.given
    }

    /// What keeps the service of this follower from being known now. Gives how many services fail.
    pub fn set(&self, follower: u64, failing: Option<(Box<str>, Problem)>) -> usize {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failing {
            Some(failing) => entries.failing.insert(follower, failing),
            None => entries.failing.remove(&follower),
        };
        entries.failing.len()
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<(Box<str>, Problem)> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = entries.failing.values().cloned().collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_takes_nothing_of_who_comes() {
        let failing = Failing::default();
        let problem = Problem { text: "refused".into(), since_unix_ms: 5 };
        let (old, new) = (failing.follower(), failing.follower());
        failing.set(old, Some(("b".into(), problem.clone())));
        assert_eq!(failing.set(new, Some(("a".into(), problem.clone()))), 2);
        let names = || failing.list().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(), ["a".into(), "b".into()]);
        assert_eq!(failing.set(old, None), 1);
        assert_eq!(names(), ["a".into()]);
    }
}
