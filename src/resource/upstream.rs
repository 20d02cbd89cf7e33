//! upstreams: `/upstreams` objects and those written inside others (`apisix/upstream.lua:454`).

mod checks;
mod nodes;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::document::{Document, is_reference};
use super::rules::{Notes, Rejection, Rules};
use super::{Balancer, Discovery, HashKey, Identity, Scheme, Timeouts, Upstream, UpstreamTls, pem};
use crate::config::Extensions;

pub use checks::{ActiveCheck, CheckKind, Checks, HttpCheck};
pub(super) use nodes::port;

/// nginx keeps time limits in milliseconds of a 32-bit integer.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// Reads an `/upstreams` object, with the checks that only those get.
pub(super) fn parse(
    rules: &Rules,
    id: &Arc<str>,
    mut value: Value,
    notes: &mut Notes,
) -> Result<Upstream, Rejection> {
    rules.schemas.upstream.check(&mut value, "")?;
    let mut fields = Document::from(value);
    let tls = match fields.take("tls") {
        Some(tls) => Some(checked_tls(rules, &Document::from(tls), fields.text("scheme"), notes)?),
        None => None,
    };
    check_hash_key(&fields)?;
    let mut upstream = build(rules, fields, &format!("upstream {id}"), notes);
    upstream.id = Arc::clone(id);
    upstream.tls = tls;
    Ok(upstream)
}

/// Reads one written inside a route, a service or a plugin, where APISIX checks the schema alone.
pub(super) fn inline(rules: &Rules, mut fields: Document, owner: &str, notes: &mut Notes) -> Upstream {
    let tls = fields.take("tls").map(Document::from).map(|tls| {
        let read = identity(rules, &tls)
            .and_then(|read| read.transpose().map_err(|why| format!("/client_cert: {why}")));
        let identity = read.unwrap_or_else(|why| {
            let why = format!("{owner}: /tls{why}; nodes are dialled without a client certificate");
            notes.differs("SG-013", why);
            None
        });
        UpstreamTls { client_cert_id: tls.id("client_cert_id"), identity }
    });
    if let Err(why) = check_hash_key(&fields) {
        notes.warn(format!("{owner}: {why} (accepted inside another object); the client address is hashed"));
    }
    Upstream { tls, ..build(rules, fields, owner, notes) }
}

fn build(rules: &Rules, mut fields: Document, owner: &str, notes: &mut Notes) -> Upstream {
    let checks = fields.take("checks").map(|mut checks| {
        rules.schemas.checks.fill(&mut checks);
        let rewritten = fields.text("pass_host") == Some("rewrite");
        let host_header = fields.boxed("upstream_host").filter(|_| rewritten);
        Arc::new(checks::read(checks.into(), host_header, owner, notes))
    });
    let timeout = fields.take("timeout").map(Document::from).map(|timeout| {
        let limit = |name| seconds(timeout.number(name).unwrap_or(60.0));
        Timeouts { connect: limit("connect"), idle: limit("send").max(limit("read")) }
    });
    let discovery = discovery(&mut fields);
    let extensions = extensions(&fields.nested("labels").into_fields(), owner, notes);
    Upstream {
        id: "".into(),
        name: fields.boxed("name"),
        nodes: fields.take("nodes").map(|nodes| nodes::parse(nodes, owner, notes)).unwrap_or_default(),
        discovery,
        balancer: balancer(&fields, owner, notes),
        retries: fields.number("retries").map(clamped),
        retry_timeout: fields.number("retry_timeout").filter(|limit| *limit > 0.0).map(seconds),
        timeout,
        scheme: if fields.text("scheme") == Some("tls") { Scheme::Tls } else { Scheme::Plain },
        tls: None,
        checks,
        extensions,
    }
}

fn discovery(fields: &mut Document) -> Option<Arc<Discovery>> {
    let (kind, service_name) = fields.boxed("discovery_type").zip(fields.boxed("service_name"))?;
    let arguments = fields.nested("discovery_args");
    Some(Arc::new(Discovery {
        kind,
        service_name,
        namespace_id: arguments.boxed("namespace_id"),
        group_name: arguments.boxed("group_name"),
    }))
}

/// What labels that begin with `streamgate/` switch on; plain APISIX reads none of them.
fn extensions(
    labels: &serde_json::Map<String, Value>,
    owner: &str,
    notes: &mut Notes,
) -> Option<Box<Extensions>> {
    let mut extensions = Extensions::default();
    for (label, value) in labels {
        let Some(name) = label.strip_prefix("streamgate/") else { continue };
        if let Err(why) = extensions.set(name, value.as_str().unwrap_or_default()) {
            notes.warn(format!("{owner}: label {label}: {why}; it has no effect"));
        }
    }
    (extensions != Extensions::default()).then(|| Box::new(extensions))
}

