//! Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and CR LF (proxy-protocol.txt 2.1).

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use super::{Addresses, FirstLine, Header, HeaderError, Reading, Version};

/// How a line begins.
pub(super) const BEGINNING: &[u8] = b"PROXY ";

/// A line is at most so long, its CR LF included.
pub(super) const LONGEST: usize = 107;

/// Reads bytes that begin with [`BEGINNING`].
pub(super) fn read(bytes: &[u8]) -> Result<Reading, HeaderError> {
    let bad = |why| HeaderError::Line { line: FirstLine(bytes).to_string().into(), why };
    let within = &bytes[..bytes.len().min(LONGEST)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        let missing = if within.ends_with(b"\r") { 1 } else { 2 };
        return match within.len() + missing {
            needed @ ..=LONGEST => Ok(Reading::Need(needed)),
            _ => Err(bad("it does not end within 107 bytes")),
        };
    };
    let addresses = parse(&bytes[BEGINNING.len()..end]).map_err(bad)?;
    Ok(Reading::Header(Header { version: Version::V1, addresses, tlvs: Vec::new() }, end + 2))
}

/// Reads what follows the first word.
fn parse(rest: &[u8]) -> Result<Option<Addresses>, &'static str> {
    let mut words = rest.split(|byte| *byte == b' ');
    let family = words.next();
    if family == Some(b"UNKNOWN") {
        return Ok(None);
    }
    let mut words = words.map(|word| str::from_utf8(word).unwrap_or_default());
    let mut word = || words.next().unwrap_or_default();
    let [source, destination, source_port, destination_port] = [word(), word(), word(), word()];
    if words.next().is_some() {
        return Err("something follows the ports; there is one space between two parts");
    }
    let source = match family {
        Some(b"TCP4") => source.parse().map(IpAddr::V4).map_err(|_| "its source is no IPv4 address"),
        Some(b"TCP6") => source.parse().map(IpAddr::V6).map_err(|_| "its source is no IPv6 address"),
        _ => Err("its second word is none of TCP4, TCP6 and UNKNOWN"),
    }?;
    // Of either family: nginx and we write addresses as they are, and a client known from an earlier
    // header may have another family than the socket that took its connection.
    let destination: IpAddr = destination.parse().map_err(|_| "its destination is no address")?;
    let source_port = port(source_port).ok_or("its source port is none")?;
    let destination_port = port(destination_port).ok_or("its destination port is none")?;
    Ok(Some(Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    }))
}

