//! What a pick would give, without picking.
//!
//! An operator who asks which node a session would get must not move the turns of those that come.

use std::time::Instant;

use super::{Pool, PoolNode, Wanted};
use crate::session::Inbound;

impl Pool {
    /// The node that [`Self::pick`] would give a session that has tried none. The balancer stays as it
    /// is: the next pick by roundrobin gives this node, unless another session comes between.
    #[must_use]
    pub fn preview(&self, inbound: &Inbound, now: Instant) -> Option<&PoolNode> {
        let nodes = match &*self.nodes {
            [alone] => return Some(alone),
            nodes => nodes,
        };
        let wanted = Wanted { hash: self.key.as_ref().map_or(0, |key| key.hash(inbound)), now };
        // Without a usable one all are used, as by a pick.
        let filtered = self.checked.is_some() && nodes.iter().any(PoolNode::is_usable);
        let candidate = |node: &PoolNode| !filtered || node.is_usable();
        self.groups.iter().find_map(|group| group.set(nodes, candidate).preview(nodes, candidate, wanted))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{chash, inbound, nodes, now, settings};
    use super::*;
    use crate::balance::{Checked, Tried};
    use crate::config::Extensions;
    use crate::health::{Cause, Cell, Finding, Limits, Report};
    use crate::live::CheckedStats;
    use crate::resource::{ActiveCheck, Balancer, CheckKind, Checks, HttpCheck};

    fn checks() -> Checks {
        let request = HttpCheck {
            method: "GET".into(),
            path: "/".into(),
            body: "".into(),
            headers: vec![],
            verify: true,
        };
        let active = ActiveCheck {
            kind: CheckKind::Tcp,
            timeout: std::time::Duration::from_secs(1),
            concurrency: 1,
            port: None,
            host: None,
            host_header: None,
            request,
            healthy_interval: None,
            unhealthy_interval: None,
            healthy_statuses: [].into(),
            unhealthy_statuses: [].into(),
            limits: Limits::ACTIVE,
        };
        Checks { active, passive: None }
    }

    /// A pool of these weights and priorities with checks, of which the nodes in `down` are down.
    fn pool(balancer: &Balancer, weights: &[(u32, i64)], down: &str) -> Pool {
        let stats = Arc::new(CheckedStats::default());
        let mut nodes = nodes(weights);
        for node in &mut nodes {
            let cell = Arc::new(Cell::new(stats.down.clone()));
            let reports = if down.contains(&*node.label) { 2 } else { 0 };
            for _ in 0..reports {
                let cause = || Cause { by: Finding::Active, why: "".into(), since_unix_ms: 0 };
                cell.report(Report::TcpFailure, &Limits::ACTIVE, cause);
            }
            node.health = Some(cell);
        }
        let checked = Checked {
            checks: Arc::new(checks()),
            extensions: Extensions::default(),
            targets: [].into(),
            stats,
        };
        Pool::new("u".into(), balancer, settings(), nodes, 5).with_checks(checked)
    }

    /// What is foreseen is what is picked, again and again, and foreseeing twice changes nothing.
    #[track_caller]
    fn check(balancer: &Balancer, weights: &[(u32, i64)], down: &str) {
        let pool = pool(balancer, weights, down);
        let (mut held, now) = (Vec::new(), now());
        for _ in 0..12 {
            let [first, again] = [0; 2].map(|_| pool.preview(&inbound(), now).map(|node| node.label.clone()));
            let sent = pool.checked().unwrap().stats.all_down.count();
            let picked = pool.pick(&inbound(), now, &mut Tried::default());
            let got = picked.as_ref().map(|picked| picked.node.label.clone());
            assert_eq!((&first, &again), (&got, &got), "{balancer:?} {weights:?} without {down}");
            assert_eq!(pool.preview(&inbound(), now).is_some(), got.is_some());
            let counted = pool.checked().unwrap().stats.all_down.count() - sent;
            assert!(counted <= 1, "only the pick counts");
            held.extend(picked);
        }
        let in_flight: u64 = pool.nodes().iter().map(|node| node.stats.in_flight()).sum();
        assert_eq!(in_flight, held.len() as u64);
    }

    #[test]
    fn it_is_what_the_next_session_gets() {
        for balancer in [Balancer::RoundRobin, chash(), Balancer::LeastConn, Balancer::Ewma] {
            check(&balancer, &[], "");
            check(&balancer, &[(1, 0)], "A");
            check(&balancer, &[(3, 0), (1, 0), (2, 0)], "");
            check(&balancer, &[(3, 0), (1, 0), (2, 0)], "A");
            check(&balancer, &[(3, 0), (1, 0), (2, 0)], "ABC");
            check(&balancer, &[(1, 5), (1, 0), (0, 5)], "A");
        }
    }
}
