//! The control API: `/v1/…` as APISIX answers it (`apisix/control/v1.lua`, `control/router.lua`), made from
//! the present snapshot.
//!
//! Beside APISIX's pages there is `/v1/explain`. No page
//! changes anything.

use std::net::SocketAddr;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::admin::explain::{self, Facing, Question};
use crate::admin::healthcheck;
use crate::resource::{Key, Kind, shown};
use crate::session::Transport;
use crate::snapshot::Snapshot;
use crate::store::Written;

/// Routes that fell out and are listed one by one, where `others` does not say.
const OTHERS: usize = 10;

/// A request, apart from its method.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: String,
    /// It accepts HTML: a browser.
    pub(crate) html: bool,
}

/// What pages are made from.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) facing: &'a Facing,
    /// etcd's prefix; empty for a file.
    pub(crate) prefix: &'a str,
    /// `etcd` or `file`.
    pub(crate) source: &'static str,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) html: bool,
    pub(crate) body: String,
}

impl Page {
    fn json(status: StatusCode, value: &Value) -> Self {
        Self { status, html: false, body: format!("{value}\n") }
    }

    fn ok(value: &Value) -> Self {
        Self::json(StatusCode::OK, value)
    }

    /// APISIX's form of an error.
    fn error(status: StatusCode, why: &str) -> Self {
        Self::json(status, &json!({"error_msg": why}))
    }

    fn missing(why: &str) -> Self {
        Self::error(StatusCode::NOT_FOUND, why)
    }
}

/// Reports whether a path is one of the control API's.
pub(crate) fn is_known(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    if parts.next() != Some("v1") {
        return false;
    }
    let (Some(page), rest) = (parts.next(), parts.count()) else { return false };
    match page {
        "healthcheck" => rest <= 2,
        "explain" => rest == 0,
        _ => list_of(page).is_some() && rest == 0 || object_of(page).is_some() && rest == 1,
    }
}

/// What a page shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Subject {
    /// Routes of HTTP, of which there is none here.
    Http,
    /// Objects of this kind.
    Ours(Kind),
}

impl Subject {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Http => None,
            Self::Ours(kind) => Some(kind),
        }
    }
}

/// What a list shows.
fn list_of(page: &str) -> Option<Subject> {
    Some(match page {
        "routes" => Subject::Http,
        "services" => Subject::Ours(Kind::Service),
        "upstreams" => Subject::Ours(Kind::Upstream),
        "plugin_metadatas" => Subject::Ours(Kind::PluginMetadata),
        _ => return None,
    })
}

/// The same for one object, with the words of APISIX's errors.
fn object_of(page: &str) -> Option<(Subject, &'static str)> {
    Some(match page {
        "route" => (Subject::Http, "route"),
        "service" => (Subject::Ours(Kind::Service), "service"),
        "upstream" => (Subject::Ours(Kind::Upstream), "upstream"),
        "plugin_metadata" => (Subject::Ours(Kind::PluginMetadata), "plugin metadata"),
        _ => return None,
    })
}

