//! `/status`, `/status/ready` as APISIX answers them (`apisix/init.lua:1123`), and
//! `/streamgate/status`: everything an operator asks first, as JSON.

use serde_json::{Value, json};

use crate::admin::healthcheck;
use crate::live::listen_stats::ListenStats;
use crate::live::node_state::{HeldRead, NodeState, Problem};
use crate::snapshot::Snapshot;
use crate::store::Rejected;

/// APISIX's answer to a question answered with yes.
pub(crate) fn ok() -> Value {
    json!({"status": "ok"})
}

/// APISIX's answer to one answered with no.
pub(crate) fn error(why: &str) -> Value {
    json!({"status": "error", "error": why})
}

/// Why the node is not ready; `None` where it is. A ready node stays ready while its source is gone.
pub(crate) fn not_ready(state: &NodeState) -> Option<String> {
    if state.ready() {
        return None;
    }
    let source = state.source;
    Some(match state.problem() {
        Some(problem) => format!("no configuration has been received from {source} yet: {}", problem.text),
        None => format!("no configuration has been received from {source} yet"),
    })
}

/// The page of `/streamgate/status`.
pub(crate) fn page(
    state: &NodeState,
    snapshot: &Snapshot,
    listens: &[std::sync::Arc<ListenStats>],
    now_unix_ms: u64,
) -> Value {
    let age = |then: u64| seconds(now_unix_ms.saturating_sub(then));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": age(state.started_unix_ms),
        "ready": state.ready(),
        "revision": snapshot.revision,
        "source": {
            "kind": state.source,
            "reachable": state.reachable(),
            "revision": state.source_revision(),
            "last_contact_age_seconds": age(state.contact_unix_ms()),
            "last_event_age_seconds": age(state.event_unix_ms()),
            "problem": state.problem().map(|problem| self::problem(&problem, now_unix_ms)),
        },
        "discovery": {
            "failing": state.discovery.list().iter()
                .map(|(service, problem)| failing(service, problem, now_unix_ms))
                .collect::<Vec<_>>(),
        },
        "held_full_read": state.held().map(|held| self::held(&held, now_unix_ms)),
        "routes": snapshot.route_count(),
        "rejected": snapshot.rejected().iter().map(|one| rejected(one, now_unix_ms)).collect::<Vec<_>>(),
        "degraded": snapshot.degraded().iter()
            .map(|degraded| json!({"route": &*degraded.route, "why": &*degraded.why}))
            .collect::<Vec<_>>(),
        "upstreams_down": healthcheck::upstreams_down(snapshot),
        "listens": listens.iter().map(|listen| self::listen(listen)).collect::<Vec<_>>(),
    })
}

fn rejected(rejected: &Rejected, now: u64) -> Value {
    json!({
        "object": rejected.key.to_string(),
        "revision": rejected.revision,
        "reason": &*rejected.reason,
        "age_seconds": seconds(now.saturating_sub(rejected.since_unix_ms)),
        "previous_serves": rejected.previous_serves,
    })
}

fn problem(problem: &Problem, now: u64) -> Value {
    json!({"text": &*problem.text, "age_seconds": seconds(now.saturating_sub(problem.since_unix_ms))})
}

fn failing(service: &str, problem: &Problem, now: u64) -> Value {
    let age = seconds(now.saturating_sub(problem.since_unix_ms));
    json!({"service": service, "text": &*problem.text, "age_seconds": age})
}

fn held(held: &HeldRead, now: u64) -> Value {
    json!({
        "revision": held.revision,
        "routes": held.routes,
        "removed": held.removed,
        "age_seconds": seconds(now.saturating_sub(held.since_unix_ms)),
        "taken_in_seconds": seconds(held.until_unix_ms.saturating_sub(now)),
    })
}

fn listen(listen: &ListenStats) -> Value {
    json!({
        "addr": &*listen.addr,
        "written": &*listen.written,
        "transport": listen.transport.label(),
        "active": listen.active(),
    })
}

/// Whole seconds are enough for a person.
fn seconds(ms: u64) -> u64 {
    ms / 1000
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::live::source_status::SourceStatus;
    use crate::resource::{Key, Kind};

    fn state(started_unix_ms: u64) -> (NodeState, std::time::Instant) {
        let start = tokio::time::Instant::now().into_std();
        (NodeState::new("etcd", started_unix_ms, Arc::new(SourceStatus::new(start))), start)
    }

    #[test]
    fn readiness_survives_the_loss_of_the_source() {
        let (state, start) = state(0);
        assert_eq!(not_ready(&state).unwrap(), "no configuration has been received from etcd yet");
        state.status.fail(start, false, "10.0.0.5:2379 refused the connection".into());
        assert!(not_ready(&state).unwrap().ends_with("yet: 10.0.0.5:2379 refused the connection"));
        state.set_ready();
        assert_eq!(not_ready(&state), None);
    }

    #[test]
    fn a_rejected_object_tells_why_and_since_when() {
        let one = Rejected {
            key: Key::new(Kind::StreamRoute, "r1"),
            revision: 8,
            reason: "/server_port is \"x\"".into(),
            rule: None,
            since_unix_ms: 10_000,
            previous_serves: true,
        };
        let expected = json!({
            "object": "stream_routes/r1",
            "revision": 8,
            "reason": "/server_port is \"x\"",
            "age_seconds": 5,
            "previous_serves": true,
        });
        assert_eq!(rejected(&one, 15_999), expected);
    }

    #[test]
    fn the_page_shows_source_and_held_read() {
        let (state, start) = state(1_000);
        state.status.contact(start + Duration::from_secs(2));
        state.status.fail(start + Duration::from_secs(4), false, "timed out".into());
        let read =
            HeldRead { revision: 40, routes: 20, removed: 18, since_unix_ms: 4_000, until_unix_ms: 604_000 };
        state.set_held(Some(read));
        let problem = Problem { text: "10.0.0.9:8500: connection refused".into(), since_unix_ms: 9_000 };
        state.discovery.set(state.discovery.follower(), Some(("x by consul".into(), problem)));
        let page = page(&state, &Snapshot::default(), &[], 11_000);
        assert_eq!(page["uptime_seconds"], 10);
        assert_eq!(page["source"]["last_contact_age_seconds"], 8);
        assert_eq!(page["source"]["problem"], json!({"text": "timed out", "age_seconds": 6}));
        assert_eq!(
            page["discovery"]["failing"],
            json!([{"service": "x by consul", "text": "10.0.0.9:8500: connection refused", "age_seconds": 2}])
        );
        assert_eq!(
            page["held_full_read"],
            json!({"revision": 40, "routes": 20, "removed": 18, "age_seconds": 7, "taken_in_seconds": 593})
        );
    }
}
