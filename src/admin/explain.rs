//! Which route and node a session gets that comes now, and why: the answer of `GET /v1/explain`, from which
//! `streamgate explain` writes its text too.
//!
//! It is worked out on a snapshot without disturbing it: no balancer moves, nothing is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::admin::healthcheck::Why;
use crate::balance::{Pool, PoolNode};
use crate::config::Listen;
use crate::net::this_host::this_host;
use crate::plugin::{Given, Kept, MOST_FIRST_BYTES, Scene, judge};
use crate::resource::Kind;
use crate::session::{End, Inbound, Transport};
use crate::snapshot::{Route, Snapshot};
use crate::sni::hello::normalized;

/// What of the configuration meets a session before there is a route.
#[derive(Clone, Debug, Default)]
pub struct Facing {
    /// The listens, with their real addresses where they are open.
    pub listens: Vec<Listen>,
    /// `apisix.ssl.fallback_sni`.
    pub fallback_sni: Option<Box<str>>,
}

/// A session that could come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// The client; its port matters for few.
    pub client: SocketAddr,
    /// The local address it comes to.
    pub server: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// The TLS server name it sends, as it writes it.
    pub sni: Option<String>,
    /// It speaks TLS that ends here, also without a name and where no listen says so.
    pub tls: bool,
    /// The first bytes it sends, as far as plugins want to see them.
    pub preread: Vec<u8>,
    /// Variables that plugins shall see in place of the session's own.
    pub vars: Vec<(String, String)>,
    /// How many routes that fell out are listed one by one.
    pub others: usize,
}

/// Variables in place of the session's own.
#[derive(Debug)]
struct Vars<'a>(&'a [(String, String)]);

impl Given for Vars<'_> {
    fn variable(&self, name: &str) -> Option<Option<&str>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| Some(&**value))
    }
}

/// The answer. Members that say nothing are left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Answer {
    /// The revision of the objects; those of a file are sums of their content.
    pub revision: i64,
    /// Where the objects come from: `etcd` or `file`.
    pub source: String,
    /// What its listen does with it, where there is anything to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The certificate, where TLS ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl: Option<Certificate>,
    /// The route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Chosen>,
    /// Id of the service in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Id of the upstream, or of the object it is written in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// How its nodes are chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The node, `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many nodes there are.
    pub nodes: usize,
    /// What the plugins of the route say, in the order they run; from the first that refuses it on none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<Voice>,
    /// The plugin that refuses it, or needs more of its first bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// What the plugin refuses it with: `code` of `apisix_stream_status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Seconds that plugins let it wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<f64>,
    /// How it ends where it gets no node: the `end` of metrics and logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Why, as a sentence; without `end`, why there is no node yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Sentences about what the route asks for and does not get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
    /// Routes that lost, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Other>,
    /// Those for which there was no room, counted by reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rest: Vec<String>,
    /// Objects that are not served as they were written last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Refused>,
    /// What health checks say of each node; empty where the upstream has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<Health>,
    /// The names of the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// A certificate for a session.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Certificate {
    /// Id of its object; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The server name it is looked up by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The client has to show one, too.
    pub verifies_clients: bool,
}

/// A route.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Chosen {
    /// Its id.
    pub id: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The revision that serves.
    pub revision: i64,
}

/// What one plugin says of the session.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Voice {
    /// Its name.
    pub plugin: String,
    /// A sentence.
    pub says: String,
}

/// A route that lost.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Other {
    /// Its id.
    pub route: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What kept it from winning.
    pub why: String,
}

/// An object that is not served as it was written last.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Refused {
    /// Its key, such as `stream_routes/7`.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// What health checks say of a node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Health {
    /// `host:port`, as in [`Answer::node`].
    pub node: String,
    /// `healthy`, `mostly_healthy`, `unhealthy`, `mostly_unhealthy`.
    pub status: String,
    /// Since when, RFC 3339; absent where nothing has changed it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// `active`, `passive`, `back_off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// A sentence.
    pub why: String,
}

/// The names of an upstream.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Dns {
    /// Those that have an answer.
    pub names: Vec<Resolved>,
    /// Those that still have none.
    pub pending: Vec<String>,
}

/// A name with its addresses.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Resolved {
    /// As written.
    pub name: String,
    /// None: it does not exist.
    pub addresses: Vec<String>,
}

/// The bytes that hexadecimal digits stand for; `None` where the text is something else.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    let pair = |pair: &[u8]| pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    Some(digits.chunks_exact(2).map(pair).collect())
}

