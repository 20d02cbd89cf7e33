//! A task for each of the things that are wanted.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Keeps one task running for each thing in the list, as `begin` makes them, until `stop` or until the
/// list's sender is gone. One in another allocation than before is a new one: nobody knows any more what
/// was found out about the former.
pub async fn each<T, F>(
    mut wanted: watch::Receiver<Arc<[Arc<T>]>>,
    stop: CancellationToken,
    begin: impl Fn(&Arc<T>) -> F,
) where
    T: ?Sized + Eq + Hash,
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Arc<T>, AbortHandle> = HashMap::new();
    loop {
        let present = wanted.borrow_and_update().clone();
        let known: HashMap<&T, &Arc<T>> = present.iter().map(|one| (&**one, one)).collect();
        running.retain(|one, task| {
            let keep = known.get(&**one).is_some_and(|now| Arc::ptr_eq(now, one));
            if !keep {
                task.abort();
            }
            keep
        });
        for one in present.iter() {
            if !running.contains_key(one) {
                running.insert(one.clone(), tasks.spawn(begin(one)));
            }
        }
        // A task that was ended keeps its memory until it is joined.
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}
