//! Questions to DNS servers: how they are asked, and what is an answer.
//!
//! Two kinds of bad news are told apart. That a name has no such records is an answer, [`Answer::Nothing`]: a
//! server said so of every name of the search list. Silence, SERVFAIL, REFUSED and the like are a [`Failure`]:
//! nobody knows anything then. Names are looked for as glibc does it: from `ndots` dots on as written first,
//! else along the search list first. No answer is cached here: who asks waits for the TTL.

mod failure;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::sync::Semaphore;

pub use failure::Failure;
use failure::{Known, known};

/// The file with the servers and the search list of the system.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Look-ups at one time: thousands of names at a start must not be thousands of sockets. Each takes up to eight
/// while servers are silent, for it asks two, again and again.
const AT_ONCE: [usize; 3] = [32, 32, 16];
/// Names whose last answer is known at most.
const MOST_NAMES: usize = 100_000;

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// The servers; empty: those of `resolv_conf`.
    pub servers: &'a [SocketAddr],
    /// Where the search list stands, and the servers where none are given.
    pub resolv_conf: &'a Path,
    /// The search list counts.
    pub search: bool,
    /// `/etc/hosts` is asked first, as it is now.
    pub hosts: bool,
    /// For one record type of one name.
    pub timeout: Duration,
}

/// What a server says of a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer<T> {
    /// There are records.
    Records {
        /// Their data, at least one.
        data: Vec<T>,
        /// The shortest time that any of them is good.
        ttl: Duration,
    },
    /// There are none.
    Nothing(Nothing),
}

/// Why a name has no records; shown to the operator as it stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Nothing {
    /// NXDOMAIN.
    #[error("the name does not exist (NXDOMAIN)")]
    NoName,
    /// NODATA.
    #[error("the name has no address")]
    NoRecords,
}

/// Asks servers. Clones share their sockets.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: TokioResolver,
    /// Each of several servers alone: an error that one of them answers is not that of all.
    each: Vec<TokioResolver>,
    /// As messages name them.
    servers: String,
    search: Vec<Name>,
    ndots: usize,
    hosts: Hosts,
    /// For names that nobody knows yet, that were answered the last time, and that nobody answered: the
    /// silence of some servers shall not hold up the names of others.
    slots: [Semaphore; 3],
    standing: Mutex<HashMap<Name, Standing>>,
}

/// What became of the last question for a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    New,
    Answered,
    Silent,
}

impl Resolver {
    /// Reads the files and is ready to ask; opens no socket. Fails where the servers are to come from a file
    /// that cannot be read or names none.
    pub fn new(settings: &Settings<'_>) -> Result<Self, Failure> {
        let file = settings.resolv_conf;
        let mut text = fs::read(file);
        if !settings.servers.is_empty() {
            // The file may then hold a search list alone, or not exist; what is read wants a server.
            text = Ok(text.unwrap_or_default()).map(|text| [&*text, b"\nnameserver 127.0.0.1\n"].concat());
        }
        let read = text.map_err(NetError::from).and_then(parse_resolv_conf);
        let options = read.as_ref().map(|(_, options)| options.clone()).unwrap_or_default();
        let search = read.as_ref().map(|(config, _)| config.search().to_vec()).unwrap_or_default();
        let servers = match (settings.servers, read) {
            ([], Ok((config, _))) => config.name_servers().to_vec(),
            ([], Err(error)) => {
                return Err(Failure::silent(format!(
                    "no DNS server is found in {}: {error}",
                    file.display()
                )));
            }
            (servers, _) => servers.iter().map(|server| name_server(*server)).collect(),
        };
        let options = adjusted(options, settings.timeout);
        let build = |servers: &[NameServerConfig]| {
            let config = ResolverConfig::from_name_servers(servers.to_vec());
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options.clone();
            builder.build().map_err(|error| Failure::silent(format!("DNS servers cannot be asked: {error}")))
        };
        let alone = if servers.len() > 1 { servers.chunks(1).map(build).collect() } else { Ok(Vec::new()) };
        let hosts = if settings.hosts { hosts() } else { Hosts::default() };
        Ok(Self(Arc::new(Inner {
            all: build(&servers)?,
            each: alone?,
            servers: servers.iter().map(shown).collect::<Vec<_>>().join(", "),
            search: if settings.search { search } else { Vec::new() },
            ndots: options.ndots,
            hosts,
            slots: AT_ONCE.map(Semaphore::new),
            standing: Mutex::default(),
        })))
    }

    /// The addresses of a name: what `/etc/hosts` says where it knows the name, else the servers' IPv4
    /// addresses, and IPv6 ones with `ipv6` and only where there is no IPv4 one
    /// (`apisix/core/resolver.lua:64-96`, `apisix/core/utils.lua:104`).
    pub async fn addresses(&self, name: &str, ipv6: bool) -> Result<Answer<IpAddr>, Failure> {
        const BOTH: [RecordType; 2] = [RecordType::A, RecordType::AAAA];
        let kinds = if ipv6 { BOTH.as_slice() } else { &[RecordType::A] };
        if let Some(known) = kinds.iter().find_map(|kind| self.known_host(name, *kind)) {
            return Ok(known);
        }
        Ok(addresses(self.first(name, kinds).await?))
    }

