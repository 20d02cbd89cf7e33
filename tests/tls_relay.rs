//! What goes through TLS once hands are shaken: all of it and in order, ends and resets as on a direct
//! connection, and no more than the receiver takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup};
use peers::{connect, talk};
use rustix::param;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use serde_json::{Value, json};
use tls::{
    Authority, Client, Node, ONLY_TLS12, ONLY_TLS13, Session, accept_hands, connection, server_config,
    shake_hands, ssl,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const NAME: Option<&str> = Some("a.test");

/// `tcp(0)` is a plain listen and `tcp(1)` ends TLS; both lead to this node.
fn serving(node: SocketAddr, scheme: &str) -> Setup {
    let upstream = json!({"scheme": scheme, "nodes": {node.to_string(): 1}});
    let certificate = ssl("1", &["a.test"], &Authority::new("root").issue(&["a.test"]));
    let objects = json!({"stream_routes": [{"id": "r1", "upstream": upstream}], "ssls": [certificate]});
    Setup { tcp: 2, listens: vec!["", "tls: true"], ..Setup::objects(&objects) }
}

fn node_config() -> Arc<ServerConfig> {
    Arc::new(server_config(&Authority::new("nodes").issue(&["node.test"]), None))
}

/// A listener, played by the test.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// The next connection.
fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client of TLS and the node behind it.
fn session(listener: &TcpListener, gateway: &Gateway) -> (Session, TcpStream) {
    let session = shake_hands(gateway.tcp(1), NAME, &Client::default().config()).unwrap();
    (session, accept(listener))
}

/// A byte for each place, other ones for another seed.
fn pattern(seed: u64, at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(seed).to_le_bytes()[0]
}

async fn send(mut to: impl AsyncWrite + Unpin, seed: u64, count: u64) -> io::Result<()> {
    let mut at = 0;
    // Writes of many lengths.
    for length in (1..).map(|turn| 1 + turn * 7919 % 50_000) {
        let until = count.min(at + length);
        to.write_all(&(at..until).map(|at| pattern(seed, at)).collect::<Vec<u8>>()).await?;
        at = until;
        if at == count {
            break;
        }
    }
    to.shutdown().await
}

async fn take(mut from: impl AsyncRead + Unpin, seed: u64, count: u64) -> io::Result<()> {
    let (mut at, mut buffer) = (0, vec![0; 40_000]);
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            assert_eq!(at, count, "the end came too soon or too late");
            return Ok(());
        }
        for byte in &buffer[..length] {
            assert_eq!(*byte, pattern(seed, at), "the byte at {at}");
            at += 1;
        }
    }
}

/// Says and hears so many bytes at once, to the end.
async fn exchange(stream: impl AsyncRead + AsyncWrite, seeds: [u64; 2], count: u64) -> io::Result<()> {
    let (from, to) = split(stream);
    timeout(PATIENCE, async { tokio::try_join!(send(to, seeds[0], count), take(from, seeds[1], count)) })
        .await
        .map_err(io::Error::other)?
        .map(drop)
}

async fn client(at: SocketAddr, tls: Option<Arc<ClientConfig>>, count: u64) -> io::Result<()> {
    let stream = tokio::net::TcpStream::connect(at).await?;
    match tls {
        None => exchange(stream, [1, 2], count).await,
        Some(config) => {
            let name = ServerName::try_from("a.test").map_err(io::Error::other)?;
            exchange(TlsConnector::from(config).connect(name, stream).await?, [1, 2], count).await
        }
    }
}

async fn node(listener: TcpListener, tls: bool, count: u64) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let (stream, _) = tokio::net::TcpListener::from_std(listener)?.accept().await?;
    if tls {
        exchange(TlsAcceptor::from(node_config()).accept(stream).await?, [2, 1], count).await
    } else {
        exchange(stream, [2, 1], count).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_transfers_arrive_whole_both_ways_at_once() {
    let count = 8 << 20;
    for (client_tls, scheme) in
        [(Some(ONLY_TLS13), "tls"), (Some(ONLY_TLS12), "tls"), (Some(ONLY_TLS13), "tcp"), (None, "tls")]
    {
        let (listener, address) = listener();
        let mut gateway = tokio::task::block_in_place(|| serving(address, scheme).start());
        let config = client_tls.map(|versions| Client { versions, ..Client::default() }.config());
        let at = gateway.tcp(usize::from(config.is_some()));
        let both = tokio::try_join!(client(at, config, count), node(listener, scheme == "tls", count));
        both.unwrap_or_else(|error| panic!("{client_tls:?} to {scheme}: {error}"));
        tokio::task::block_in_place(|| {
            gateway.eventually("the end", |gateway| {
                gateway.ended_so("r1", "client_closed") + gateway.ended_so("r1", "upstream_closed") >= 1.0
            });
        });
        for direction in ["received", "sent"] {
            let series = format!("streamgate_bytes_total{{route=\"r1\",direction=\"{direction}\"}}");
            assert_eq!(gateway.metric(&series), Some(f64::from(8 << 20)), "plain bytes are counted");
        }
    }
}

#[test]
fn words_that_come_with_the_end_of_the_handshake_are_heard() {
    let node = Node::start("N", server_config(&Authority::new("nodes").issue(&["node.test"]), None));
    let gateway = serving(node.address, "tls").start();
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let mut stream = connect(gateway.tcp(1)).unwrap();
        let mut connection = connection(NAME, &Client { versions, ..Client::default() }.config());
        connection.writer().write_all(b"?").unwrap();
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(&mut stream).unwrap();
        }
        let mut heard = [0; 2];
        rustls::Stream::new(&mut connection, &mut stream).read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"N?");
    }
}

