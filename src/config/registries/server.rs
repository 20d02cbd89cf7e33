//! What the sections share: the URL of a server, and how long it may take.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

use super::super::read::Node;

/// The longest of the times: a day, in milliseconds.
const LONGEST: u64 = 24 * 3600 * 1000;

/// A server of a registry, as its URL in config.yaml names it.
#[derive(Clone, Eq, PartialEq)]
pub struct RegistryServer {
    /// `https`.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: Box<str>,
    /// Where none is written, that of the scheme.
    pub port: u16,
    /// What stands before the paths of the registry; empty, or begins and does not end with a slash.
    pub path: Box<str>,
    /// User and password, as they stand before the `@`.
    pub auth: Option<(Box<str>, Box<str>)>,
}

/// The URL without user and password.
impl fmt::Display for RegistryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, path, .. } = self;
        let scheme = if self.tls { "https" } else { "http" };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}{path}")
        } else {
            write!(f, "{scheme}://{host}:{port}{path}")
        }
    }
}

/// As shown to operators: without the password.
impl fmt::Debug for RegistryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How long a server may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Waits {
    /// To take a connection, TLS included.
    pub connect: Duration,
    /// To take a request and answer it.
    pub answer: Duration,
}

impl Waits {
    /// `timeout`, in milliseconds; what is left out is APISIX's 2000 and 5000. `send` and `read`, which
    /// nginx counts each on its own, are one time here.
    pub(super) fn read(section: &Node<'_>) -> Self {
        let timeout = section.at("timeout");
        let part = |key, default| millis(&timeout.at(key)).unwrap_or(Duration::from_millis(default));
        Self { connect: part("connect", 2000), answer: part("send", 2000) + part("read", 5000) }
    }
}

/// A time in whole milliseconds.
pub(super) fn millis(node: &Node<'_>) -> Option<Duration> {
    node.integer(1..=LONGEST).map(Duration::from_millis)
}

/// A time in whole seconds.
pub(super) fn seconds(node: &Node<'_>) -> Option<Duration> {
    node.integer(1..=LONGEST / 1000).map(Duration::from_secs)
}

/// A weight that instances get which have none of their own.
pub(super) fn weight(node: &Node<'_>, lowest: u64) -> Option<u32> {
    node.integer(lowest..=u64::from(u32::MAX)).and_then(|weight| u32::try_from(weight).ok())
}

/// The list of servers; `example` is shown where there is none.
pub(super) fn servers(list: &Node<'_>, example: &str) -> Vec<RegistryServer> {
    if list.is_absent() || list.value().and_then(|value| value.as_array()).is_some_and(Vec::is_empty) {
        list.mistake(format!("is missing; write a list such as [\"{example}\"]"));
    }
    let read = |node: &Node<'_>| {
        let text = node.secret()?;
        let read = parse(text);
        if read.is_none() {
            // What stands before the last @ may be a password.
            let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
            node.mistake(format!("has {shown:?}, which is no server; write such as {example}"));
        }
        read
    };
    list.items().unwrap_or_default().iter().filter_map(read).collect()
}

/// A path that is put before those of the registry, in the form of [`RegistryServer::path`].
pub(super) fn prefix(node: &Node<'_>) -> Option<Box<str>> {
    let text = node.string()?;
    let usable = text.starts_with('/') && text.bytes().all(is_of_path) && text.len() <= 100;
    if !usable {
        node.mistake(format!("is {text:?}; a path such as /nacos/v1/ is allowed, up to 100 bytes"));
    }
    usable.then(|| text.trim_end_matches('/').into())
}

/// The characters of `prefix_pattern` in `apisix/discovery/nacos/schema.lua`.
fn is_of_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte)
}

fn parse(text: &str) -> Option<RegistryServer> {
    let (tls, rest) = match text.split_once("://")? {
        ("http", rest) => (false, rest),
        ("https", rest) => (true, rest),
        _ => return None,
    };
    let (auth, rest) = match rest.rsplit_once('@') {
        Some((auth, rest)) => (Some(auth.split_once(':')?), rest),
        None => (None, rest),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let usual = if tls { 443 } else { 80 };
    let port = port.map_or(Some(usual), |port| port.parse().ok()).filter(|port| *port > 0)?;
    let bracketed = authority.starts_with('[');
    let host_fits = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let usable = !host.is_empty() && (bracketed || host_fits) && path.bytes().all(is_of_path);
    usable.then(|| RegistryServer {
        tls,
        host: host.into(),
        port,
        path: path.trim_end_matches('/').into(),
        auth: auth.map(|(user, password)| (user.into(), password.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, Option<&str>)>) {
        let read = parse(text);
        let told = read.as_ref().map(|server| {
            let auth = server.auth.as_ref().map(|(user, password)| format!("{user} {password}"));
            (server.to_string(), auth)
        });
        let expected = expected.map(|(shown, auth)| (shown.to_owned(), auth.map(str::to_owned)));
        assert_eq!(told, expected, "{text}");
    }

    #[test]
    fn servers_are_taken_apart() {
        check("http://10.0.0.1:8500", Some(("http://10.0.0.1:8500", None)));
        check("http://consul", Some(("http://consul:80", None)));
        check("https://consul/", Some(("https://consul:443", None)));
        check("http://[::1]:8761/eureka/", Some(("http://[::1]:8761/eureka", None)));
        check("http://u:p@x:1", Some(("http://x:1", Some("u p"))));
        check("http://u:p:a@ss@x:1", Some(("http://x:1", Some("u p:a@ss"))));
        for odd in ["x:1", "ftp://x", "http://", "http://x:0", "http://x:y", "http://::1:1", "http://u@x"] {
            check(odd, None);
        }
        for odd in ["http://[x]:1", "http://[::1]x", "http://a b", "http://x:1/a?b", "http://x:"] {
            check(odd, None);
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let server = parse("http://user:secret@x:1").unwrap();
        assert_eq!(format!("{server:?}"), "http://x:1");
    }
}
