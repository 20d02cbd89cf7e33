//! The section `apisix` but for its listens, and what decides about objects.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::Control;
use super::Dns;
use super::Listen;
use super::SslConfig;
use super::files::Files;
use super::read::Node;
use crate::sni::hello::normalized;

/// Where systems keep their CA bundle (`apisix/cli/util.lua:140-147`).
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// xRPC protocols that APISIX has; any other stops its start.
const XRPC_PROTOCOLS: &[&str] = &["redis", "dubbo"];

/// Longest time a number of seconds may mean: a year.
const LONGEST: u64 = 365 * 24 * 3600;

/// Whether this configuration opens stream listens at all.
pub(super) fn proxy_mode(apisix: &Node<'_>, listens: bool) {
    let node = apisix.at("proxy_mode");
    match node.choice(&["http", "stream", "http&stream"]) {
        Some("stream" | "http&stream") if !listens => {
            let section = apisix.at("stream_proxy");
            let readable = section.value().is_none_or(|value| value.is_object() || value.is_array());
            if readable && section.at("tcp").is_absent() && section.at("udp").is_absent() {
                section.mistake("is missing; write at least one listen under tcp or udp");
            }
        }
        Some("http") => node.mistake(
            "is \"http\", APISIX's default, with which APISIX opens none of apisix.stream_proxy either; \
             write \"http&stream\" or \"stream\"",
        ),
        None if node.is_absent() && !apisix.is_absent() => {
            node.mistake("is missing; allowed are stream, http&stream");
        }
        _ => {}
    }
}

/// `dns_resolver` and its neighbours.
pub(super) fn dns(apisix: &Node<'_>) -> Dns {
    let list = apisix.at("dns_resolver");
    let items = list.items();
    if items.as_ref().is_some_and(Vec::is_empty) {
        list.mistake(
            "is an empty list; write at least one server, or leave the key out for those of /etc/resolv.conf",
        );
    }
    Dns {
        servers: items.unwrap_or_default().iter().filter_map(dns_server).collect(),
        valid: apisix.at("dns_resolver_valid").integer(0..=LONGEST).map(Duration::from_secs),
        timeout: apisix.at("resolver_timeout").duration().unwrap_or(Duration::from_secs(5)),
        search: apisix.at("enable_resolv_search_opt").boolean().unwrap_or(true),
        ipv6: apisix.at("enable_ipv6").boolean().unwrap_or(true),
    }
}

pub(super) fn dns_server(node: &Node<'_>) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    let text = node.string()?;
    if text.contains('%') {
        node.warn(format!("{text} has an IPv6 zone and is left out, as in APISIX"));
        return None;
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let server = bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
    let server = server.ok().filter(|server: &SocketAddr| server.port() > 0);
    if server.is_none() {
        node.mistake(format!(
            "is {text:?}; write an address with or without port, such as 1.1.1.1, 1.1.1.1:5353 or [::1]:53"
        ));
    }
    server
}

/// `apisix.ssl`.
pub(super) fn ssl(apisix: &Node<'_>, files: &Files<'_>) -> SslConfig {
    let section = apisix.at("ssl");
    SslConfig {
        fallback_sni: fallback_sni(&section.at("fallback_sni")),
        trusted: trusted(&section.at("ssl_trusted_certificate"), files),
    }
}

/// The name in the form in which client names are compared: lower case, one final dot off
/// (`apisix/ssl.lua:39-56`).
fn fallback_sni(node: &Node<'_>) -> Option<Box<str>> {
    let text = node.string()?;
    let name = normalized(text);
    if name.is_empty() {
        node.mistake(format!(
            "is {text:?}, which is no name; leave the key out to refuse TLS clients that send none"
        ));
        return None;
    }
    Some(name.into())
}

/// `ssl.ssl_protocols` does not concern streams, in APISIX neither (`apisix/cli/ngx_tpl.lua:235-277`):
/// said only to who counts on a version being refused.
pub(super) fn warn_of_protocols(apisix: &Node<'_>, listens: &[Listen]) {
    let node = apisix.at("ssl").at("ssl_protocols");
    let Some(written) = node.value().and_then(Value::as_str) else { return };
    let refuses = |version| !written.split_whitespace().any(|word| word == version);
    if listens.iter().any(|listen| listen.tls) && (refuses("TLSv1.2") || refuses("TLSv1.3")) {
        node.warn(
            "has no effect on stream listens, as in APISIX: they offer TLS 1.2 and 1.3; \
             ssl_protocols of an ssl object narrows that for its names",
        );
    }
}

/// The CA bundle. APISIX cannot start where the system has none; only who needs one must here.
fn trusted(node: &Node<'_>, files: &Files<'_>) -> Option<PathBuf> {
    let exists = files.env.exists;
    match node.value() {
        Some(Value::String(text)) if text != "system" => files.existing(node, &files.env.cwd),
        None | Some(Value::String(_)) => SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| exists(path)),
        Some(_) => {
            node.string();
            None
        }
    }
}