#[test]
fn keys_may_change_on_the_way() {
    let node = Node::start("N", server_config(&Authority::new("nodes").issue(&["node.test"]), None));
    let gateway = serving(node.address, "tls").start();
    let mut session = shake_hands(gateway.tcp(1), NAME, &Client::default().config()).unwrap();
    for _ in 0..20 {
        session.conn.refresh_traffic_keys().unwrap();
        assert_eq!(talk(&mut session).unwrap(), "N");
    }
}

/// Says that nothing more comes, in TLS alone or in TCP too.
fn finish(session: &mut Session, in_tcp: bool) {
    session.conn.send_close_notify();
    while session.conn.wants_write() {
        session.conn.write_tls(&mut session.sock).unwrap();
    }
    if in_tcp {
        session.sock.shutdown(Shutdown::Write).unwrap();
    }
}

#[test]
fn a_client_may_finish_first_and_is_answered_still() {
    for scheme in ["tcp", "tls"] {
        let (listener, address) = listener();
        let gateway = serving(address, scheme).start();
        let answers = scheme == "tls";
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut heard = Vec::new();
                if answers {
                    let mut session = accept_hands(stream, node_config()).unwrap();
                    // The gateway's close_notify, and not only its FIN.
                    session.read_to_end(&mut heard).unwrap();
                    session.write_all(format!("{} bytes", heard.len()).as_bytes()).unwrap();
                    session.conn.send_close_notify();
                    session.flush().unwrap();
                } else {
                    stream.read_to_end(&mut heard).unwrap();
                    stream.write_all(format!("{} bytes", heard.len()).as_bytes()).unwrap();
                }
            }
        });
        for (versions, in_tcp) in
            [(ONLY_TLS12, false), (ONLY_TLS12, true), (ONLY_TLS13, false), (ONLY_TLS13, true)]
        {
            let config = Client { versions, ..Client::default() }.config();
            let mut session = shake_hands(gateway.tcp(1), NAME, &config).unwrap();
            session.write_all(&vec![7; 300_000]).unwrap();
            finish(&mut session, in_tcp);
            let mut answer = String::new();
            // Without a close_notify at the end this is an error.
            session.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "300000 bytes", "{versions:?} to {scheme}, FIN {in_tcp}");
        }
        // A FIN alone, as many clients close.
        let mut session = shake_hands(gateway.tcp(1), NAME, &Client::default().config()).unwrap();
        session.write_all(&[7; 10]).unwrap();
        session.sock.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        session.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "10 bytes");
    }
}

#[test]
fn a_node_may_finish_first_and_is_heard_of_still() {
    let (listener, address) = listener();
    let mut gateway = serving(address, "tcp").start();
    let (mut session, mut node) = session(&listener, &gateway);
    node.write_all(b"bye").unwrap();
    node.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    session.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "bye");
    session.write_all(&vec![7; 100_000]).unwrap();
    finish(&mut session, true);
    let mut heard = Vec::new();
    node.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), 100_000);
    gateway.eventually("the end", |gateway| gateway.ended_so("r1", "upstream_closed") >= 1.0);
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    let (listener, address) = listener();
    let mut gateway = serving(address, "tcp").start();
    let is_reset =
        |outcome: io::Result<usize>| outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    let (client, mut node) = session(&listener, &gateway);
    let Session { sock, conn } = client;
    reset(sock);
    assert!(is_reset(node.read(&mut [0])), "of the client");
    drop(conn);
    gateway.eventually("the end", |gateway| gateway.ended_so("r1", "client_reset") >= 1.0);

    let (mut client, mut node) = session(&listener, &gateway);
    // Before the gateway has seen that it is connected a reset is another one.
    client.write_all(b"x").unwrap();
    node.read_exact(&mut [0]).unwrap();
    reset(node);
    assert!(is_reset(client.read(&mut [0])), "of the node");
    assert!(client.conn.process_new_packets().is_ok_and(|state| !state.peer_has_closed()));
    gateway.eventually("the end", |gateway| gateway.ended_so("r1", "upstream_reset") >= 1.0);
}

