//! Lines about sessions in a format of nginx's `log_format`: compiled once, written without an
//! allocation.

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use super::{Host, Name, Style, Transport, Variable, View, WITHOUT_VALUE};

/// What is done to the bytes of values (`escape=` of `log_format`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Escape {
    /// `"`, `\`, control characters and what is not ASCII become `\xXX`; no value is `-`.
    #[default]
    Default,
    /// As the inside of a JSON text; no value is nothing.
    Json,
    /// Nothing; no value is nothing.
    None,
}

impl Escape {
    /// As it is written in config.yaml.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "default" => Self::Default,
            "json" => Self::Json,
            "none" => Self::None,
            _ => return None,
        })
    }
}

/// A format, cut into its parts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Format {
    parts: Box<[Part]>,
    escape: Escape,
}

/// Bytes that are copied in one go, the last of which may be more than are wanted: for few bytes that is far
/// cheaper than to copy just as many.
const SHORT: usize = 16;

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    /// A short one: so many of these bytes.
    Short([u8; SHORT], usize),
    Text(Box<str>),
    /// `None`: one of those that never have a value.
    Variable(Option<Name>),
}

/// Why a text is no format; shown to the operator as it stands.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// No such variable.
    #[error("names the variable ${name}, which there is not{}", meant(*.nearest))]
    Unknown {
        /// As written.
        name: Box<str>,
        /// The known one it may be.
        nearest: Option<&'static str>,
    },
    /// A `$` that begins no name.
    #[error("has a $ at byte {0} after which no name of a variable follows; nginx cannot write a $ either")]
    Bare(usize),
    /// A `${` without its end.
    #[error("has a ${{ at byte {0} without its }}")]
    Open(usize),
}

fn meant(nearest: Option<&'static str>) -> String {
    nearest.map_or_else(
        || "; docs/config.md lists those there are".to_owned(),
        |name| format!("; is ${name} meant?"),
    )
}

impl Format {
    /// Cuts a text into its parts, as `ngx_stream_log_module.c` does.
    pub fn new(text: &str, escape: Escape) -> Result<Self, FormatError> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find('$') {
            let (literal, from) = rest.split_at(at);
            if !literal.is_empty() {
                parts.push(Part::text(literal));
            }
            let place = text.len() - from.len();
            let after = from.trim_start_matches('$');
            if from.len() - after.len() > 1 {
                return Err(FormatError::Bare(place));
            }
            let braced = after.strip_prefix('{');
            let begin = braced.unwrap_or(after);
            let end = begin.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(begin.len());
            let (name, mut left) = begin.split_at(end);
            if braced.is_some() {
                left = left.strip_prefix('}').ok_or(FormatError::Open(place))?;
            }
            if name.is_empty() {
                return Err(FormatError::Bare(place));
            }
            parts.push(Part::Variable(known(name)?));
            rest = left;
        }
        if !rest.is_empty() {
            parts.push(Part::text(rest));
        }
        Ok(Self { parts: parts.into(), escape })
    }

    /// Reports whether it shows what only the kernel knows of a connection.
    #[must_use]
    pub fn measures(&self) -> bool {
        self.names().any(|name| {
            matches!(
                name,
                Name::ClientRtt | Name::ClientRetransmits | Name::UpstreamRtt | Name::UpstreamRetransmits
            )
        })
    }

    /// The variables in it that may have a value.
    pub fn names(&self) -> impl Iterator<Item = Name> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(name) => *name,
            Part::Short(..) | Part::Text(_) => None,
        })
    }

    /// Names in `text` of variables that never have a value here.
    #[must_use]
    pub fn idle_names(text: &str) -> Vec<&'static str> {
        let named = |name: &&&str| {
            text.split('$').skip(1).any(|after| {
                let after = after.trim_start_matches('{').strip_prefix(**name);
                after.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
            })
        };
        WITHOUT_VALUE.iter().filter(named).copied().collect()
    }

    /// Appends the line of a session that is over, with its end of line.
    pub fn write(&self, session: &View<'_>, stamp: &mut Stamp, line: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Short(bytes, length) => short(*bytes, *length, line),
                Part::Text(text) => line.extend_from_slice(text.as_bytes()),
                Part::Variable(Some(Name::TimeLocal)) => {
                    line.extend_from_slice(stamp.at(session).local.as_bytes());
                }
                Part::Variable(Some(Name::TimeIso8601)) => {
                    line.extend_from_slice(stamp.at(session).iso.as_bytes());
                }
                Part::Variable(Some(name)) if usual(*name, session, line) => {}
                Part::Variable(name) => match name.and_then(|name| session.value(name)) {
                    Some(value) => put(value, self.escape, line),
                    None if self.escape == Escape::Default => line.push(b'-'),
                    None => {}
                },
            }
        }
        line.push(b'\n');
    }
}

