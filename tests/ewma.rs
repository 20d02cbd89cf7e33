//! ewma by the connect times of real sessions (in APISIX it fails every session of a stream).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/patient.rs"]
mod patient;

use std::io::Read;
use std::sync::Arc;

use configured::Configured;
use gateway::{connect, poll_until};
use patient::{Manner, Patient};
use serde_json::json;
use streamgate::balance::Pool;
use tokio::time::Instant;

/// The averages of the nodes, in seconds.
fn averages(pool: &Arc<Pool>) -> Vec<f32> {
    let now = Instant::now().into_std();
    pool.nodes().iter().map(|node| node.stats.ewma.value(now)).collect()
}

#[test]
fn a_node_that_refuses_is_a_slow_one() {
    let (well, lost) = (Patient::new(Manner::Says(b"!".to_vec())), Patient::refusing());
    let both = objects::nodes(&[well.addr, lost.addr]);
    let mut gateway = Configured::to(&json!({"type": "ewma", "nodes": both}));
    let at = gateway.tcp();
    let session = || connect(at).read_exact(&mut [0]).unwrap();
    // Either may be the first, until each has been measured.
    poll_until("an average of both", || {
        session();
        averages(&gateway.objects.pool()).iter().all(|average| *average > 0.0).then_some(())
    });
    let [quick, slow] = averages(&gateway.objects.pool())[..] else { panic!() };
    assert!(quick < 0.1 && slow > 0.5, "a refusal comes quickly, and is not quick: {quick} and {slow}");
    let before = well.count();
    (0..40).for_each(|_| session());
    poll_until("the sessions", || (well.count() >= before + 40).then_some(()));
    // Drawn in pairs: it is met when it is drawn twice, which is a quarter of the draws.
    let refused =
        gateway.objects.pool().nodes()[1].stats.ended_count(streamgate::session::End::ConnectFailed);
    assert!(refused < 30, "{refused} of 40 and some met the slow one first");
    // Edits keep what is known, and other balancers measure nothing.
    gateway.put_upstream(&json!({"type": "ewma", "nodes": both, "retries": 1}));
    assert!(averages(&gateway.objects.pool())[1] > 0.3);
    gateway.put_upstream(&json!({"nodes": objects::nodes(&[well.addr]), "type": "roundrobin"}));
    session();
    gateway.put_upstream(&json!({"nodes": objects::nodes(&[lost.addr, well.addr]), "type": "least_conn"}));
    session();
}