/// A limit in seconds; longer ones than nginx can hold are cut, shorter ones than 1 ms raised.
fn seconds(limit: f64) -> Duration {
    Duration::try_from_secs_f64(limit).unwrap_or(LONGEST).clamp(Duration::from_millis(1), LONGEST)
}

/// A whole number that a schema bounds below by 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, as wanted here")]
pub(super) fn clamped(number: f64) -> u32 {
    number as u32
}

fn balancer(fields: &Document, owner: &str, notes: &mut Notes) -> Balancer {
    match fields.text("type").unwrap_or("roundrobin") {
        "roundrobin" => Balancer::RoundRobin,
        "chash" => Balancer::Chash(hash_key(fields, owner, notes)),
        "least_conn" => Balancer::LeastConn,
        "ewma" => Balancer::Ewma,
        other => {
            let why = format!(
                "{owner}: type {other:?} is no balancer (there are roundrobin, chash, least_conn, ewma); nodes take \
                 turns, where APISIX fails each session"
            );
            notes.differs("SG-005", why);
            Balancer::Unknown(other.into())
        }
    }
}

fn hash_key(fields: &Document, owner: &str, notes: &mut Notes) -> HashKey {
    match (fields.text("hash_on").unwrap_or("vars"), fields.boxed("key")) {
        ("vars", Some(key)) => HashKey::Variable(key),
        ("vars_combinations", Some(key)) => HashKey::Template(key),
        (hash_on @ ("header" | "cookie" | "consumer"), _) => {
            notes.warn(format!(
                "{owner}: hash_on {hash_on} names something no stream has; the client address is hashed (as in APISIX)"
            ));
            HashKey::Nothing
        }
        _ => HashKey::Nothing,
    }
}

/// `apisix/upstream.lua:429`, with the patterns of `schema_def.lua:548`.
fn check_hash_key(fields: &Document) -> Result<(), String> {
    let hash_on = fields.text("hash_on").unwrap_or("vars");
    if fields.text("type") != Some("chash") || hash_on == "consumer" {
        return Ok(());
    }
    let Some(key) = fields.text("key") else {
        return Err("the value lacks `key`: chash needs what to hash, such as \"remote_addr\"".into());
    };
    let text = key.strip_suffix('\n').unwrap_or(key);
    let fine = match hash_on {
        _ if is_reference(key) => true,
        "vars" => is_hash_variable(text),
        "header" | "cookie" => !text.is_empty() && text.bytes().all(is_name_byte),
        "vars_combinations" => true,
        other => return Err(format!("/hash_on is {other:?}, which nothing resolves")),
    };
    if fine {
        return Ok(());
    }
    let wanted = match hash_on {
        "vars" => {
            "one of remote_addr, remote_port, server_addr, server_name, hostname, mqtt_client_id, or arg_ and a name; \
             for others set hash_on to vars_combinations and write `$name`"
        }
        _ => "letters, digits, `-` and `_`",
    };
    Err(format!("/key is {key:?}; with hash_on {hash_on}, {wanted} is allowed"))
}

fn is_hash_variable(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "uri",
        "server_name",
        "server_addr",
        "request_uri",
        "remote_port",
        "remote_addr",
        "query_string",
        "host",
        "hostname",
        "mqtt_client_id",
    ];
    let argument = name.strip_prefix("arg_");
    // The class is written `A-z` there, which takes in what stands between `Z` and `a`.
    let wide = |byte: u8| is_name_byte(byte) || matches!(byte, b'['..=b'`');
    NAMES.contains(&name) || argument.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(wide))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The pair has to parse; what parses and cannot be shown to nodes matters where TLS is spoken.
fn checked_tls(
    rules: &Rules,
    tls: &Document,
    scheme: Option<&str>,
    notes: &mut Notes,
) -> Result<UpstreamTls, Rejection> {
    let identity = match identity(rules, tls).map_err(|why| format!("/tls{why}"))? {
        Some(Ok(identity)) => Some(identity),
        Some(Err(why)) if scheme == Some("tls") => {
            notes.unusable(Some("SG-006"), format!("/tls/client_cert: {why}"));
            None
        }
        _ => None,
    };
    Ok(UpstreamTls { client_cert_id: tls.id("client_cert_id"), identity })
}

/// The certificate and key, where both are there. The outer error is that they do not parse, and reads
/// on after `/tls`; the inner one, that this program cannot sign with them.
fn identity(rules: &Rules, tls: &Document) -> Result<Option<Result<Identity, String>>, String> {
    let (Some(cert), Some(key)) = (tls.text("client_cert"), tls.text("client_key")) else { return Ok(None) };
    let chain = pem::certificates(cert).map_err(|error| format!("/client_cert {error}"))?;
    let key = pem::stored_key(&rules.keyring, key).map_err(|error| format!("/client_key {error}"))?;
    Ok(Some(Identity::new(chain, &key)))
}
