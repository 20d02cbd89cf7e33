//! One association: its node's socket, its account, and the task that passes answers back.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};
use streamgate_sys::datagram::{self, Local};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{self, AbortHandle};
use tokio::time::Instant;

use crate::balance::{PoolNode, Tried};
use crate::flow::{Answer, Id, Key, Limits};
use crate::live::{NodeCounters, Permit};
use crate::net::dial;
use crate::proxy::record::Record;
use crate::proxy::udp::{BATCH, Inlet};
use crate::proxy::worker::{Refusal, Worker};
use crate::session::{End, Inbound, Traffic, Transport};

/// What the table keeps.
#[derive(Debug)]
pub(super) struct Association {
    upstream: Rc<UdpSocket>,
    record: Record,
    answers: Option<Task>,
    _descriptor: Permit,
}

/// Ends a task when dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Association {
    /// Sends a datagram of the client to the node.
    pub(super) fn send(&mut self, bytes: &[u8], node: &NodeCounters) {
        // Not tokio's `try_send`: it asks the reactor first, which does not know a new socket yet.
        let socket = SockRef::from(&*self.upstream);
        let mut sent = socket.send(bytes);
        if sent.as_ref().is_err_and(is_refusal) {
            // The error belongs to an earlier datagram, this one was not sent.
            node.udp_refused.add_one();
            sent = socket.send(bytes);
        }
        match sent {
            Ok(_) => self.record.moved(Traffic { received: bytes.len() as u64, sent: 0 }),
            Err(error) if is_refusal(&error) => node.udp_refused.add_one(),
            Err(_) => node.udp_dropped.add_one(),
        }
    }

    /// Ends it.
    pub(super) fn finish(self, end: End, detail: Option<String>) {
        self.record.finish(end, detail);
    }
}

/// Routes the first datagram of a client and sends it on; the next ones find the association.
pub(super) fn begin(worker: &Rc<Worker>, inlet: &Rc<Inlet>, key: Key, from: Option<Local>, bytes: &[u8]) {
    let inbound = Inbound::new(Transport::Udp, key.client, key.local);
    let mut record = Record::new(worker, inbound, &inlet.door);
    let (upstream, descriptor, limits) = match open(worker, &mut record) {
        Ok(opened) => opened,
        Err((end, why)) => return record.refuse(end, why),
    };
    let mut association =
        Association { upstream: upstream.clone(), record, answers: None, _descriptor: descriptor };
    association.send(bytes, &worker.shared.node);
    let mut table = worker.udp.table.borrow_mut();
    let id = table.insert(key, limits, association, Instant::now().into_std());
    let answers = Answers { worker: worker.clone(), inlet: inlet.clone(), upstream, id, key, from };
    let task = task::spawn_local(answers.pass_back());
    if let Some(association) = table.value_mut(id) {
        association.answers = Some(Task(task.abort_handle()));
    }
    drop(table);
    worker.udp.rearm();
}

/// A socket connected to a node, or why there is none.
fn open(worker: &Worker, record: &mut Record) -> Result<(Rc<UdpSocket>, Permit, Limits), Refusal> {
    let pool = record.route()?;
    let Some(picked) = pool.pick(&record.inbound, |_| true, &mut Tried::default()) else {
        return Err((End::NoNode, format!("upstream {} has no node that can be dialled", pool.id)));
    };
    let descriptor = make_room(worker)?;
    let (node, started) = (picked.node.clone(), Instant::now());
    record.attempt(picked);
    match connect(&node) {
        Ok(socket) => {
            record.connected(started.elapsed());
            let limits = Limits {
                idle: record.listen.idle_timeout.unwrap_or(pool.settings.timeouts.idle),
                responses: record.listen.responses.and_then(NonZeroU32::new),
            };
            Ok((Rc::new(socket), descriptor, limits))
        }
        Err(error) => {
            record.attempt_failed();
            let end = if dial::is_exhaustion(&error) { End::Limit } else { End::ConnectFailed };
            Err((end, format!("{}: {}", node.label, dial::sentence(&error))))
        }
    }
}

