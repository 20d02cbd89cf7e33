//! One TCP connection: its route, a node that answers, its bytes, its ending.
//!
//! A refused client gets a plain close, as from nginx: a reset where it had sent bytes that nobody
//! read, else a FIN.

use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::balance::{Pool, Tried};
use crate::live::Permit;
use crate::net::dial::{self, DialError};
use crate::proxy::record::Record;
use crate::proxy::relay;
use crate::proxy::steer::Seat;
use crate::proxy::worker::Refusal;
use crate::session::End;

/// Failed attempts that the log describes; with many nodes the rest says nothing new.
const ATTEMPTS_DESCRIBED: u32 = 4;

/// How soon a session looks again whether the names of its upstream have been resolved: at first,
/// and at most. Thousands may wait for a slow resolver.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// What a session holds of the process's budgets.
pub(super) type Permits = (Permit, Permit, Seat);

/// Serves a connection to its end.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps a second copy of its arguments while it runs")]
pub(super) fn serve(client: TcpStream, mut record: Record, permits: Permits) -> impl Future<Output = ()> {
    async move {
        // Set when it is needed: first for connecting, then for idling.
        let mut timer = pin!(sleep_until(record.started()));
        let (end, detail) = match begin(&mut record, timer.as_mut()).await {
            Ok((upstream, idle)) => {
                let limits = relay::Limits {
                    idle,
                    half_closed: idle.min(record.listen.half_close_timeout),
                    half_close: record.listen.half_close,
                };
                let worker = record.worker.clone();
                let lender = relay::Lender { pipes: &worker.pipes, node: &worker.shared.node };
                let moved = |moved| record.moved(moved);
                let ending = relay::relay((&client, &upstream), limits, timer, lender, moved).await;
                (ending.end, ending.error.map(|error| error.to_string()))
            }
            Err((end, why)) => (end, Some(why)),
        };
        drop(client);
        record.finish(end, detail);
        drop(permits);
    }
}

/// A connection to a node and its idle limit, or why there is none.
async fn begin(record: &mut Record, timer: Pin<&mut Sleep>) -> Result<(TcpStream, Duration), Refusal> {
    let mut pool = record.route()?;
    if pool.nodes().is_empty() && pool.settings.pending {
        pool = Box::pin(resolved(pool, record)).await;
    }
    let upstream = reach(&pool, record, timer).await?;
    Ok((upstream, pool.settings.timeouts.idle))
}

/// The pool once a name of its nodes has its first answer, or what it is when the time to connect
/// is over. Only the first sessions of a new upstream come here.
async fn resolved(mut pool: Arc<Pool>, record: &Record) -> Arc<Pool> {
    let deadline = Instant::now() + pool.settings.timeouts.connect;
    let [mut pause, longest] = LOOK_AGAIN;
    while pool.nodes().is_empty() && pool.settings.pending && Instant::now() < deadline {
        sleep(pause).await;
        pause = (pause * 2).min(longest);
        if let Some(now) = record.pool_now() {
            pool = now;
        }
    }
    pool
}

/// Tries nodes until one answers (`apisix/balancer.lua:436-488`).
async fn reach(pool: &Pool, record: &mut Record, mut timer: Pin<&mut Sleep>) -> Result<TcpStream, Refusal> {
    let settings = &pool.settings;
    let (mut tried, mut failures) = (Tried::default(), String::new());
    let began = Instant::now();
    loop {
        let Some(picked) = pool.pick(&record.inbound, |_| true, &mut tried) else {
            return Err(nobody_left(pool, record.attempts, failures));
        };
        let addr = picked.node.addr;
        record.attempt(picked);
        let started = Instant::now();
        match dial::connect(addr, settings.timeouts.connect, timer.as_mut()).await {
            Ok(stream) => {
                record.connected(started.elapsed());
                record.count_connect();
                return Ok(stream);
            }
            Err(error) => {
                record.attempt_failed();
                if error.is_exhaustion() {
                    return Err((End::Limit, error.to_string()));
                }
                describe(&mut failures, record, &error);
            }
        }
        if record.attempts >= settings.attempts {
            return Err((End::ConnectFailed, failures));
        }
        // Asked before an attempt begins; one under way is not cut.
        if let Some(limit) = settings.retry_timeout.filter(|limit| began.elapsed() >= *limit) {
            let _ = write!(failures, "; retry_timeout of {limit:?} passed");
            return Err((End::RetryDeadline, failures));
        }
    }
}

fn nobody_left(pool: &Pool, attempts: u32, mut failures: String) -> Refusal {
    if attempts == 0 {
        return (End::NoNode, format!("upstream {} has no node that can be dialled", pool.id));
    }
    failures.push_str("; every node was tried");
    (End::ConnectFailed, failures)
}

fn describe(failures: &mut String, record: &Record, error: &DialError) {
    let attempt = record.attempts;
    if attempt > ATTEMPTS_DESCRIBED {
        return;
    }
    let separator = if failures.is_empty() { "" } else { "; " };
    let _ = write!(failures, "{separator}{}: {error}", record.tried());
    if attempt == ATTEMPTS_DESCRIBED {
        failures.push_str("; and so on");
    }
}
