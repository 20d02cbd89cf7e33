//! Addresses as the configuration writes them: networks, `host:port`, prefix maps.
//!
//! The rules are those of APISIX 3.18: an IPv4 rule never matches an IPv4-mapped IPv6 address, host
//! bits of a network are ignored (`apisix/core/ip.lua:54`, lua-resty-ipmatcher 0.6.1), and a node key
//! is cut into host and port as `apisix/core/utils.lua:146` does it. Pure: no I/O, no clock.

mod apisix;
mod networks;
mod prefix_map;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

pub use networks::Networks;
pub use prefix_map::{Contents, PrefixMap};

/// A set of addresses: one address or one network. Host bits are cut off, so that
/// `10.1.2.3/24` and `10.1.2.0/24` are equal.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IpMatcher(IpNet);

impl IpMatcher {
    /// Reports whether `address` lies inside. The families never mix.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// The network, host bits cut off.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.0
    }
}

impl From<IpNet> for IpMatcher {
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl fmt::Display for IpMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

impl FromStr for IpMatcher {
    type Err = IpMatcherError;

    fn from_str(text: &str) -> Result<Self, IpMatcherError> {
        let bad = |why| IpMatcherError { text: text.into(), why };
        let (address, mask) = match text.split_once('/') {
            Some((address, mask)) => (address, Some(mask)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad("no IPv4 or IPv6 address"))?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let length = match mask {
            None => widest,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|length| *length <= widest)
                .ok_or_else(|| bad("a mask too long"))?,
            Some(_) => return Err(bad("a mask that is no number")),
        };
        IpNet::new(address, length).map(Self::from).map_err(|_| bad("a mask too long"))
    }
}

/// Why a text is no address or network.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{text}` has {why}; write an address such as 10.0.0.1 or a network such as 10.0.0.0/8 or 2001:db8::/32"
)]
pub struct IpMatcherError {
    text: Box<str>,
    why: &'static str,
}

/// Where a node is: an address, or a name that has to be resolved.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A host name, as written.
    Name(Box<str>),
}

impl Host {
    /// Reads a host as APISIX writes it: an IPv6 address may stand in brackets.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        bare.parse().map_or_else(|_| Self::Name(text.into()), Self::Ip)
    }

    /// The address, where this is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Name(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host with the port that may follow it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HostPort {
    /// Left of the port.
    pub host: Host,
    /// Absent where none is written, or none that is a port.
    pub port: Option<u16>,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: &str, address: &str, inside: bool) {
        let matcher: IpMatcher = rule.parse().unwrap();
        assert_eq!(matcher.contains(address.parse().unwrap()), inside, "{rule} on {address}");
    }

    #[test]
    fn host_bits_are_ignored_and_families_kept_apart() {
        check("10.1.2.3/24", "10.1.2.200", true);
        check("10.1.2.3/24", "10.1.3.1", false);
        check("0.0.0.0/0", "1.2.3.4", true);
        check("0.0.0.0/0", "::1", false);
        check("::/0", "1.2.3.4", false);
        check("127.0.0.1", "::ffff:127.0.0.1", false);
        check("2001:db8::5/32", "2001:db8:ffff::1", true);
    }

    #[test]
    fn error_names_the_text() {
        let error = "10.0.0.0/33".parse::<IpMatcher>().unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/33") && error.contains("mask"), "{error}");
        assert!("1.2.3".parse::<IpMatcher>().is_err());
        assert!("10.0.0.0/".parse::<IpMatcher>().is_err());
    }

    #[test]
    fn hosts_print_as_etcd_keys_write_them() {
        assert_eq!(Host::parse("[::1]").to_string(), "[::1]");
        assert_eq!(Host::parse("::1").to_string(), "[::1]");
        assert_eq!(Host::parse("db.internal").to_string(), "db.internal");
    }
}
