//! PROXY headers made and read by hand (haproxy's proxy-protocol.txt, 2.1 and 2.2): what the gateway is
//! compared with must not be its own code.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How version 2 begins.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Commands.
pub const LOCAL: u8 = 0;
pub const PROXY: u8 = 1;
/// Family and transport.
pub const STREAM4: u8 = 0x11;
pub const STREAM6: u8 = 0x21;
pub const UNIX: u8 = 0x31;

/// A line of version 1.
pub fn v1(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
}

/// A header of version 2 with addresses and ports as they are sent.
pub fn v2(command: u8, family: u8, addresses: &[u8], tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let tlvs = tlvs.iter().flat_map(|(kind, value)| [&[*kind], &length(value)[..], value].concat());
    let rest: Vec<u8> = addresses.iter().copied().chain(tlvs).collect();
    [&SIGNATURE[..], &[0x20 | command, family], &length(&rest), &rest].concat()
}

/// Takes a header of either version from a connection, and not a byte more.
pub fn take_header(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = vec![0; 16];
    stream.read_exact(&mut header)?;
    if header.starts_with(SIGNATURE) {
        let rest = u16::from_be_bytes([header[14], header[15]]);
        header.resize(16 + usize::from(rest), 0);
        stream.read_exact(&mut header[16..])?;
        return Ok(header);
    }
    while !header.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        header.extend(byte);
    }
    Ok(header)
}

/// A header of version 2 with command PROXY.
#[derive(Debug)]
pub struct Header {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub tlvs: Vec<(u8, Vec<u8>)>,
    pub length: usize,
}

impl Header {
    /// Reads the one at the beginning of `bytes`.
    #[track_caller]
    pub fn read(bytes: &[u8]) -> Self {
        assert!(bytes.starts_with(SIGNATURE), "{}", bytes.escape_ascii());
        assert_eq!(bytes[12], 0x21, "version 2, command PROXY");
        let length = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        let mut rest = &bytes[16..length];
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count);
            rest = left;
            taken
        };
        let mut ip = || match bytes[13] {
            STREAM4 => IpAddr::from(Ipv4Addr::from(*take(4).first_chunk::<4>().unwrap())),
            STREAM6 => IpAddr::from(Ipv6Addr::from(*take(16).first_chunk::<16>().unwrap())),
            other => unreachable!("family {other:#x}"),
        };
        let (source, destination) = (ip(), ip());
        let mut port = || u16::from_be_bytes(*take(2).first_chunk().unwrap());
        let (source, destination) = ((source, port()).into(), (destination, port()).into());
        let mut tlvs = Vec::new();
        while let [kind, high, low, after @ ..] = rest {
            let (value, left) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            tlvs.push((*kind, value.to_vec()));
            rest = left;
        }
        assert!(rest.is_empty(), "half a TLV");
        Self { source, destination, tlvs, length }
    }

    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|(known, _)| *known == kind).map(|(_, value)| &**value)
    }
}
