//! Threads with a runtime each, and the commands they obey.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task;

use crate::config::Listen;
use crate::drain::Watch;
use crate::live::listen_stats::ListenStats;
use crate::live::totals::Totals;
use crate::net::bind::Listening;
use crate::proxy::Shared;
use crate::proxy::accept;
use crate::proxy::steer::Loads;
use crate::proxy::udp;
use crate::proxy::worker::{Place, Worker};

/// The threads that serve sessions. Each holds a [`Watch`], so that `Drain::finished` waits for them.
#[derive(Debug)]
pub struct Workers {
    commands: Vec<UnboundedSender<Command>>,
    totals: Arc<Totals>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// How many workers, and where they run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Crew {
    /// Threads; 0 counts as 1.
    pub count: usize,
    /// Each thread stays on one of the process's cores, in turn (`worker_cpu_affinity auto` in nginx).
    pub pinned: bool,
}

/// What a worker is told.
pub(super) enum Command {
    /// Serve a socket.
    Open {
        /// Names it in `Close`.
        id: u64,
        /// The socket, this worker's alone.
        socket: Listening,
        /// What it serves.
        door: Door,
    },
    /// Serve a connection that another worker accepted.
    Serve {
        /// It.
        stream: TcpStream,
        /// Where it comes from.
        client: SocketAddr,
        /// Where it came in.
        door: Door,
    },
    /// Hand on the lines that are there.
    Flush {
        /// Told by dropping it.
        done: oneshot::Sender<()>,
    },
    /// Serve what waits in the accept queue, then close.
    Close {
        /// The socket.
        id: u64,
        /// Told when it is closed.
        closed: oneshot::Sender<()>,
    },
}

/// What a listening socket is for.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// Its real address.
    pub(super) addr: SocketAddr,
    /// Its settings; they may change while it is open, and count for sessions that begin after.
    pub(super) settings: Arc<ArcSwap<Listen>>,
    /// What it moves.
    pub(super) stats: Arc<ListenStats>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { id, door, .. } => write!(f, "Open({id}, {})", door.addr),
            Self::Serve { client, .. } => write!(f, "Serve({client})"),
            Self::Flush { .. } => write!(f, "Flush"),
            Self::Close { id, .. } => write!(f, "Close({id})"),
        }
    }
}

/// Asks a socket's task to stop; it answers when the socket is closed.
pub(super) type Closing = oneshot::Receiver<oneshot::Sender<()>>;

impl Workers {
    /// Starts the threads. They end when `watch` says so: once draining, as soon as they have neither
    /// listens nor sessions, and at its deadline in any case.
    pub fn start(crew: Crew, shared: &Shared, watch: &Watch) -> io::Result<Self> {
        let count = crew.count.max(1);
        let share = shared.udp_associations.div_ceil(count);
        let totals = shared.totals.clone();
        let (loads, cores) = (Loads::new(count), if crew.pinned { cores()? } else { Vec::new() });
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded_channel()).unzip();
        let mut workers = Self { commands: senders, totals, threads: Vec::new() };
        for (number, commands) in receivers.into_iter().enumerate() {
            let (shared, watch) = (shared.clone(), watch.clone());
            let (loads, senders) = (loads.clone(), workers.commands.clone());
            let core = cores.get(number % cores.len().max(1)).copied();
            // Made inside the thread, which it must not leave; this tells whether it was.
            let (ready, started) = std::sync::mpsc::sync_channel(1);
            let thread =
                thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                    match runtime(core) {
                        Ok(runtime) => {
                            let _ = ready.send(Ok(()));
                            let place = Place { number, loads, commands: senders.into() };
                            serve(runtime, Worker::new(shared, place, share), commands, &watch);
                        }
                        Err(error) => {
                            let _ = ready.send(Err(error));
                        }
                    }
                })?;
            started.recv().map_err(io::Error::other)??;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Where each worker takes commands.
    pub(super) fn commands(&self) -> Vec<UnboundedSender<Command>> {
        self.commands.clone()
    }

    /// Where listens are counted.
    pub(super) fn totals(&self) -> Arc<Totals> {
        self.totals.clone()
    }

    /// Makes all workers hand on the lines they have gathered, and waits until they have.
    pub async fn flush_lines(&self) {
        let flushing: Vec<_> = self
            .commands
            .iter()
            .map(|worker| {
                let (done, flushed) = oneshot::channel();
                // One that has ended has handed on its last lines.
                let _ = worker.send(Command::Flush { done });
                flushed
            })
            .collect();
        for flushed in flushing {
            // The answer is that it is dropped.
            let _: Result<(), _> = flushed.await;
        }
    }

    /// Waits until every thread has ended. Blocks: call it after `Drain::finished`.
    pub fn join(self) {
        for thread in self.threads {
            // A panic was reported where it happened; the others are still waited for.
            let _ = thread.join();
        }
    }
}

/// The cores the process may use.
fn cores() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect())
}

/// The runtime of this thread, which stays on `core` where one is given.
fn runtime(core: Option<usize>) -> io::Result<LocalRuntime> {
    if let Some(core) = core {
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only)?;
    }
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// Runs a worker to its end. The caller's `watch` outlives it: who waits for the drain may rely on
/// every outcome having been handed on.
fn serve(runtime: LocalRuntime, worker: Worker, commands: UnboundedReceiver<Command>, watch: &Watch) {
    let worker = Rc::new(worker);
    runtime.block_on(run(&worker, commands, watch.clone()));
    // Sessions that are left end here; their records say so.
    worker.udp.clear();
    drop(runtime);
    worker.output.flush();
}

async fn run(worker: &Rc<Worker>, mut commands: UnboundedReceiver<Command>, watch: Watch) {
    task::spawn_local(udp::expire(worker.clone()));
    task::spawn_local(worker.clone().tidy());
    let mut open: HashMap<u64, oneshot::Sender<oneshot::Sender<()>>> = HashMap::new();
    let (mut draining, mut ending) = (watch.clone(), watch);
    let mut idle = pin!(async {
        draining.draining().await;
        worker.alive.none().await;
    });
    let mut ended = pin!(ending.ended());
    loop {
        let command = tokio::select! {
            biased;
            () = &mut ended => return,
            Some(command) = commands.recv() => command,
            () = &mut idle => return,
        };
        match command {
            Command::Open { id, socket, door } => {
                let (close, closing) = oneshot::channel();
                if let Err(error) = begin(worker, id, socket, door.clone(), closing) {
                    tracing::error!(addr = %door.addr, %error, "a worker cannot serve its listening socket");
                } else {
                    open.insert(id, close);
                }
            }
            Command::Serve { stream, client, door } => accept::take(worker, stream, client, &door),
            Command::Flush { done } => {
                worker.output.flush();
                drop(done);
            }
            Command::Close { id, closed } => {
                // Where the socket is not open, dropping `closed` tells the same.
                if let Some(close) = open.remove(&id) {
                    let _ = close.send(closed);
                }
            }
        }
    }
}

fn begin(worker: &Rc<Worker>, id: u64, socket: Listening, door: Door, closing: Closing) -> io::Result<()> {
    let worker = worker.clone();
    match socket {
        Listening::Tcp(socket) => {
            let listener = TcpListener::from_std(socket)?;
            task::spawn_local(accept::run(worker, listener, door, closing));
        }
        Listening::Udp(socket) => {
            let inlet = udp::Inlet::new(id, socket, door)?;
            task::spawn_local(udp::run(worker, inlet, closing));
        }
    }
    Ok(())
}
