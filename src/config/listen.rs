//! `apisix.stream_proxy`: every form of a listen, ranges expanded.
//!
//! The forms and their refusals are those of `apisix/cli/ops.lua:57-131`, what newer versions add
//! (`tls_passthrough`) included. A bare port is IPv4 only, as nginx's `listen 9100` is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::Listen;
use super::ProxyTlvs;
use super::ProxyVersion;
use super::read::Node;
use crate::session::Transport;

/// How long the other direction may be idle after the first FIN.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// `ssl_handshake_timeout` of nginx (`ngx_stream_ssl_module.c`).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_mins(1);
/// `proxy_protocol_timeout` of nginx (`ngx_stream_core_module.c`).
const PROXY_PROTOCOL_TIMEOUT: Duration = Duration::from_secs(30);

impl Listen {
    /// A listen without settings: the one place of their defaults.
    #[must_use]
    pub fn plain(written: impl Into<Arc<str>>, addr: SocketAddr, transport: Transport) -> Self {
        Self {
            written: written.into(),
            addr,
            transport,
            tls: false,
            tls_passthrough: false,
            proxy_protocol: false,
            proxy_protocol_to_upstream: false,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            proxy_protocol_timeout: PROXY_PROTOCOL_TIMEOUT,
            proxy_protocol_optional: false,
            proxy_protocol_version: ProxyVersion::V1,
            proxy_protocol_tlvs: ProxyTlvs::NONE,
            half_close: true,
            half_close_timeout: HALF_CLOSE_TIMEOUT,
            idle_timeout: None,
            responses: None,
        }
    }
}

/// Reads all listens of the section `apisix`, in the order written.
pub(super) fn read(apisix: &Node<'_>, allow_port_zero: bool) -> Vec<Listen> {
    let section = apisix.at("stream_proxy");
    let global = apisix.at("proxy_protocol");
    let accept = global.at("enable_tcp_pp").boolean().unwrap_or(false);
    let send = global.at("enable_tcp_pp_to_upstream").boolean().unwrap_or(false);
    let mut reader = Reader { allow_port_zero, found: Vec::new(), taken: HashMap::new() };
    for node in items(&section.at("tcp")) {
        let object = matches!(node.value(), Some(Value::Object(_)));
        let mut template = template(Transport::Tcp);
        template.proxy_protocol = accept;
        template.proxy_protocol_to_upstream = send;
        if !object {
            reader.add(&node, &template);
            continue;
        }
        template.tls = node.at("tls").boolean().unwrap_or(false);
        template.tls_passthrough = node.at("tls_passthrough").boolean().unwrap_or(false);
        template.proxy_protocol = node.at("proxy_protocol").boolean().unwrap_or(accept);
        template.proxy_protocol_to_upstream = node.at("proxy_protocol_to_upstream").boolean().unwrap_or(send);
        let addr = node.at("addr");
        if addr.is_absent() {
            addr.mistake("is missing; write the port or \"address:port\" to listen on");
        }
        reader.add(&addr, &template);
    }
    for node in items(&section.at("udp")) {
        reader.add(&node, &template(Transport::Udp));
    }
    reader.found
}

/// The items of a list that, where it is written, must have one.
fn items<'a>(list: &Node<'a>) -> Vec<Node<'a>> {
    let items = list.items();
    if items.as_ref().is_some_and(Vec::is_empty) {
        list.mistake("is an empty list; write at least one listen, or leave the key out");
    }
    items.unwrap_or_default()
}

/// What a listen of a transport starts from; its address is read later.
fn template(transport: Transport) -> Listen {
    Listen::plain("", SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), transport)
}

struct Reader {
    allow_port_zero: bool,
    found: Vec<Listen>,
    /// Which listen has an address already.
    taken: HashMap<(SocketAddr, Transport), Arc<str>>,
}

impl Reader {
    /// Adds what is written at `node`, each port of a range with the settings of `template`.
    fn add(&mut self, node: &Node<'_>, template: &Listen) {
        let Some((written, parsed)) = address(node) else { return };
        let (ip, ports) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return node.mistake(error.to_string()),
        };
        if *ports.start() == 0 && !(self.allow_port_zero && *ports.end() == 0) {
            return node.mistake(format!(
                "{}; streamgate.allow_port_zero: true lets the system choose a port",
                AddressError::OutOfRange("0".into())
            ));
        }
        for port in ports {
            let addr = SocketAddr::new(ip, port);
            if port != 0
                && let Some(other) = self.taken.insert((addr, template.transport), Arc::clone(&written))
            {
                return node
                    .mistake(format!("{written} listens on {addr}, which {other} above does already"));
            }
            self.found.push(Listen { written: Arc::clone(&written), addr, ..template.clone() });
        }
    }
}

/// The listen as written and as read; `None` where its type is wrong or nothing is there.
fn address(node: &Node<'_>) -> Option<(Arc<str>, Result<Span, AddressError>)> {
    match node.value()? {
        Value::Number(number) => {
            let written = number.to_string();
            let parsed = match number.as_f64() {
                Some(port) if port.fract() != 0.0 => Err(AddressError::NotInteger(written.clone())),
                _ => port(written.trim_end_matches(".0"))
                    .map(|port| (Ipv4Addr::UNSPECIFIED.into(), port..=port)),
            };
            Some((written.trim_end_matches(".0").into(), parsed))
        }
        Value::String(text) => Some((text.as_str().into(), parse(text))),
        Value::Object(_) => {
            node.mistake("is a map; a udp listen is a port, \"address:port\" or a range, without settings");
            None
        }
        other => {
            node.mistake(format!(
                "is {}; allowed are a port, \"address:port\", a range such as \"2000-2100\", and for tcp a map with `addr`",
                super::read::show(other)
            ));
            None
        }
    }
}

