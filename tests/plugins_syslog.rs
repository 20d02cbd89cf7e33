//! Lines to syslog servers of every kind: what they say, that they arrive, and that a server that is dead,
//! slow or gone costs no session anything.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use gateway::{PATIENCE, Setup, listen, poll_until, pool, reset, settings, udp};
use peers::{ask, echo, refused};
use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};
use streamgate::config::Dns;
use streamgate::live::LineCounters;
use streamgate::net::trust::Trust;
use streamgate::report::{self, Means};
use streamgate::session::{Host, Transport};
use streamgate::snapshot::Target;
use tls::{Authority, server_config};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A gateway in this process whose one route has the plugin.
struct Reporting {
    gateway: gateway::Gateway,
    addr: SocketAddr,
    runtime: Runtime,
    report: JoinHandle<()>,
}

impl Reporting {
    fn start(conf: Value) -> Self {
        Self::trusting(Trust::default(), conf)
    }

    fn trusting(trust: Trust, conf: Value) -> Self {
        let mut gateway = gateway::Gateway::start(&Setup { every_outcome: false, ..Setup::default() });
        gateway.publish(Target::Inline(Arc::new(pool(settings(), &[echo("A")]))), &[("syslog", conf)]);
        let addr = gateway.listen(listen(Transport::Tcp, "127.0.0.1"));
        let second = Duration::from_secs(1);
        let means = Means {
            published: gateway.published(),
            node: gateway.node.clone(),
            host: Arc::new(Host { pid: 77, ..Host::default() }),
            // Nobody is asked for what /etc/hosts knows.
            dns: Dns {
                servers: vec![([127, 0, 0, 1], 1).into()],
                valid: None,
                timeout: second,
                search: false,
                ipv6: true,
            },
            trust,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let reports = gateway.reports.take().unwrap();
        let report = runtime.spawn(report::run(means, reports, CancellationToken::new()));
        Self { gateway, addr, runtime, report }
    }

    #[track_caller]
    fn sessions(&self, count: usize) {
        for _ in 0..count {
            assert_eq!(ask(self.addr).unwrap(), "A");
        }
    }

    fn lines(&self) -> &LineCounters {
        &self.gateway.node.lines
    }

    /// Stops the gateway; what it reported is sent or given up when this returns.
    fn stop(self) -> Arc<streamgate::live::NodeCounters> {
        let node = self.gateway.node.clone();
        self.gateway.stop(PATIENCE);
        let ended = async { tokio::time::timeout(PATIENCE, self.report).await };
        self.runtime.block_on(ended).unwrap().unwrap();
        node
    }
}

/// A configuration for `server` whose lines leave at once; `more` members replace others.
fn conf(server: SocketAddr, more: &Value) -> Value {
    let mut conf = json!({
        "host": server.ip(), "port": server.port(), "batch_max_size": 1, "flush_limit": 1,
        "log_format": {"client": "$remote_addr", "to": "$server_port", "kind": "t/cp", "none": "$nothing"},
    });
    for (name, value) in more.as_object().unwrap() {
        conf[name] = value.clone();
    }
    conf
}

/// Lines with the number of the connection that they came by; an empty one is its end.
type Lines = Receiver<(usize, String)>;

/// A server on TCP.
fn server() -> (SocketAddr, Lines) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap(), collect(listener, Ok))
}

/// Takes the lines of all connections of a listener, once `open` has made of them what they come by.
fn collect<S: Read + Send + 'static>(
    listener: TcpListener,
    open: impl Fn(TcpStream) -> std::io::Result<S> + Send + 'static,
) -> Lines {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let sender = sender.clone();
            let Ok(stream) = open(stream) else { continue };
            thread::spawn(move || read_lines(stream, number, &sender));
        }
    });
    lines
}

fn read_lines(stream: impl Read, number: usize, sender: &Sender<(usize, String)>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
        if sender.send((number, std::mem::take(&mut line))).is_err() {
            return;
        }
    }
    let _ = sender.send((number, String::new()));
}

#[track_caller]
fn next(lines: &Lines) -> (usize, String) {
    loop {
        let next = lines.recv_timeout(PATIENCE).expect("no line came");
        if !next.1.is_empty() {
            return next;
        }
    }
}

/// The JSON of a line, whose header is looked at byte for byte.
#[track_caller]
fn json_of(line: &str, pid: u32) -> &str {
    let rest = line.strip_prefix("<46>1 ").unwrap_or_else(|| panic!("{line:?}"));
    let (time, rest) = rest.split_at(24);
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{line:?}");
    let json = rest.strip_prefix(&format!(" - apisix {pid} - - ")).unwrap_or_else(|| panic!("{line:?}"));
    json.strip_suffix('\n').unwrap_or_else(|| panic!("{line:?}"))
}

