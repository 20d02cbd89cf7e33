//! What holds of every reading of a PROXY header, whatever the bytes.
//!
//! Whoever includes this file has the module `proxy_protocol` in the root of its crate.

use std::mem::discriminant;
use std::net::{IpAddr, SocketAddr};

use crate::proxy_protocol::{
    Addresses, FirstLine, Header, MOST, Reading, Version, read, tlv, write_v1, write_v2,
};

/// Panics where something does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let reading = read(bytes);
    let begun = |whole: &[u8]| bytes.iter().zip(whole).all(|(left, right)| left == right);
    let begins = begun(b"PROXY ") || begun(b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(reading == Reading::Absent, !begins, "{reading:?}");
    let end = match &reading {
        Reading::Need(count) => {
            assert!(*count > bytes.len() && *count <= MOST, "needs {count} of {}", bytes.len());
            *count
        }
        Reading::Absent => MOST,
        Reading::Malformed(error) => {
            let text = error.to_string();
            assert!(text.starts_with("broken header: ") && printable(&text), "{text}");
            MOST
        }
        Reading::Header(header, length) => {
            assert!(*length <= bytes.len().min(MOST), "{length} of {}", bytes.len());
            check_header(&bytes[..*length], header);
            assert_eq!(read(&bytes[..*length]), reading, "what follows counts");
            *length
        }
    };
    // A shorter prefix asks for more or says the same, and asks for nothing that does not come.
    for cut in cuts(bytes, bytes.len()).chain(cuts(bytes, end.min(bytes.len()).saturating_sub(1))) {
        match (read(&bytes[..cut]), &reading) {
            (Reading::Need(count), _) => assert!(count > cut && count <= end, "cut after {cut}: {count}"),
            (Reading::Header(..), Reading::Header(..)) => assert!(cut >= end, "cut after {cut}"),
            (verdict, _) => assert_eq!(discriminant(&verdict), discriminant(&reading), "cut after {cut}"),
        }
    }
    let line = FirstLine(bytes).to_string();
    assert!(printable(&line) && line.len() <= 4 * 107, "{line}");
}

fn printable(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn check_header(bytes: &[u8], header: &Header) {
    for tlv in &header.tlvs {
        assert!(header.tlv(tlv.kind).is_some());
    }
    let Some(Addresses { source, destination }) = header.addresses else {
        assert!(header.tlvs.is_empty());
        return;
    };
    // As a line, whose numbers may be written in more than one way.
    let mut line = Vec::new();
    write_v1(&mut line, source, destination);
    assert_eq!(read(&line), with(Version::V1, source, destination, line.len()));

    let sums = header.tlvs.iter().filter(|tlv| tlv.kind == tlv::CRC32C).count();
    let mut binary = Vec::new();
    write_v2(&mut binary, source, destination, header.tlvs.iter().map(|tlv| (tlv.kind, &*tlv.value)));
    match header.version {
        Version::V1 => {
            assert!(header.tlvs.is_empty() && bytes.len() <= 107);
            let (source, destination) = widened(source, destination);
            assert_eq!(read(&binary), with(Version::V2, source, destination, binary.len()));
        }
        // Byte for byte, the checksum included.
        Version::V2 if sums < 2 => assert_eq!(binary, bytes),
        // Of several sums the first counts, and it alone is written.
        Version::V2 => assert!(matches!(read(&binary), Reading::Header(..)), "{:?}", read(&binary)),
    }
}

fn with(version: Version, source: SocketAddr, destination: SocketAddr, length: usize) -> Reading {
    let addresses = Some(Addresses { source, destination });
    Reading::Header(Header { version, addresses, tlvs: Vec::new() }, length)
}

/// What version 2 says of addresses of two families.
fn widened(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let wide = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
        IpAddr::V6(_) => end,
    };
    (wide(source), wide(destination))
}

/// A few lengths up to `most`, chosen by the bytes: the ends, and some between.
fn cuts(bytes: &[u8], most: usize) -> impl Iterator<Item = usize> {
    let mix = |sum: usize, byte: &u8| sum.wrapping_mul(31).wrapping_add(usize::from(*byte));
    let sum = bytes.iter().rev().take(64).fold(7, mix);
    let middle = (1..5).map(move |turn| sum.rotate_right(turn * 11) % (most + 1));
    [0, 16.min(most), most.saturating_sub(1), most].into_iter().chain(middle)
}
