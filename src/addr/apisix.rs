//! Addresses under APISIX's own rules, which differ from common sense in a few corners.
//!
//! A network has to pass two gates there: the pattern of the schema (`apisix/schema_def.lua:65`) and
//! `validate_cidr_or_ip` (`apisix/core/ip.lua:54`). A node key is cut by `parse_addr`
//! (`apisix/core/utils.lua:146`), which checks nothing.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::{Host, HostPort, IpMatcher, IpMatcherError};
use crate::number;

impl IpMatcher {
    /// Reads an address or network of an object, accepting exactly what APISIX 3.18 accepts.
    ///
    /// Unlike `parse`: a NUL ends an address (it is handed to C there), a line feed may follow a
    /// mask, an IPv6 mask may have leading zeros and an IPv4 one may not, and a network may not be
    /// written with a dotted tail (`::ffff:1.2.3.4/96`).
    pub fn parse_apisix(text: &str) -> Result<Self, IpMatcherError> {
        let bad = |why| IpMatcherError { text: text.into(), why };
        let Some((address, mask)) = text.split_once('/') else {
            return before_nul(text).parse().map_err(|_| bad("no IPv4 or IPv6 address"));
        };
        if text.contains('\0') {
            return before_nul(text).parse().map_err(|_| bad("no IPv4 or IPv6 address"));
        }
        let mask = mask.strip_suffix('\n').unwrap_or(mask);
        if mask.is_empty() || mask.len() > 3 || !mask.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad("a mask that is no number"));
        }
        let address: IpAddr = address.parse().map_err(|_| bad("no IPv4 or IPv6 address"))?;
        if address.is_ipv4() && mask.len() > 1 && mask.starts_with('0') {
            return Err(bad("a mask with a leading zero"));
        }
        if address.is_ipv6() && text.contains('.') {
            return Err(bad("an IPv6 network with a dotted tail"));
        }
        let length = mask.parse().map_err(|_| bad("a mask too long"))?;
        IpNet::new(address, length).map(Self::from).map_err(|_| bad("a mask too long"))
    }
}

fn before_nul(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

impl HostPort {
    /// Cuts a node key such as `10.0.0.1:80`, `[::1]:80` or `db.internal`. Nothing is refused: what
    /// is malformed becomes the host as a whole. A port that is no number from 0 to 65535 is absent;
    /// it is read as Lua reads numbers (`0x50` is 80).
    #[must_use]
    pub fn parse_apisix(text: &str) -> Self {
        let (host, port) = cut(text);
        Self { host: Host::parse(host), port: port.and_then(number::from_text).and_then(port_number) }
    }
}

/// The fraction is cut off, as when `LuaJIT` hands a number to C.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked before")]
fn port_number(number: f64) -> Option<u16> {
    (0.0..65536.0).contains(&number).then_some(number as u16)
}

fn cut(text: &str) -> (&str, Option<&str>) {
    // A colon in the last place separates nothing.
    let colon = text.get(..text.len().saturating_sub(1)).or(Some(text)).and_then(|head| head.rfind(':'));
    let bracketed = text.starts_with('[');
    if bracketed && text.ends_with(']') || !bracketed && looks_like_bare_ipv6(text) {
        return (text, None);
    }
    match colon.and_then(|at| text.split_at_checked(at)) {
        Some((host, port)) if !bracketed || host.ends_with(']') => (host, port.get(1..)),
        _ => (text, None),
    }
}

/// Two colons before any dot.
fn looks_like_bare_ipv6(text: &str) -> bool {
    let head = text.split('.').next().unwrap_or_default();
    text.parse::<Ipv6Addr>().is_ok() || head.matches(':').count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, network: Option<&str>) {
        let parsed = IpMatcher::parse_apisix(text).ok().map(|matcher| matcher.to_string());
        assert_eq!(parsed.as_deref(), network, "{text:?}");
    }

    #[test]
    fn networks_pass_as_in_apisix() {
        check("10.1.2.3", Some("10.1.2.3"));
        check("10.1.2.3/8", Some("10.0.0.0/8"));
        check("10.1.2.3/8\n", Some("10.0.0.0/8"));
        check("10.1.2.3\n", None);
        check("10.1.2.3/08", None);
        check("10.1.2.3/33", None);
        check("2001:db8::/029", Some("2001:db8::/29"));
        check("2001:db8::/129", None);
        check("::ffff:1.2.3.4", Some("::ffff:1.2.3.4"));
        check("::ffff:1.2.3.4/96", None);
        check("[::1]", None);
        check("1.2.3.4\0abc", Some("1.2.3.4"));
        check(":/8", None);
        check("$env://ADDR/8", None);
        check("", None);
    }

    #[track_caller]
    fn check_key(text: &str, host: &str, port: Option<u16>) {
        let parsed = HostPort::parse_apisix(text);
        assert_eq!((parsed.host.to_string().as_str(), parsed.port), (host, port), "{text:?}");
    }

    #[test]
    fn node_keys_are_cut_as_in_apisix() {
        check_key("10.0.0.1:80", "10.0.0.1", Some(80));
        check_key("a", "a", None);
        check_key("a:", "a:", None);
        check_key(":80", "", Some(80));
        check_key("[::1]:80", "[::1]", Some(80));
        check_key("[::1]", "[::1]", None);
        check_key("[::1", "[::1", None);
        check_key("::1:80", "[::1:80]", None);
        check_key("a:80:90", "a:80:90", None);
        check_key("a.b:c:80", "a.b:c", Some(80));
        check_key("a:0x50", "a", Some(80));
        check_key("a: 80 ", "a", Some(80));
        check_key("a:80.9", "a", Some(80));
        check_key("a:65536", "a", None);
        check_key("é:é", "é", None);
        check_key("", "", None);
    }
}
