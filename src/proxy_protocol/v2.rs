//! Version 2: a signature, what is meant, a length, addresses, TLVs (proxy-protocol.txt 2.2).

use std::net::{IpAddr, SocketAddr};

use super::{Addresses, Header, HeaderError, MOST, Reading, Tlv, Version, crc32c, tlv};

/// How a header begins.
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The signature, version and command, family and transport, length.
const FIXED: usize = 16;

/// Version 2 with each command.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// TCP over IPv4 and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// A TLV's kind and length.
const TLV_HEADER: usize = 3;

/// A checksum.
type Sum = [u8; 4];

/// Reads bytes that begin with [`SIGNATURE`].
pub(super) fn read(bytes: &[u8]) -> Result<Reading, HeaderError> {
    let Some([.., command, family, high, low]) = bytes.first_chunk::<FIXED>() else {
        return Ok(Reading::Need(FIXED));
    };
    let length = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    match *command {
        // What goes with LOCAL is ignored, known or not.
        LOCAL => {}
        PROXY if family >> 4 <= 3 && family & 0xf <= 2 => {}
        PROXY => return Err(HeaderError::Family(*family)),
        other if other >> 4 == 2 => return Err(HeaderError::Command(other & 0xf)),
        other => return Err(HeaderError::Version(other >> 4)),
    }
    if length > MOST {
        return Err(HeaderError::TooLong(length));
    }
    let Some(whole) = bytes.get(..length) else {
        return Ok(Reading::Need(length));
    };
    let (addresses, tlvs) = match (*command, *family) {
        (PROXY, TCP4) => ends::<4>(whole)?,
        (PROXY, TCP6) => ends::<16>(whole)?,
        _ => (None, Vec::new()),
    };
    Ok(Reading::Header(Header { version: Version::V2, addresses, tlvs }, length))
}

/// Reads addresses of `N` bytes and what follows them.
fn ends<const N: usize>(header: &[u8]) -> Result<(Option<Addresses>, Vec<Tlv>), HeaderError>
where
    IpAddr: From<[u8; N]>,
{
    let block = &header[FIXED..];
    let read = || {
        let (source, rest) = block.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk()?;
        let (destination_port, _) = rest.split_first_chunk()?;
        let end = |ip: &[u8; N], port: &[u8; 2]| (IpAddr::from(*ip), u16::from_be_bytes(*port)).into();
        Some(Addresses { source: end(source, source_port), destination: end(destination, destination_port) })
    };
    let needed = 2 * (N + size_of::<u16>());
    let addresses = read().ok_or(HeaderError::Addresses { needed, found: block.len() })?;
    Ok((Some(addresses), tlvs(header, FIXED + needed)?))
}

/// Reads what stands from `at` to the end.
fn tlvs(header: &[u8], mut at: usize) -> Result<Vec<Tlv>, HeaderError> {
    let mut found = Vec::new();
    let mut verified = false;
    while let Some(rest @ [_, ..]) = header.get(at..) {
        let split = || {
            let ([kind, high, low], rest) = rest.split_first_chunk::<TLV_HEADER>()?;
            Some((*kind, rest.get(..usize::from(u16::from_be_bytes([*high, *low])))?))
        };
        let (kind, value) = split().ok_or(HeaderError::Tlv { at })?;
        if kind == tlv::CRC32C && !verified {
            verify(header, at + TLV_HEADER, value)?;
            verified = true;
        }
        found.push(Tlv { kind, value: value.into() });
        at += TLV_HEADER + value.len();
    }
    Ok(found)
}

/// The sum is that of the header with zeros in the place of the sum, `at`.
fn verify(header: &[u8], at: usize, value: &[u8]) -> Result<(), HeaderError> {
    let said = Sum::try_from(value).map_err(|_| HeaderError::ChecksumLength(value.len()))?;
    let said = u32::from_be_bytes(said);
    let (before, rest) = header.split_at(at);
    let after = &rest[size_of::<Sum>()..];
    let computed = crc32c::sum(before.iter().chain(&Sum::default()).chain(after));
    if said == computed { Ok(()) } else { Err(HeaderError::Checksum { said, computed }) }
}

