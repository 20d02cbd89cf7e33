//! Sessions: from an accepted connection or a first datagram to its [`Outcome`].
//!
//! [`Listens`] owns what is open and makes it what the configuration wants. [`Workers`] are threads
//! with a runtime each; every socket belongs to one of them, and nothing that happens to a session
//! leaves its thread but counters and its outcome.
//!
//! - `worker`: what the sessions of a thread share; `accept`: connections in; `steer`: to whom; `tcp`: one connection;
//!   `opening`: its first bytes; `terminate`: TLS with the client; `greet`: what a node hears first; `relay`: its bytes; `pipes`: what they are spliced through; `udp`: datagrams; `record`: what a
//!   session is held to account by; `blame`: what a failed attempt says of its node
//! - `output`: the lines that a worker writes; `stage`: the plugins of its route; `rate`: how often something may be logged
//!
//! [`Outcome`]: crate::session::Outcome

mod accept;
mod blame;
mod greet;
mod listens;
mod opening;
mod output;
mod pipes;
mod rate;
mod record;
mod relay;
mod stage;
mod steer;
mod tcp;
mod terminate;
mod udp;
mod worker;
mod workers;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::addr::IpMatcher;
use crate::live::Budget;
use crate::live::NodeCounters;
use crate::live::totals::Totals;
use crate::session::Host;
use crate::snapshot::{Ended, Published};

pub use self::listens::{ListenError, Listens, Opened, Report};
pub use self::output::Logs;
pub use self::pipes::SIZE as PIPE_SIZE;
pub use self::workers::{Crew, Workers};

/// What all workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The state that sessions are routed by.
    pub published: Published,
    /// Counters of the process.
    pub node: Arc<NodeCounters>,
    /// What is counted of listens, and of sessions beside their routes.
    pub totals: Arc<Totals>,
    /// Takes what became of each session; what it cannot take at once is counted and lost.
    pub outcomes: mpsc::Sender<Arc<Ended>>,
    /// The same for sessions whose route has plugins that send a line somewhere.
    pub reports: mpsc::Sender<Arc<Ended>>,
    /// This process.
    pub host: Arc<Host>,
    /// Hand on outcomes of normal endings too. They wake another thread once a session, so only
    /// where somebody reads them.
    pub every_outcome: bool,
    /// TCP sessions at the same time.
    pub sessions: Arc<Budget>,
    /// Descriptors that sessions may hold: two a TCP session, one a UDP association.
    pub descriptors: Arc<Budget>,
    /// Pipes for bulk flows: two descriptors and [`PIPE_SIZE`] bytes each.
    pub pipes: Arc<Budget>,
    /// UDP associations of the process at the same time; each worker keeps to its share.
    pub udp_associations: usize,
    /// The name of TLS clients that send none.
    pub fallback_sni: Option<Arc<str>>,
    /// Peers whose PROXY header says who the client is; may change.
    pub real_ip_from: Arc<ArcSwap<Vec<IpMatcher>>>,
    /// What is written of sessions.
    pub logs: Logs,
}

impl Shared {
    /// Reports whether the PROXY header of this peer is believed.
    fn trusts(&self, peer: IpAddr) -> bool {
        self.real_ip_from.load().iter().any(|matcher| matcher.contains(peer))
    }
}
