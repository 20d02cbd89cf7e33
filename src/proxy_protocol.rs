//! The PROXY protocol: who a connection really comes from, told by a proxy in front of it.
//!
//! Version 1 is a line of text, version 2 is binary and carries more (haproxy's proxy-protocol.txt, 2.1
//! and 2.2; nginx `src/core/ngx_proxy_protocol.c`). Both are read on one port, told apart by how they
//! begin. Unlike nginx a header may come in several segments: [`read`] says how much it takes to be asked
//! again. Pure: no I/O, no clock; the standard library alone, so that the fuzz targets take this file as it
//! is.

mod crc32c;
mod error;
mod v1;
mod v2;

use std::fmt;
use std::net::SocketAddr;

pub use error::HeaderError;
pub use v1::write as write_v1;
pub use v2::write as write_v2;

/// A header is at most so long: nginx's `NGX_PROXY_PROTOCOL_MAX_HEADER` (`ngx_proxy_protocol.h:17`).
pub const MOST: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reading {
    /// The beginning of a header. It is worth asking again when there are so many bytes in all: more than
    /// there are, never more than [`MOST`]. Exact as soon as the length is known.
    Need(usize),
    /// These bytes begin no header. Decided by the first byte that differs from both beginnings.
    Absent,
    /// Begins as a header and is none.
    Malformed(HeaderError),
    /// A whole header, and the bytes it takes up; anything may follow it.
    Header(Header, usize),
}

/// What a proxy told of the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The form it came in.
    pub version: Version,
    /// Between whom the connection was made. Absent where the proxy speaks for itself (`LOCAL`), does not
    /// know (`UNKNOWN`, unspecified), or tells of something else than TCP: datagrams, Unix sockets. Those
    /// headers are good, and the addresses of the TCP connection stand, as in nginx.
    pub addresses: Option<Addresses>,
    /// All that was said beside them, in order. Empty where there are no addresses: then nginx reads none
    /// either, and where they would begin is not always known.
    pub tlvs: Vec<Tlv>,
}

impl Header {
    /// The value of the first TLV of this kind; see [`tlv`] for kinds.
    #[must_use]
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|tlv| tlv.kind == kind).map(|tlv| &*tlv.value)
    }
}

/// The form of a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// The ends of a TCP connection. An IPv4-mapped IPv6 address stays one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// One further piece of what a header of version 2 says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tlv {
    /// What it is about; see [`tlv`].
    pub kind: u8,
    /// As sent.
    pub value: Box<[u8]>,
}

/// Kinds of TLVs (proxy-protocol.txt 2.2).
pub mod tlv {
    /// The application protocol, as TLS negotiates it.
    pub const ALPN: u8 = 0x01;
    /// The host name the client asked for, in UTF-8.
    pub const AUTHORITY: u8 = 0x02;
    /// CRC-32C of the header, four bytes.
    pub const CRC32C: u8 = 0x03;
    /// Nothing: fills up.
    pub const NOOP: u8 = 0x04;
    /// What tells this connection from all others, 128 bytes at most.
    pub const UNIQUE_ID: u8 = 0x05;
    /// How TLS was spoken with the client, in TLVs of its own.
    pub const SSL: u8 = 0x20;
    /// The network namespace, in ASCII.
    pub const NETNS: u8 = 0x30;
}

/// Reads a header from the first bytes of a connection, all of them each time.
#[must_use]
pub fn read(bytes: &[u8]) -> Reading {
    let same = |beginning: &[u8]| {
        let length = bytes.len().min(beginning.len());
        bytes[..length] == beginning[..length]
    };
    if !same(v1::BEGINNING) && !same(v2::SIGNATURE) {
        return Reading::Absent;
    }
    let reading = if bytes.starts_with(v1::BEGINNING) {
        v1::read(bytes)
    } else if bytes.starts_with(v2::SIGNATURE) {
        v2::read(bytes)
    } else {
        Ok(Reading::Need(bytes.len() + 1))
    };
    reading.unwrap_or_else(Reading::Malformed)
}

/// The first line of bytes that are no header, for a log line in nginx's words: `broken header: "hello"`.
/// Cut after as many bytes as a line may have, with everything but printable ASCII escaped.
#[derive(Clone, Copy, Debug)]
pub struct FirstLine<'a>(pub &'a [u8]);

impl fmt::Display for FirstLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.0.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        line[..line.len().min(v1::LONGEST)].escape_ascii().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_begin_no_header_are_told_at_once() {
        for bytes in [&b"h"[..], b"PROXY\t", b"Pr", b"\r\n\n", b"\r\n\r\n\0\r\nQUIT\r", b"\0", b"PING\r\n"] {
            assert_eq!(read(bytes), Reading::Absent, "{:?}", bytes.escape_ascii());
        }
        assert_eq!(read(b""), Reading::Need(1));
        assert_eq!(read(b"PRO"), Reading::Need(4));
        assert_eq!(read(b"\r\n"), Reading::Need(3));
    }
}
