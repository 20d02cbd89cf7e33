//! Host names of nodes to addresses, in the background.
//!
//! Names come from the present snapshot; answers go back as events. No session waits for a lookup
//! once a name is known: the last good answer serves while a resolver fails. `/etc/hosts` first,
//! then the servers of `dns_resolver`; A, and AAAA only where there is no A (APISIX's order,
//! `apisix/core/utils.lua:104`).

mod answers;
mod follow;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Dns;
use crate::net::dns::{Answer, Failure, RESOLV_CONF, Resolver, Settings};
use crate::net::each;
use crate::store::Batch;
use follow::{Lookup, follow};

/// How long to wait where there is nobody to ask.
const NOBODY: Duration = Duration::from_secs(30);

/// Resolves the names of `wanted`, again and again, until `stop`. A name in another allocation than
/// before is a new one: nobody knows its addresses any more, however fresh they are.
pub async fn run(
    dns: Dns,
    wanted: watch::Receiver<Arc<[Arc<str>]>>,
    out: mpsc::Sender<Batch>,
    stop: CancellationToken,
) {
    let resolver = tokio::select! {
        () = stop.cancelled() => return,
        resolver = resolver(&dns) => resolver,
    };
    let begin = |name: &Arc<str>| {
        let from = Nodes { resolver: resolver.clone(), ipv6: dns.ipv6 };
        follow(from, dns.valid, name.clone(), out.clone())
    };
    each(wanted, stop.clone(), begin).await;
}

/// Asks for the addresses of nodes.
struct Nodes {
    resolver: Resolver,
    ipv6: bool,
}

impl Lookup for Nodes {
    async fn lookup(&self, name: &str) -> Result<Answer<IpAddr>, Failure> {
        self.resolver.addresses(name, self.ipv6).await
    }
}

/// A resolver, as soon as there is somebody to ask.
async fn resolver(dns: &Dns) -> Resolver {
    let settings = Settings {
        servers: &dns.servers,
        resolv_conf: Path::new(RESOLV_CONF),
        search: dns.search,
        hosts: true,
        timeout: dns.timeout,
    };
    let mut told = false;
    loop {
        match Resolver::new(&settings) {
            Ok(resolver) => return resolver,
            Err(error) if !told => {
                tracing::error!("host names of nodes cannot be resolved: {error}; set dns_resolver");
                told = true;
            }
            Err(_) => {}
        }
        sleep(NOBODY).await;
    }
}