#[test]
fn garbage_after_the_handshake_ends_the_session_and_is_told() {
    let (listener, address) = listener();
    let mut gateway = serving(address, "tcp").start();
    let (mut client, mut node) = session(&listener, &gateway);
    client.write_all(b"good").unwrap();
    let mut heard = [0; 4];
    node.read_exact(&mut heard).unwrap();
    client.sock.write_all(b"\x17\x03\x03\x00\x20this is no record of that session").unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert!(
        error.to_string().contains("BadRecordMac") || error.kind() == ErrorKind::ConnectionReset,
        "{error}"
    );
    assert!(node.read(&mut heard).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    gateway.eventually("the end", |gateway| gateway.ended_so("r1", "client_reset") >= 1.0);
}

/// Resident memory of a process, in bytes.
fn resident(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Writes until nothing is taken for a while; how much was.
fn flood(mut write: impl FnMut(&[u8]) -> io::Result<usize>, gateway: &mut Gateway) -> u64 {
    let (mut written, mut last, mut same) = (0, 0, 0);
    gateway.eventually("a sender that waits", |_| {
        while let Ok(count @ 1..) =
            write(&(written..written + 10_000).map(|at| pattern(3, at)).collect::<Vec<u8>>())
        {
            written += count as u64;
        }
        same = if written == last { same + 1 } else { 0 };
        last = written;
        same > 50
    });
    written
}

#[test]
fn a_slow_reader_slows_the_sender_down() {
    let (listener, address) = listener();
    let mut gateway = serving(address, "tcp").start();
    let (mut client, mut node) = session(&listener, &gateway);
    client.write_all(b"x").unwrap();
    node.read_exact(&mut [0]).unwrap();
    let before = resident(&gateway);

    node.set_nonblocking(true).unwrap();
    let down = flood(|bytes| node.write(bytes), &mut gateway);
    client.sock.set_nonblocking(true).unwrap();
    let Session { conn, sock } = &mut client;
    let up = flood(
        |bytes| {
            // What rustls has taken counts: it is sent before anything else.
            while conn.wants_write() {
                conn.write_tls(sock)?;
            }
            conn.writer().write(bytes)
        },
        &mut gateway,
    );
    // What the kernel's buffers of the sockets take.
    assert!(down > 100_000 && down < 64 << 20 && up > 100_000 && up < 64 << 20, "{down} and {up}");
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more while {down} and {up} wait");

    // Nothing is lost.
    node.set_nonblocking(false).unwrap();
    client.sock.set_nonblocking(false).unwrap();
    let reader = thread::spawn(move || {
        let mut heard = Vec::new();
        node.read_to_end(&mut heard).unwrap();
        node.shutdown(Shutdown::Write).unwrap();
        heard
    });
    finish(&mut client, false);
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    for (heard, sent) in [(heard, down), (reader.join().unwrap(), up)] {
        assert_eq!(heard.len() as u64, sent);
        assert!((0..).zip(&heard).all(|(at, byte)| *byte == pattern(3, at)));
    }
}

/// CPU time that the gateway has spent.
fn spent(gateway: &Gateway) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    let ticks = after_name.split(' ').skip(11).take(2).map(|field| field.parse::<u32>().unwrap());
    Duration::from_secs(1) * ticks.sum() / u32::try_from(param::clock_ticks_per_second()).unwrap()
}

#[test]
fn whoever_waits_costs_no_time() {
    let (listener, address) = listener();
    let mut gateway = serving(address, "tcp").start();
    let begun = |gateway: &Gateway, bytes: &[u8]| {
        let mut client = connect(gateway.tcp(1)).unwrap();
        client.write_all(bytes).unwrap();
        client
    };
    let hello = tls::hello(NAME, &Client::default().config());
    let _idle = session(&listener, &gateway);
    let _opening = [begun(&gateway, b""), begun(&gateway, &hello[..70]), begun(&gateway, &hello)];
    let (mut client, _node) = session(&listener, &gateway);
    finish(&mut client, true);
    let (_client, node) = session(&listener, &gateway);
    node.shutdown(Shutdown::Write).unwrap();
    let (_full, mut node) = session(&listener, &gateway);
    node.set_nonblocking(true).unwrap();
    flood(|bytes| node.write(bytes), &mut gateway);
    // One whose bytes nobody takes is gone.
    let (mut gone, mut node) = session(&listener, &gateway);
    node.set_nonblocking(true).unwrap();
    flood(|bytes| node.write(bytes), &mut gateway);
    finish(&mut gone, true);
    let before = spent(&gateway);
    // Not waiting for anything: it is the time over which a spinning worker would be seen.
    thread::sleep(Duration::from_millis(500));
    let spent = spent(&gateway).saturating_sub(before);
    assert!(spent < Duration::from_millis(100), "{spent:?} of CPU while nothing moves");
}

#[test]
fn ends_without_a_route_say_goodbye() {
    // A client of TLS learns that the connection is over from TLS, not from a cut.
    let certificate = ssl("1", &["a.test"], &Authority::new("root").issue(&["a.test"]));
    let objects: Value = json!({"stream_routes": [], "ssls": [certificate]});
    let mut gateway = Setup { listens: vec!["tls: true"], ..Setup::objects(&objects) }.start();
    let mut session = shake_hands(gateway.tcp(0), NAME, &Client::default().config()).unwrap();
    let mut heard = Vec::new();
    assert_eq!(session.read_to_end(&mut heard).unwrap(), 0);
    let line = gateway.says_end("no_route");
    assert_eq!(line["sni"], "a.test", "{line}");
}