impl Part {
    fn text(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match bytes.get_mut(..text.len()) {
            None => Self::Text(text.into()),
            Some(place) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short(bytes, text.len())
            }
        }
    }
}

/// Appends the first bytes of some.
#[inline]
fn short(bytes: [u8; SHORT], length: usize, line: &mut Vec<u8>) {
    let end = line.len() + length;
    line.extend_from_slice(&bytes);
    line.truncate(end);
}

fn known(name: &str) -> Result<Option<Name>, FormatError> {
    if WITHOUT_VALUE.contains(&name) {
        return Ok(None);
    }
    let unknown = || FormatError::Unknown { name: name.into(), nearest: Name::nearest(name) };
    Name::parse(name).map(Some).ok_or_else(unknown)
}

/// The texts of a second, which thousands of lines may share.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    second: Option<u64>,
    local: String,
    iso: String,
}

impl Stamp {
    fn at(&mut self, session: &View<'_>) -> &Self {
        let since: Duration = session.time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            self.set(session.host, session.time);
        }
        self
    }

    #[cold]
    fn set(&mut self, host: &Host, time: std::time::SystemTime) {
        for (text, style) in [(&mut self.local, Style::Local), (&mut self.iso, Style::Iso8601)] {
            text.clear();
            // Writing to a String cannot fail.
            let _ = fmt::write(text, format_args!("{}", host.moment(time, style)));
        }
    }
}

/// Appends what nearly every format has without the detour of a [`Variable`]; false for all else. None of
/// it needs an escape.
fn usual(name: Name, session: &View<'_>, line: &mut Vec<u8>) -> bool {
    let Some(outcome) = session.outcome else { return false };
    match name {
        Name::RemoteAddr => match session.inbound.client_ip() {
            IpAddr::V4(ip) => address(ip.octets(), line),
            IpAddr::V6(_) => return false,
        },
        Name::Protocol if session.inbound.transport == Transport::Tcp => line.extend_from_slice(b"TCP"),
        Name::Status => line.extend_from_slice(outcome.end.nginx_status().as_bytes()),
        Name::BytesSent => number(outcome.traffic.sent, line),
        Name::BytesReceived => number(outcome.traffic.received, line),
        Name::SessionTime => seconds(outcome.duration, line),
        _ => return false,
    }
    true
}

/// Appends a value. The usual ones are written by hand: the formatting of the standard library would
/// cost more than all else about a line.
fn put(value: Variable<'_>, escape: Escape, line: &mut Vec<u8>) {
    match value {
        Variable::Text(text) => escaped(text.as_bytes(), escape, line),
        Variable::Word(word) => line.extend_from_slice(word.as_bytes()),
        Variable::Ip(IpAddr::V4(ip)) => address(ip.octets(), line),
        Variable::Binary(IpAddr::V4(ip)) => escaped(&ip.octets(), escape, line),
        Variable::Binary(IpAddr::V6(ip)) => escaped(&ip.octets(), escape, line),
        Variable::Port(port) => number(port.into(), line),
        Variable::Number(value) => number(value, line),
        Variable::Seconds(time) => seconds(time, line),
        Variable::Attempts(attempts) => {
            for (place, item) in attempts.items().enumerate() {
                if place > 0 {
                    line.extend_from_slice(b", ");
                }
                match item {
                    Some(item) => put(item, escape, line),
                    None => line.push(b'-'),
                }
            }
        }
        // Nothing in these needs an escape, and writing to a Vec cannot fail.
        Variable::Ip(ip) => drop(write!(line, "{ip}")),
        Variable::Moment(moment) => drop(write!(line, "{moment}")),
    }
}

