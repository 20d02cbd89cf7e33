//! stream_routes (`apisix/stream/router/ip_port.lua:206`).

use std::sync::Arc;

use serde_json::Value;

use super::document::{Document, is_reference};
use super::plugins::{self, Owner};
use super::rules::{Notes, Rejection, Rules};
use super::{Protocol, StreamRoute, upstream};
use crate::addr::IpMatcher;
use crate::sni::SniPattern;

pub(super) fn parse(
    rules: &Rules,
    id: &Arc<str>,
    mut value: Value,
    notes: &mut Notes,
) -> Result<StreamRoute, Rejection> {
    rules.schemas.stream_route.check(&mut value, "")?;
    let mut fields = Document::from(value);
    let plugins = plugins::parse(rules, fields.nested("plugins").into_fields(), Owner::StreamRoute, notes)?;
    let remote_addr = address(&fields, "remote_addr", notes)?;
    let server_addr = address(&fields, "server_addr", notes)?;
    let protocol = match fields.take("protocol") {
        Some(protocol) => Some(xrpc(rules, Document::from(protocol))?),
        None => None,
    };
    let inline = fields.take("upstream");
    let owner = format!("the upstream of stream_route {id}");
    Ok(StreamRoute {
        id: Arc::clone(id),
        name: fields.boxed("name"),
        create_time: fields.number("create_time").map(seconds),
        remote_addr,
        server_addr,
        server_port: fields.number("server_port").and_then(upstream::port),
        snis: snis(&fields, notes),
        tls_passthrough: fields.truth("tls_passthrough"),
        upstream: inline.map(|inline| Arc::new(upstream::inline(rules, inline.into(), &owner, notes))),
        upstream_id: fields.id("upstream_id"),
        service_id: fields.id("service_id"),
        plugins,
        protocol,
    })
}

/// Whole seconds since 1970.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, as wanted here")]
fn seconds(number: f64) -> i64 {
    number as i64
}

/// The schema lets a reference to a secret pass; nothing resolves it and APISIX raises there.
fn address(fields: &Document, name: &str, notes: &mut Notes) -> Result<Option<IpMatcher>, Rejection> {
    let Some(text) = fields.text(name) else { return Ok(None) };
    if is_reference(text) {
        let why = format!(
            "/{name} is {text:?}, a reference to a secret, which nothing resolves here; write the address itself"
        );
        return Err(Rejection::from(why).by("SG-003"));
    }
    let matcher = IpMatcher::parse_apisix(text).map_err(|error| format!("/{name}: {error}"))?;
    if text.contains(['\0', '\n']) {
        notes.warn(format!("/{name} is {text:?}, which is read as {matcher}"));
    }
    Ok(Some(matcher))
}

/// `sni`, or `snis`; a bare `*` among `snis` asks for nothing (APISIX 3.19).
fn snis(fields: &Document, notes: &mut Notes) -> Vec<SniPattern> {
    let plural = fields.texts("snis");
    if plural.contains(&"*") {
        return Vec::new();
    }
    if let Some(sni) = fields.text("sni").filter(|sni| sni.bytes().any(|byte| byte.is_ascii_uppercase())) {
        notes.differs(
            "SG-008",
            format!(
                "/sni is {sni:?}, which APISIX 3.18 never matches; here, as in 3.19, its case does not count"
            ),
        );
    }
    let mut patterns = Vec::with_capacity(1);
    for text in fields.text("sni").into_iter().chain(plural) {
        match text.parse::<SniPattern>().map_err(|error| error.to_string()) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => notes.unusable(None, format!("the server name {text:?} can never match: {error}")),
        }
    }
    patterns
}

/// `apisix/stream/xrpc.lua:100`: the name has to be listed, with etcd too.
fn xrpc(rules: &Rules, mut fields: Document) -> Result<Protocol, Rejection> {
    let name = fields.boxed("name").unwrap_or_default();
    if !rules.xrpc_protocols.contains(&name) {
        return Err(format!(
            "/protocol/name is {name:?}, which xrpc.protocols of config.yaml does not list (it lists: {})",
            if rules.xrpc_protocols.is_empty() { "nothing".into() } else { rules.xrpc_protocols.join(", ") }
        )
        .into());
    }
    if let (Some(mut conf), Some(schema)) = (fields.take("conf"), rules.schemas.protocol(&name)) {
        schema.check(&mut conf, "/protocol/conf")?;
    }
    Ok(Protocol { name, superior_id: fields.id("superior_id") })
}
