//! Services of registries to nodes, in the background.
//!
//! Upstreams with `discovery_type` and `service_name` take their nodes from a registry. What is wanted
//! comes from the present snapshot; answers go back as events. No session waits for a registry once it has
//! answered: the last instances serve while it fails, and an answer without any takes effect only when it
//! stays so for a while: registries that restart answer empty (`discovery/follow.rs`).
//!
//! A service is asked for alone, where APISIX fetches every service of the registry: what is not wanted
//! costs nothing, and one that changes wakes nobody else.

mod consul;
mod dns;
mod eureka;
mod follow;
mod nacos;
mod nodes;
mod servers;

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::consul::Consul;
use self::dns::Dns;
use self::eureka::Eureka;
use self::follow::{Standing, follow};
use self::nacos::Nacos;
use crate::config::Registries;
use crate::live::registries::Failing;
use crate::metrics::Metrics;
use crate::net::each;
use crate::resource::{Discovery, Node};
use crate::store::Batch;

/// What registries are asked with, and where it is told how that goes.
#[derive(Debug)]
pub struct Means {
    /// `discovery` of config.yaml.
    pub registries: Registries,
    /// CA bundle that servers with `https` are verified with.
    pub trusted: Option<PathBuf>,
    /// The services whose registry fails.
    pub failing: Arc<Failing>,
    /// Counts them.
    pub metrics: Metrics,
}

/// Something that knows the instances of one service.
trait Registry: Send {
    /// The instances now. It may wait for a change, for as long as the registry lets it, but no longer
    /// than `patience`.
    fn instances(&mut self, patience: Duration) -> impl Future<Output = Result<Found, RegistryError>> + Send;

    /// What serves while there is none.
    fn fallback(&self) -> Option<Node> {
        None
    }
}

/// An answer.
#[derive(Debug)]
struct Found {
    /// The instances, in an order that is the same for the same ones.
    nodes: Vec<Node>,
    /// When to ask again.
    again: Duration,
}

/// Why there is none: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RegistryError(String);

/// Follows the services of `wanted` until `stop`. One in another allocation than before is a new one:
/// nobody knows its instances any more.
pub async fn run(
    means: Means,
    wanted: watch::Receiver<Arc<[Arc<Discovery>]>>,
    out: mpsc::Sender<Batch>,
    stop: CancellationToken,
) {
    let kinds = Kinds::new(&means);
    let begin = |service: &Arc<Discovery>| {
        follow(kinds.registry(service), Standing::new(service.clone(), &means), out.clone())
    };
    each(wanted, stop, begin).await;
}

/// What the services of each kind share.
struct Kinds {
    consul: Option<Arc<consul::Shared>>,
    dns: Option<Result<Dns, String>>,
    eureka: Option<Arc<eureka::Shared>>,
    nacos: Option<Arc<nacos::Shared>>,
}

impl Kinds {
    fn new(means: &Means) -> Self {
        let (registries, trusted) = (&means.registries, means.trusted.as_deref());
        Self {
            consul: registries.consul.as_ref().map(|it| Arc::new(consul::Shared::new(it, trusted))),
            dns: registries.dns.as_ref().map(|it| Dns::new(it).map_err(|why| why.to_string())),
            eureka: registries.eureka.as_ref().map(|it| Arc::new(eureka::Shared::new(it))),
            nacos: registries.nacos.as_ref().map(|it| Arc::new(nacos::Shared::new(it, trusted))),
        }
    }

    /// Who knows this service.
    fn registry(&self, service: &Arc<Discovery>) -> Kind {
        let kind = &*service.kind;
        let known = match kind {
            "consul" => self.consul.as_ref().map(|it| Kind::Consul(Consul::new(it.clone(), service))),
            "dns" => self.dns.as_ref().map(|it| match it {
                Ok(dns) => Kind::Dns(Box::new(dns.service(service))),
                Err(why) => Kind::Nobody(Some(why.clone())),
            }),
            "eureka" => self.eureka.as_ref().map(|it| Kind::Eureka(Eureka::new(it.clone(), service))),
            "nacos" => self.nacos.as_ref().map(|it| Kind::Nacos(Nacos::new(it.clone(), service))),
            _ => return Kind::Nobody(Some(format!("discovery by {kind} is not built"))),
        };
        known.unwrap_or_else(|| Kind::Nobody(Some(format!("config.yaml has no section discovery.{kind}"))))
    }
}

/// A registry of any kind.
enum Kind {
    Consul(Consul),
    Dns(Box<dns::Service>),
    Eureka(Eureka),
    Nacos(Nacos),
    /// There is none, and why; said once.
    Nobody(Option<String>),
}

impl Registry for Kind {
    async fn instances(&mut self, patience: Duration) -> Result<Found, RegistryError> {
        match self {
            Self::Consul(consul) => consul.instances(patience).await,
            Self::Dns(dns) => dns.instances(patience).await,
            Self::Eureka(eureka) => eureka.instances(patience).await,
            Self::Nacos(nacos) => nacos.instances(patience).await,
            Self::Nobody(why) => match why.take() {
                Some(why) => Err(RegistryError(why)),
                None => pending().await,
            },
        }
    }

    fn fallback(&self) -> Option<Node> {
        match self {
            Self::Consul(consul) => consul.fallback(),
            Self::Dns(_) | Self::Eureka(_) | Self::Nacos(_) | Self::Nobody(_) => None,
        }
    }
}
