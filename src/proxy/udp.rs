//! Datagrams: each client has an association with one node, which ends when nothing moves any more.
//!
//! The first datagram is routed as a connection is; further ones go the same way without a look at
//! the configuration. Each association has a connected socket of its own, so the kernel sorts the
//! answers, and a task that passes them back from the address the client wrote to. Nothing waits
//! but those tasks: what cannot be sent to a node at once is dropped, as a full router would.

mod association;

use std::cell::{Cell, RefCell};
use std::future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant as StdInstant};

use streamgate_sys::datagram::{self, Local, Received};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task;
use tokio::time::{self, Instant};

use crate::flow::Key;
use crate::flow::Table;
use crate::proxy::worker::Worker;
use crate::proxy::workers::{Closing, Door};
use crate::session::End;

use self::association::Association;

/// No datagram is longer (RFC 768: the length field has 16 bits).
const LONGEST: usize = 65_535;
/// Datagrams taken from a socket before others get their turn.
const BATCH: u32 = 64;
/// After an error of the listening socket itself, which should not be.
const PAUSE: Duration = Duration::from_millis(10);

/// A listening socket of one worker.
#[derive(Debug)]
pub(super) struct Inlet {
    /// Tells its associations from those of other sockets.
    pub(super) id: u64,
    pub(super) socket: Rc<UdpSocket>,
    pub(super) door: Door,
}

/// The associations of a worker.
#[derive(Debug)]
pub(super) struct Associations {
    table: RefCell<Table<Association>>,
    /// Where datagrams are read into; they are sent on before anything else is read.
    scratch: RefCell<Box<[u8]>>,
    /// What [`expire`] sleeps until, and how it is told of an earlier deadline.
    armed: Cell<Option<StdInstant>>,
    earlier: Notify,
}

impl Associations {
    /// None yet, and at most `capacity`.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            table: RefCell::new(Table::new(capacity)),
            scratch: RefCell::new(vec![0; LONGEST].into_boxed_slice()),
            armed: Cell::new(None),
            earlier: Notify::new(),
        }
    }

    /// Drops all; their records say that they were drained.
    pub(super) fn clear(&self) {
        let all = self.table.replace(Table::new(1));
        drop(all);
    }

    /// Ends those that have been idle for too long.
    fn end_expired(&self, now: StdInstant) {
        loop {
            let Some(over) = self.table.borrow_mut().expire(now) else { return };
            over.finish(End::IdleTimeout, None);
        }
    }

    /// Wakes the timer where the next deadline has come nearer.
    fn rearm(&self) {
        let next = self.table.borrow().next_deadline();
        if next.is_some_and(|next| self.armed.get().is_none_or(|armed| next < armed)) {
            self.earlier.notify_one();
        }
    }
}

/// Ends associations at their deadlines. Datagrams only put a deadline off, so they need not tell.
pub(super) async fn expire(worker: Rc<Worker>) {
    loop {
        let deadline = worker.udp.table.borrow().next_deadline();
        worker.udp.armed.set(deadline);
        tokio::select! {
            () = worker.udp.earlier.notified() => {}
            () = until(deadline) => {}
        }
        worker.udp.end_expired(Instant::now().into_std());
    }
}

async fn until(deadline: Option<StdInstant>) {
    match deadline {
        Some(deadline) => time::sleep_until(Instant::from_std(deadline)).await,
        None => future::pending().await,
    }
}

/// Receives until told to close; the associations of the socket end with it.
pub(super) async fn run(worker: Rc<Worker>, inlet: Inlet, mut closing: Closing) {
    let _alive = worker.alive.enter();
    let inlet = Rc::new(inlet);
    let closed = loop {
        tokio::select! {
            biased;
            closed = &mut closing => break closed,
            _ = inlet.socket.readable() => {}
        }
        match receive(&worker, &inlet) {
            Ok(()) => task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if worker.may_complain() {
                    tracing::error!(addr = %inlet.door.addr, %error, "receiving datagrams pauses");
                }
                time::sleep(PAUSE).await;
            }
        }
    };
    let ended = worker.udp.table.borrow_mut().remove_socket(inlet.id);
    for association in ended {
        association.finish(End::Drained, Some("its listen was closed".into()));
    }
    // Their tasks were told to end and hold the socket until they get their turn to.
    while Rc::strong_count(&inlet) > 1 {
        task::yield_now().await;
    }
    drop(inlet);
    if let Ok(closed) = closed {
        let _ = closed.send(());
    }
}

/// Takes a batch; an error where there was less, most often that nothing more is there.
fn receive(worker: &Rc<Worker>, inlet: &Rc<Inlet>) -> io::Result<()> {
    let now = Instant::now().into_std();
    worker.udp.end_expired(now);
    let mut scratch = worker.udp.scratch.borrow_mut();
    for _ in 0..BATCH {
        let socket = &inlet.socket;
        let received =
            socket.try_io(Interest::READABLE, || datagram::recv_msg(socket.as_fd(), &mut scratch))?;
        let bytes = scratch.get(..received.len).unwrap_or_default();
        pass_on(worker, inlet, &received, bytes, now);
    }
    Ok(())
}

/// Sends a client's datagram to its node; the first one finds the node.
fn pass_on(worker: &Rc<Worker>, inlet: &Rc<Inlet>, received: &Received, bytes: &[u8], now: StdInstant) {
    let (server, from) = local_of(inlet, received);
    let key = Key { socket: inlet.id, client: received.peer, local: server };
    if let Some(association) = worker.udp.table.borrow_mut().touch(&key, now) {
        association.send(bytes, &worker.shared.node);
        return;
    }
    association::begin(worker, inlet, key, from, bytes);
}

/// The address the client wrote to, and what makes answers come from there.
fn local_of(inlet: &Inlet, received: &Received) -> (SocketAddr, Option<Local>) {
    let bound = inlet.door.addr;
    match received.local.filter(|_| bound.ip().is_unspecified()) {
        Some(local) => (SocketAddr::new(local.ip, bound.port()), Some(local)),
        // A socket bound to one address answers from there anyway.
        None => (bound, None),
    }
}