/// `apisix.status`: on where it is written.
pub(super) fn status(apisix: &Node<'_>, allow_port_zero: bool) -> Option<SocketAddr> {
    let section = apisix.at("status");
    (!section.is_absent()).then(|| server_address(&section, ("127.0.0.1", 7085), allow_port_zero)).flatten()
}

/// `apisix.control`: on unless `enable_control` is false, written or not.
pub(super) fn control(apisix: &Node<'_>, allow_port_zero: bool) -> Option<Control> {
    let section = apisix.at("control");
    let enabled = apisix.at("enable_control").boolean().unwrap_or(false);
    // Read where it is off too: mistakes in it are told all the same.
    let addr = server_address(&section, ("127.0.0.1", 9090), allow_port_zero);
    let written = !section.is_absent();
    addr.filter(|_| enabled).map(|addr| Control { addr, written })
}

/// An address written as `{ip, port}`.
pub(super) fn server_address(
    section: &Node<'_>,
    default: (&str, u16),
    allow_port_zero: bool,
) -> Option<SocketAddr> {
    let (ip, port) = (section.at("ip"), section.at("port"));
    let text = ip.string().unwrap_or(default.0);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().ok();
    if parsed.is_none() {
        ip.mistake(format!("is {text:?}; an IP address such as {} is allowed", default.0));
    }
    let lowest = u64::from(!allow_port_zero);
    let number = if port.is_absent() { Some(default.1.into()) } else { port.integer(lowest..=65_535) };
    Some(SocketAddr::new(parsed?, u16::try_from(number?).ok()?))
}

/// `apisix.data_encryption.keyring`; null and absent mean that nothing is encrypted.
///
/// An entry is AES key and IV at once, so it has 16 or 32 bytes (`apisix/cli/schema.lua:74-80`).
pub(super) fn keyring(apisix: &Node<'_>) -> Vec<Box<str>> {
    let node = apisix.at("data_encryption").at("keyring");
    let entries = match node.value() {
        None => Vec::new(),
        Some(Value::Array(list)) if list.is_empty() => {
            node.mistake("is an empty list; write at least one key, or null for no encryption");
            Vec::new()
        }
        Some(Value::Array(_)) => node.items().unwrap_or_default(),
        Some(_) => vec![node],
    };
    let read = |entry: &Node<'_>| {
        let text = entry.secret()?;
        if !matches!(text.len(), 16 | 32) {
            entry.mistake(format!("has {} bytes; a key has exactly 16 or 32", text.len()));
        }
        Some(text.into())
    };
    entries.iter().filter_map(read).collect()
}

/// `xrpc.protocols[].name`.
pub(super) fn xrpc_protocols(root: &Node<'_>) -> Vec<Box<str>> {
    let protocols = root.at("xrpc").at("protocols").items().unwrap_or_default();
    let read = |item: &Node<'_>| {
        let name = item.at("name");
        if name.is_absent() && item.value().is_some_and(Value::is_object) {
            name.mistake(format!("is missing; allowed are {}", XRPC_PROTOCOLS.join(", ")));
        }
        name.choice(XRPC_PROTOCOLS).map(Into::into)
    };
    protocols.iter().filter_map(read).collect()
}