#[test]
fn tcp_lines_are_those_of_apisix_and_share_a_connection() {
    let (addr, lines) = server();
    let reporting = Reporting::start(conf(addr, &json!({})));
    reporting.sessions(3);
    let port = reporting.addr.port();
    let json = format!(r#"{{"client":"127.0.0.1","to":"{port}","kind":"t/cp","route_id":"r1"}}"#);
    for _ in 0..3 {
        let (connection, line) = next(&lines);
        assert_eq!((connection, json_of(&line, 77)), (0, &*json));
    }
    poll_until("lines counted as sent", || (reporting.lines().sent.count() == 3).then_some(()));
    assert_eq!(reporting.lines().waiting.now(), 0);
}

#[test]
fn a_server_may_have_a_name_and_one_without_address_fails() {
    let (addr, lines) = server();
    let reporting = Reporting::start(conf(addr, &json!({"host": "localhost"})));
    reporting.sessions(1);
    json_of(&next(&lines).1, 77);
    let nobody = Reporting::start(conf(addr, &json!({"host": "collector.invalid"})));
    nobody.sessions(1);
    poll_until("a failing server", || (nobody.lines().failing.now() == 1).then_some(()));
}

#[test]
fn udp_lines_have_a_datagram_each() {
    let (socket, addr) = udp("127.0.0.1");
    let reporting = Reporting::start(conf(
        addr,
        &json!({"sock_type": "udp", "inactive_timeout": 1, "batch_max_size": 3}),
    ));
    reporting.sessions(3);
    for _ in 0..3 {
        let mut datagram = [0; 2048];
        let count = socket.recv(&mut datagram).unwrap();
        let line = std::str::from_utf8(&datagram[..count]).unwrap();
        assert!(json_of(line, 77).starts_with(r#"{"client":"127.0.0.1","#), "{line}");
    }
}

#[test]
fn a_datagram_that_cannot_be_is_counted_and_the_next_ones_leave() {
    let (socket, addr) = udp("127.0.0.1");
    let more = json!({"sock_type": "udp", "log_format": {"long": "x".repeat(70_000)}});
    let reporting = Reporting::start(conf(addr, &more));
    reporting.sessions(2);
    poll_until("lines that fit no datagram", || (reporting.lines().failed.count() == 2).then_some(()));
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err());
    assert_eq!(reporting.lines().waiting.now(), 0);
}

/// A server on TLS with a certificate for its address by this authority.
fn tls_server(authority: &Authority) -> (SocketAddr, Lines) {
    let config = Arc::new(server_config(&authority.issue(&["127.0.0.1"]), None));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let open = move |mut stream: TcpStream| {
        let mut connection = ServerConnection::new(config.clone()).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(connection, stream))
    };
    (addr, collect(listener, open))
}

#[test]
fn tls_lines_are_encrypted_and_the_server_is_verified_where_that_is_asked_for() {
    let (known, unknown) = (Authority::new("known"), Authority::new("unknown"));
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, &known.pem).unwrap();
    let check = |authority: &Authority, verify: bool, arrives: bool| {
        let (addr, lines) = tls_server(authority);
        let more = json!({"tls": true, "ssl_verify": verify});
        let reporting = Reporting::trusting(Trust::new(Some(Path::new(&bundle))), conf(addr, &more));
        reporting.sessions(1);
        if arrives {
            assert!(json_of(&next(&lines).1, 77).contains("127.0.0.1"));
        } else {
            poll_until("a failing server", || (reporting.lines().failing.now() == 1).then_some(()));
            assert!(lines.try_recv().is_err());
            assert_eq!(reporting.lines().waiting.now(), 1);
        }
    };
    check(&known, true, true);
    check(&unknown, false, true);
    check(&unknown, true, false);
}

#[test]
fn lines_wait_for_a_server_that_refuses_and_arrive_in_their_order() {
    let (socket, addr) = refused();
    let format = json!({"port": "$remote_port"});
    let reporting = Reporting::start(conf(addr, &json!({"retry_delay": 0, "log_format": format})));
    let ports: Vec<String> = (0..5)
        .map(|_| {
            let mut client = peers::connect(reporting.addr).unwrap();
            assert_eq!(peers::talk(&mut client).unwrap(), "A");
            client.local_addr().unwrap().port().to_string()
        })
        .collect();
    poll_until("a failing server", || (reporting.lines().failing.now() == 1).then_some(()));
    poll_until("lines that wait", || (reporting.lines().waiting.now() == 5).then_some(()));
    assert_eq!(reporting.lines().sent.count(), 0);

    socket.listen(16).unwrap();
    let lines = collect(socket.into(), Ok);
    let mut heard: Vec<String> = Vec::new();
    for _ in 0..5 {
        let line = next(&lines).1;
        let json: Value = serde_json::from_str(json_of(&line, 77)).unwrap();
        heard.push(json["port"].as_str().unwrap().to_owned());
    }
    // Sessions of one worker end in the order they are closed; of two they may change places.
    heard.sort();
    let mut ports = ports;
    ports.sort();
    assert_eq!(heard, ports);
    poll_until("a server that works", || (reporting.lines().failing.now() == 0).then_some(()));
    assert_eq!((reporting.lines().dropped.count(), reporting.lines().waiting.now()), (0, 0));
}

