//! From nodes to clients: answers of many associations are received into one batch, and leave with
//! as few calls.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant as StdInstant;

use tokio::io::Interest;
use tokio::task;
use tokio::time::{self, Instant};

use crate::flow::Id;
use crate::proxy::udp::association::{self, is_refusal};
use crate::proxy::udp::batch::Batch;
use crate::proxy::udp::flight::{self, Part, Segments, Way};
use crate::proxy::udp::{Inlet, PAUSE};
use crate::proxy::worker::Worker;
use crate::session::End;

/// Passes back what nodes answer, for ever.
pub(super) async fn pass_back(worker: &Worker, inlet: &Inlet) -> Infallible {
    // Associations that have something, in the order they are asked.
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() && inlet.nodes.ready().await.is_err() {
            // The runtime is ending.
            future::pending::<()>().await;
        }
        if let Err(error) = turn(worker, inlet, &mut waiting).await {
            if worker.may_complain() {
                tracing::error!(addr = %inlet.door.addr, %error, "receiving answers pauses");
            }
            time::sleep(PAUSE).await;
        }
        if !waiting.is_empty() {
            task::yield_now().await;
        }
    }
}

/// Passes one batch back.
async fn turn(worker: &Worker, inlet: &Inlet, waiting: &mut VecDeque<Id>) -> io::Result<()> {
    inlet.nodes.take(|id| {
        if let Some(association) = worker.udp.table.borrow_mut().value_mut(id)
            && !association.waits
        {
            association.waits = true;
            waiting.push_back(id);
        }
    })?;
    let mut batch = worker.udp.batches.take()?;
    batch.flight.clear();
    batch.ids.clear();
    let now = Instant::now().into_std();
    while batch.received.room() > 0
        && let Some(id) = waiting.pop_front()
    {
        if receive((worker, inlet), &mut batch, id, now) == Left::Perhaps {
            waiting.push_back(id);
        }
    }
    send(worker, inlet, &mut batch).await;
    for id in batch.ids.drain(..).flatten() {
        association::end(worker, id, End::UpstreamClosed, None);
    }
    worker.udp.batches.put(batch);
    Ok(())
}

/// Whether an association has to be asked again.
#[derive(PartialEq)]
enum Left {
    Perhaps,
    Nothing,
}

/// Takes the answers of one association, as far as there is room.
fn receive((worker, inlet): (&Worker, &Inlet), batch: &mut Batch, id: Id, now: StdInstant) -> Left {
    let mut table = worker.udp.table.borrow_mut();
    let Some(association) = table.value_mut(id) else { return Left::Nothing };
    let first = batch.received.received().len();
    match batch.received.receive(association.upstream.as_fd(), false) {
        Ok(_) => {
            association.waits = batch.received.room() == 0;
            association.trial = None;
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            association.waits = false;
            return Left::Nothing;
        }
        Err(error) if is_refusal(&error) => {
            worker.shared.node.udp_refused.add_one();
            // Where there is no other node it may be back for the next datagram: the association stays, as in
            // nginx.
            association.fail_over(id, &inlet.nodes);
            return Left::Perhaps;
        }
        Err(error) => {
            drop(table);
            let why = format!("receiving from the node: {error}");
            association::end(worker, id, End::Internal, Some(why));
            return Left::Nothing;
        }
    }
    let left = if association.waits { Left::Perhaps } else { Left::Nothing };
    let (from, segments) = (association.from, association.to_client);
    let count = take_parts(worker, batch, first);
    if let Some(bandwidth) = association.bandwidth() {
        worker.shared.node.udp_over_rate.add(flight::admit(&bandwidth.down, &mut batch.parts, now));
    }
    let Some(answered) = table.answered(id, count, now) else { return Left::Nothing };
    let Some(client) = table.key(id).map(|key| key.client) else { return Left::Nothing };
    limit(&mut batch.parts, answered.taken as usize);
    let way = Way { peer: Some(client), from, ipv6: client.is_ipv6(), segments, owner: id };
    batch.flight.add(&way, &batch.parts);
    if answered.last {
        batch.ids.push(Some(id));
    }
    left
}

/// Makes the messages from `first` on the parts to deal with: how many datagrams they are.
fn take_parts(worker: &Worker, batch: &mut Batch, first: usize) -> u32 {
    batch.parts.clear();
    let mut count = 0;
    for message in &batch.received.received()[first..] {
        if message.truncated {
            // Longer than any datagram may be.
            worker.shared.node.udp_undeliverable.add_one();
            continue;
        }
        let part = Part::from(message);
        count += part.datagrams();
        batch.parts.push(part);
    }
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Drops what is beyond so many datagrams.
fn limit(parts: &mut Vec<Part>, mut taken: usize) {
    parts.retain_mut(|part| {
        if taken == 0 {
            return false;
        }
        (*part, _) = part.split(taken);
        taken -= part.datagrams();
        true
    });
}

/// Sends the flight to the clients, waiting where the socket takes no more for now.
async fn send(worker: &Worker, inlet: &Inlet, batch: &mut Batch) {
    let (socket, mut first) = (&inlet.socket, 0);
    while !batch.flight.messages(first).is_empty() {
        let mut sent = batch.send(socket.as_fd(), first);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            sent = socket.async_io(Interest::WRITABLE, || batch.send(socket.as_fd(), first)).await;
        }
        first += match sent {
            Ok(count) => credit(worker, batch, first, count),
            Err(error) => fail(worker, batch, first, &error),
        };
    }
}

/// Counts messages that were sent; how many those are.
fn credit(worker: &Worker, batch: &Batch, first: usize, count: usize) -> usize {
    let mut table = worker.udp.table.borrow_mut();
    let messages = batch.flight.messages(first);
    for sent in messages[..count].chunk_by(|one, next| one.owner == next.owner) {
        let bytes: usize = sent.iter().map(|message| message.bytes).sum();
        if let Some(association) = table.value_mut(sent[0].owner) {
            association.record.sent(bytes as u64);
        }
    }
    count
}

/// Deals with the refusal of a message; how many are over with it.
fn fail(worker: &Worker, batch: &mut Batch, place: usize, error: &io::Error) -> usize {
    let Some(message) = batch.flight.messages(place).first() else { return 0 };
    if message.datagrams > 1 && Segments::are_refused(error) {
        if let Some(association) = worker.udp.table.borrow_mut().value_mut(message.owner) {
            association.to_client.learn(message.size, error);
        }
        batch.flight.split(place);
        return 0;
    }
    worker.shared.node.udp_undeliverable.add(message.datagrams as u64);
    1
}
