//! From clients to nodes: a batch is received, sorted by association, and sent on.

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant as StdInstant;

use streamgate_sys::datagram::Local;
use streamgate_sys::receive::Received;
use tokio::io::Interest;
use tokio::task;
use tokio::time::{self, Instant};

use crate::flow::{Id, Key, Table};
use crate::proxy::udp::association::{self, Association, Stranger};
use crate::proxy::udp::batch::Batch;
use crate::proxy::udp::flight::Part;
use crate::proxy::udp::{Inlet, PAUSE};
use crate::proxy::worker::Worker;
use crate::session::End;

/// Passes on what clients send, for ever.
pub(super) async fn pass_on(worker: &Rc<Worker>, inlet: &Inlet) -> Infallible {
    loop {
        // Cheaper than the waiting list of `readable`, which is for several tasks.
        if future::poll_fn(|cx| inlet.socket.poll_recv_ready(cx)).await.is_err() {
            // The runtime is ending.
            future::pending::<()>().await;
        }
        match turn(worker, inlet) {
            // There is more: others get their turn first.
            Ok(()) => task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if worker.may_complain() {
                    tracing::error!(addr = %inlet.door.addr, %error, "receiving datagrams pauses");
                }
                time::sleep(PAUSE).await;
            }
        }
    }
}

/// Passes one batch on; `WouldBlock` where the socket has no more.
fn turn(worker: &Rc<Worker>, inlet: &Inlet) -> io::Result<()> {
    let mut batch = worker.udp.batches.take()?;
    let received = inlet.socket.try_io(Interest::READABLE, || {
        batch.received.receive(inlet.socket.as_fd(), true)?;
        if batch.received.room() > 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    distribute(worker, inlet, &mut batch);
    worker.udp.batches.put(batch);
    received
}

/// Sends each message to the node of its client. Clients that have an association come first: a
/// flood of new ones costs time, and shall not make them wait for all of it.
fn distribute(worker: &Rc<Worker>, inlet: &Inlet, batch: &mut Batch) {
    let now = Instant::now().into_std();
    worker.udp.end_expired(now);
    find(worker, inlet, batch);
    for first in 0..batch.ids.len() {
        let Some(id) = batch.ids[first] else { continue };
        batch.parts.clear();
        for place in first..batch.ids.len() {
            if batch.ids[place] == Some(id) {
                batch.ids[place] = None;
                batch.parts.push(Part::from(&batch.received.received()[place]));
            }
        }
        let mut table = worker.udp.table.borrow_mut();
        if let Some(association) = table.touch(id, now)
            && association.send(id, batch, &worker.shared.node)
        {
            association.fail_over(id, &inlet.nodes);
        }
    }
    admit(worker, inlet, batch, now);
}

/// Notes the association of each message.
fn find(worker: &Worker, inlet: &Inlet, batch: &mut Batch) {
    batch.ids.clear();
    batch.strangers.clear();
    let mut table = worker.udp.table.borrow_mut();
    let mut before = None;
    for (place, message) in batch.received.received().iter().enumerate() {
        let key = key_of(inlet, message).filter(|_| !message.truncated);
        let id = match before {
            Some((same, id)) if key == Some(same) => id,
            _ => key.and_then(|key| table.find(&key)).filter(|id| stays(&mut table, *id)),
        };
        before = key.map(|key| (key, id));
        batch.ids.push(id);
        match key {
            Some(_) if id.is_none() => batch.strangers.push(place),
            Some(_) => {}
            // Longer than any datagram may be.
            None => worker.shared.node.udp_dropped.add_one(),
        }
    }
}

/// Ends an association whose node went down or left its upstream, where it has to; the client gets a new one.
fn stays(table: &mut Table<Association>, id: Id) -> bool {
    let pulled = table.value_mut(id).is_some_and(|association| association.record.is_pulled());
    if pulled && let Some(ended) = table.remove(id) {
        ended.finish(End::NodeDown, None);
    }
    !pulled
}

/// Begins associations for the messages that have none.
fn admit(worker: &Rc<Worker>, inlet: &Inlet, batch: &mut Batch, now: StdInstant) {
    while let Some(&first) = batch.strangers.first() {
        let message = batch.received.received()[first];
        let same = |other: &Received| other.peer == message.peer && other.local == message.local;
        let (received, parts) = (&batch.received, &mut batch.parts);
        parts.clear();
        batch.strangers.retain(|place| {
            let other = &received.received()[*place];
            let taken = same(other);
            if taken {
                parts.push(Part::from(other));
            }
            !taken
        });
        if let Some(key) = key_of(inlet, &message) {
            let from = message.local.filter(|_| inlet.is_wildcard());
            association::begin(worker, inlet, &Stranger { key, from, now }, batch);
        }
    }
}

/// Who wrote, and to which address.
fn key_of(inlet: &Inlet, message: &Received) -> Option<Key> {
    let bound = inlet.door.addr;
    let local = match message.local.filter(|_| inlet.is_wildcard()) {
        Some(Local { ip, .. }) => SocketAddr::new(ip, bound.port()),
        // A socket bound to one address answers from there anyway.
        None => bound,
    };
    Some(Key { socket: inlet.id, client: message.peer?, local })
}