fn seconds(time: Duration, line: &mut Vec<u8>) {
    number(time.as_secs(), line);
    let millis = time.subsec_millis();
    line.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis)]);
}

/// The last digit of a number.
#[inline]
fn digit(value: u32) -> u8 {
    b'0' + u8::try_from(value % 10).unwrap_or_default()
}

/// An address of IPv4, of at most 15 bytes.
fn address(octets: [u8; 4], line: &mut Vec<u8>) {
    let (mut bytes, mut end) = ([b'.'; SHORT], 0);
    let mut push = |byte: u8| {
        if let Some(place) = bytes.get_mut(end) {
            *place = byte;
        }
        end += 1;
    };
    for (place, octet) in octets.into_iter().enumerate() {
        let octet = u32::from(octet);
        if place > 0 {
            push(b'.');
        }
        if octet >= 100 {
            push(digit(octet / 100));
        }
        if octet >= 10 {
            push(digit(octet / 10));
        }
        push(digit(octet));
    }
    short(bytes, end, line);
}

#[inline]
fn number(value: u64, line: &mut Vec<u8>) {
    match u32::try_from(value) {
        Ok(value @ 0..10) => line.push(digit(value)),
        Ok(value) => {
            let length = usize::try_from(value.ilog10()).unwrap_or_default() + 1;
            let (mut bytes, mut rest) = ([0; SHORT], value);
            for place in bytes.iter_mut().take(length).rev() {
                *place = digit(rest);
                rest /= 10;
            }
            short(bytes, length, line);
        }
        // Writing to a Vec cannot fail.
        Err(_) => drop(write!(line, "{value}")),
    }
}