/// Works the answer out. `source` is where the objects come from: `etcd` or `file`.
#[must_use]
pub fn explain(
    snapshot: &Snapshot,
    facing: &Facing,
    question: &Question,
    source: &str,
    now: Instant,
) -> Answer {
    let mut inbound = Inbound::new(question.transport, question.client, question.server);
    let tls = question.tls || question.sni.is_some();
    let fallback = facing.fallback_sni.as_deref().filter(|_| tls);
    inbound.sni = question.sni.as_deref().or(fallback).and_then(server_name);
    let mut answer = Answer { revision: snapshot.revision, source: source.into(), ..Answer::default() };
    let asked = Asked { snapshot, question, tls };
    if asked.arrives(facing, &mut inbound, &mut answer) {
        asked.route(&inbound, now, &mut answer);
    }
    let told = |kind| kind == Kind::StreamRoute || kind == Kind::Ssl && tls;
    let refused = snapshot.rejected().into_iter().filter(|refused| told(refused.key.kind));
    let refused = refused
        .map(|refused| Refused { object: refused.key.to_string(), reason: refused.reason.to_string() });
    answer.rejected = refused.collect();
    answer
}

/// A server name as routes see it: lower case, without its final dot; none where it is empty.
fn server_name(text: &str) -> Option<Arc<str>> {
    let name = normalized(text);
    (!name.is_empty()).then(|| name.into())
}

struct Asked<'a> {
    snapshot: &'a Snapshot,
    question: &'a Question,
    /// The client speaks TLS.
    tls: bool,
}

impl Asked<'_> {
    /// What its listen does with the session before there is a route; false where that is its end.
    fn arrives(&self, facing: &Facing, inbound: &mut Inbound, answer: &mut Answer) -> bool {
        let Some(listen) = facing.listens.iter().find(|listen| takes(listen, inbound)) else {
            let (transport, server) = (inbound.transport.label(), inbound.server);
            answer.listen = Some(format!("none of config.yaml is {transport} {server}"));
            return !self.question.tls || self.certificate(inbound.sni.as_deref(), answer);
        };
        let written = &listen.written;
        if inbound.transport == Transport::Udp {
            return true;
        }
        if !listen.tls && !listen.tls_passthrough {
            if self.tls {
                answer.listen =
                    Some(format!("{written} does not look at TLS: the server name does not count"));
                inbound.sni = None;
            }
            return true;
        }
        if !self.tls {
            if !listen.tls_passthrough {
                answer.listen = Some(format!(
                    "{written} ends TLS: a client without it is closed (tls_failed); ask with --tls"
                ));
                ends(answer, End::TlsFailed, "the listen ends TLS, and the client does not speak it".into());
            }
            return listen.tls_passthrough;
        }
        let route = self.snapshot.find(inbound);
        let passed = !listen.tls || route.is_some_and(|route| route.tls_passthrough);
        if listen.tls_passthrough && passed {
            answer.listen = Some(format!("{written} passes its TLS through"));
            return true;
        }
        self.certificate(inbound.sni.as_deref(), answer)
    }

    /// The certificate that a TLS client gets where TLS is ended; false where there is none.
    fn certificate(&self, name: Option<&str>, answer: &mut Answer) -> bool {
        let Some(name) = name else {
            answer.ssl = Some(Certificate::default());
            let why = "the client names no server and apisix.ssl.fallback_sni is not set";
            ends(answer, End::TlsNoSni, why.into());
            return false;
        };
        let found = self.snapshot.certificates().find(name);
        answer.ssl = Some(Certificate {
            id: found.map(|served| served.id.to_string()),
            name: Some(name.into()),
            verifies_clients: found.is_some_and(|served| served.verifies_clients),
        });
        if found.is_none() {
            ends(answer, End::TlsNoCertificate, format!("no ssl has a certificate for {name}"));
        }
        found.is_some()
    }

    fn route(&self, inbound: &Inbound, now: Instant, answer: &mut Answer) {
        let explanation = self.snapshot.explain(inbound, self.question.others);
        match explanation.winner {
            Some((_, route)) => self.winner(route, inbound, now, answer),
            None => ends(answer, End::NoRoute, "no stream_route matches".into()),
        }
        let owned = |name: &Arc<str>| name.to_string();
        let others = explanation.others.iter().map(|other| Other {
            route: other.value.id.to_string(),
            name: other.value.name.as_ref().map(owned),
            why: other.why.to_string(),
        });
        answer.others = others.collect();
        answer.rest = explanation.rest.iter().map(ToString::to_string).collect();
    }

    fn winner(&self, route: &Route, inbound: &Inbound, now: Instant, answer: &mut Answer) {
        answer.route = Some(Chosen {
            id: route.id.to_string(),
            name: route.name.as_ref().map(ToString::to_string),
            revision: route.revision,
        });
        answer.service = route.service.as_ref().map(ToString::to_string);
        answer.degraded = route.degraded.to_vec();
        let (mut inbound, mut kept) = (inbound.clone(), Kept::default());
        if !self.passes(route, now, (&mut inbound, &mut kept), answer) {
            return;
        }
        // What is told counts for the hash, too.
        let told = self.question.vars.iter().find(|(name, _)| name == "mqtt_client_id");
        if let Some((_, id)) = told {
            inbound.mqtt_client_id = Some(id.as_str().into());
        }
        let pool = match &kept.choice {
            None => self.snapshot.pool(&route.target),
            Some(choice) => self.snapshot.chosen(choice),
        };
        match pool {
            Err((end, why)) => ends(answer, end, why),
            Ok(pool) => node(pool, &inbound, now, answer),
        }
    }

    /// What the plugins of its route say; false where that is its end, or more has to be told first.
    fn passes(
        &self,
        route: &Route,
        now: Instant,
        (inbound, kept): (&mut Inbound, &mut Kept),
        answer: &mut Answer,
    ) -> bool {
        let vars = Vars(&self.question.vars);
        let mut scene = Scene {
            inbound,
            route: route.facts(),
            host: &this_host(),
            first: &self.question.preread,
            now,
            time: SystemTime::now(),
            kept,
            given: Some(&vars),
            preview: true,
        };
        let verdict = judge(&route.plugins, &mut scene);
        let voices = verdict.said.into_iter();
        answer.plugins = voices.map(|said| Voice { plugin: said.plugin.into(), says: said.text }).collect();
        answer.delay = Some(verdict.delay.as_secs_f64()).filter(|delay| *delay > 0.0);
        if let Some((denied, why)) = verdict.refused {
            (answer.plugin, answer.code) = (Some(denied.plugin.into()), Some(denied.code));
            ends(answer, End::PluginDenied, why);
            return false;
        }
        let Some(wanted) = verdict.wants else { return true };
        answer.plugin = answer.plugins.last().map(|voice| voice.plugin.clone());
        let who = answer.plugin.clone().unwrap_or_default();
        if wanted > MOST_FIRST_BYTES {
            let why = format!("{who} needs the first {wanted} bytes; it may see {MOST_FIRST_BYTES}");
            ends(answer, End::PrereadOverflow, why);
            return false;
        }
        answer.reason = Some(format!(
            "{who} looks at the first {wanted} bytes of the client before it decides; tell them in hexadecimal (preread)"
        ));
        false
    }
}

