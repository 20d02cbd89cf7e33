//! Connections to TLS listens that begin badly, slowly or not at all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hellos.rs"]
mod hellos;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use binary::{Gateway, Setup};
use hellos::{browser, framed, padded};
use peers::{connect, talk};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tls::{
    Authority, Client, ONLY_TLS12, ONLY_TLS13, connection, failures, handshakes, hello, shake_hands, ssl,
    terminating, unrouted,
};
use tokio::time::{Duration, Instant};

const NAME: Option<&str> = Some("a.test");

fn serving() -> Setup {
    terminating(&[ssl("1", &["a.test"], &Authority::new("root").issue(&["a.test"]))])
}

/// A connection whose client writes as it is told to.
struct Odd<F> {
    stream: TcpStream,
    write: F,
}

impl<F> Read for Odd<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A slow reader, too.
        let most = buffer.len().min(100);
        self.stream.read(&mut buffer[..most])
    }
}

impl<F: FnMut(&mut TcpStream, &[u8]) -> io::Result<usize>> Write for Odd<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.write)(&mut self.stream, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shakes hands and has its word answered, all by `write`.
#[track_caller]
fn is_answered(
    gateway: &Gateway,
    client: Client<'_>,
    write: impl FnMut(&mut TcpStream, &[u8]) -> io::Result<usize>,
) {
    let mut wire = Odd { stream: connect(gateway.tcp(0)).unwrap(), write };
    let mut connection = connection(NAME, &client.config());
    while connection.is_handshaking() {
        connection.complete_io(&mut wire).unwrap();
    }
    assert_eq!(talk(&mut rustls::Stream::new(&mut connection, &mut wire)).unwrap(), "A");
}

#[test]
fn every_byte_may_come_alone() {
    let gateway = serving().start();
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        is_answered(&gateway, Client { versions, ..Client::default() }, |stream, bytes| {
            stream.write_all(&bytes[..1]).map(|()| 1)
        });
    }
}

#[test]
fn a_hello_may_come_in_records_of_one_byte() {
    let gateway = serving().start();
    for (versions, record) in [(ONLY_TLS12, 1), (ONLY_TLS13, 1), (ONLY_TLS13, 100)] {
        let mut hello = true;
        is_answered(&gateway, Client { versions, ..Client::default() }, |stream, bytes| {
            let said = if std::mem::take(&mut hello) { framed(&bytes[5..], record) } else { bytes.into() };
            stream.write_all(&said).map(|()| bytes.len())
        });
    }
}

/// What a client hears that says `bytes` and then, where it `closes`, nothing more.
fn hears(gateway: &Gateway, bytes: &[u8], closes: bool) -> Vec<u8> {
    let mut client = connect(gateway.tcp(0)).unwrap();
    // The gateway may be faster than the last of it.
    let _ = client.write_all(bytes);
    if closes {
        let _ = client.shutdown(Shutdown::Write);
    }
    let mut heard = Vec::new();
    // A reset is an end as well: not everything that was said has been read.
    let _ = client.read_to_end(&mut heard);
    heard
}

#[test]
fn a_browsers_hello_is_answered() {
    // RFC 8701: what is not known is skipped. Its keys are none, so that the handshake ends there.
    let gateway = serving().start();
    let heard = hears(&gateway, &browser("a.test"), true);
    assert!(heard.starts_with(&[22, 3, 3]) || heard.starts_with(&[21, 3]), "{heard:?}");
    assert!(!heard.starts_with(&[21, 3, 3, 0, 2, 2, 50]), "it is not decoded");
}

