//! Names to addresses, in the background.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use streamgate::config::Dns;
use streamgate::resolve;
use streamgate::store::{Batch, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn names(of: &[&str]) -> Arc<[Arc<str>]> {
    of.iter().map(|name| Arc::from(*name)).collect()
}

#[track_caller]
fn check_answer(batch: &Batch) {
    let [Event::Addresses { name, addresses, .. }] = &*batch.events else { panic!("{batch:?}") };
    assert_eq!((&**name, addresses[0].is_loopback()), ("localhost", true));
}

#[tokio::test]
async fn a_name_that_went_and_came_back_unseen_is_answered_again() {
    let (wanted, receiver) = watch::channel(names(&["localhost"]));
    let (out, mut answers) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let dns = Dns { servers: vec![], valid: None, timeout: PATIENCE, search: false, ipv6: true };
    tokio::spawn(resolve::run(dns, receiver, out, stop));
    check_answer(&timeout(PATIENCE, answers.recv()).await.unwrap().unwrap());

    // No await in between: the resolver sees the second list alone.
    wanted.send_replace(names(&[]));
    wanted.send_replace(names(&["localhost"]));
    check_answer(&timeout(PATIENCE, answers.recv()).await.unwrap().unwrap());
}