/// Reports whether the session comes to this listen.
fn takes(listen: &Listen, inbound: &Inbound) -> bool {
    let (addr, server) = (listen.addr, inbound.server);
    let any = addr.ip().is_unspecified() && addr.is_ipv4() == server.is_ipv4();
    listen.transport == inbound.transport && addr.port() == server.port() && (any || addr.ip() == server.ip())
}

fn node(pool: &Pool, inbound: &Inbound, now: Instant, answer: &mut Answer) {
    answer.upstream = Some(pool.id.to_string());
    answer.method = Some(pool.method().into());
    answer.nodes = pool.nodes().len();
    answer.health = pool.nodes().iter().filter_map(health).collect();
    answer.dns = (!pool.names().is_empty()).then(|| dns(pool));
    match (pool.preview(inbound, now), &pool.settings.unfit) {
        (_, Some(why)) => ends(answer, End::UpstreamTls, why.to_string()),
        (Some(node), None) => answer.node = Some(node.label.to_string()),
        // There is no end to tell of yet.
        (None, None) if pool.settings.pending => {
            let why = format!("{}; sessions wait for that, the connect timeout at most", pool.why_empty());
            answer.reason = Some(why);
        }
        (None, None) => ends(answer, End::NoNode, pool.why_empty()),
    }
}

fn health(node: &PoolNode) -> Option<Health> {
    let cell = node.health.as_ref()?;
    let Why { since, by, sentence } = Why::of(cell);
    Some(Health {
        node: node.label.to_string(),
        status: cell.standing().state.label().into(),
        since,
        by: by.map(Into::into),
        why: sentence,
    })
}

fn dns(pool: &Pool) -> Dns {
    let mut dns = Dns::default();
    for named in pool.names() {
        let name = named.name.to_string();
        match &named.addresses {
            Some(addresses) => {
                let addresses = addresses.iter().map(ToString::to_string).collect();
                dns.names.push(Resolved { name, addresses });
            }
            None => dns.pending.push(name),
        }
    }
    dns
}

fn ends(answer: &mut Answer, end: End, why: String) {
    answer.end = Some(end.label().into());
    answer.reason = Some(why);
}
