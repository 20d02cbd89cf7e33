//! Ends sessions whose node is down or has left its upstream, at the pace that was configured.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::balance::{Pool, PoolNode};
use crate::drain::Leash;
use crate::live::{Live, Stats};
use crate::snapshot::Snapshot;

/// How often leashes are pulled.
const TICK: Duration = Duration::from_millis(100);

/// All leashes that may have to be pulled.
#[derive(Debug)]
pub(super) struct Leashes {
    live: Arc<Live>,
    pools: HashMap<Arc<str>, Arc<Pool>>,
    /// Nodes that have sessions and are no longer in their pool.
    left: Vec<Left>,
    next: Option<Instant>,
    /// Pulls of each pool that were too small to be one session.
    owed: HashMap<Arc<str>, f64>,
}

/// A node that has left its pool.
#[derive(Debug)]
struct Left {
    pool: Arc<str>,
    label: Arc<str>,
    leash: Arc<Leash>,
    stats: Arc<Stats>,
}

impl Leashes {
    pub(super) fn new(live: Arc<Live>) -> Self {
        Self { live, pools: HashMap::new(), left: Vec::new(), next: None, owed: HashMap::new() }
    }

    /// Takes note of the pools of a snapshot. A session whose upstream is gone, or switched this off,
    /// stays. Who has left is asked of the sessions there are: a version of a pool that served for a moment
    /// may never have been seen here.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        self.pools = snapshot.leashed_pools().map(|pool| (pool.id.clone(), pool.clone())).collect();
        let pools = &self.pools;
        let is_in = |id: &Arc<str>, label: &str| pools.get(id).is_some_and(|pool| has(pool, label));
        // Who is back is in use again.
        for back in self.left.drain(..).filter(|left| is_in(&left.pool, &left.label)) {
            back.leash.slacken();
        }
        self.owed.retain(|id, _| pools.contains_key(id));
        if pools.is_empty() {
            return;
        }
        let gone = |(id, label): &(Arc<str>, Arc<str>)| pools.contains_key(id) && !is_in(id, label);
        for key in self.live.leashes.held_keys(gone) {
            if let Some((leash, stats)) = self.live.leashes.get(&key).zip(self.live.nodes.get(&key)) {
                let (pool, label) = key;
                self.left.push(Left { pool, label, leash, stats });
            }
        }
    }

    /// Waits for the next moment to end sessions, and ends some.
    pub(super) async fn pull(&mut self) -> Infallible {
        loop {
            if self.pools.is_empty() {
                std::future::pending::<()>().await;
            }
            let next = *self.next.get_or_insert_with(|| Instant::now() + TICK);
            sleep_until(next).await;
            self.next = None;
            self.pull_once();
        }
    }

    fn pull_once(&mut self) {
        self.left.retain(|left| left.stats.in_flight() > 0);
        let mut due: HashMap<Arc<str>, Vec<(&Leash, &Stats)>> = HashMap::new();
        for pool in self.pools.values() {
            let down: Vec<_> = down(pool).collect();
            if !down.is_empty() {
                due.insert(pool.id.clone(), down);
            }
        }
        for left in &self.left {
            due.entry(left.pool.clone()).or_default().push((&left.leash, &left.stats));
        }
        for (id, nodes) in due {
            let Some(pool) = self.pools.get(&id) else { continue };
            let owed = self.owed.entry(id).or_default();
            *owed += f64::from(pool.settings.close_on_down) * TICK.as_secs_f64();
            for (leash, stats) in nodes {
                let sessions = usize::try_from(stats.in_flight()).unwrap_or(usize::MAX);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is above 0 and small"
                )]
                let now = (*owed as usize).min(sessions);
                if now > 0 {
                    leash.pull(now);
                    #[expect(clippy::cast_precision_loss, reason = "small")]
                    let pulled = now as f64;
                    *owed -= pulled;
                }
            }
            *owed = owed.fract();
        }
    }
}

/// Nodes of a pool whose sessions have to end. Where all are down, sessions are sent to all of them, and
/// whoever is there stays. A leash of a node that is used has no pull left.
fn down(pool: &Pool) -> impl Iterator<Item = (&Leash, &Stats)> {
    let nodes = pool.nodes();
    let none_left = !nodes.iter().any(PoolNode::is_usable);
    nodes.iter().filter_map(move |node| {
        let leash = node.leash.as_deref()?;
        if !none_left && !node.is_usable() {
            return Some((leash, &*node.stats));
        }
        leash.slacken();
        None
    })
}

fn has(pool: &Pool, label: &str) -> bool {
    pool.nodes().iter().any(|node| *node.label == *label)
}
