//! One TCP connection: its route, a node that answers, its bytes, its ending.
//!
//! A refused client gets a plain close, as from nginx: a reset where it had sent bytes that nobody
//! read, else a FIN.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::either::Either;

use crate::balance::{Pool, Tried};
use crate::certs::towards::NodeTls;
use crate::drain::Leash;
use crate::live::Permit;
use crate::live::bandwidth::Bandwidth;
use crate::net::dial::{self, DialError};
use crate::net::tls::Session;
use crate::proxy::greet;
use crate::proxy::opening::{self, Opened};
use crate::proxy::record::{Failed, Record};
use crate::proxy::relay::{self, Direction, Secure, Wire};
use crate::proxy::stage;
use crate::proxy::steer::Seat;
use crate::proxy::worker::{Refusal, nobody_left};
use crate::session::{End, Traffic};
use crate::snapshot::Route;

/// Failed attempts that the log describes; with many nodes the rest says nothing new.
const ATTEMPTS_DESCRIBED: u32 = 4;

/// How soon a session looks again whether the names of its upstream have been resolved: at first,
/// and at most. Thousands may wait for a slow resolver.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// A connection to a node, and the TLS on it.
type Reached = (TcpStream, Option<Box<Session>>);

/// What a session holds of the process's budgets.
pub(super) type Permits = (Permit, Permit, Seat);

/// What most sessions have not: TLS on either side, bytes that were read before there was a route, a
/// node whose sessions may have to end, and bounds of their bandwidth.
#[derive(Debug, Default)]
struct Rest {
    preread: Vec<u8>,
    client: Option<Session>,
    upstream: Option<Session>,
    leash: Option<Arc<Leash>>,
    bandwidth: Option<Bandwidth>,
}

/// A session that has its node: the connection to it, its idle limit, and the rest.
type Begun = (TcpStream, Duration, Option<Box<Rest>>);

/// Serves a connection to its end.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps a second copy of its arguments while it runs")]
pub(super) fn serve(client: TcpStream, mut record: Record, permits: Permits) -> impl Future<Output = ()> {
    async move {
        // Set when it is needed: first for connecting, then for idling.
        let mut timer = pin!(sleep_until(record.started()));
        // Taken apart in one statement: nothing of what `begin` returns is kept beside it.
        let (upstream, idle, rest) = match begin(&client, &mut record, timer.as_mut()).await {
            Ok(begun) => begun,
            Err((end, why)) => {
                record.measure(end, &client, None);
                drop(client);
                return record.finish(end, Some(why));
            }
        };
        record.lives();
        let (worker, limits) = (record.worker.clone(), limits(&record, idle));
        let lender = relay::Lender { pipes: &worker.pipes, node: &worker.shared.node };
        let moved = |moved, at| record.moved(moved, at);
        let ending = relayed((&client, &upstream), rest, (limits, lender), timer, moved).await;
        record.measure(ending.end, &client, Some(&upstream));
        drop((client, upstream));
        record.finish(ending.end, ending.error.map(|error| error.to_string()));
        drop(permits);
    }
}

fn limits(record: &Record, idle: Duration) -> relay::Limits {
    let listen = &record.listen;
    let half_closed = idle.min(listen.half_close_timeout);
    relay::Limits { idle, half_closed, half_close: listen.half_close }
}

/// Passes bytes on. One future for all sessions: what only few need is in a block of its own.
fn relayed<'a>(
    wires: (&'a TcpStream, &'a TcpStream),
    rest: Option<Box<Rest>>,
    (limits, lender): (relay::Limits, relay::Lender<'a>),
    timer: Pin<&'a mut Sleep>,
    moved: impl FnMut(Traffic, Instant) + 'a,
) -> impl Future<Output = relay::Ending> + 'a {
    match rest {
        None => Either::Left(relay::plain(wires, lender, limits, timer, moved)),
        Some(rest) => Either::Right(Box::pin(relay_rest(wires, rest, (limits, lender), timer, moved))),
    }
}