/// 0 to 65535, without a sign and without zeros in front.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Writes a line. The family is that of the source; addresses of two families are written as they are
/// (nginx `ngx_proxy_protocol.c:279-322`), and [`read`](super::read) takes that.
pub fn write(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    // Writing to a vector cannot fail.
    let _ = write!(out, "PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    fn ends(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[track_caller]
    fn check(line: &str, addresses: impl Into<Option<Addresses>>) {
        let bytes = format!("{line}\r\nPROXY what follows\r\n");
        let header = Header { version: Version::V1, addresses: addresses.into(), tlvs: Vec::new() };
        assert_eq!(read(bytes.as_bytes()), Reading::Header(header, line.len() + 2), "{line}");
        for cut in 0..line.len() + 2 {
            let reading = read(&bytes.as_bytes()[..cut]);
            let Reading::Need(count) = reading else { panic!("{line} cut after {cut}: {reading:?}") };
            assert!(count > cut && count <= line.len() + 2, "{line} cut after {cut}: {count}");
        }
    }

    #[track_caller]
    fn check_refused(text: &[u8], part: &str) {
        let Reading::Malformed(error) = read(text) else { panic!("{:?}", text.escape_ascii()) };
        let error = error.to_string();
        assert!(error.starts_with("broken header: \"PROXY ") && error.contains(part), "{error}");
    }

    #[test]
    fn lines_give_their_addresses() {
        check("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443", ends("192.0.2.1:56324", "192.0.2.2:443"));
        check("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0", ends("255.255.255.255:65535", "0.0.0.0:0"));
        check("PROXY TCP6 2001:DB8::1 ::1 1 2", ends("[2001:db8::1]:1", "[::1]:2"));
        check("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2", ends("[::ffff:192.0.2.1]:1", "[::1]:2"));
        let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let end = format!("[{full}]:65535");
        check(&format!("PROXY TCP6 {full} {full} 65535 65535"), ends(&end, &end));
        check("PROXY TCP4 192.0.2.1 ::1 1 2", ends("192.0.2.1:1", "[::1]:2"));
        check("PROXY TCP6 ::1 192.0.2.1 1 2", ends("[::1]:1", "192.0.2.1:2"));
    }

    #[test]
    fn unknown_is_taken_with_anything_behind() {
        check("PROXY UNKNOWN", None);
        check("PROXY UNKNOWN ", None);
        check("PROXY UNKNOWN a  b\rc\nd\u{fffd}", None);
        check(&format!("PROXY UNKNOWN {}", "x".repeat(LONGEST - 16)), None);
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        check_refused(b"PROXY TCP4 bad\r\n", "\"PROXY TCP4 bad\": its source is no IPv4 address");
        check_refused(b"PROXY \r\n", "second word");
        check_refused(b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "second word");
        check_refused(b"PROXY UNKNOWNS\r\n", "second word");
        check_refused(b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "one space");
        check_refused(b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "one space");
        check_refused(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", "one space");
        check_refused(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "one space");
        check_refused(b"PROXY TCP4 ::1 1.2.3.4 1 2\r\n", "its source is no IPv4");
        check_refused(b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n", "its source is no IPv6");
        check_refused(b"PROXY TCP6 [::1] ::1 1 2\r\n", "its source is no IPv6");
        check_refused(b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", "its source is no IPv4");
        check_refused(b"PROXY TCP4 1.2.3.4 1.2.3 1 2\r\n", "its destination is no address");
        check_refused(b"PROXY TCP4 1.2.3.4 \xff 1 2\r\n", "its destination is no address");
        check_refused(b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "its destination port");
        for port in ["", "+1", "-1", "01", "00", "65536", "1a", "0x1", "99999999999999999999", "1\n", "\t1"] {
            check_refused(format!("PROXY TCP4 1.2.3.4 1.2.3.4 {port} 2\r\n").as_bytes(), "its source port");
        }
    }

    #[test]
    fn lines_end_with_both_and_in_time() {
        check_refused(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx\r\n", "its destination port is none");
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
        assert_eq!(read(&long[..LONGEST - 2]), Reading::Need(LONGEST));
        check_refused(&long[..LONGEST - 1], "107 bytes");
        check_refused(&long, "107 bytes");
        let last = [&long[..LONGEST - 2], b"\r"].concat();
        assert_eq!(read(&last), Reading::Need(LONGEST));
        check_refused(&[&long[..LONGEST - 1], b"\r\n"].concat(), "107 bytes");
        assert_eq!(read(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n"), Reading::Need(33));
    }

    #[test]
    fn what_is_logged_is_one_printable_line() {
        check_refused(b"PROXY \x1b[31m\"\r\n", "broken header: \"PROXY \\x1b[31m\\\"\"");
        assert_eq!(FirstLine(b"hello\r\nthere").to_string(), "hello");
        assert_eq!(FirstLine(b"").to_string(), "");
        assert_eq!(FirstLine(&[b'x'; 5000]).to_string().len(), LONGEST);
    }

    #[test]
    fn written_lines_are_those_of_nginx() {
        let written = |source: &str, destination: &str| {
            let mut out = b"before ".to_vec();
            write(&mut out, source.parse().unwrap(), destination.parse().unwrap());
            String::from_utf8(out).unwrap()
        };
        // The line a real APISIX sent.
        assert_eq!(
            written("127.0.0.1:34610", "127.0.0.1:19105"),
            "before PROXY TCP4 127.0.0.1 127.0.0.1 34610 19105\r\n"
        );
        assert_eq!(written("[2001:db8::1]:1", "[::1]:2"), "before PROXY TCP6 2001:db8::1 ::1 1 2\r\n");
        assert_eq!(written("[::1]:1", "10.0.0.1:2"), "before PROXY TCP6 ::1 10.0.0.1 1 2\r\n");
        assert_eq!(written("10.0.0.1:1", "[::1]:2"), "before PROXY TCP4 10.0.0.1 ::1 1 2\r\n");
    }
}