    /// Records of the first of these types that the name has any of.
    pub async fn first(&self, name: &str, kinds: &[RecordType]) -> Result<Answer<RData>, Failure> {
        let (mut nothing, mut failure) = (Nothing::NoName, None);
        for candidate in self.candidates(name) {
            for kind in kinds {
                match self.ask(&candidate, *kind).await {
                    Ok(Answer::Nothing(why)) => {
                        if why == Nothing::NoRecords {
                            nothing = why;
                        }
                    }
                    Ok(found) => return Ok(found),
                    // Who does not answer now would be waited for again.
                    Err(error) if error.is_silence() => return Err(error),
                    Err(error) => {
                        failure.get_or_insert(error);
                        // AAAA only where there is no A: that is not known now.
                        break;
                    }
                }
            }
        }
        failure.map_or(Ok(Answer::Nothing(nothing)), Err)
    }

    /// The names to ask for in turn, each from the root.
    fn candidates(&self, name: &str) -> Vec<Name> {
        let Ok(mut written) = Name::from_str_relaxed(name) else { return Vec::new() };
        if written.is_fqdn() {
            return vec![written];
        }
        let dots = name.matches('.').count();
        let mut all: Vec<Name> =
            self.0.search.iter().filter_map(|domain| written.clone().append_domain(domain).ok()).collect();
        written.set_fqdn(true);
        all.insert(if dots >= self.0.ndots { 0 } else { all.len() }, written);
        all
    }

    fn known_host(&self, name: &str, kind: RecordType) -> Option<Answer<IpAddr>> {
        let name = Name::from_str_relaxed(name.to_ascii_lowercase()).ok()?;
        let found = self.0.hosts.lookup_static_host(&Query::query(name, kind))?;
        let answer = records(found.answers().iter().map(|record| (record.ttl, &record.data)), kind);
        Some(addresses(answer)).filter(|answer| matches!(answer, Answer::Records { .. }))
    }

    /// One question. Where one of several servers answers with an error, the others are asked too.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Answer<RData>, Failure> {
        let [new, answered, silent] = &self.0.slots;
        let slots = match self.standing(name) {
            Standing::New => new,
            Standing::Answered => answered,
            Standing::Silent => silent,
        };
        // The semaphores are never closed.
        let _slot = slots.acquire().await;
        let mut asked = self.ask_of(&self.0.all, name, kind).await;
        for one in &self.0.each {
            if asked.as_ref().err().is_none_or(Failure::is_silence) {
                break;
            }
            let again = self.ask_of(one, name, kind).await;
            // A server that is down tells less than one that refused.
            if !again.as_ref().is_err_and(Failure::is_silence) {
                asked = again;
            }
        }
        let silent = asked.as_ref().is_err_and(Failure::is_silence);
        self.note(name, if silent { Standing::Silent } else { Standing::Answered });
        asked
    }

    fn standing(&self, name: &Name) -> Standing {
        let standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.get(name).copied().unwrap_or(Standing::New)
    }

    fn note(&self, name: &Name, now: Standing) {
        let mut standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        // Names that nobody asks for any more would add up.
        if standing.len() >= MOST_NAMES {
            standing.clear();
        }
        standing.insert(name.clone(), now);
    }

    async fn ask_of(
        &self,
        resolver: &TokioResolver,
        name: &Name,
        kind: RecordType,
    ) -> Result<Answer<RData>, Failure> {
        match resolver.lookup(name.clone(), kind).await {
            Ok(found) => Ok(records(found.answers().iter().map(|record| (record.ttl, &record.data)), kind)),
            Err(error) => match known(error, &self.0.servers) {
                Known::Nothing(why) => Ok(Answer::Nothing(why)),
                Known::Failure(failure) => Err(failure),
            },
        }
    }
}

fn addresses(answer: Answer<RData>) -> Answer<IpAddr> {
    match answer {
        Answer::Nothing(why) => Answer::Nothing(why),
        Answer::Records { data, ttl } => {
            Answer::Records { data: data.iter().filter_map(RData::ip_addr).collect(), ttl }
        }
    }
}

/// The records of one type. Those of a chain of aliases count for the TTL alone.
fn records<'a>(all: impl Iterator<Item = (u32, &'a RData)>, kind: RecordType) -> Answer<RData> {
    let (mut data, mut ttl) = (Vec::new(), u32::MAX);
    for (seconds, record) in all {
        ttl = ttl.min(seconds);
        if record.record_type() == kind {
            data.push(record.clone());
        }
    }
    if data.is_empty() {
        return Answer::Nothing(Nothing::NoRecords);
    }
    Answer::Records { data, ttl: Duration::from_secs(ttl.into()) }
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

fn shown(server: &NameServerConfig) -> String {
    let port = server.connections.first().map_or(53, |connection| connection.port);
    SocketAddr::new(server.ip, port).to_string()
}

fn adjusted(mut options: ResolverOpts, timeout: Duration) -> ResolverOpts {
    // A question is repeated once, so that a second pair of servers gets its turn.
    options.attempts = 1;
    options.timeout = timeout / 2;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0;
    // With the aliases an answer has the TTLs of all.
    options.preserve_intermediates = true;
    options
}

/// The hosts file of the system; without one no name is known.
fn hosts() -> Hosts {
    Hosts::from_system().unwrap_or_else(|error: io::Error| {
        tracing::warn!("/etc/hosts cannot be read: {error}; names are asked of DNS servers alone");
        Hosts::default()
    })
}

#[cfg(test)]
mod tests;