/// How a relay ends, or that the leash of its node is pulled before.
async fn until_pulled(
    leash: Option<Arc<Leash>>,
    relayed: impl Future<Output = relay::Ending>,
) -> relay::Ending {
    let Some(leash) = leash else { return relayed.await };
    tokio::select! {
        biased;
        ending = relayed => ending,
        () = leash.pulled() => relay::Ending { end: End::NodeDown, error: None },
    }
}

/// Passes bytes on where TLS is spoken, bytes were read before, the node has a leash, or there are bounds.
async fn relay_rest(
    (client, upstream): (&TcpStream, &TcpStream),
    mut rest: Box<Rest>,
    (limits, lender): (relay::Limits, relay::Lender<'_>),
    timer: Pin<&mut Sleep>,
    moved: impl FnMut(Traffic, Instant),
) -> relay::Ending {
    let leash = rest.leash.take();
    if rest.client.is_none() && rest.upstream.is_none() {
        let up = Direction::new(client, upstream, lender);
        let down = Direction::new(upstream, client, lender);
        let Some(Bandwidth { up: most_up, down: most_down }) = rest.bandwidth.take() else {
            let up = up.preloaded(&rest.preread);
            drop(rest);
            return until_pulled(leash, relay::relay((up, down), limits, timer, moved)).await;
        };
        let ways = (up.bounded(most_up).preloaded(&rest.preread), down.bounded(most_down));
        drop(rest);
        return until_pulled(leash, Box::pin(relay::relay(ways, limits, timer, moved))).await;
    }
    let [of_client, of_upstream] = [rest.client, rest.upstream].map(|tls| tls.map(RefCell::new));
    let client = Wire { stream: client, tls: of_client.as_ref() };
    let upstream = Wire { stream: upstream, tls: of_upstream.as_ref() };
    let (up, down) = (Secure::new(client, upstream), Secure::new(upstream, client));
    let ending = match rest.bandwidth {
        None => {
            let ways = (up.preloaded(&rest.preread), down);
            until_pulled(leash, relay::relay(ways, limits, timer, moved)).await
        }
        Some(Bandwidth { up: most_up, down: most_down }) => {
            let ways = (up.bounded(most_up).preloaded(&rest.preread), down.bounded(most_down));
            until_pulled(leash, Box::pin(relay::relay(ways, limits, timer, moved))).await
        }
    };
    for wire in [client, upstream] {
        if let Some(tls) = wire.tls.filter(|_| !ending.is_reset()) {
            relay::farewell(&mut tls.borrow_mut(), wire.stream);
        }
    }
    ending
}

/// A connection to a node, or why there is none.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps a second copy of its arguments while it runs")]
fn begin<'a>(
    client: &'a TcpStream,
    record: &'a mut Record,
    mut timer: Pin<&'a mut Sleep>,
) -> impl Future<Output = Result<Begun, Refusal>> + 'a {
    async move {
        let mut rest: Option<Box<Rest>> = None;
        if record.listen.proxy_protocol || record.listen.tls || record.listen.tls_passthrough {
            let Opened { preread, tls } = Box::pin(opening::open(record, client, timer.as_mut())).await?;
            if tls.is_some() || !preread.is_empty() {
                rest = Some(Box::new(Rest { preread, client: tls, ..Rest::default() }));
            }
        }
        let routed = match record.route() {
            Ok(route) if route.plugins.only_report() => record.pool(&route),
            Ok(route) => Box::pin(staged(record, route, client, &mut rest, timer.as_mut())).await,
            Err(refusal) => Err(refusal),
        };
        let refusal = match routed {
            Err(refusal) => refusal,
            Ok(mut pool) => {
                if pool.nodes().is_empty() && pool.settings.pending {
                    pool = Box::pin(resolved(pool, record)).await;
                }
                match reach(&pool, record, timer).await {
                    Err(refusal) => refusal,
                    Ok((upstream, tls)) => {
                        if tls.is_some() {
                            rest.get_or_insert_default().upstream = tls.map(|tls| *tls);
                        }
                        if let Some(leash) = record.leash() {
                            rest.get_or_insert_default().leash = Some(leash);
                        }
                        if let Some(kept) = &mut record.kept
                            && let Some(bandwidth) = kept.bandwidth.take()
                        {
                            rest.get_or_insert_default().bandwidth = Some(bandwidth);
                        }
                        return Ok((upstream, pool.settings.timeouts.idle, rest));
                    }
                }
            }
        };
        if let Some(tls) = rest.as_mut().and_then(|rest| rest.client.as_mut()) {
            relay::farewell(tls, client);
        }
        Err(refusal)
    }
}