fn escaped(bytes: &[u8], escape: Escape, line: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let hex = |digit: u8| HEX.get(usize::from(digit)).copied().unwrap_or(b'0');
    let plain = |byte: &u8| match escape {
        Escape::Default => matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\'),
        Escape::Json => *byte >= 0x20 && !matches!(byte, b'"' | b'\\'),
        Escape::None => true,
    };
    if bytes.iter().all(plain) {
        return line.extend_from_slice(bytes);
    }
    for byte in bytes {
        let (high, low) = (hex(byte >> 4), hex(byte & 15));
        match (byte, escape) {
            _ if plain(byte) => line.push(*byte),
            (_, Escape::Default) => line.extend_from_slice(&[b'\\', b'x', high, low]),
            (b'"' | b'\\', _) => line.extend_from_slice(&[b'\\', *byte]),
            (b'\n', _) => line.extend_from_slice(b"\\n"),
            (b'\r', _) => line.extend_from_slice(b"\\r"),
            (b'\t', _) => line.extend_from_slice(b"\\t"),
            (8, _) => line.extend_from_slice(b"\\b"),
            (12, _) => line.extend_from_slice(b"\\f"),
            _ => line.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::session::{Attempt, ConnectFailure, Course, End, Inbound, Outcome, Traffic, Transport};

    fn outcome() -> Outcome {
        let (client, server) = ("10.20.0.255:5000".parse().unwrap(), "10.0.0.2:9100".parse().unwrap());
        let mut inbound = Inbound::new(Transport::Tcp, client, server);
        inbound.mqtt_client_id = Some("a\"b\\c\n\u{1}\u{7f}é".into());
        Outcome {
            traffic: Traffic { received: 5, sent: 1_000_000 },
            duration: Duration::from_millis(84),
            ..Outcome::of(inbound, End::ClientClosed)
        }
    }

    fn line(format: &str, escape: Escape, outcome: &Outcome) -> String {
        let host = Host { hostname: "gw".into(), pid: 0, ..Host::default() };
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let view = View { inbound: &outcome.inbound, route: None, outcome: Some(outcome), host: &host, time };
        let (mut bytes, format) = (Vec::new(), Format::new(format, escape).unwrap());
        format.write(&view, &mut Stamp::default(), &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[track_caller]
    fn check(format: &str, escape: Escape, expected: &str) {
        assert_eq!(line(format, escape, &outcome()), format!("{expected}\n"), "{format}");
    }

    #[test]
    fn a_line_is_that_of_nginx() {
        check(
            "$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time",
            Escape::Default,
            "10.20.0.255 [14/Nov/2023:22:13:20 +0000] TCP 200 1000000 5 0.084",
        );
        check("${remote_port}0 $time_iso8601$pid", Escape::Default, "50000 2023-11-14T22:13:20+00:000");
        check("$upstream_addr|$route_id|$ssl_client_cert", Escape::Default, "-|-|-");
        check("$upstream_addr|$route_id|$ssl_client_cert", Escape::Json, "||");
        check("$upstream_addr|$route_id|$ssl_client_cert", Escape::None, "||");
    }

    #[test]
    fn values_are_escaped_as_by_nginx() {
        check("$mqtt_client_id", Escape::Default, r"a\x22b\x5Cc\x0A\x01\x7F\xC3\xA9");
        check("$mqtt_client_id", Escape::Json, "a\\\"b\\\\c\\n\\u0001\u{7f}é");
        check("$mqtt_client_id", Escape::None, "a\"b\\c\n\u{1}\u{7f}é");
        check("$binary_remote_addr", Escape::Default, r"\x0A\x14\x00\xFF");
    }

    #[test]
    fn attempts_are_a_list() {
        let took = Duration::from_millis(7);
        let attempt = Attempt { node: "a:1".into(), failure: ConnectFailure::Refused, took };
        let course = Course { failed: [attempt].into(), ..Course::default() };
        let over = Outcome { node: Some("b:2".into()), attempts: 2, course, ..outcome() };
        let format = "$upstream_addr $upstream_connect_time $upstream_session_time $upstream_bytes_sent";
        assert_eq!(line(format, Escape::Json, &over), "a:1, b:2 -, - 0.007, 0.084 0, 5\n");
    }

    #[test]
    fn numbers_are_written_in_full() {
        for value in [0, 9, 10, 65_535, u64::MAX] {
            let mut bytes = Vec::new();
            number(value, &mut bytes);
            assert_eq!(String::from_utf8(bytes).unwrap(), value.to_string());
        }
    }

    #[test]
    fn the_texts_of_a_second_change_with_it() {
        let (outcome, host) = (outcome(), Host::default());
        let (mut stamp, mut bytes) = (Stamp::default(), Vec::new());
        let format = Format::new("$time_local", Escape::None).unwrap();
        for second in [10, 10, 11] {
            let time = UNIX_EPOCH + Duration::from_secs(second);
            let view = View { inbound: &outcome.inbound, route: None, outcome: None, host: &host, time };
            format.write(&view, &mut stamp, &mut bytes);
        }
        let text = String::from_utf8(bytes).unwrap();
        let seconds: Vec<_> = text.lines().map(|line| &line[18..20]).collect();
        assert_eq!(seconds, ["10", "10", "11"]);
    }

    #[track_caller]
    fn check_error(format: &str, expected: &str) {
        assert_eq!(Format::new(format, Escape::Default).unwrap_err().to_string(), expected, "{format}");
    }

    #[test]
    fn what_is_no_format_is_said() {
        check_error(
            "$remote_adr",
            "names the variable $remote_adr, which there is not; is $remote_addr meant?",
        );
        check_error(
            "${request_uri}",
            "names the variable $request_uri, which there is not; docs/config.md lists those there are",
        );
        let bare = "after which no name of a variable follows; nginx cannot write a $ either";
        check_error("5 $ $pid", &format!("has a $ at byte 2 {bare}"));
        check_error("$$pid", &format!("has a $ at byte 0 {bare}"));
        check_error("x${}", &format!("has a $ at byte 1 {bare}"));
        check_error("a${pid", "has a ${ at byte 1 without its }");
        assert_eq!(Format::idle_names("$ssl_curve ${ssl_ciphers} $ssl_cipher"), ["ssl_ciphers", "ssl_curve"]);
    }
}
