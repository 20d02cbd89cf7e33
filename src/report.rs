//! Lines about ended sessions to those who collect them: what the syslog plugin of a route asks for.
//!
//! Workers hand on the sessions of such routes by a bounded channel and never wait. Here each becomes its
//! lines, and each line goes to the outlet of its server, which has a task, a connection and bounds of its
//! own: a server that is dead or slow costs nobody else anything. Configurations that differ in their
//! `log_format` alone share an outlet. One that no configuration asks for any more sends what it has and ends.

mod connection;
mod outlet;
mod outlets;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::outlets::Outlets;
use crate::config::Dns;
use crate::live::NodeCounters;
use crate::net::clock::{rfc3339_ms, unix_ms};
use crate::net::dns::{Failure, RESOLV_CONF, Resolver, Settings};
use crate::net::trust::Trust;
use crate::plugin::Plugin;
use crate::plugin::syslog::{self, Metadata, Syslog};
use crate::session::Host;
use crate::snapshot::{Ended, Published};

/// Sessions that are looked at together.
const TOGETHER: usize = 512;
/// How long sessions gather before they are looked at: a worker that hands one on must not have to wake
/// another thread each time.
const GATHER: Duration = Duration::from_millis(10);
/// How often outlets are looked for that nobody asks for any more.
const SWEEP: Duration = Duration::from_secs(10);
/// Routes without a `log_format` that are complained of.
const MOST_TOLD: usize = 100;
/// The name of the plugin, which its metadata goes by.
const PLUGIN: &str = "syslog";

/// What lines are made and sent with.
#[derive(Debug)]
pub struct Means {
    /// The snapshots: the metadata of plugins is in them.
    pub published: Published,
    /// Where lines are counted.
    pub node: Arc<NodeCounters>,
    /// This process.
    pub host: Arc<Host>,
    /// Who knows the addresses of servers.
    pub dns: Dns,
    /// Whom lines are sent to by TLS.
    pub trust: Trust,
}

/// Makes and sends lines of `ended` until its senders are gone and what was taken is sent or given up; `stop`
/// ends it at once.
pub async fn run(means: Means, mut ended: mpsc::Receiver<Arc<Ended>>, stop: CancellationToken) {
    let Means { published, node, host, dns, trust } = means;
    let names = Names { dns, resolver: Mutex::default() };
    let outlets = Outlets::new(Arc::new(Way { names, trust, node: node.clone() }));
    let mut reporter =
        Reporter { published, node, host, outlets, metadata: Known::default(), line: String::new() };
    let mut taken = Vec::with_capacity(TOGETHER);
    let mut sweep = Instant::now() + SWEEP;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            count = ended.recv_many(&mut taken, TOGETHER) => if count == 0 { break },
            () = sleep_until(sweep), if !reporter.outlets.is_empty() => {}
        }
        reporter.report(&mut taken);
        if Instant::now() >= sweep {
            sweep = Instant::now() + SWEEP;
            reporter.outlets.sweep(Instant::now());
        }
        if ended.len() < TOGETHER {
            sleep(GATHER).await;
        }
    }
    tokio::select! {
        () = stop.cancelled() => {}
        () = reporter.outlets.finish() => {}
    }
}

/// What all outlets share.
#[derive(Debug)]
struct Way {
    names: Names,
    trust: Trust,
    node: Arc<NodeCounters>,
}

/// Addresses of servers.
#[derive(Debug)]
struct Names {
    dns: Dns,
    /// Made for the first server that has a name.
    resolver: Mutex<Option<Resolver>>,
}

impl Names {
    /// Who to ask. What is wrong with the files is told each time, as they may be mended.
    async fn resolver(&self) -> Result<Resolver, Failure> {
        let mut resolver = self.resolver.lock().await;
        if let Some(resolver) = &*resolver {
            return Ok(resolver.clone());
        }
        let settings = Settings {
            servers: &self.dns.servers,
            resolv_conf: Path::new(RESOLV_CONF),
            search: self.dns.search,
            hosts: true,
            timeout: self.dns.timeout,
        };
        Ok(resolver.insert(Resolver::new(&settings)?).clone())
    }
}

/// The metadata of the plugin as it was seen last.
#[derive(Debug, Default)]
struct Known {
    seen: Option<Arc<Value>>,
    read: Metadata,
    /// Routes that were complained of since.
    told: HashSet<Arc<str>>,
}

impl Known {
    /// Takes in what is published now; an edit counts from the next line on.
    fn follow(&mut self, now: Option<&Arc<Value>>) {
        let same = match (&self.seen, now) {
            (Some(seen), Some(now)) => Arc::ptr_eq(seen, now),
            (seen, now) => seen.is_none() && now.is_none(),
        };
        if same {
            return;
        }
        self.read = now.map(|now| Metadata::new(now)).unwrap_or_default();
        self.seen = now.cloned();
        self.told.clear();
        for problem in &self.read.problems {
            tracing::warn!("plugin_metadata/{PLUGIN}: {problem}; it does not count");
        }
    }

    /// Says once that nothing is sent for a route.
    fn complain(&mut self, route: &Arc<str>) {
        if self.told.len() < MOST_TOLD && self.told.insert(route.clone()) {
            tracing::error!(
                route = &**route,
                "stream_routes/{route}: plugin syslog has no log_format and sends nothing; give it one, or write it \
                 to plugin_metadata/{PLUGIN}"
            );
        }
    }
}

struct Reporter {
    published: Published,
    node: Arc<NodeCounters>,
    host: Arc<Host>,
    outlets: Outlets,
    metadata: Known,
    /// Room for a line.
    line: String,
}

impl Reporter {
    fn report(&mut self, ended: &mut Vec<Arc<Ended>>) {
        if ended.is_empty() {
            return;
        }
        self.metadata.follow(self.published.load().plugin_metadata(PLUGIN));
        self.outlets.bound(self.metadata.read.pending);
        let time = rfc3339_ms(unix_ms());
        for ended in ended.drain(..) {
            self.lines(&ended, &time);
        }
    }

    /// The lines of one session.
    fn lines(&mut self, ended: &Ended, time: &str) {
        let Some(route) = &ended.route else { return };
        let variable = |name: &str| ended.variable(name, &self.host);
        for armed in route.plugins.reporting() {
            let Plugin::Syslog(Syslog { settings, format }) = &armed.plugin else { continue };
            if !armed.applies(&variable) {
                continue;
            }
            let Some(format) = format.as_ref().or(self.metadata.read.format.as_ref()) else {
                self.node.lines.unformatted.add_one();
                self.metadata.complain(&route.id);
                continue;
            };
            self.line.clear();
            syslog::header(&mut self.line, time, self.host.pid);
            format.render(&mut self.line, &route.id, &variable);
            self.line.push('\n');
            self.outlets.push(settings, self.line.as_bytes());
        }
    }
}