/// The pool of a session whose route has plugins that have a say; what they read is kept in `rest`.
async fn staged(
    record: &mut Record,
    route: Arc<Route>,
    client: &TcpStream,
    rest: &mut Option<Box<Rest>>,
    timer: Pin<&mut Sleep>,
) -> Result<Arc<Pool>, Refusal> {
    let mut seen = rest.take().unwrap_or_default();
    let Rest { preread, client: tls, .. } = &mut *seen;
    let speaker = stage::Speaker { stream: client, tls: tls.as_mut(), preread };
    let pool = stage::connection(record, &route, speaker, timer).await;
    *rest = Some(seen).filter(|seen| seen.client.is_some() || !seen.preread.is_empty());
    pool
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
#[expect(clippy::manual_async_fn, reason = "an async fn keeps a second copy of its arguments while it runs")]
fn reach<'a>(
    pool: &'a Pool,
    record: &'a mut Record,
    mut timer: Pin<&'a mut Sleep>,
) -> impl Future<Output = Result<Reached, Refusal>> + 'a {
    async move {
        let (mut tried, mut failures) = (Tried::default(), String::new());
        let began = Instant::now();
        loop {
            let Some((addr, tls)) = next_node(pool, record, &mut tried) else {
                return Err(nobody_left(pool, record.attempts, failures));
            };
            let (started, limit) = (Instant::now(), pool.settings.timeouts.connect);
            let outcome = match dial::connect(addr, limit, timer.as_mut()).await {
                Ok(stream) if tls.is_some() || record.listen.proxy_protocol_to_upstream => {
                    Box::pin(greeted(stream, record, tls, limit, timer.as_mut())).await
                }
                Ok(stream) => Ok((stream, None)),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(reached) => {
                    record.connected(started);
                    record.count_connect(pool);
                    return Ok(reached);
                }
                Err(error) => {
                    // Asked before an attempt begins; one under way is not cut.
                    let late = pool.settings.retry_timeout.filter(|limit| began.elapsed() >= *limit);
                    let last = record.attempts >= pool.settings.attempts;
                    let (failure, why) = (error.failure(), error.to_string());
                    let failed = Failed { failure, after: started.elapsed(), why: &why };
                    record.attempt_failed(pool, failed, !last && late.is_none());
                    if error.is_exhaustion() {
                        return Err((End::Limit, why));
                    }
                    describe(&mut failures, record, &why);
                    if last {
                        return Err((End::ConnectFailed, failures));
                    }
                    if let Some(limit) = late {
                        let _ = write!(failures, "; retry_timeout of {limit:?} passed");
                        return Err((End::RetryDeadline, failures));
                    }
                }
            }
        }
    }
}

/// Chooses the node of the next attempt and notes it: its address, and how TLS is spoken with it.
fn next_node(
    pool: &Pool,
    record: &mut Record,
    tried: &mut Tried,
) -> Option<(SocketAddr, Option<Arc<NodeTls>>)> {
    let picked = pool.pick(&record.inbound, record.started().into_std(), tried)?;
    let (addr, tls) = (picked.node.addr, picked.node.tls.clone());
    record.attempt(picked);
    // What is passed through speaks its own.
    Some((addr, tls.filter(|_| !record.is_passed_through())))
}

/// The same connection once the node has heard what comes before the bytes of the session.
async fn greeted(
    stream: TcpStream,
    record: &mut Record,
    tls: Option<Arc<NodeTls>>,
    limit: Duration,
    timer: Pin<&mut Sleep>,
) -> Result<Reached, DialError> {
    let tls = greet::greet(&stream, record, tls.as_deref(), limit, timer).await?;
    Ok((stream, tls.map(Box::new)))
}

fn describe(failures: &mut String, record: &Record, error: &str) {
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