/// Writes a header that tells of a TCP connection. Of two families, the IPv4 address is sent as an
/// IPv4-mapped one.
///
/// A TLV with which the header would be longer than readers take is left out: nginx and
/// [`read`](super::read) take 4,096 bytes in all. The first TLV of
/// kind [`CRC32C`](tlv::CRC32C) is given the sum of what is written here, whatever its value, so that the
/// TLVs of a header that was read can be passed on; others of that kind are left out.
pub fn write<'a>(
    out: &mut Vec<u8>,
    source: SocketAddr,
    destination: SocketAddr,
    tlvs: impl IntoIterator<Item = (u8, &'a [u8])>,
) {
    let mut header = [SIGNATURE, &[PROXY]].concat();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([TCP4, 0, 0]);
            header.extend([from.octets(), to.octets()].as_flattened());
        }
        (from, to) => {
            header.extend([TCP6, 0, 0]);
            header.extend([mapped(from), mapped(to)].as_flattened());
        }
    }
    header.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].as_flattened());
    let mut sum_at = None;
    for (kind, value) in tlvs {
        let is_sum = kind == tlv::CRC32C;
        let value = if is_sum { &[0; size_of::<Sum>()] } else { value };
        let fits = header.len() + TLV_HEADER + value.len() <= MOST;
        let (Ok(length), true) = (u16::try_from(value.len()), fits && !(is_sum && sum_at.is_some())) else {
            continue;
        };
        header.push(kind);
        header.extend(length.to_be_bytes());
        if is_sum {
            sum_at = Some(header.len());
        }
        header.extend(value);
    }
    seal(&mut header, sum_at);
    out.append(&mut header);
}

