//! Host names of nodes to addresses, in the background.
//!
//! Names come from the present snapshot; answers go back as events. No session waits for a lookup
//! once a name is known: the last good answer serves while a resolver fails. `/etc/hosts` first,
//! then the servers of `dns_resolver`; A, and AAAA only where there is no A (APISIX's order,
//! `apisix/core/utils.lua:104`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::Dns;
use crate::store::{Batch, Event};

/// An answer is never asked for again sooner, whatever its TTL says.
const SHORTEST: Duration = Duration::from_secs(1);
/// Nor trusted longer: a zone may be edited under a long TTL.
const LONGEST: Duration = Duration::from_hours(1);
/// How long to wait after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Resolves the names of `wanted`, again and again, until `stop`. A name in another allocation than
/// before is a new one: nobody knows its addresses any more, however fresh they are.
pub async fn run(
    dns: Dns,
    mut wanted: watch::Receiver<Arc<[Arc<str>]>>,
    out: mpsc::Sender<Batch>,
    stop: CancellationToken,
) {
    let resolver = match resolver(&dns) {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::error!(
                "host names of nodes cannot be resolved: {error}; check dns_resolver and /etc/resolv.conf"
            );
            return;
        }
    };
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Arc<str>, AbortHandle> = HashMap::new();
    loop {
        let names = wanted.borrow_and_update().clone();
        let present: HashMap<&str, &Arc<str>> = names.iter().map(|name| (&**name, name)).collect();
        running.retain(|name, task| {
            let keep = present.get(&**name).is_some_and(|now| Arc::ptr_eq(now, name));
            if !keep {
                task.abort();
            }
            keep
        });
        for name in names.iter() {
            if !running.contains_key(name) {
                let task = follow(resolver.clone(), dns.valid, name.clone(), out.clone());
                running.insert(name.clone(), tasks.spawn(task));
            }
        }
        // A task that was ended keeps its memory until it is joined.
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Keeps one name resolved.
async fn follow(resolver: TokioResolver, valid: Option<Duration>, name: Arc<str>, out: mpsc::Sender<Batch>) {
    let mut known = false;
    let mut failing = false;
    loop {
        let again = match resolver.lookup_ip(&*name).await {
            Ok(answer) => {
                let addresses = sorted(answer.iter());
                let left = answer.valid_until().saturating_duration_since(Instant::now().into_std());
                let ttl = valid.unwrap_or(left).clamp(SHORTEST, LONGEST);
                if failing {
                    tracing::info!(name = &*name, "{name} resolves again");
                }
                (known, failing) = (true, false);
                if publish(&out, &name, addresses, ttl).await.is_err() {
                    return;
                }
                ttl
            }
            Err(error) => {
                if !failing {
                    report(&name, &error, known);
                }
                failing = true;
                // The name does not exist and never did: its sessions need not wait any longer.
                if !known && publish(&out, &name, Vec::new(), AFTER_FAILURE).await.is_err() {
                    return;
                }
                AFTER_FAILURE
            }
        };
        sleep(again).await;
    }
}

async fn publish(
    out: &mpsc::Sender<Batch>,
    name: &Arc<str>,
    addresses: Vec<IpAddr>,
    ttl: Duration,
) -> Result<(), mpsc::error::SendError<Batch>> {
    let event = Event::Addresses { name: name.clone(), addresses: addresses.into(), ttl };
    out.send(Batch { events: vec![event], revision: 0 }).await
}

fn report(name: &str, error: &NetError, known: bool) {
    let serving = if known { "its last addresses keep serving" } else { "nodes of this name are left out" };
    tracing::warn!(name, "{name} does not resolve: {error}; {serving}");
}

/// Sorted, so that a rotated answer is no change.
fn sorted(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn resolver(dns: &Dns) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = if dns.servers.is_empty() {
        TokioResolver::builder(provider)?
    } else {
        let servers = dns.servers.iter().map(|server| {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            config
        });
        // The search list is the system's, whoever answers.
        let mut config = ResolverConfig::from_name_servers(servers.collect());
        if let Ok((system, _)) = hickory_resolver::system_conf::read_system_conf() {
            system.search().iter().for_each(|domain| config.add_search(domain.clone()));
        }
        TokioResolver::builder_with_config(config, provider)
    };
    adjust(builder.options_mut(), dns);
    builder.build()
}

fn adjust(options: &mut ResolverOpts, dns: &Dns) {
    options.timeout = dns.timeout;
    options.use_hosts_file = ResolveHosts::Always;
    // Each task waits for the TTL itself.
    options.cache_size = 0;
    options.ip_strategy = if dns.ipv6 { LookupIpStrategy::Ipv4thenIpv6 } else { LookupIpStrategy::Ipv4Only };
    if !dns.search {
        options.ndots = 0;
    }
}
