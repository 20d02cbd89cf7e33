//! What a turn of one direction works with: a worker has as many as turns wait at the same time, which
//! is one as a rule, and not one a socket or an association.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;

use streamgate_sys::receive::RecvBatch;
use streamgate_sys::send::SendBatch;

use crate::flow::Id;
use crate::proxy::udp::flight::{Flight, Part};

/// Messages of one call, in or out.
const MESSAGES: usize = 32;
/// No message is longer (RFC 768: the length field has 16 bits), in segments or not.
const LONGEST: usize = 65_535;

/// Received messages, and what they become.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) received: RecvBatch,
    pub(super) flight: Flight,
    /// What of the received messages is dealt with at the moment.
    pub(super) parts: Vec<Part>,
    /// Associations: of each received message, or those that end with this turn.
    pub(super) ids: Vec<Option<Id>>,
    /// Received messages of clients without an association.
    pub(super) strangers: Vec<usize>,
    sends: SendBatch,
}

impl Batch {
    fn new() -> io::Result<Self> {
        Ok(Self {
            received: RecvBatch::new(MESSAGES, LONGEST)?,
            flight: Flight::default(),
            parts: Vec::new(),
            ids: Vec::new(),
            strangers: Vec::new(),
            sends: SendBatch::new(MESSAGES),
        })
    }

    /// The first datagram of the parts.
    pub(super) fn first(&self) -> &[u8] {
        let range = self.parts.first().map(|part| part.split(1).0.range());
        range.and_then(|range| self.received.bytes().get(range)).unwrap_or_default()
    }

    /// Drops the first datagram of the parts; reports whether there is another.
    pub(super) fn drop_first(&mut self) -> bool {
        match self.parts.first().map(|part| part.split(1)) {
            Some((_, Some(others))) => self.parts[0] = others,
            Some((_, None)) => drop(self.parts.remove(0)),
            None => {}
        }
        !self.parts.is_empty()
    }

    /// Sends messages of the flight from `first` on: how many, or the error of the first.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let messages = self.flight.messages(first).iter().map(|message| &message.outgoing);
        self.sends.send(socket, self.received.bytes(), self.flight.pieces(), messages)
    }
}

/// The batch of a worker that is not in use.
#[derive(Debug, Default)]
pub(super) struct Batches {
    spare: RefCell<Option<Box<Batch>>>,
    /// Sweeps since one was last taken, as far as they matter.
    sweeps: Cell<u8>,
}

impl Batches {
    /// An empty one; one that is not put back is no loss.
    pub(super) fn take(&self) -> io::Result<Box<Batch>> {
        self.sweeps.set(0);
        let spare = self.spare.take();
        spare.map_or_else(|| Batch::new().map(Box::new), Ok)
    }

    /// Takes one back. Another that was there is freed: seldom do two turns wait at the same time.
    pub(super) fn put(&self, mut batch: Box<Batch>) {
        batch.received.clear();
        self.spare.replace(Some(batch));
    }

    /// Gives memory back to the system where none was taken since the call before. Messages are as
    /// long as clients make them: up to two megabytes in a batch.
    pub(super) fn sweep(&self) {
        let sweeps = self.sweeps.get();
        self.sweeps.set(sweeps.saturating_add(1));
        if sweeps == 1
            && let Some(batch) = &mut *self.spare.borrow_mut()
        {
            batch.received.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    /// Reports whether what was received before is still in memory.
    fn holds(batches: &Batches) -> bool {
        batches.spare.borrow().as_ref().unwrap().received.bytes().iter().any(|byte| *byte != 0)
    }

    #[test]
    fn memory_is_given_back_when_nobody_has_used_it_for_a_while() {
        let (batches, socket) = (Batches::default(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let use_one = || {
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            let mut batch = batches.take().unwrap();
            batch.received.receive(socket.as_fd(), false).unwrap();
            batches.put(batch);
        };
        use_one();
        batches.sweep();
        use_one();
        batches.sweep();
        assert!(holds(&batches), "it was used since the sweep before");
        batches.sweep();
        assert!(!holds(&batches));
        use_one();
        (0..300).for_each(|_| batches.sweep());
        assert!(!holds(&batches));
    }

    #[test]
    fn one_batch_is_used_again_and_again() {
        let batches = Batches::default();
        let (one, other) = (batches.take().unwrap(), batches.take().unwrap());
        let kept = other.received.bytes().as_ptr();
        batches.put(one);
        batches.put(other);
        for _ in 0..3 {
            let again = batches.take().unwrap();
            assert_eq!(again.received.bytes().as_ptr(), kept);
            batches.put(again);
        }
    }
}