#[test]
fn a_server_that_never_reads_costs_its_own_lines_alone() {
    // Never accepted from: the system takes what fits a small buffer.
    let (socket, addr) = refused();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.listen(16).unwrap();
    let pad = "x".repeat(60_000);
    let limit = 600_000;
    let more = json!({"timeout": 100, "drop_limit": limit, "log_format": {"pad": pad}});
    let reporting = Reporting::start(conf(addr, &more));
    for _ in 0..40 {
        reporting.sessions(10);
        assert!(reporting.lines().waiting.now() * pad.len() <= limit);
    }
    poll_until("lines above drop_limit", || (reporting.lines().dropped.count() > 0).then_some(()));
    poll_until("a failing server", || (reporting.lines().failing.now() == 1).then_some(()));
    reporting.sessions(1);
}

/// A listener whose first connection is reset once so many bytes have come; what the others say is collected.
fn resetting(after: usize) -> (SocketAddr, Receiver<()>, Lines) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, (sender, done)) = (listener.local_addr().unwrap(), mpsc::channel());
    let first = Mutex::new(Some(sender));
    let lines = collect(listener, move |mut stream: TcpStream| {
        if let Some(sender) = first.lock().unwrap().take() {
            stream.read_exact(&mut vec![0; after])?;
            reset(stream);
            let _ = sender.send(());
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        Ok(stream)
    });
    (addr, done, lines)
}

#[test]
fn a_connection_that_was_closed_while_idle_loses_no_line() {
    let (addr, done, lines) = resetting(1);
    let reporting = Reporting::start(conf(addr, &json!({})));
    reporting.sessions(1);
    done.recv_timeout(PATIENCE).unwrap();
    for _ in 0..20 {
        reporting.sessions(1);
        json_of(&next(&lines).1, 77);
    }
}

#[test]
fn a_reset_in_the_middle_cuts_no_line_of_the_next_connection() {
    let (addr, done, lines) = resetting(1_000);
    let more = json!({"batch_max_size": 40, "inactive_timeout": 1, "drop_limit": 50_000_000, "log_format": {"pad": "x".repeat(60_000)}});
    let reporting = Reporting::start(conf(addr, &more));
    reporting.sessions(80);
    done.recv_timeout(PATIENCE).unwrap();
    poll_until("all lines handed over", || (reporting.lines().sent.count() == 80).then_some(()));
    let node = reporting.stop();
    assert_eq!((node.lines.failed.count(), node.lines.waiting.now()), (0, 0));
    let until_closed = || lines.recv_timeout(PATIENCE).ok().filter(|(_, line)| !line.is_empty());
    let whole: Vec<_> = std::iter::from_fn(until_closed).collect();
    // What the system had taken of the first connection is lost; the rest comes whole.
    assert!(whole.len() >= 40, "{} of 80", whole.len());
    for (_, line) in &whole {
        assert!(json_of(line, 77).ends_with(r#"","route_id":"r1"}"#));
    }
}

#[test]
fn the_end_sends_what_waits_for_its_batch() {
    let (addr, lines) = server();
    let hour = json!({"batch_max_size": 1000, "inactive_timeout": 3600, "buffer_duration": 3600});
    let reporting = Reporting::start(conf(addr, &hour));
    reporting.sessions(7);
    let node = reporting.stop();
    assert_eq!((node.lines.sent.count(), node.lines.failed.count(), node.reports_dropped.count()), (7, 0, 0));
    for _ in 0..7 {
        json_of(&next(&lines).1, 77);
    }
}

#[test]
fn the_end_gives_up_what_nobody_takes() {
    let (_socket, addr) = refused();
    let reporting = Reporting::start(conf(addr, &json!({})));
    reporting.sessions(3);
    poll_until("lines that wait", || (reporting.lines().waiting.now() == 3).then_some(()));
    let node = reporting.stop();
    assert_eq!((node.lines.sent.count(), node.lines.failed.count(), node.lines.waiting.now()), (0, 3, 0));
    assert_eq!(node.lines.failing.now(), 0, "nobody sends there any more");
}

#[test]
fn without_a_format_nothing_is_sent() {
    let (addr, lines) = server();
    let mut conf = conf(addr, &json!({}));
    conf.as_object_mut().unwrap().remove("log_format");
    let reporting = Reporting::start(conf);
    reporting.sessions(2);
    let node = reporting.stop();
    assert_eq!((node.lines.unformatted.count(), node.lines.sent.count()), (2, 0));
    assert!(lines.try_recv().is_err());
}

#[test]
fn a_filter_decides_by_the_session() {
    let (addr, lines) = server();
    let with = |filter: Value| conf(addr, &json!({"_meta": {"filter": filter}}));
    let other = Reporting::start(with(json!([["remote_addr", "==", "10.0.0.1"]])));
    other.sessions(1);
    assert_eq!(other.stop().lines.sent.count(), 0);
    let mine = Reporting::start(with(json!([["remote_addr", "==", "127.0.0.1"]])));
    mine.sessions(1);
    json_of(&next(&lines).1, 77);
}
