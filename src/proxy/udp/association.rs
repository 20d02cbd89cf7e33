//! One association: its node's socket and its account.

use std::io;
use std::net::UdpSocket;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant as StdInstant;

use rustix::io::Errno;
use streamgate_sys::datagram::Local;
use tokio::time::Instant;

use crate::balance::Tried;
use crate::flow::{Id, Key, Limits};
use crate::live::bandwidth::Bandwidth;
use crate::live::{NodeCounters, Permit};
use crate::net::{datagram, dial};
use crate::proxy::record::{Failed, Record};
use crate::proxy::stage;
use crate::proxy::udp::Inlet;
use crate::proxy::udp::batch::Batch;
use crate::proxy::udp::flight::{self, Segments, Way};
use crate::proxy::udp::nodes::Nodes;
use crate::proxy::udp::trial::{self, Next, Trial};
use crate::proxy::worker::{Refusal, Worker, nobody_left};
use crate::session::{End, Inbound, Transport};

/// What the table keeps.
#[derive(Debug)]
pub(super) struct Association {
    /// Connected to the node.
    pub(super) upstream: UdpSocket,
    /// The node's address is of IPv6.
    ipv6: bool,
    pub(super) record: Record,
    /// The address that answers come from, where the socket does not say it.
    pub(super) from: Option<Local>,
    /// It is going to be asked for answers.
    pub(super) waits: bool,
    /// Its node has not answered yet, and there are others.
    pub(super) trial: Option<Box<Trial>>,
    to_node: Segments,
    pub(super) to_client: Segments,
    _descriptor: Permit,
}

impl Association {
    fn new(opened: Opened, record: Record, from: Option<Local>) -> (Self, Limits) {
        let association = Self {
            upstream: opened.upstream,
            ipv6: opened.ipv6,
            record,
            from,
            waits: false,
            trial: opened.trial,
            to_node: Segments::default(),
            to_client: Segments::default(),
            _descriptor: opened.descriptor,
        };
        (association, opened.limits)
    }

    /// Sends the parts of `batch` to the node. What cannot be sent at once is dropped, as a full router
    /// would. Reports whether the node refused an earlier datagram.
    pub(super) fn send(&mut self, id: Id, batch: &mut Batch, node: &NodeCounters) -> bool {
        if let Some(bandwidth) = self.bandwidth() {
            node.udp_over_rate.add(flight::admit(&bandwidth.up, &mut batch.parts, Instant::now().into_std()));
        }
        if self.trial.as_mut().is_some_and(|trial| !trial.keep(batch)) {
            self.trial = None;
        }
        let mut told = false;
        let Self { ipv6, to_node: segments, .. } = *self;
        let way = Way { peer: None, from: None, ipv6, segments, owner: id };
        batch.flight.clear();
        batch.flight.add(&way, &batch.parts);
        let (mut first, mut refused, mut bytes) = (0, false, 0);
        while let [message, ..] = batch.flight.messages(first) {
            let (size, datagrams) = (message.size, message.datagrams);
            match batch.send(self.upstream.as_fd(), first) {
                Ok(count) => {
                    let sent = batch.flight.messages(first).iter().take(count);
                    bytes += sent.map(|message| message.bytes).sum::<usize>();
                    first += count;
                    refused = false;
                }
                Err(error) if datagrams > 1 && Segments::are_refused(&error) => {
                    self.to_node.learn(size, &error);
                    batch.flight.split(first);
                }
                // The error belongs to an earlier datagram, this one was not sent.
                Err(error) if is_refusal(&error) && !refused => {
                    node.udp_refused.add_one();
                    (refused, told) = (true, true);
                }
                Err(error) => {
                    let counter = if is_refusal(&error) { &node.udp_refused } else { &node.udp_dropped };
                    counter.add(datagrams as u64);
                    first += 1;
                    refused = false;
                }
            }
        }
        self.record.received(bytes as u64);
        told
    }

    /// What bounds it.
    pub(super) fn bandwidth(&self) -> Option<&Bandwidth> {
        self.record.kept.as_ref()?.bandwidth.as_ref()
    }

    /// Its node refused a datagram: where it has never answered, the next one gets what the client has
    /// said.
    pub(super) fn fail_over(&mut self, id: Id, nodes: &Nodes) {
        let next = self.trial.as_mut().and_then(|trial| trial.next(&mut self.record, (id, nodes)));
        if next.as_ref().is_none_or(|next| next.refused) {
            self.trial = None;
        }
        let Some(Next { socket, ipv6, .. }) = next else { return };
        // The socket of the old one leaves the watch as it is closed.
        self.upstream = socket;
        self.ipv6 = ipv6;
        self.record.lives();
        self.to_node = Segments::default();
    }

