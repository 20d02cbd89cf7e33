//! Connections in: fairly, without spinning when the system has nothing left to give.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::error::SendError;
use tokio::task;
use tokio::time;

use crate::proxy::record::Record;
use crate::proxy::tcp;
use crate::proxy::worker::Worker;
use crate::proxy::workers::{Closing, Command, Door};
use crate::session::{End, Inbound, Transport};

/// Connections taken in one go before the sessions there are get their turn.
const BATCH: u32 = 32;
/// The first and the longest pause after an error that the next call would meet again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Accepts until told to close, then empties the queue: whoever has a connection keeps it.
pub(super) async fn run(worker: Rc<Worker>, listener: TcpListener, door: Door, mut closing: Closing) {
    let _alive = worker.alive.enter();
    let (mut pause, mut batch) = (PAUSES.0, 0);
    let closed = loop {
        let next = poll_fn(|cx| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(Ok(accepted)),
            Poll::Pending => Pin::new(&mut closing).poll(cx).map(Err),
        });
        let accepted = match next.await {
            Ok(accepted) => accepted,
            Err(closed) => break closed,
        };
        match accepted {
            Ok((stream, client)) => {
                pause = PAUSES.0;
                match worker.place.loads.better(worker.place.number) {
                    None => admit(&worker, stream, client, &door),
                    Some(other) => pass_on(&worker, stream, client, &door, other),
                }
            }
            Err(error) if concerns_one_connection(&error) => worker.shared.node.accept_aborted.add_one(),
            Err(error) => {
                worker.shared.node.accept_paused.add_one();
                if worker.may_complain() {
                    let addr = door.addr;
                    tracing::error!(%addr, %error, pause_ms = pause.as_millis(), "accepting pauses");
                }
                tokio::select! {
                    closed = &mut closing => break closed,
                    () = time::sleep(pause) => pause = (pause * 2).min(PAUSES.1),
                }
            }
        }
        batch += 1;
        if batch == BATCH {
            batch = 0;
            task::yield_now().await;
            // A flood may never leave it waiting.
            if let Poll::Ready(closed) = poll_fn(|cx| Poll::Ready(Pin::new(&mut closing).poll(cx))).await {
                break closed;
            }
        }
    };
    match listener.into_std() {
        Ok(listener) => empty(&worker, &listener, &door),
        Err(error) => tracing::error!(addr = %door.addr, %error, "connections that waited were closed"),
    }
    if let Ok(closed) = closed {
        let _ = closed.send(());
    }
}

/// Takes what waits in the queue of a listener about to close; the kernel would reset it.
fn empty(worker: &Rc<Worker>, listener: &StdListener, door: &Door) {
    loop {
        match listener.accept() {
            Ok((stream, client)) => take(worker, stream, client, door),
            Err(error) if concerns_one_connection(&error) => worker.shared.node.accept_aborted.add_one(),
            Err(_) => return,
        }
    }
}

/// Hands a connection to the worker of that number, or serves it here where that one has ended.
fn pass_on(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, door: &Door, other: usize) {
    let Ok(stream) = stream.into_std() else {
        return worker.shared.node.accept_aborted.add_one();
    };
    let serve = Command::Serve { stream, client, door: door.clone() };
    match worker.place.commands.get(other).map(|commands| commands.send(serve)) {
        Some(Err(SendError(Command::Serve { stream, client, door }))) => take(worker, stream, client, &door),
        _ => worker.shared.node.steered.add_one(),
    }
}

/// Begins a session of a connection that this runtime does not know yet.
pub(super) fn take(worker: &Rc<Worker>, stream: StdStream, client: SocketAddr, door: &Door) {
    match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
        Ok(stream) => admit(worker, stream, client, door),
        Err(_) => worker.shared.node.accept_aborted.add_one(),
    }
}

/// Begins a session, or closes at once where there are too many.
fn admit(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, door: &Door) {
    let shared = &worker.shared;
    // A listen on one address needs no system call to know where the client arrived.
    let server = if door.addr.ip().is_unspecified() { stream.local_addr() } else { Ok(door.addr) };
    let inbound = |server| Inbound::new(Transport::Tcp, client, server);
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            let record = Record::new(worker, inbound(door.addr), door);
            return record.finish(End::Internal, Some(format!("its local address is unknown: {error}")));
        }
    };
    let record = Record::new(worker, inbound(server), door);
    let Some(session) = shared.sessions.take(1) else {
        let limit = shared.sessions.limit();
        let why = format!(
            "there are {limit} sessions, as many as allowed (streamgate.max_sessions, or LimitNOFILE)"
        );
        return record.finish(End::Limit, Some(why));
    };
    let Some(descriptors) = shared.descriptors.take(2) else {
        let limit = shared.descriptors.limit();
        let why = format!("sessions hold all {limit} descriptors they may have; raise LimitNOFILE");
        return record.finish(End::Limit, Some(why));
    };
    let seat = worker.place.loads.enter(worker.place.number);
    task::spawn_local(tcp::serve(stream, record, (session, descriptors, seat)));
}

