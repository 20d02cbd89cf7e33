//! What is kept of an association until its node has answered, to try another node where it is refused.
//!
//! A refusal of a datagram comes back by ICMP (APISIX loses such a datagram). What the client has said so
//! far then goes to the next node. Kept for a few seconds and in small amounts: a client that nobody
//! answers costs no more than that.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::{Pool, Tried};
use crate::flow::Id;
use crate::net::datagram;
use crate::net::dial;
use crate::proxy::record::{Failed, Record};
use crate::proxy::udp::association::is_refusal;
use crate::proxy::udp::batch::Batch;
use crate::proxy::udp::nodes::Nodes;
use crate::session::ConnectFailure;

/// Bytes that are kept of one association at most: the first flight of QUIC fits.
const MOST_BYTES: usize = 4096;
/// How long they are kept: an ICMP message needs a round trip.
pub(super) const LASTS: Duration = Duration::from_secs(3);
/// Associations of a worker that anything is kept of at the same time.
pub(super) const MOST: usize = 4096;

/// An association whose node has not answered yet.
#[derive(Debug)]
pub(super) struct Trial {
    pool: Arc<Pool>,
    tried: Tried,
    began: Instant,
    /// The datagrams that were sent, each with its end among the bytes.
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Trial {
    /// For an association that begins; `None` where there is no other node to try.
    pub(super) fn new(pool: &Arc<Pool>, tried: Tried) -> Option<Box<Self>> {
        let others = pool.nodes().len() > 1 && pool.settings.attempts > 1;
        let new =
            || Self { pool: pool.clone(), tried, began: Instant::now(), ends: Vec::new(), bytes: Vec::new() };
        others.then(|| Box::new(new()))
    }

    /// Keeps the parts of a batch; false where they are too many.
    pub(super) fn keep(&mut self, batch: &Batch) -> bool {
        let received = batch.received.bytes();
        for datagram in batch.parts.iter().flat_map(|part| part.runs(1)) {
            let Some(bytes) = received.get(datagram.range()) else { return false };
            if self.bytes.len() + bytes.len() > MOST_BYTES {
                return false;
            }
            self.bytes.extend_from_slice(bytes);
            self.ends.push(self.bytes.len());
        }
        true
    }

    /// Sends what was kept; false where the node has already refused some of it. On this host and nearby a
    /// refusal comes back before the next datagram leaves, which is not sent then, and is told only once.
    fn send(&self, socket: &std::net::UdpSocket) -> bool {
        let mut start = 0;
        for end in &self.ends {
            match socket.send(self.bytes.get(start..*end).unwrap_or_default()) {
                Err(error) if is_refusal(&error) => return false,
                // What cannot be sent at once is dropped, as ever.
                _ => start = *end,
            }
        }
        true
    }

    /// A socket of the next node that can be had, after the present one refused; it has been sent what was
    /// kept. `None` where there is no other node.
    pub(super) fn next(&mut self, record: &mut Record, (id, nodes): (Id, &Nodes)) -> Option<Next> {
        // Of the node in use, where it is not the one that was in use before.
        let mut moved = None;
        loop {
            let after = self.began.elapsed();
            let failed =
                Failed { failure: ConnectFailure::Refused, after, why: "it refused a datagram (ICMP)" };
            let late = self.pool.settings.retry_timeout.is_some_and(|limit| after >= limit);
            let again = record.attempts < self.pool.settings.attempts && !late;
            let picked = if again {
                self.pool.pick(&record.inbound, Instant::now().into_std(), &mut self.tried)
            } else {
                None
            };
            let Some(picked) = picked else {
                record.refused(&self.pool, failed);
                return moved;
            };
            let addr = picked.node.addr;
            record.attempt_failed(&self.pool, failed, true);
            record.attempt(picked);
            let began = Instant::now();
            match datagram::connect(addr) {
                Ok(socket) if nodes.watch(&socket, id).is_ok() => {
                    record.connected(began);
                    let taken = self.send(&socket);
                    let next = Next { socket, ipv6: addr.is_ipv6(), refused: !taken };
                    if taken {
                        return Some(next);
                    }
                    record.worker.shared.node.udp_refused.add_one();
                    moved = Some(next);
                }
                Ok(_) => return moved,
                Err(error) if dial::is_exhaustion(&error) => return moved,
                // Told as the node's refusal: datagrams cannot get there from here.
                Err(_) => {}
            }
        }
    }
}

/// The way to another node.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) socket: std::net::UdpSocket,
    pub(super) ipv6: bool,
    /// It has refused, too, and there is no further node.
    pub(super) refused: bool,
}