    /// Ends it.
    pub(super) fn finish(self, end: End, detail: Option<String>) {
        self.record.finish(end, detail);
    }
}

/// Errors that a node or a router sent back for an earlier datagram (ip(7), `IP_RECVERR`).
pub(super) fn is_refusal(error: &io::Error) -> bool {
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

/// A client without an association.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stranger {
    pub(super) key: Key,
    /// The address that answers come from, where the socket does not say it.
    pub(super) from: Option<Local>,
    pub(super) now: StdInstant,
}

/// Routes the first datagram of a client and sends it on, with those of the batch that follow it; later
/// ones find the association. A datagram that gets none is an outcome of its own.
pub(super) fn begin(worker: &Rc<Worker>, inlet: &Inlet, stranger: &Stranger, batch: &mut Batch) {
    let (association, limits) = loop {
        let inbound = Inbound::new(Transport::Udp, stranger.key.client, stranger.key.local);
        let mut record = Record::new(worker, inbound, &inlet.door);
        match open(worker, &mut record, batch.first()) {
            Ok(opened) => break Association::new(opened, record, stranger.from),
            Err((end, why)) => record.refuse(end, why, batch.first().len()),
        }
        if !batch.drop_first() {
            return;
        }
    };
    let mut table = worker.udp.table.borrow_mut();
    let id = table.insert(stranger.key, limits, association, stranger.now);
    let Some(association) = table.value_mut(id) else { return };
    if let Err(error) = inlet.nodes.watch(&association.upstream, id) {
        drop(table);
        return end(worker, id, End::Limit, Some(format!("its socket cannot be watched: {error}")));
    }
    let mut trials = worker.udp.trials.borrow_mut();
    if association.trial.is_some() && trials.len() < trial::MOST {
        trials.push_back((Instant::now(), id));
    } else {
        association.trial = None;
    }
    drop(trials);
    if association.send(id, batch, &worker.shared.node) {
        association.fail_over(id, &inlet.nodes);
    }
    drop(table);
    worker.udp.rearm();
}

/// Ends an association, if it still lives.
pub(super) fn end(worker: &Worker, id: Id, end: End, detail: Option<String>) {
    let ended = worker.udp.table.borrow_mut().remove(id);
    if let Some(association) = ended {
        association.finish(end, detail);
    }
}

/// What makes an association beside its record.
#[derive(Debug)]
struct Opened {
    upstream: UdpSocket,
    ipv6: bool,
    descriptor: Permit,
    limits: Limits,
    trial: Option<Box<Trial>>,
}

/// A socket connected to a node, or why there is none. That a node cannot be had shows here only where
/// there is no way to it; what it refuses comes back later.
fn open(worker: &Worker, record: &mut Record, first: &[u8]) -> Result<Opened, Refusal> {
    let route = record.route()?;
    let pool = if route.plugins.only_report() {
        record.pool(&route)?
    } else {
        stage::datagram(record, &route, first)?
    };
    let (mut tried, mut descriptor, mut failure) = (Tried::default(), None, String::new());
    loop {
        let now = Instant::now();
        let Some(picked) = pool.pick(&record.inbound, now.into_std(), &mut tried) else {
            return Err(nobody_left(&pool, record.attempts, failure));
        };
        let held = match descriptor.take() {
            Some(held) => held,
            None => make_room(worker)?,
        };
        let (addr, label) = (picked.node.addr, picked.node.label.clone());
        record.attempt(picked);
        match datagram::connect(addr) {
            Ok(upstream) => {
                record.connected(now);
                record.lives();
                let limits = Limits {
                    idle: record.listen.idle_timeout.unwrap_or(pool.settings.timeouts.idle),
                    responses: record.listen.responses.and_then(NonZeroU32::new),
                };
                let trial = Trial::new(&pool, tried);
                return Ok(Opened { upstream, ipv6: addr.is_ipv6(), descriptor: held, limits, trial });
            }
            Err(error) => {
                let why = dial::sentence(&error);
                let last = record.attempts >= pool.settings.attempts || tried.len() >= pool.nodes().len();
                let failed = Failed { failure: dial::failure(&error), after: now.elapsed(), why: &why };
                record.attempt_failed(&pool, failed, !last);
                let exhausted = dial::is_exhaustion(&error);
                if exhausted || last {
                    let end = if exhausted { End::Limit } else { End::ConnectFailed };
                    return Err((end, format!("{label}: {why}")));
                }
                failure = format!("{label}: {why}");
                descriptor = Some(held);
            }
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