/// Fills in the length, and the checksum where there is to be one.
fn seal(header: &mut [u8], sum_at: Option<usize>) {
    let length = u16::try_from(header.len() - FIXED).unwrap_or(u16::MAX).to_be_bytes();
    header[FIXED - length.len()..FIXED].copy_from_slice(&length);
    if let Some(at) = sum_at {
        let sum = crc32c::sum(&*header).to_be_bytes();
        header[at..at + sum.len()].copy_from_slice(&sum);
    }
}

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::read;
    use super::*;

    const V4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 4, 1, 0xbb];

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    fn v4_with(tlvs: &[u8]) -> Vec<u8> {
        header(PROXY, TCP4, &[&V4, tlvs].concat())
    }

    fn ends(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[track_caller]
    fn check(header: &[u8], addresses: impl Into<Option<Addresses>>, tlvs: &[(u8, &[u8])]) {
        let bytes = [header, b"what follows"].concat();
        let tlvs = tlvs.iter().map(|(kind, value)| Tlv { kind: *kind, value: (*value).into() }).collect();
        let expected = Header { version: Version::V2, addresses: addresses.into(), tlvs };
        assert_eq!(read(&bytes), Reading::Header(expected, header.len()));
        for cut in 0..header.len() {
            let expected = match cut {
                0..12 => cut + 1,
                12..FIXED => FIXED,
                _ => header.len(),
            };
            assert_eq!(read(&bytes[..cut]), Reading::Need(expected), "cut after {cut}");
        }
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], text: &str) {
        let Reading::Malformed(error) = read(bytes) else { panic!("{:?}", read(bytes)) };
        assert_eq!(error.to_string(), format!("broken header: {text}"));
    }

    #[test]
    fn addresses_of_tcp_are_given() {
        check(&v4_with(&[]), ends("192.0.2.1:56324", "192.0.2.2:443"), &[]);
        let mut v6 = [0; 36];
        (v6[0], v6[15], v6[31], v6[33], v6[35]) = (0x20, 1, 2, 3, 4);
        check(&header(PROXY, TCP6, &v6), ends("[2000::1]:3", "[::2]:4"), &[]);
        // An IPv4-mapped address stays what it is.
        v6[..16].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        check(&header(PROXY, TCP6, &v6), ends("[::ffff:192.0.2.1]:3", "[::2]:4"), &[]);
    }

    #[test]
    fn headers_without_tcp_addresses_are_taken() {
        check(&header(LOCAL, 0, &[]), None, &[]);
        check(&header(LOCAL, TCP4, &V4), None, &[]);
        check(&header(LOCAL, 0xff, b"whatever"), None, &[]);
        check(&header(PROXY, 0, &[]), None, &[]);
        check(&header(PROXY, 0, b"whatever"), None, &[]);
        for family in [0x10, 0x12, 0x20, 0x22, 0x01, 0x02] {
            check(&header(PROXY, family, &V4), None, &[]);
        }
        check(&header(PROXY, 0x31, &[b'/'; 216]), None, &[]);
    }

    #[test]
    fn tlvs_are_kept_in_order() {
        let tlvs = b"\x02\0\x03a.b\x04\0\0\xe0\0\x01\0\x02\0\x01c";
        let expected = [(tlv::AUTHORITY, &b"a.b"[..]), (tlv::NOOP, b""), (0xe0, b"\0"), (2, b"c")];
        check(&v4_with(tlvs), ends("192.0.2.1:56324", "192.0.2.2:443"), &expected);
        let Reading::Header(header, _) = read(&v4_with(tlvs)) else { panic!("no header") };
        assert_eq!(header.tlv(tlv::AUTHORITY), Some(&b"a.b"[..]));
        assert_eq!(header.tlv(tlv::ALPN), None);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        check_refused(&header(0x11, TCP4, &V4), "its version is 1; only 1 and 2 are known");
        check_refused(&header(0x22, TCP4, &V4), "its command is 2; only 0 (LOCAL) and 1 (PROXY) are known");
        let known = "families are known up to 3 and transports up to 2";
        for family in [0x41, 0x13] {
            let text = format!("its address family and transport are {family:#04x}; {known}");
            check_refused(&header(PROXY, family, &V4), &text);
        }
        check_refused(&header(PROXY, TCP4, &V4[1..]), "its addresses take 12 bytes and it has 11");
        check_refused(&header(PROXY, TCP6, &V4), "its addresses take 36 bytes and it has 12");
        for tlvs in [&b"\x02"[..], b"\x02\0", b"\x02\0\x01", b"\x02\xff\xff"] {
            check_refused(&v4_with(tlvs), "the TLV at byte 28 is longer than what is left");
        }
        check_refused(&v4_with(b"\x04\0\x01 \x02"), "the TLV at byte 32 is longer than what is left");
        // Refused before the rest is there.
        let long = header(LOCAL, 0, &[0; MOST - FIXED + 1]);
        check_refused(&long[..FIXED], "it is 4097 bytes long; at most 4096 are read");
        check(&header(LOCAL, 0, &[0; MOST - FIXED]), None, &[]);
    }

    #[test]
    fn checksums_are_verified() {
        // This sum was computed elsewhere, bit by bit.
        let good = v4_with(b"\x03\0\x04\x95\x41\x6d\xd3\x04\0\0");
        let sum = &good[31..35];
        check(&good, ends("192.0.2.1:56324", "192.0.2.2:443"), &[(tlv::CRC32C, sum), (tlv::NOOP, b"")]);
        for at in [16, 32, 36] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let reading = read(&bad);
            assert!(matches!(reading, Reading::Malformed(HeaderError::Checksum { .. })), "{at}: {reading:?}");
        }
        check_refused(&v4_with(b"\x03\0\x03abc"), "its CRC-32C is 3 bytes long; it must be 4");
    }

    #[test]
    fn two_families_are_sent_as_the_wider_one() {
        let mut out = b"before".to_vec();
        write(&mut out, "192.0.2.1:1".parse().unwrap(), "[::1]:2".parse().unwrap(), []);
        check(&out[6..], ends("[::ffff:192.0.2.1]:1", "[::1]:2"), &[]);
    }

    #[test]
    fn tlvs_that_do_not_fit_are_left_out() {
        let end: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let (oversized, large) = (vec![0; 65_536], vec![0; 4_000]);
        let rest = vec![0; MOST - FIXED - 12 - (TLV_HEADER + large.len()) - TLV_HEADER];
        let tlvs: [(u8, &[u8]); 5] =
            [(1, &oversized), (2, &large), (4, &large), (5, &rest), (tlv::CRC32C, b"no room")];
        let mut out = Vec::new();
        write(&mut out, end, end, tlvs);
        assert_eq!((out.len(), &out[14..16]), (MOST, &[0x0f, 0xf0][..]));
        assert_eq!((out[28], out[28 + 4_003]), (2, 5));
    }

    #[test]
    fn a_checksum_passed_on_is_made_anew() {
        let end: SocketAddr = "[::1]:1".parse().unwrap();
        let tlvs: [(u8, &[u8]); 3] = [(tlv::CRC32C, b"stale"), (tlv::ALPN, b"h2"), (tlv::CRC32C, b"again")];
        let mut out = b"before".to_vec();
        write(&mut out, end, end, tlvs);
        let Reading::Header(header, _) = read(&out[6..]) else { panic!("{:?}", read(&out[6..])) };
        let kinds: Vec<_> = header.tlvs.iter().map(|tlv| tlv.kind).collect();
        assert_eq!(kinds, [tlv::CRC32C, tlv::ALPN]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            source: SocketAddr,
            destination: SocketAddr,
            tlvs in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)), 0..20),
        ) {
            let mut out = Vec::new();
            write(&mut out, source, destination, tlvs.iter().map(|(kind, value)| (*kind, &value[..])));
            let Reading::Header(header, length) = read(&out) else {
                return Err(TestCaseError::fail(format!("{:?}", read(&out))));
            };
            prop_assert_eq!(length, out.len());
            let addresses = header.addresses.unwrap();
            prop_assert_eq!(addresses.source.ip().to_canonical(), source.ip().to_canonical());
            prop_assert_eq!(addresses.source.is_ipv4(), source.is_ipv4() && destination.is_ipv4());
            prop_assert_eq!(addresses.source.port(), source.port());
            prop_assert_eq!(addresses.destination.ip().to_canonical(), destination.ip().to_canonical());
            prop_assert_eq!(addresses.destination.port(), destination.port());
            let plain = |kind: u8| kind != tlv::CRC32C;
            let sent = tlvs.iter().map(|(kind, value)| (*kind, &value[..])).filter(|(kind, _)| plain(*kind));
            let came = header.tlvs.iter().map(|tlv| (tlv.kind, &*tlv.value)).filter(|(kind, _)| plain(*kind));
            prop_assert!(sent.eq(came));
        }
    }
}