#[test]
fn what_is_no_hello_is_refused_with_its_reason() {
    let mut gateway = serving().start();
    let hello = hello(NAME, &Client::default().config());
    let decode_error = [21, 3, 3, 0, 2, 2, 50];
    let mut cut = hello.clone();
    // The extensions say that they are longer than the hello.
    let extensions = cut.len() - 300;
    cut.truncate(extensions);
    cut[3..5].copy_from_slice(&u16::try_from(extensions - 5).unwrap().to_be_bytes());
    cut[6..9].copy_from_slice(&u32::try_from(extensions - 9).unwrap().to_be_bytes()[1..]);
    let cases: [(&[u8], &str, &str, bool); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n", "tls_failed", "not_tls: ", false),
        (b"\x10\x0c\x00\x04MQTT", "tls_failed", "not_tls: ", false),
        (&[&hello[..5], &[2], &hello[6..]].concat(), "tls_failed", "not_tls: ", false),
        (&cut, "tls_failed", "malformed: ", true),
        (&[&hello[..5], &hello[5..100], &[23, 3, 3, 0, 1, 0]].concat(), "tls_failed", "closed: ", false),
        (&[&framed(&hello[5..], 50)[..55], &[23, 3, 3, 0, 1, 0]].concat(), "tls_failed", "malformed: ", true),
        (&padded("a.test", 17_000), "preread_overflow", "longer than 16384", true),
    ];
    for (said, end, why, alert) in cases {
        let heard = hears(&gateway, said, true);
        // A reset may overtake it.
        assert!(heard.is_empty() || alert && heard == decode_error, "{why} {heard:?}");
        gateway.eventually(why, |gateway| {
            let mut lines = gateway.log().into_iter().filter(|line| line["end"] == end);
            lines.any(|line| line["detail"].as_str().is_some_and(|detail| detail.contains(why)))
        });
    }
    assert_eq!(failures(&gateway, "not_tls"), Some(3.0));
    assert_eq!(failures(&gateway, "malformed"), Some(3.0));
    assert_eq!(failures(&gateway, "closed"), Some(1.0));
    assert!(shake_hands(gateway.tcp(0), NAME, &Client::default().config()).is_ok());
}

#[test]
fn a_hello_that_is_cut_off_ends_its_session_at_once() {
    let mut setup = serving();
    setup.tcp = 2;
    setup.listens = vec!["tls: true", "tls: true, tls_passthrough: true"];
    let mut gateway = setup.start();
    let hello = hello(NAME, &Client::default().config());
    let begun = Instant::now();
    for cut in [1, 3, 5, 6, 9, 100, hello.len() - 1] {
        assert!(hears(&gateway, &hello[..cut], true).is_empty(), "{cut}");
        let mut client = connect(gateway.tcp(1)).unwrap();
        client.write_all(&hello[..cut]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0, "{cut}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "the deadline of a handshake is a minute");
    gateway.eventually("counts", |gateway| failures(gateway, "closed") == Some(14.0));
    gateway.eventually("ends", |gateway| unrouted(gateway, "tls_failed") == Some(14.0));
    // Who looks whether the port is open has done nothing wrong.
    assert!(hears(&gateway, b"", true).is_empty());
    gateway.eventually("the end", |gateway| gateway.ended_so("", "client_closed") >= 1.0);
    // In the middle of the handshake, and with something that does not belong there.
    let heard = hears(&gateway, &hello, true);
    assert!(heard.starts_with(&[22, 3, 3]), "{heard:?}");
    gateway.eventually("counts", |gateway| failures(gateway, "closed") == Some(15.0));
    let junk = [&hello[..], b"\x17\x03\x03\x00\x20bytes of no key of this handshake."].concat();
    hears(&gateway, &junk, true);
    gateway.eventually("counts", |gateway| failures(gateway, "protocol") == Some(1.0));
}

#[test]
fn no_bytes_harm_the_gateway() {
    let mut setup = serving();
    setup.listens = vec!["tls: true, tls_passthrough: true, proxy_protocol: true"];
    setup.ours = "  listens: {\"127.0.0.1:@tcp0\": {proxy_protocol_optional: true}}\n".into();
    let mut gateway = setup.start();
    let mut random = SmallRng::seed_from_u64(7);
    let begins: [Vec<u8>; 4] = [
        hello(NAME, &Client::default().config()),
        hello(NAME, &Client { versions: ONLY_TLS12, ..Client::default() }.config()),
        framed(&hello(NAME, &Client { versions: ONLY_TLS12, ..Client::default() }.config())[5..], 9),
        proxied(),
    ];
    for turn in 0..600 {
        let mut bytes = begins[turn % begins.len()].clone();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(1..=bytes.len()));
        hears(&gateway, &bytes, true);
    }
    assert!(gateway.is_running());
    let log = gateway.log_text();
    assert!(!log.contains("panicked") && !log.contains("\"end\":\"internal\""), "{log}");
    let mut session = shake_hands(gateway.tcp(0), NAME, &Client::default().config()).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    assert!(handshakes(&gateway, "full") >= Some(1.0));
    drop(session);
    gateway.eventually("the ends of all", |gateway| gateway.metric("streamgate_tcp_sessions") == Some(0.0));
}

#[test]
fn a_deadline_does_not_move_with_each_byte() {
    let mut setup = serving();
    setup.tcp = 2;
    setup.listens = vec!["tls: true", "tls: true, proxy_protocol: true"];
    setup.ours = "  listens:\n    \"127.0.0.1:@tcp0\": {handshake_timeout: 400ms}\n    \
                  \"127.0.0.1:@tcp1\": {proxy_protocol_timeout: 400ms}\n"
        .into();
    let gateway = setup.start();
    let hello = framed(&hello(NAME, &Client::default().config())[5..], 3);
    for (listen, bytes) in [(0, hello), (1, b"PROXY TCP6 ffff:ffff:ffff:ffff".repeat(9))] {
        let mut client = connect(gateway.tcp(listen)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let begun = Instant::now();
        let mut bytes = bytes.iter();
        // One byte whenever there was nothing to read for a while.
        while client.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            assert!(begun.elapsed() < Duration::from_secs(20), "it goes on for ever on listen {listen}");
            let _ = client.write_all(&[*bytes.next().unwrap()]);
        }
        assert!(begun.elapsed() >= Duration::from_millis(350), "listen {listen} after {:?}", begun.elapsed());
    }
}

#[test]
fn a_long_hello_is_answered() {
    let gateway = serving().start();
    let names: Vec<String> = (0..400).map(|number| format!("protocol number {number} of too many")).collect();
    let alpn: Vec<&str> = names.iter().map(String::as_str).collect();
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let client = Client { versions, alpn: &alpn, ..Client::default() };
        assert!(hello(NAME, &client.config()).len() > 12_000);
        let mut session = shake_hands(gateway.tcp(0), NAME, &client.config()).unwrap();
        assert_eq!(talk(&mut session).unwrap(), "A");
    }
}