/// Reports whether an error of `accept` is about the connection it would have returned: accept(2)
/// passes errors of the network on, and ECONNABORTED means that the client has gone.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::NOPROTOOPT
                | Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::PROTO
                | Errno::TIMEDOUT
        )
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::config::Listen;
    use crate::live::listen_stats::ListenStats;
    use crate::live::{Budget, NodeCounters};
    use crate::proxy::Logs;
    use crate::proxy::Shared;
    use crate::proxy::steer::Loads;
    use crate::proxy::worker::Place;

    fn worker() -> Rc<Worker> {
        placed(Place { number: 0, loads: Loads::new(1), commands: Rc::from([]) })
    }

    fn placed(place: Place) -> Rc<Worker> {
        let shared = Shared {
            published: Arc::new(ArcSwap::default()),
            node: Arc::new(NodeCounters::default()),
            totals: Arc::default(),
            outcomes: mpsc::channel(1).0,
            reports: mpsc::channel(1).0,
            host: Arc::default(),
            every_outcome: false,
            sessions: Budget::new(1000),
            descriptors: Budget::new(1000),
            pipes: Budget::new(10),
            udp_associations: 1,
            fallback_sni: None,
            real_ip_from: Arc::default(),
            logs: Logs::default(),
        };
        Rc::new(Worker::new(shared, place, 1))
    }

    fn door(addr: SocketAddr) -> Door {
        let listen = Listen::plain("test", addr, Transport::Tcp);
        let stats = Arc::new(ListenStats::new("test".into(), "test".into(), Transport::Tcp));
        Door { addr, settings: Arc::new(ArcSwap::from_pointee(listen)), stats }
    }

    fn runtime() -> LocalRuntime {
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap()
    }

    #[test]
    fn a_busy_worker_passes_a_connection_on_and_serves_it_when_nobody_can() {
        let (loads, (sender, mut commands)) = (Loads::new(2), mpsc::unbounded_channel());
        let _busy: Vec<_> = (0..100).map(|_| loads.enter(0)).collect();
        let worker =
            placed(Place { number: 0, loads, commands: Rc::from([mpsc::unbounded_channel().0, sender]) });
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let (_close, closing) = oneshot::channel();
            task::spawn_local(run(worker.clone(), listener, door(addr), closing));
            let first = StdStream::connect(addr).unwrap();
            let passed = time::timeout(Duration::from_secs(10), commands.recv()).await.unwrap().unwrap();
            let Command::Serve { stream, client, door } = passed else { panic!("{passed:?}") };
            assert_eq!((client, door.addr), (first.local_addr().unwrap(), addr));
            assert_eq!(stream.peer_addr().unwrap(), client);
            assert_eq!(worker.shared.node.steered.count(), 1);
            drop(commands);
            let _second = StdStream::connect(addr).unwrap();
            let refused = async {
                while worker.shared.totals.unrouted.ended_count(End::NoRoute) == 0 {
                    task::yield_now().await;
                }
            };
            time::timeout(Duration::from_secs(10), refused).await.expect("nobody served it");
        });
    }

    #[test]
    fn who_waits_in_the_queue_is_served_before_the_listener_closes() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..50).map(|_| StdStream::connect(addr).unwrap()).collect();
        let worker = worker();
        runtime().block_on(async {
            let (close, closing) = oneshot::channel();
            let (closed, done) = oneshot::channel();
            close.send(closed).unwrap();
            run(worker.clone(), TcpListener::from_std(listener).unwrap(), door(addr), closing).await;
            done.await.unwrap();
            time::timeout(Duration::from_secs(10), worker.alive.none()).await.unwrap();
        });
        assert_eq!(worker.shared.totals.unrouted.ended_count(End::NoRoute), 50);
        assert!(StdStream::connect(addr).is_err(), "the listener is still open");
    }

    #[tokio::test]
    async fn a_session_is_small() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stream, worker) = (TcpStream::connect(addr).await.unwrap(), worker());
        let record = Record::new(&worker, Inbound::new(Transport::Tcp, addr, addr), &door(addr));
        let permits = (
            worker.shared.sessions.take(1).unwrap(),
            worker.shared.descriptors.take(2).unwrap(),
            worker.place.loads.enter(0),
        );
        // Most sessions idle most of the time: what one keeps then is this, beside its two sockets. The
        // runtime adds 104 bytes and rounds to a multiple of 128.
        let size = size_of_val(&tcp::serve(stream, record, permits));
        assert!(size <= 920, "{size} bytes");
    }

    #[test]
    fn only_lasting_errors_pause() {
        assert!(concerns_one_connection(&Errno::CONNABORTED.into()));
        assert!(concerns_one_connection(&Errno::PERM.into()));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL, Errno::BADF] {
            assert!(!concerns_one_connection(&errno.into()), "{errno}");
        }
    }
}
