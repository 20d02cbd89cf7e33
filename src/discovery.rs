//! Services of registries to nodes, in the background.
//!
//! Upstreams with `discovery_type` and `service_name` take their nodes from a registry. What is wanted
//! comes from the present snapshot; answers go back as events. No session waits for a registry once it has
//! answered: the last instances serve while it fails, and an answer without any takes effect only when it
//! stays so for a while: registries that restart answer empty.

mod dns;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::Registries;
use crate::resource::{Discovery, Node};
use crate::store::{Batch, Event};

/// How long a registry has to say that a service has no instances before that counts.
const GRACE: Duration = Duration::from_secs(30);
/// How soon to ask again after a failure: at first, and at most.
const AFTER_FAILURE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Something that knows the instances of one service.
pub(crate) trait Registry: Send {
    /// The instances now. It may wait for a change, for as long as the registry lets it.
    fn instances(&mut self) -> impl Future<Output = Result<Found, RegistryError>> + Send;
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Found {
    /// The instances, in an order that is the same for the same ones.
    pub(crate) nodes: Vec<Node>,
    /// When to ask again.
    pub(crate) again: Duration,
}

/// Why there is none: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RegistryError(pub(crate) String);

/// What there is to ask.
#[derive(Debug)]
struct Kinds {
    dns: Option<dns::Dns>,
}

impl Kinds {
    fn new(config: &Registries) -> Self {
        let dns = config.dns.as_ref().and_then(|dns| match dns::Dns::new(dns) {
            Ok(dns) => Some(dns),
            Err(error) => {
                tracing::error!("discovery by dns has no effect: {error}");
                None
            }
        });
        Self { dns }
    }
}

/// Follows the services of `wanted` until `stop`, by the registries of config.yaml. One in another allocation than before is a new one:
/// nobody knows its instances any more.
pub async fn run(
    registries: Registries,
    mut wanted: watch::Receiver<Arc<[Arc<Discovery>]>>,
    out: mpsc::Sender<Batch>,
    stop: CancellationToken,
) {
    let kinds = Kinds::new(&registries);
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Arc<Discovery>, AbortHandle> = HashMap::new();
    loop {
        let services = wanted.borrow_and_update().clone();
        let present: HashMap<&Discovery, &Arc<Discovery>> = services.iter().map(|it| (&**it, it)).collect();
        running.retain(|service, task| {
            let keep = present.get(&**service).is_some_and(|now| Arc::ptr_eq(now, service));
            if !keep {
                task.abort();
            }
            keep
        });
        for service in services.iter().filter(|service| !running.contains_key(*service)).collect::<Vec<_>>() {
            let task = start(&kinds, service.clone(), out.clone(), &mut tasks);
            running.insert(service.clone(), task);
        }
        // A task that was ended keeps its memory until it is joined.
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Begins to follow a service by what its kind asks for.
fn start(
    kinds: &Kinds,
    service: Arc<Discovery>,
    out: mpsc::Sender<Batch>,
    tasks: &mut JoinSet<()>,
) -> AbortHandle {
    if let ("dns", Some(dns)) = (&*service.kind, &kinds.dns) {
        return tasks.spawn(follow(service.clone(), dns.service(&service), out));
    }
    tracing::warn!(
        "service {service}: there is no registry of this kind (section `discovery` of config.yaml); its sessions \
         are closed (no_node)"
    );
    tasks.spawn(follow(service, Nobody, out))
}

/// Stands in for a registry that is not configured.
struct Nobody;

impl Registry for Nobody {
    async fn instances(&mut self) -> Result<Found, RegistryError> {
        Ok(Found { nodes: Vec::new(), again: GRACE })
    }
}

/// Keeps the instances of one service known.
async fn follow(service: Arc<Discovery>, mut registry: impl Registry, out: mpsc::Sender<Batch>) {
    let mut state = Following::default();
    let mut pause = AFTER_FAILURE[0];
    // What has been told last: each publication makes a snapshot.
    let mut last: Option<Arc<[Node]>> = None;
    loop {
        let again = match registry.instances().await {
            Ok(found) => {
                pause = AFTER_FAILURE[0];
                let counts = state.takes(&service, found.nodes.len(), Instant::now());
                if counts && last.as_deref() != Some(&*found.nodes) {
                    let nodes: Arc<[Node]> = found.nodes.into();
                    last = Some(nodes.clone());
                    let event = Event::Nodes { service: service.clone(), nodes };
                    if out.send(Batch { events: vec![event], revision: 0 }).await.is_err() {
                        return;
                    }
                }
                found.again
            }
            Err(error) => {
                state.failed(&service, &error);
                // Nobody knows it yet: sessions need not wait any longer.
                if !state.told {
                    state.told = true;
                    let event = Event::Nodes { service: service.clone(), nodes: Arc::default() };
                    if out.send(Batch { events: vec![event], revision: 0 }).await.is_err() {
                        return;
                    }
                }
                let now = pause;
                pause = (pause * 2).min(AFTER_FAILURE[1]);
                now
            }
        };
        sleep(again).await;
    }
}

/// What has been said about a service.
#[derive(Debug, Default)]
struct Following {
    /// Something has been told.
    told: bool,
    /// The last answer that counts had instances.
    serving: bool,
    failing: bool,
    empty_since: Option<Instant>,
}

impl Following {
    /// Reports whether an answer of so many instances counts.
    fn takes(&mut self, service: &Discovery, count: usize, now: Instant) -> bool {
        if std::mem::take(&mut self.failing) {
            tracing::info!("service {service}: its registry answers again");
        }
        if count > 0 || !self.serving {
            (self.told, self.serving, self.empty_since) = (true, count > 0, None);
            return true;
        }
        let since = *self.empty_since.get_or_insert_with(|| {
            tracing::warn!(
                "service {service}: its registry knows no instance any more; the last ones serve for {GRACE:?} more"
            );
            now
        });
        let over = now.duration_since(since) >= GRACE;
        if over {
            tracing::warn!(
                "service {service} has had no instance for {GRACE:?}: its sessions are closed (no_node)"
            );
            self.serving = false;
        }
        over
    }

    fn failed(&mut self, service: &Discovery, error: &dyn fmt::Display) {
        if !self.failing {
            let serving = if self.serving { "its last instances keep serving" } else { "it has no node" };
            tracing::warn!("service {service}: {error}; {serving}");
        }
        self.failing = true;
    }
}