/// An address with the ports to listen on.
type Span = (IpAddr, RangeInclusive<u16>);

/// Why a text is no listen. The first words are those of APISIX, which operators search for.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
enum AddressError {
    #[error("port out of range (1-65535): {0}")]
    OutOfRange(String),
    #[error("invalid port range (start > end): {0}; write the lower port first")]
    Reversed(String),
    #[error("missing port: {0}; write \"address:port\"")]
    MissingPort(String),
    #[error("invalid port format: {0}; a port or a range such as 2000-2100 is allowed")]
    Format(String),
    #[error("port must be an integer, got: {0}")]
    NotInteger(String),
    #[error(
        "{0} is a unix socket; streamgate listens on IP addresses only: remove it, or keep that listen in APISIX"
    )]
    Unix(String),
    #[error("{0} is an IPv6 address without brackets; write such as \"[::1]:9100\"")]
    Brackets(String),
    #[error(
        "{0} has no IP address before its port; host names are not resolved: write such as \"127.0.0.1:9100\""
    )]
    NoAddress(String),
}

/// Reads a listen that is a text.
fn parse(text: &str) -> Result<Span, AddressError> {
    if text.starts_with("unix:") {
        return Err(AddressError::Unix(text.into()));
    }
    let missing = || AddressError::MissingPort(text.into());
    let (ip, ports) = if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or_else(|| AddressError::NoAddress(text.into()))?;
        let ports = rest.strip_prefix(':').ok_or_else(missing)?;
        (ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6), ports)
    } else if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 1 {
        return Err(AddressError::Brackets(text.into()));
    } else {
        match text.split_once(':') {
            Some(("*", ports)) => (Some(Ipv4Addr::UNSPECIFIED.into()), ports),
            Some((ip, ports)) => (ip.parse::<Ipv4Addr>().ok().map(IpAddr::V4), ports),
            None if text.parse::<IpAddr>().is_ok() => return Err(missing()),
            None => (Some(Ipv4Addr::UNSPECIFIED.into()), text),
        }
    };
    if ports.is_empty() {
        return Err(missing());
    }
    let ports = span(ports, text)?;
    Ok((ip.ok_or_else(|| AddressError::NoAddress(text.into()))?, ports))
}

fn span(ports: &str, text: &str) -> Result<RangeInclusive<u16>, AddressError> {
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return Err(AddressError::Format(text.into()));
    }
    let span = port(first)?..=port(last)?;
    if *span.end() == 0 && *span.start() != 0 {
        return Err(AddressError::OutOfRange(last.into()));
    }
    if span.is_empty() {
        return Err(AddressError::Reversed(text.into()));
    }
    Ok(span)
}

fn port(digits: &str) -> Result<u16, AddressError> {
    digits.parse().map_err(|_| AddressError::OutOfRange(digits.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, ip: &str, ports: RangeInclusive<u16>) {
        assert_eq!(parse(text), Ok((ip.parse().unwrap(), ports)), "{text}");
    }

    #[track_caller]
    fn refused(text: &str, error: &str) {
        let told = parse(text).unwrap_err().to_string();
        assert!(told.starts_with(error), "{text}: {told}");
    }

    #[test]
    fn forms_of_a_listen() {
        check("9100", "0.0.0.0", 9100..=9100);
        check("2000-2005", "0.0.0.0", 2000..=2005);
        check("2000-2000", "0.0.0.0", 2000..=2000);
        check("127.0.0.1:9101", "127.0.0.1", 9101..=9101);
        check("127.0.0.1:2000-2005", "127.0.0.1", 2000..=2005);
        check("*:9100", "0.0.0.0", 9100..=9100);
        check("[::1]:9100", "::1", 9100..=9100);
        check("[::]:2000-2005", "::", 2000..=2005);
        check("09100", "0.0.0.0", 9100..=9100);
    }

    /// The refusals of APISIX's `t/cli/test_stream_port_range.sh`, and ours.
    #[test]
    fn refusals_say_what_is_wrong() {
        refused("1-0", "port out of range (1-65535): 0");
        refused("0-100000", "port out of range (1-65535): 100000");
        refused("65536", "port out of range (1-65535): 65536");
        refused("99999999999999", "port out of range (1-65535)");
        refused("3000-2000", "invalid port range (start > end): 3000-2000");
        refused("127.0.0.1:3000-2000", "invalid port range (start > end): 127.0.0.1:3000-2000");
        refused("127.0.0.1:", "missing port: 127.0.0.1:");
        refused("127.0.0.1", "missing port: 127.0.0.1");
        refused("[::1]:", "missing port: [::1]:");
        refused("[::1]", "missing port: [::1]");
        refused("", "missing port: ");
        refused("80.5", "invalid port format: 80.5");
        refused("1e3", "invalid port format: 1e3");
        refused("9100 backlog=1024", "invalid port format");
        refused("2000-", "invalid port format: 2000-");
        refused("1-2-3", "invalid port format: 1-2-3");
        refused("abc", "invalid port format: abc");
        refused("unix:/run/x.sock", "unix:/run/x.sock is a unix socket");
        refused("::1:9100", "::1:9100 is an IPv6 address without brackets");
        refused("localhost:9100", "localhost:9100 has no IP address");
        refused(":9100", ":9100 has no IP address");
        refused("[127.0.0.1]:9100", "[127.0.0.1]:9100 has no IP address");
        refused("[::1", "[::1 has no IP address");
    }
}