#[test]
fn nobody_floods_the_log() {
    let pair = Authority::new("root").issue(&["a.test"]);
    let mut gateway =
        terminating(&[json!({"id": "1", "sni": "*", "cert": pair.cert, "key": pair.key})]).start();
    let count = 70;
    for _ in 0..count {
        // A name that the TLS library takes for none, and says so itself.
        hears(&gateway, &browser("-no.name"), true);
    }
    gateway.eventually("counts", |gateway| unrouted(gateway, "tls_failed") == Some(f64::from(count)));
    // The lines of sessions are capped; nobody else may have a line for each client.
    let strange =
        gateway.log().into_iter().find(|line| !line["target"].as_str().unwrap().starts_with("streamgate"));
    assert_eq!(strange, None);
}

/// A PROXY header of version 2 and a hello.
fn proxied() -> Vec<u8> {
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13\x0a\x08\x00\x07\x0a\x08\x00\x01\x0f\xa0\x01\xbb\xea\x00\x04text";
    [&header[..], &hello(NAME, &Client::default().config())].concat()
}

/// Resident memory of a process, in bytes.
fn resident(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn thousands_who_say_nothing_cost_little_and_are_closed() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut setup = serving();
    // Long enough that all are there before the first goes, on a busy machine too.
    setup.ours = "  listens: {\"127.0.0.1:@tcp0\": {handshake_timeout: 10s}}\n".into();
    let mut gateway = setup.start();
    let may = gateway.metric("streamgate_tcp_sessions_limit").unwrap();
    let descriptors =
        limit.maximum.map_or(f64::INFINITY, |most| f64::from(u32::try_from(most).unwrap_or(u32::MAX)));
    let count = 9_000.0_f64.min(may - 20.0).min(descriptors - 200.0);
    // Warm: what the first session takes is no part of the figure.
    assert!(shake_hands(gateway.tcp(0), NAME, &Client::default().config()).is_ok());
    let before = resident(&gateway);
    let hello = hello(NAME, &Client::default().config());
    let mut silent = Vec::new();
    while f64::from(u32::try_from(silent.len()).unwrap()) < count {
        let mut client = connect(gateway.tcp(0)).unwrap();
        // Each third has begun its hello.
        if silent.len() % 3 == 0 {
            client.write_all(&hello[..hello.len() / 2]).unwrap();
        }
        silent.push(client);
    }
    gateway.eventually("all of them", |gateway| gateway.metric("streamgate_tcp_sessions") >= Some(count));
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 60 << 20, "{} kB for {count} silent clients", grown >> 10);
    let mut session = shake_hands(gateway.tcp(0), NAME, &Client::default().config()).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    gateway.eventually("their ends", |gateway| gateway.ended_so("", "preread_timeout") >= count);
    for client in &mut silent {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(failures(&gateway, "timeout"), Some(count));
    assert_eq!(talk(&mut session).unwrap(), "A", "who has shaken hands stays");
}
