//! The first bytes of a TLS connection: what its client asks for, before anything is answered.
//!
//! A hello comes in any number of TCP segments and TLS records (RFC 8446 5.1, 4.1.2; RFC 5246 7.4.1.2).
//! [`read`] is asked with what is there and says how much it takes to be asked again. It keeps no state,
//! decides as early as the bytes allow, so that a client of another protocol is not kept waiting, and
//! what it decided stands whatever follows.
//! What is neither the name nor the protocol is not judged: on a passed-through connection the upstream
//! does that, else the TLS library. Values of RFC 8701 (GREASE) are skipped. Pure: no I/O, no clock; the
//! standard library alone, so that the fuzz targets take this file as it is.

mod message;
mod names;
mod offer;

pub use message::{Hello, normalized, parse_message};
pub use offer::Offer;

/// First bytes that are read for a hello at most: record headers included.
pub const MOST: usize = 16 * 1024;

/// Type, version, length (RFC 8446 5.1).
const RECORD_HEADER: usize = 5;
/// Type, length (RFC 8446 4).
const MESSAGE_HEADER: usize = 4;
/// What a record holds at most (RFC 8446 5.1).
const LARGEST_RECORD: usize = 1 << 14;
/// The record type of a handshake.
const HANDSHAKE: u8 = 22;
/// The handshake type of a hello.
const CLIENT_HELLO: u8 = 1;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reading<'a> {
    /// The beginning of a hello. It is worth asking again when there are so many bytes in all: more than
    /// there are, never more than [`MOST`]. Exact as soon as the headers that are there say so, and never
    /// more than the hello turns out to take.
    Need(usize),
    /// Something else is spoken: no handshake record comes first, its version is not that of SSL 3 or TLS,
    /// or its first message is no hello. An SSL 2 hello is this too. Nginx goes on without a name in the
    /// same cases (`ngx_stream_ssl_preread_module.c`).
    NotTls,
    /// Begins as TLS and then is not. A part of a sentence: "its extensions are cut short".
    Malformed(&'static str),
    /// Longer than [`MOST`].
    TooLarge,
    /// A whole hello; anything may follow it.
    Hello(Hello<'a>),
}

/// Reads a hello from the first bytes of a connection, all of them each time.
///
/// `joined` is scratch: a hello split over several records is joined there, in at most [`MOST`] bytes. One
/// that lies in one record is borrowed from `bytes`, and nothing is allocated.
pub fn read<'a>(bytes: &'a [u8], joined: &'a mut Vec<u8>) -> Reading<'a> {
    let (length, end) = match extent(bytes) {
        Ok(extent) => extent,
        Err(short) => return short.into(),
    };
    match Hello::parse(gather(bytes, length, joined), end) {
        Ok(hello) => Reading::Hello(hello),
        Err(why) => Reading::Malformed(why),
    }
}

/// A reading without a hello.
enum Short {
    Need(usize),
    NotTls,
    Malformed(&'static str),
    TooLarge,
}

impl From<Short> for Reading<'_> {
    fn from(short: Short) -> Self {
        match short {
            Short::Need(count) => Self::Need(count),
            Short::NotTls => Self::NotTls,
            Short::Malformed(why) => Self::Malformed(why),
            Short::TooLarge => Self::TooLarge,
        }
    }
}

/// How long the message is, and where in `bytes` it ends, if it is all there.
fn extent(bytes: &[u8]) -> Result<(usize, usize), Short> {
    opening(bytes)?;
    end_of(bytes, 1)?;
    let mut message = fragments(bytes).flatten().copied();
    if message.next() != Some(CLIENT_HELLO) {
        return Err(Short::NotTls);
    }
    end_of(bytes, MESSAGE_HEADER)?;
    let body = message.take(3).fold(0, |length, byte| length << 8 | usize::from(byte));
    let length = MESSAGE_HEADER + body;
    Ok((length, end_of(bytes, length)?))
}

/// Judges the first three bytes as they come.
fn opening(bytes: &[u8]) -> Result<(), Short> {
    match *bytes {
        [first, ..] if first != HANDSHAKE => Err(Short::NotTls),
        [_, major, ..] if major != 3 => Err(Short::NotTls),
        [_, _, minor, ..] if minor > 4 => Err(Short::NotTls),
        [] | [_] | [_, _] => Err(Short::Need(bytes.len() + 1)),
        [..] => Ok(()),
    }
}

/// Where in `bytes` the first `wanted` bytes of the handshake end.
///
/// Where they are not all there, what is missing is counted as if it came in one record: a client that
/// sends tiny records has each of them looked at a few times, not once for every record that follows.
fn end_of(bytes: &[u8], wanted: usize) -> Result<usize, Short> {
    let (mut at, mut left) = (0, wanted);
    loop {
        let end = at + RECORD_HEADER + left;
        if end > MOST {
            return Err(Short::TooLarge);
        }
        let Some(header) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
            return Err(Short::Need(end));
        };
        let length = record_length(*header)?;
        if left <= length {
            return if end > bytes.len() { Err(Short::Need(end)) } else { Ok(end) };
        }
        at += RECORD_HEADER + length;
        left -= length;
    }
}

/// The bytes that follow a record header.
fn record_length(header: [u8; RECORD_HEADER]) -> Result<usize, Short> {
    let [kind, major, _, high, low] = header;
    if (kind, major) != (HANDSHAKE, 3) {
        return Err(Short::Malformed("something else comes between its records"));
    }
    match usize::from(u16::from_be_bytes([high, low])) {
        0 => Err(Short::Malformed("a record of it is empty")),
        length if length > LARGEST_RECORD => Err(Short::Malformed("a record of it is over 16384 bytes long")),
        length => Ok(length),
    }
}

/// What the records hold, the last one perhaps in part.
fn fragments(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let ([.., high, low], after) = rest.split_first_chunk::<RECORD_HEADER>()?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (fragment, next) = after.split_at(length.min(after.len()));
        rest = next;
        Some(fragment)
    })
}

/// The first `length` bytes of the handshake, which are all there, in one piece.
fn gather<'a>(bytes: &'a [u8], length: usize, joined: &'a mut Vec<u8>) -> &'a [u8] {
    if let Some(whole) = fragments(bytes).next().and_then(|first| first.get(..length)) {
        return whole;
    }
    joined.clear();
    joined.reserve_exact(length);
    for fragment in fragments(bytes) {
        let missing = length - joined.len();
        if missing == 0 {
            break;
        }
        joined.extend_from_slice(&fragment[..missing.min(fragment.len())]);
    }
    joined
}

#[cfg(test)]
mod tests;
