//! Ends sessions whose node is down or has left its upstream, at the pace that was configured.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::balance::{Pool, PoolNode};
use crate::snapshot::Snapshot;

/// How often leashes are pulled.
const TICK: Duration = Duration::from_millis(100);

/// All leashes that may have to be pulled.
#[derive(Debug, Default)]
pub(super) struct Leashes {
    pools: HashMap<Arc<str>, Arc<Pool>>,
    /// Nodes that left their pool while they had sessions, with the pace of it.
    left: Vec<(Arc<str>, PoolNode, u32)>,
    next: Option<Instant>,
    /// Pulls of each pool that were too small to be one session.
    owed: HashMap<Arc<str>, f64>,
}

impl Leashes {
    /// Takes note of the pools of a snapshot. A session whose upstream is gone, or switched this off,
    /// stays.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.pools);
        for pool in snapshot.leashed_pools() {
            let known = before.remove(&pool.id);
            if let Some(known) = known.filter(|known| !Arc::ptr_eq(known, pool)) {
                self.note_left(&known, pool);
            }
            self.pools.insert(pool.id.clone(), pool.clone());
        }
        let pools = &self.pools;
        // Who is back is in use again.
        self.left.retain(|(id, node, _)| {
            let back = pools.get(id).is_some_and(|pool| has(pool, node));
            if back && let Some(leash) = &node.leash {
                leash.slacken();
            }
            !back
        });
        self.owed.retain(|id, _| pools.contains_key(id));
    }

    fn note_left(&mut self, before: &Pool, now: &Pool) {
        let left = before.nodes().iter().filter(|node| node.stats.in_flight() > 0 && !has(now, node));
        self.left.extend(left.map(|node| (now.id.clone(), node.clone(), now.settings.close_on_down)));
    }

    /// Waits for the next moment to end sessions, and ends some.
    pub(super) async fn pull(&mut self) -> Infallible {
        loop {
            if self.pools.is_empty() && self.left.is_empty() {
                std::future::pending::<()>().await;
            }
            let next = *self.next.get_or_insert_with(|| Instant::now() + TICK);
            sleep_until(next).await;
            self.next = None;
            self.pull_once();
        }
    }

    fn pull_once(&mut self) {
        self.left.retain(|(_, node, _)| node.stats.in_flight() > 0);
        let mut due: HashMap<Arc<str>, (u32, Vec<&PoolNode>)> = HashMap::new();
        for pool in self.pools.values() {
            let down: Vec<_> = down(pool);
            if !down.is_empty() {
                due.insert(pool.id.clone(), (pool.settings.close_on_down, down));
            }
        }
        for (id, node, rate) in &self.left {
            due.entry(id.clone()).or_insert_with(|| (*rate, Vec::new())).1.push(node);
        }
        for (id, (rate, nodes)) in due {
            let owed = self.owed.entry(id).or_default();
            *owed += f64::from(rate) * TICK.as_secs_f64();
            for node in nodes {
                let Some(leash) = &node.leash else { continue };
                let sessions = usize::try_from(node.stats.in_flight()).unwrap_or(usize::MAX);
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
fn down(pool: &Pool) -> Vec<&PoolNode> {
    let nodes = pool.nodes();
    let none_left = !nodes.iter().any(PoolNode::is_usable);
    let mut found = Vec::new();
    for node in nodes.iter().filter(|node| node.leash.is_some()) {
        if !none_left && !node.is_usable() {
            found.push(node);
        } else if let Some(leash) = &node.leash {
            leash.slacken();
        }
    }
    found
}

fn has(pool: &Pool, node: &PoolNode) -> bool {
    pool.nodes().iter().any(|other| other.label == node.label)
}
