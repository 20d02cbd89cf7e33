//! `streamgate.upstreams.<id>`: what an upstream does beyond APISIX. Labels of the upstream may say the
//! same; what config.yaml says wins, for ADC overwrites labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::read::Node;

/// What is switched on for an upstream; a member that nobody wrote is absent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extensions {
    /// `close_on_down`: sessions a second that are closed when their node goes down or leaves the
    /// upstream; 0: none.
    pub close_on_down: Option<u32>,
    /// `tcp_send`: bytes that a probe of type tcp sends.
    pub tcp_send: Option<Arc<[u8]>>,
    /// `tcp_expect`: bytes that have to be in what the node sends then.
    pub tcp_expect: Option<Arc<[u8]>>,
}

/// Sessions a second that `close_on_down: true` closes.
pub const CLOSED_A_SECOND: u32 = 100;

impl Extensions {
    /// What is not written here, from `other`.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            close_on_down: self.close_on_down.or(other.close_on_down),
            tcp_send: self.tcp_send.clone().or_else(|| other.tcp_send.clone()),
            tcp_expect: self.tcp_expect.clone().or_else(|| other.tcp_expect.clone()),
        }
    }

    /// Sets the member that a label or a key of config.yaml names, `-` and `_` being one. The error says
    /// what may be written.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name.replace('-', "_").as_str() {
            "close_on_down" => self.close_on_down = Some(rate(text)?),
            "tcp_send" => self.tcp_send = Some(unescape(text)?),
            "tcp_expect" => self.tcp_expect = Some(unescape(text)?),
            _ => return Err("there are close-on-down, tcp-send and tcp-expect".into()),
        }
        Ok(())
    }
}

/// The keys below `streamgate.upstreams.<id>` that are read here.
pub(super) const KEYS: [&str; 3] = ["close_on_down", "tcp_send", "tcp_expect"];

/// Reads `streamgate.upstreams`; an upstream for which nothing is written is left out.
pub(super) fn read(upstreams: &Node<'_>) -> BTreeMap<Arc<str>, Extensions> {
    let mut found = BTreeMap::new();
    for (id, section) in upstreams.entries() {
        let mut extensions = Extensions::default();
        for key in KEYS {
            let node = section.at(key);
            let text = match node.value() {
                None => continue,
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            if let Err(why) = extensions.set(key, &text) {
                node.mistake(format!("cannot be used: {why}"));
            }
        }
        if extensions != Extensions::default() {
            found.insert(id.into(), extensions);
        }
    }
    found
}

fn rate(text: &str) -> Result<u32, String> {
    match text {
        "true" => Ok(CLOSED_A_SECOND),
        "false" => Ok(0),
        _ => text.parse().map_err(|_| {
            format!("{text:?} is no number of sessions to close a second; write one, or true for {CLOSED_A_SECOND}")
        }),
    }
}

/// The bytes that a text means: `\r`, `\n`, `\t`, `\s` (a blank, which labels cannot hold), `\\`, `\xNN`.
fn unescape(text: &str) -> Result<Arc<[u8]>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b's') => b' ',
            Some(b'\\') => b'\\',
            Some(b'x') => hex(rest.next(), rest.next()).ok_or_else(|| escapes(text))?,
            _ => return Err(escapes(text)),
        });
    }
    if bytes.is_empty() { Err("there is nothing in it".into()) } else { Ok(bytes.into()) }
}

fn hex(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn escapes(text: &str) -> String {
    format!("{text:?} has a backslash that means nothing; there are \\r \\n \\t \\s \\\\ and \\xNN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_bytes() {
        let bytes = |text: &str| unescape(text).map(|bytes| bytes.to_vec());
        assert_eq!(bytes(r"PING\r\n").unwrap(), b"PING\r\n");
        assert_eq!(bytes(r"a\sb\\\x00\xfF\t").unwrap(), b"a b\\\0\xff\t");
        for odd in [r"\", r"\q", r"\x1", r"\xzz", ""] {
            bytes(odd).unwrap_err();
        }
    }

    #[test]
    fn what_is_written_nearer_wins() {
        let mut near = Extensions::default();
        near.set("close-on-down", "7").unwrap();
        let mut far = Extensions::default();
        far.set("close_on_down", "true").unwrap();
        far.set("tcp-send", "x").unwrap();
        let both = near.or(&far);
        assert_eq!(both.close_on_down, Some(7));
        assert_eq!(both.tcp_send.as_deref(), Some(&b"x"[..]));
        assert_eq!(far.close_on_down, Some(CLOSED_A_SECOND));
        near.set("close-on-down", "often").unwrap_err();
        near.set("close-never", "1").unwrap_err();
    }
}
