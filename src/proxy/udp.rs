//! Datagrams: each client has an association with one node, which ends when nothing moves any more.
//!
//! The first datagram is routed as a connection is; further ones go the same way without a look at
//! the configuration. Each association has a connected socket of its own, so the kernel sorts the
//! answers, which go back from the address the client wrote to. Both ways work in batches: what is
//! there is received with one call, and what goes to one socket leaves with one call. A turn is a
//! batch; then others get theirs.
//!
//! - `question`: from clients to nodes; `answer`: back; `association`: how one begins and what it sends
//! - `flight`: which datagrams leave as one message; `batch`: what a turn works with
//! - `nodes`: which associations have heard from their node; `trial`: what is kept until they have

mod answer;
mod association;
mod batch;
mod flight;
mod nodes;
mod question;
mod trial;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant as StdInstant};

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{self, Instant};

use crate::flow::{Id, Table};
use crate::proxy::worker::Worker;
use crate::proxy::workers::{Closing, Door};
use crate::session::End;

use self::association::Association;
use self::batch::Batches;
use self::nodes::Nodes;

/// After an error of a socket itself, which should not be.
const PAUSE: Duration = Duration::from_millis(10);

/// A listening socket of one worker.
#[derive(Debug)]
pub(super) struct Inlet {
    /// Tells its associations from those of other sockets.
    id: u64,
    socket: UdpSocket,
    door: Door,
    nodes: Nodes,
}

impl Inlet {
    /// One to be served by this thread's runtime.
    pub(super) fn new(id: u64, socket: std::net::UdpSocket, door: Door) -> io::Result<Self> {
        Ok(Self { id, socket: UdpSocket::from_std(socket)?, door, nodes: Nodes::new()? })
    }

    /// Reports whether clients may have written to one of several addresses.
    fn is_wildcard(&self) -> bool {
        self.door.addr.ip().is_unspecified()
    }
}

/// The associations of a worker.
#[derive(Debug)]
pub(super) struct Associations {
    table: RefCell<Table<Association>>,
    batches: Batches,
    /// Those whose node has not answered yet, oldest first.
    trials: RefCell<VecDeque<(Instant, Id)>>,
    /// What [`expire`] sleeps until, and how it is told of an earlier deadline.
    armed: Cell<Option<StdInstant>>,
    earlier: Notify,
}

impl Associations {
    /// None yet, and at most `capacity`.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            table: RefCell::new(Table::new(capacity)),
            batches: Batches::default(),
            trials: RefCell::default(),
            armed: Cell::new(None),
            earlier: Notify::new(),
        }
    }

    /// Drops all; their records say that they were drained.
    pub(super) fn clear(&self) {
        let all = self.table.replace(Table::new(1));
        drop(all);
    }

    /// Gives back memory that nobody has used since the call before.
    pub(super) fn sweep(&self) {
        self.batches.sweep();
        let (now, mut trials) = (Instant::now(), self.trials.borrow_mut());
        while let Some((_, id)) = trials.pop_front_if(|(begun, _)| now.duration_since(*begun) >= trial::LASTS)
        {
            if let Some(association) = self.table.borrow_mut().value_mut(id) {
                association.trial = None;
            }
        }
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

/// Serves a listening socket until told to close; its associations end with it.
pub(super) async fn run(worker: Rc<Worker>, inlet: Inlet, closing: Closing) {
    let _alive = worker.alive.enter();
    let closed = tokio::select! {
        biased;
        closed = closing => closed,
        never = question::pass_on(&worker, &inlet) => match never {},
        never = answer::pass_back(&worker, &inlet) => match never {},
    };
    let ended = worker.udp.table.borrow_mut().remove_socket(inlet.id);
    for association in ended {
        association.finish(End::Drained, Some("its listen was closed".into()));
    }
    drop(inlet);
    if let Ok(closed) = closed {
        let _ = closed.send(());
    }
}