impl Site<'_> {
    /// The page of a path that [`is_known`].
    pub(crate) fn answer(&self, request: &Request) -> Page {
        let mut parts = request.path.split('/').skip(2);
        let page = parts.next().unwrap_or_default();
        let ids: Vec<String> = parts.map(decoded).collect();
        match (page, ids.as_slice()) {
            ("healthcheck", []) => self.all_health(request.html),
            ("healthcheck", [kind, rest @ ..]) => self.health(kind, rest.first(), request.html),
            ("explain", []) => self.explain(&request.query),
            (page, []) => match list_of(page) {
                Some(subject) => self.list(subject.kind()),
                None => Page::missing("no such page"),
            },
            (page, [id, ..]) => match object_of(page) {
                Some((subject, word)) => self.object(subject.kind(), word, id),
                None => Page::missing("no such page"),
            },
        }
    }

    fn all_health(&self, html: bool) -> Page {
        let entries = healthcheck::entries(self.snapshot);
        let pages: Vec<Value> = entries.iter().map(|entry| healthcheck::page(entry, self.prefix)).collect();
        if html { table(&pages) } else { Page::ok(&healthcheck::list(pages)) }
    }

    fn health(&self, kind: &str, id: Option<&String>, html: bool) -> Page {
        let known = match kind {
            "routes" => None,
            "services" => Some(Kind::Service),
            "stream_routes" => Some(Kind::StreamRoute),
            "upstreams" => Some(Kind::Upstream),
            _ => {
                return Page::error(StatusCode::BAD_REQUEST, &format!("invalid src type {kind}"));
            }
        };
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            return Page::missing(&format!("missing src id for src type {kind}"));
        };
        let there = |key: &Key| match key.kind {
            Kind::StreamRoute => self.snapshot.route(&key.id).is_some(),
            _ => self.snapshot.written(key).is_some(),
        };
        let Some(key) = known.map(|kind| Key::new(kind, id.as_str())).filter(there) else {
            return Page::missing(&format!("{kind}[{id}] not found"));
        };
        let entries = healthcheck::entries(self.snapshot);
        match entries.iter().find(|entry| entry.key() == key) {
            Some(entry) if html => table(&[healthcheck::page(entry, self.prefix)]),
            Some(entry) => Page::ok(&healthcheck::page(entry, self.prefix)),
            None => Page::missing(&format!("no checker for {kind}[{id}]")),
        }
    }

    fn list(&self, kind: Option<Kind>) -> Page {
        let all = kind.map(|kind| self.snapshot.all_written(kind)).unwrap_or_default();
        let items = all.iter().filter_map(|(key, written)| self.item(key, written)).collect();
        Page::ok(&healthcheck::list(items))
    }

    fn object(&self, kind: Option<Kind>, word: &str, id: &str) -> Page {
        let key = kind.map(|kind| Key::new(kind, id));
        let item = key.and_then(|key| self.item(&key, self.snapshot.written(&key)?));
        match item {
            Some(item) => Page::ok(&item),
            None => Page::missing(&format!("{word}[{id}] not found")),
        }
    }

    /// An object as its page shows it. Metadata of plugins are their values alone.
    fn item(&self, key: &Key, written: &Written) -> Option<Value> {
        let stored_at = format!("{}/{key}", self.prefix);
        let shown = shown(key, &written.bytes, &stored_at, written.revision)?;
        Some(match key.kind {
            Kind::PluginMetadata => shown.value,
            _ => json!({
                "key": stored_at,
                "modifiedIndex": written.revision,
                "createdIndex": written.revision,
                "value": shown.value,
                "has_domain": shown.has_domain,
            }),
        })
    }

    fn explain(&self, query: &str) -> Page {
        let question = match question(query) {
            Ok(question) => question,
            Err(why) => return Page::error(StatusCode::BAD_REQUEST, &why),
        };
        let now = Instant::now().into_std();
        let answer = explain::explain(self.snapshot, self.facing, &question, self.source, now);
        match serde_json::to_value(&answer) {
            Ok(answer) => Page::ok(&answer),
            Err(error) => Page::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

fn table(pages: &[Value]) -> Page {
    Page { status: StatusCode::OK, html: true, body: healthcheck::html(pages) }
}

/// `client`, `server`, `sni`, `transport`, `tls`, `preread`, `var.NAME`, `others`; the error is a sentence.
fn question(query: &str) -> Result<Question, String> {
    let (mut client, mut server) = (None, None);
    let (mut transport, mut sni, mut tls, mut others) = (Transport::Tcp, None, false, OTHERS);
    let (mut preread, mut vars) = (Vec::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value);
        let refused = |allowed: &str| format!("{name} is {value:?}; {allowed} is allowed");
        match name {
            "client" => client = Some(endpoint(&value).ok_or_else(|| refused("IP or IP:PORT"))?),
            "server" => server = Some(value.parse().map_err(|_| refused("IP:PORT"))?),
            "sni" => sni = Some(value.clone()),
            "transport" => {
                transport = match &*value {
                    "tcp" => Transport::Tcp,
                    "udp" => Transport::Udp,
                    _ => return Err(refused("tcp or udp")),
                }
            }
            "tls" => tls = value.parse().map_err(|_| refused("true or false"))?,
            "others" => others = value.parse().map_err(|_| refused("a number"))?,
            "preread" => {
                preread = explain::from_hex(&value).ok_or_else(|| refused("an even number of hex digits"))?;
            }
            _ => {
                if let Some(variable) = name.strip_prefix("var.") {
                    vars.push((variable.to_owned(), value.clone()));
                    continue;
                }
                return Err(format!(
                    "{name} is unknown; known are client, server, sni, transport, tls, preread, var.NAME, others"
                ));
            }
        }
    }
    let missing = |name| format!("{name} is missing; ask such as ?client=10.0.0.1:5000&server=10.0.0.2:3306");
    let client = client.ok_or_else(|| missing("client"))?;
    let server = server.ok_or_else(|| missing("server"))?;
    Ok(Question { client, server, transport, sni, tls, preread, vars, others })
}

/// An address whose port may be left out.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let alone = || text.trim_matches(['[', ']']).parse().map(|ip| SocketAddr::new(ip, 0));
    text.parse().or_else(|_| alone()).ok()
}

/// Undoes percent-encoding (RFC 3986, section 2.1); what is none stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, tail @ ..] if *first == b'%' => {
                digit(*high).zip(digit(*low)).map(|pair| (pair, tail))
            }
            _ => None,
        };
        if let Some(((high, low), tail)) = escaped {
            bytes.push(high << 4 | low);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
pub(in crate::admin) mod tests;
