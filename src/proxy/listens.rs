//! What is open: one owner makes it what is wanted.
//!
//! The set of listens is a function of the configuration. [`Listens::reconcile`] is given the whole
//! of it, at the start and whenever it changes, and does the difference: all of it or, where an
//! address cannot be had, nothing. Sessions are not touched; a TCP session outlives its listen.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::config::Listen;
use crate::live::totals::Totals;
use crate::net::bind::{self, BindError, Bound, Listening, Plan};
use crate::proxy::Workers;
use crate::proxy::workers::{Command, Door};
use crate::session::Transport;

/// The open listens.
#[derive(Debug)]
pub struct Listens {
    workers: Vec<UnboundedSender<Command>>,
    totals: Arc<Totals>,
    share_ports: bool,
    open: Vec<Open>,
    last_id: u64,
}

#[derive(Debug)]
struct Open {
    id: u64,
    key: Key,
    door: Door,
}

/// What makes two listens the same one: settings may change while it is open. The number tells
/// several listens on port 0 apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Key {
    transport: Transport,
    addr: SocketAddr,
    number: usize,
}

/// A listen with the address it really has.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What was wanted.
    pub listen: Arc<Listen>,
    /// Where it is.
    pub addr: SocketAddr,
}

/// What a reconciliation did.
#[derive(Debug, Default)]
pub struct Report {
    /// Opened.
    pub opened: Vec<Opened>,
    /// Closed.
    pub closed: Vec<Opened>,
    /// Open before and after, with other settings for new sessions.
    pub changed: Vec<Opened>,
    /// What the operator should know, though it works.
    pub warnings: Vec<String>,
}

/// Why a listen could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address.
    #[error("listen {written}: {source}")]
    Bind {
        /// As in config.yaml.
        written: Arc<str>,
        /// Why.
        source: BindError,
    },
    /// `listen(2)` failed, which after binding is rare.
    #[error("listen {written}: {source}")]
    Listen {
        /// As in config.yaml.
        written: Arc<str>,
        /// Why.
        source: std::io::Error,
    },
}

impl Listens {
    /// None yet, to be served by `workers`. With `share_ports` other processes may hold the same.
    #[must_use]
    pub fn new(workers: &Workers, share_ports: bool) -> Self {
        Self {
            workers: workers.commands(),
            totals: workers.totals(),
            share_ports,
            open: Vec::new(),
            last_id: 0,
        }
    }

    /// The open listens.
    #[must_use]
    pub fn opened(&self) -> Vec<Opened> {
        self.open.iter().map(Open::describe).collect()
    }