/// A descriptor and a place in the table, if need be those of an association that waits longest.
fn make_room(worker: &Worker) -> Result<Permit, Refusal> {
    if worker.udp.table.borrow().is_full() {
        evict(worker);
    }
    loop {
        if let Some(descriptor) = worker.shared.descriptors.take(1) {
            return Ok(descriptor);
        }
        if !evict(worker) {
            let limit = worker.shared.descriptors.limit();
            let why = format!("sessions hold all {limit} descriptors they may have; raise LimitNOFILE");
            return Err((End::Limit, why));
        }
    }
}

/// Ends the association that is missed least; false where there is none.
fn evict(worker: &Worker) -> bool {
    let Some(evicted) = worker.udp.table.borrow_mut().evict() else { return false };
    worker.shared.node.udp_evicted.add_one();
    evicted.finish(End::Limit, Some("it made room for a new association".into()));
    true
}

/// Bound to nothing: the kernel chooses address and port towards the node.
fn connect(node: &PoolNode) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(node.addr), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&node.addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Errors that a node or a router sent back for an earlier datagram (ip(7), `IP_RECVERR`).
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNREFUSED
                | Errno::HOSTUNREACH
                | Errno::HOSTDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::ACCESS
                | Errno::MSGSIZE
                | Errno::OPNOTSUPP
        )
    )
}

/// Passes the answers of a node back to the client.
struct Answers {
    worker: Rc<Worker>,
    inlet: Rc<Inlet>,
    upstream: Rc<UdpSocket>,
    id: Id,
    key: Key,
    from: Option<Local>,
}

/// What became of an attempt to pass an answer back.
enum Passed {
    /// It is on its way, or lost: there may be more.
    On,
    /// There is none.
    Nothing,
    /// The listening socket takes no more for now.
    Blocked(Vec<u8>),
    /// The association has ended.
    Over,
}

impl Answers {
    async fn pass_back(self) {
        while self.upstream.readable().await.is_ok() {
            for _ in 0..BATCH {
                match self.pass_one() {
                    Passed::On => {}
                    Passed::Nothing => break,
                    Passed::Blocked(bytes) => {
                        let socket = &self.inlet.socket;
                        let sent = socket.async_io(Interest::WRITABLE, || self.send(&bytes)).await;
                        if self.count(&sent, bytes.len()) {
                            return;
                        }
                    }
                    Passed::Over => return,
                }
            }
            task::yield_now().await;
        }
    }

    fn pass_one(&self) -> Passed {
        let mut scratch = self.worker.udp.scratch.borrow_mut();
        let len = match self.upstream.try_recv(&mut scratch) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Passed::Nothing,
            Err(error) if is_refusal(&error) => {
                // The node may be back for the next datagram: the association stays, as in nginx.
                self.worker.shared.node.udp_refused.add_one();
                return Passed::On;
            }
            Err(error) => {
                drop(scratch);
                self.finish(End::Internal, Some(format!("receiving from the node: {error}")));
                return Passed::Over;
            }
        };
        let bytes = scratch.get(..len).unwrap_or_default();
        let sent = self.send(bytes);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return Passed::Blocked(bytes.to_vec());
        }
        drop(scratch);
        if self.count(&sent, len) { Passed::Over } else { Passed::On }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        datagram::send_msg(self.inlet.socket.as_fd(), bytes, self.key.client, self.from)
    }

    /// Counts an answer; reports whether the association has ended, with it or before.
    fn count(&self, sent: &io::Result<usize>, len: usize) -> bool {
        let mut table = self.worker.udp.table.borrow_mut();
        let Some(association) = table.value_mut(self.id) else { return true };
        match sent {
            Ok(_) => association.record.moved(Traffic { received: 0, sent: len as u64 }),
            Err(_) => self.worker.shared.node.udp_undeliverable.add_one(),
        }
        let answer = table.answered(self.id, Instant::now().into_std());
        drop(table);
        if answer == Some(Answer::Last) {
            self.finish(End::UpstreamClosed, None);
        }
        answer != Some(Answer::More)
    }

    fn finish(&self, end: End, detail: Option<String>) {
        let ended = self.worker.udp.table.borrow_mut().remove(self.id);
        if let Some(association) = ended {
            association.finish(end, detail);
        }
    }
}
