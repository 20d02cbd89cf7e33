//! The first packet of an MQTT client, CONNECT: protocol, level and client identifier (MQTT 3.1 3.1,
//! MQTT 3.1.1 3.1, MQTT 5 3.1).
//!
//! Pure, and without any name of this crate: the fuzz target compiles this file alone. What the packet says
//! of a will, a user or a password is not looked at, as in `apisix/stream/plugins/mqtt-proxy.lua`.

use std::fmt;

/// Type CONNECT, without flags: the only first byte that MQTT knows.
const CONNECT: u8 = 0x10;
/// APISIX waits for so many bytes before it looks at the first. No CONNECT is shorter.
const FIRST: usize = 5;
/// From this level on there are properties before the client identifier.
const WITH_PROPERTIES: u8 = 5;

/// How far a client's first bytes tell who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reading<'a> {
    /// So many bytes in all are needed to say more.
    Need(usize),
    /// A whole CONNECT.
    Connect(Connect<'a>),
    /// It is none: why.
    Malformed(Malformed),
}

/// What a CONNECT says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Connect<'a> {
    /// `MQTT`; `MQIsdp` before 3.1.1.
    pub name: &'a [u8],
    /// 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.
    pub level: u8,
    /// The client identifier; may be empty, and should be UTF-8.
    pub client_id: &'a [u8],
    /// The bytes of the packet.
    pub length: usize,
}

/// Why bytes are no CONNECT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Another packet, or no MQTT at all.
    Type(u8),
    /// A length in the packet leads beyond its end.
    Truncated {
        /// The bytes of the packet.
        length: usize,
        /// What is not all there.
        part: &'static str,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(first) => {
                write!(f, "the first byte is {first:#04x}, and an MQTT client begins with 0x10 (CONNECT)")
            }
            Self::Truncated { length, part } => {
                write!(f, "the CONNECT of {length} bytes ends inside its {part}")
            }
        }
    }
}

/// Reads what a client has sent so far.
///
/// Whatever it answers but [`Reading::Need`] does not change with what follows.
#[must_use]
pub fn read(bytes: &[u8]) -> Reading<'_> {
    let [first, rest @ ..] = bytes else { return Reading::Need(FIRST) };
    if bytes.len() < FIRST {
        return Reading::Need(FIRST);
    }
    if *first != CONNECT {
        return Reading::Malformed(Malformed::Type(*first));
    }
    let Some((remaining, body)) = number(rest) else { return Reading::Need(FIRST + 1) };
    let length = bytes.len() - body.len() + remaining;
    match body.get(..remaining) {
        None => Reading::Need(length),
        Some(body) => match fields(body, length) {
            Ok(connect) => Reading::Connect(connect),
            Err(part) => Reading::Malformed(Malformed::Truncated { length, part }),
        },
    }
}

/// The fields of a packet without its first bytes; the one that is not all there.
fn fields(body: &[u8], length: usize) -> Result<Connect<'_>, &'static str> {
    let (name, rest) = string(body).ok_or("protocol name")?;
    let (level, rest) = rest.split_first().ok_or("protocol level")?;
    // One byte of flags and two of keep alive.
    let mut rest = rest.get(3..).ok_or("keep alive")?;
    if *level == WITH_PROPERTIES {
        rest = number(rest).and_then(|(count, rest)| rest.get(count..)).ok_or("properties")?;
    }
    let (client_id, _) = string(rest).ok_or("client identifier")?;
    Ok(Connect { name, level: *level, client_id, length })
}

/// A text behind its length in two bytes, and what follows.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// A number in up to four bytes of seven bits each, lowest first, and what follows.
///
/// That the fourth says that there is a fifth is left to the node, as in APISIX.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 || place == 3 {
            return Some((value, bytes.get(place + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Reading<'_>) {
        assert_eq!(read(bytes), expected, "{}", bytes.escape_ascii());
    }

    fn truncated<'a>(length: usize, part: &'static str) -> Reading<'a> {
        Reading::Malformed(Malformed::Truncated { length, part })
    }

    #[test]
    fn each_version_says_who_connects() {
        let connect =
            |name, level, client_id, length| Reading::Connect(Connect { name, level, client_id, length });
        check(b"\x10\x10\0\x06MQIsdp\x03\x02\0\x3c\0\x02c1", connect(b"MQIsdp", 3, b"c1", 18));
        check(b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02c1", connect(b"MQTT", 4, b"c1", 16));
        check(b"\x10\x0f\0\x04MQTT\x05\x02\0\x3c\0\0\x02c1", connect(b"MQTT", 5, b"c1", 17));
        check(b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\x14\0\x02c1", connect(b"MQTT", 5, b"c1", 20));
        check(b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0and more", connect(b"MQTT", 4, b"", 14));
    }

    #[test]
    fn it_waits_for_the_whole_packet_and_no_longer() {
        let packet = b"\x10\x8e\0\0\x04MQTT\x04\x02\0\x3c\0\x02c1";
        for cut in 0..packet.len() {
            let wanted = if cut < 5 { 5 } else { packet.len() };
            check(&packet[..cut], Reading::Need(wanted));
        }
        check(b"\x10\xff\xff\xff\x7f\0", Reading::Need(268_435_460));
        check(b"\x10\xff\xff\xff\xff\x01", Reading::Need(268_435_460));
        check(b"\x10\0\0\0\0", truncated(2, "protocol name"));
    }

    #[test]
    fn what_is_no_connect_is_named() {
        for first in [0, 1, 0x0f, 0x11, 0x20, b'G', 0x16] {
            check(&[first, 0, 0, 0, 0], Reading::Malformed(Malformed::Type(first)));
        }
        check(b"\x10\x03\0\x04M..", truncated(5, "protocol name"));
        check(b"\x10\x06\0\x04MQTT", truncated(8, "protocol level"));
        check(b"\x10\x09\0\x04MQTT\x04\x02\0\x3c", truncated(11, "keep alive"));
        check(b"\x10\x0a\0\x04MQTT\x05\x02\0\x3c\0", truncated(12, "properties"));
        check(b"\x10\x0c\0\x04MQTT\x05\x02\0\x3c\x05\0", truncated(14, "properties"));
        check(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x02c1", truncated(15, "client identifier"));
    }
}