    /// Makes `wanted` what is open. On errors, all of which are told, nothing has changed.
    /// Returns when what was to be closed is, accept queues emptied.
    pub async fn reconcile(&mut self, wanted: &[Listen]) -> Result<Report, Vec<ListenError>> {
        let wanted = keyed(wanted);
        let new: Vec<_> = wanted.iter().filter(|(key, _)| self.find(*key).is_none()).collect();
        let mut report = Report::default();
        let sockets = self.bind_all(&new, &mut report.warnings)?;
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|open| wanted.iter().all(|(key, _)| *key != open.key));
        self.open = kept;
        for (key, listen) in &wanted {
            if let Some(open) = self.find(*key).filter(|open| *open.door.settings.load() != *listen) {
                open.door.settings.store((*listen).clone());
                report.changed.push(open.describe());
            }
        }
        for ((key, listen), (addr, sockets)) in new.into_iter().zip(sockets) {
            let settings = Arc::new(ArcSwap::new(listen.clone()));
            let shown = addr.to_string().into();
            let stats = self.totals.listen(listen.transport, shown, &listen.written);
            report.opened.push(self.serve(*key, Door { addr, settings, stats }, sockets));
        }
        for open in gone {
            report.closed.push(open.describe());
            self.close(open.id).await;
        }
        Ok(report)
    }

    fn find(&self, key: Key) -> Option<&Open> {
        self.open.iter().find(|open| open.key == key)
    }

    /// Binds everything before anything accepts.
    fn bind_all(
        &self,
        new: &[&(Key, Arc<Listen>)],
        warnings: &mut Vec<String>,
    ) -> Result<Vec<(SocketAddr, Vec<Listening>)>, Vec<ListenError>> {
        let (mut bound, mut errors) = (Vec::<(&Arc<Listen>, Bound)>::new(), Vec::new());
        for (key, listen) in new {
            let ours = self.open.iter().map(|open| (open.key.transport, open.door.addr));
            let ours = ours.chain(bound.iter().map(|(listen, bound)| (listen.transport, bound.addr)));
            let share = self.share_ports || { ours }.any(|held| overlap(held, (key.transport, key.addr)));
            match self.bind(listen, share) {
                Ok(one) => bound.push((listen, one)),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut sockets = Vec::new();
        for (listen, mut bound) in bound {
            let warning = bound.warning.take();
            warnings.extend(warning.map(|why| format!("listen {}: {why}", listen.written)));
            let addr = bound.addr;
            match bound.listen() {
                Ok(set) => sockets.push((addr, set)),
                Err(source) => errors.push(ListenError::Listen { written: listen.written.clone(), source }),
            }
        }
        if errors.is_empty() { Ok(sockets) } else { Err(errors) }
    }

    fn bind(&self, listen: &Listen, share: bool) -> Result<Bound, ListenError> {
        let (transport, addr) = (listen.transport, listen.addr);
        let plan = Plan { transport, addr, count: self.workers.len(), share };
        bind::bind(&plan).map_err(|source| ListenError::Bind { written: listen.written.clone(), source })
    }

    fn serve(&mut self, key: Key, door: Door, sockets: Vec<Listening>) -> Opened {
        self.last_id += 1;
        let id = self.last_id;
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that has ended serves nothing any more: the process is stopping.
            let _ = worker.send(Command::Open { id, socket, door: door.clone() });
        }
        let open = Open { id, key, door };
        let opened = open.describe();
        self.open.push(open);
        opened
    }

    async fn close(&self, id: u64) {
        let tell = |worker: &UnboundedSender<Command>| {
            let (closed, done) = oneshot::channel();
            let _ = worker.send(Command::Close { id, closed });
            done
        };
        let all: Vec<_> = self.workers.iter().map(tell).collect();
        for done in all {
            // An error says that the worker has ended and its sockets with it.
            let _ = done.await;
        }
    }
}

impl Open {
    fn describe(&self) -> Opened {
        Opened { listen: self.door.settings.load_full(), addr: self.door.addr }
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.listen.transport.label(), self.addr)
    }
}

fn keyed(wanted: &[Listen]) -> Vec<(Key, Arc<Listen>)> {
    let mut keyed: Vec<(Key, Arc<Listen>)> = Vec::new();
    for listen in wanted {
        let same = |(key, _): &&(Key, _)| key.transport == listen.transport && key.addr == listen.addr;
        let number = keyed.iter().filter(same).count();
        // The same address twice is one listen; only port 0 stands for a new one each time.
        if number > 0 && listen.addr.port() != 0 {
            continue;
        }
        let key = Key { transport: listen.transport, addr: listen.addr, number };
        keyed.push((key, Arc::new(listen.clone())));
    }
    keyed
}

/// Reports whether one of our own listens is why a bind that proves the port free would fail.
fn overlap(held: (Transport, SocketAddr), wanted: (Transport, SocketAddr)) -> bool {
    let ((held_transport, held), (transport, wanted)) = (held, wanted);
    held_transport == transport
        && held.port() == wanted.port()
        && held.is_ipv4() == wanted.is_ipv4()
        && (held.ip() == wanted.ip() || held.ip().is_unspecified() || wanted.ip().is_unspecified())
}
