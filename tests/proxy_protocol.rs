//! PROXY headers, read and written: versions 1 and 2, in pieces, believed or not, beside TLS on either
//! side.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hellos.rs"]
mod hellos;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/proxy_headers.rs"]
mod proxy_headers;
#[path = "support/tls.rs"]
mod tls;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup, Signal, run, stdout};
use hellos::{Recorder, browser};
use peers::{connect, echo, talk};
use proxy_headers::{Header, LOCAL, PROXY, SIGNATURE, STREAM4, STREAM6, UNIX, take_header, v1, v2};
use serde_json::{Value, json};
use tls::{Authority, Client, accept_hands, server_config, shake_hands_on, ssl, unrouted};
use tokio::time::Instant;

fn serving(listen: &'static str, objects: &Value) -> Setup {
    Setup { listens: vec![listen], ..Setup::objects(objects) }
}

fn to(node: SocketAddr) -> Value {
    json!({"stream_routes": [{"id": "r1", "upstream": {"nodes": {node.to_string(): 1}}}]})
}

/// config.yaml's words for whom a header is believed.
fn trusting(setup: &mut Setup, networks: &str) {
    setup.more = format!("nginx_config: {{worker_processes: 2, stream: {{real_ip_from: [{networks}]}}}}\n");
}

/// Says `bytes` in pieces on a connection of its own; the first answer.
fn say(gateway: &Gateway, bytes: &[u8], piece: usize) -> io::Result<String> {
    let mut client = connect(gateway.tcp(0))?;
    for piece in bytes.chunks(piece) {
        client.write_all(piece)?;
    }
    client.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Headers that name 10.8.0.7 as the client.
fn of_ten() -> [Vec<u8>; 3] {
    let (from, to) = ("10.8.0.7:4000".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
    let long = v2(PROXY, STREAM4, &[10, 8, 0, 7, 192, 0, 2, 1, 15, 160, 1, 187], &[(0xea, &[7; 2000])]);
    [v1(from, to), v2(PROXY, STREAM4, &[10, 8, 0, 7, 192, 0, 2, 1, 15, 160, 1, 187], &[]), long]
}

fn of_ipv6() -> [Vec<u8>; 2] {
    let (from, to) = ("[2001:db8::7]:4000".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
    let mut addresses = [0; 36];
    addresses[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    addresses[15] = 7;
    addresses[16..20].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    addresses[31] = 1;
    [v1(from, to), v2(PROXY, STREAM6, &addresses, &[])]
}

/// Headers that name nobody.
fn of_nobody() -> [Vec<u8>; 4] {
    [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(),
        v2(LOCAL, 0, &[], &[]),
        v2(PROXY, UNIX, &[1; 216], &[]),
    ]
}

#[test]
fn a_header_of_a_trusted_peer_is_who_the_client_is() {
    let route = |id: &str, from: Option<&str>, name| {
        let mut route =
            json!({"id": id, "server_port": "@tcp0", "upstream": {"nodes": {echo(name).to_string(): 1}}});
        if let Some(from) = from {
            route["remote_addr"] = from.into();
        }
        route
    };
    let objects = json!({"stream_routes": [
        route("1", Some("10.8.0.0/16"), "T"), route("2", Some("2001:db8::/32"), "S"), route("3", None, "P"),
    ]});
    let mut setup = serving("proxy_protocol: true", &objects);
    let unbelieving = setup.clone().start();
    trusting(&mut setup, "127.0.0.0/8");
    let believing = setup.start();
    let check = |header: &[u8], believed: &str| {
        for piece in [header.len() + 1, 5, 1] {
            let said = [header, b"?"].concat();
            // The echo answers piece by piece, and there is one.
            assert_eq!(say(&believing, &said, piece).unwrap(), format!("{believed}?"), "pieces of {piece}");
            assert_eq!(say(&unbelieving, &said, piece).unwrap(), "P?", "pieces of {piece}");
        }
    };
    for (headers, answer) in [(&of_ten()[..], "T"), (&of_ipv6(), "S"), (&of_nobody(), "P")] {
        for header in headers {
            check(header, answer);
        }
    }

    // A reload is enough.
    let mut gateway = unbelieving;
    trusting(&mut gateway.setup, "127.0.0.1");
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    let said = [&of_ten()[0][..], b"?"].concat();
    gateway.eventually("trust", |gateway| say(gateway, &said, 100).is_ok_and(|answer| answer == "T?"));
}

#[test]
fn the_log_names_the_client_of_the_header() {
    let mut setup = serving("proxy_protocol: true", &json!({}));
    trusting(&mut setup, "127.0.0.1");
    let mut gateway = setup.start();
    let _ = say(&gateway, &of_ten()[0], 100);
    let line = gateway.says_end("no_route");
    let at = gateway.tcp(0).to_string();
    assert_eq!((&line["client"], &line["server"]), (&json!("10.8.0.7:4000"), &json!(at)), "{line}");
}

#[test]
fn the_client_of_the_header_is_the_hash_key() {
    let nodes: Vec<(&str, SocketAddr)> = ["A", "B", "C"].map(|name| (name, echo(name))).into();
    let all: Value = nodes.iter().map(|(_, node)| (node.to_string(), json!(1))).collect();
    let upstream = json!({"type": "chash", "hash_on": "vars", "key": "remote_addr", "nodes": all});
    let routes = json!([{"id": "r1", "upstream": upstream}]);
    let mut setup = serving("proxy_protocol: true", &json!({ "stream_routes": routes }));
    trusting(&mut setup, "127.0.0.1");
    let gateway = setup.start();
    let clients: Vec<SocketAddr> = (1..40).map(|last| SocketAddr::from(([10, 8, 3, last], 4000))).collect();
    let connections: Vec<Value> =
        clients.iter().map(|client| json!({"remote_addr": client.ip(), "server_port": 1})).collect();
    let case = json!({"id": 1, "stream_routes": routes, "connections": connections});
    let answer: Value =
        serde_json::from_str(&stdout(&run(&["explain", "--jsonl"], case.to_string().as_bytes()))).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for (client, result) in clients.iter().zip(answer["results"].as_array().unwrap()) {
        let said = [&v1(*client, gateway.tcp(0))[..], b"?"].concat();
        let (name, _) = nodes.iter().find(|(_, node)| result["node"] == node.to_string()).unwrap();
        assert_eq!(say(&gateway, &said, said.len()).unwrap(), format!("{name}?"), "{client}");
        seen.insert(*name);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn without_a_good_header_there_is_no_session() {
    let recorder = Recorder::start();
    let mut gateway = serving("proxy_protocol: true", &to(recorder.address)).start();
    let ten = [10, 8, 0, 7, 192, 0, 2, 1, 15, 160, 1, 187];
    let refused: [(&[u8], &str); 10] = [
        (b"hello", "broken header: \"hello\""),
        (b"PROXY TCP4 bad\r\n", "broken header: \"PROXY TCP4 bad\""),
        (b"PROXY TCP4 10.8.0.7 192.0.2.1 4000 65536\r\n", "broken header"),
        (b"PROXY TCP4 10.8.0.7 192.0.2.1 4000", "closed after"),
        (&[b'P', b'R', b'O', b'X', b'Y', b' '].repeat(20), "broken header"),
        (&v2(3, STREAM4, &ten, &[]), "command is 3"),
        (&v2(PROXY, STREAM4, &ten[..8], &[]), "addresses take 12 bytes"),
        (&v2(PROXY, STREAM4, &ten, &[(3, &[1, 2, 3, 4])]), "CRC-32C"),
        (&v2(PROXY, STREAM4, &ten, &[(0xea, &[7; 4096])]), "at most 4096"),
        (&v2(PROXY, STREAM4, &ten, &[])[..20], "closed after 20 bytes"),
    ];
    for (said, why) in refused {
        assert!(!matches!(say(&gateway, said, said.len()), Ok(answer) if !answer.is_empty()), "{why}");
        gateway.eventually(why, |gateway| {
            let details = gateway.log().into_iter().filter(|line| line["end"] == "proxy_header");
            details.into_iter().any(|line| line["detail"].as_str().is_some_and(|detail| detail.contains(why)))
        });
    }
    gateway.eventually("ends", |gateway| unrouted(gateway, "proxy_header") == Some(10.0));
    // The next one that arrives is the first.
    let good = [&of_ten()[1][..], b"good"].concat();
    assert_eq!(say(&gateway, &good, good.len()).unwrap(), "ok");
    assert_eq!(recorder.next(), b"good");
}

#[test]
fn a_header_has_a_deadline() {
    let mut setup = serving("proxy_protocol: true", &to(echo("A")));
    setup.ours = "  listens: {\"127.0.0.1:@tcp0\": {proxy_protocol_timeout: 300ms}}\n".into();
    let mut gateway = setup.start();
    for said in [&b""[..], b"P", b"PROXY TCP4 10.8.0.7", &SIGNATURE[..]] {
        let begun = Instant::now();
        let mut client = connect(gateway.tcp(0)).unwrap();
        client.write_all(said).unwrap();
        assert_eq!(client.read(&mut [0; 10]).unwrap(), 0);
        assert!(begun.elapsed() >= Duration::from_millis(250) && begun.elapsed() < PATIENCE / 2);
    }
    gateway.eventually("ends", |gateway| gateway.ended_so("", "preread_timeout") >= 4.0);
}

#[test]
fn an_optional_header_may_be_missing() {
    let recorder = Recorder::start();
    let mut setup = serving("proxy_protocol: true", &to(recorder.address));
    setup.ours =
        "  listens: {\"127.0.0.1:@tcp0\": {proxy_protocol_optional: true, proxy_protocol_timeout: 300ms}}\n"
            .into();
    let gateway = setup.start();
    for piece in [100, 1] {
        for (header, rest) in [
            (&of_ten()[0][..], &b"with a header"[..]),
            (&of_ten()[1], b"with another"),
            (b"", b"without"),
            // It looks like one for a while.
            (b"", b"PROXIES"),
            (b"", b"PRO"),
            (b"", b"\r\n\r\n\0\r\nQUIET"),
            (b"", &[0x16, 3, 1, 0, 1]),
        ] {
            assert_eq!(say(&gateway, &[header, rest].concat(), piece).unwrap(), "ok");
            assert_eq!(recorder.next().escape_ascii().to_string(), rest.escape_ascii().to_string());
        }
    }
    // A client that waits for the server to speak first gets it after the time for a header.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = gateway.setup.clone();
    setup.objects = Some(to(listener.local_addr().unwrap()).to_string());
    thread::spawn(move || listener.incoming().flatten().try_for_each(|mut stream| stream.write_all(b"220")));
    let gateway = setup.start();
    let mut heard = [0; 3];
    connect(gateway.tcp(0)).unwrap().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"220");
}

#[test]
fn a_node_gets_a_line_before_everything_else() {
    let recorder = Recorder::start();
    let gateway = serving("proxy_protocol_to_upstream: true", &to(recorder.address)).start();
    let mut client = connect(gateway.tcp(0)).unwrap();
    client.write_all(b"words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 3]).unwrap(), 2);
    let (here, at) = (client.local_addr().unwrap(), gateway.tcp(0));
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nwords", here.port(), at.port());
    assert_eq!(String::from_utf8(recorder.next()).unwrap(), expected);

    // Before the client has said a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = serving("proxy_protocol_to_upstream: true", &to(listener.local_addr().unwrap())).start();
    let _client = connect(gateway.tcp(0)).unwrap();
    let mut node = listener.accept().unwrap().0;
    node.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(take_header(&mut node).unwrap().starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "));

    // The client of a header that was believed.
    let mut setup = serving("proxy_protocol: true, proxy_protocol_to_upstream: true", &to(recorder.address));
    trusting(&mut setup, "127.0.0.1");
    let gateway = setup.start();
    let port = gateway.tcp(0).port();
    for (header, told) in [
        (&of_ten()[0], format!("PROXY TCP4 10.8.0.7 127.0.0.1 4000 {port}\r\nx")),
        (&of_ten()[2], format!("PROXY TCP4 10.8.0.7 127.0.0.1 4000 {port}\r\nx")),
        (&of_ipv6()[0], format!("PROXY TCP6 2001:db8::7 127.0.0.1 4000 {port}\r\nx")),
    ] {
        assert_eq!(say(&gateway, &[header, &b"x"[..]].concat(), 50).unwrap(), "ok");
        assert_eq!(String::from_utf8(recorder.next()).unwrap(), told);
    }
}

/// A node whose TLS begins after a PROXY header; header and words of each connection.
fn node_behind_header(authority: &Authority) -> (SocketAddr, std::sync::mpsc::Receiver<(Vec<u8>, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Arc::new(server_config(&authority.issue(&["node.test"]), None));
    let (address, (sender, heard)) = (listener.local_addr().unwrap(), channel());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let take = |stream: &mut TcpStream| -> io::Result<(Vec<u8>, String)> {
                let header = take_header(stream)?;
                let mut session = accept_hands(stream.try_clone()?, config.clone())?;
                let mut word = [0];
                session.read_exact(&mut word)?;
                session.write_all(&[b'N', word[0]])?;
                Ok((header, format!("{:?}", session.conn.server_name())))
            };
            if let Ok(heard) = take(&mut stream) {
                let _ = sender.send(heard);
            }
        }
    });
    (address, heard)
}

#[test]
fn headers_and_tls_on_both_sides() {
    let authority = Authority::new("root");
    let (node, heard) = node_behind_header(&authority);
    let upstream = json!({"scheme": "tls", "nodes": {node.to_string(): 1}});
    let objects = json!({
        "stream_routes": [{"id": "r1", "sni": "a.test", "remote_addr": "10.8.0.7", "upstream": upstream}],
        "ssls": [ssl("1", &["a.test"], &authority.issue(&["a.test"]))],
    });
    let mut setup = serving("tls: true, proxy_protocol: true, proxy_protocol_to_upstream: true", &objects);
    trusting(&mut setup, "127.0.0.1");
    setup.ours = "  listens: {\"127.0.0.1:@tcp0\": {proxy_protocol_version: 2}}\n".into();
    let gateway = setup.start();
    let client = Client { believes: Some(&authority), alpn: &["mqtt", "other"], ..Client::default() };
    for header in of_ten() {
        let mut stream = connect(gateway.tcp(0)).unwrap();
        stream.write_all(&header).unwrap();
        let mut session = shake_hands_on(stream, Some("a.test"), &client.config()).unwrap();
        assert_eq!(talk(&mut session).unwrap(), "N");
        let (header, name) = heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(name, "Some(\"a.test\")");
        let header = Header::read(&header);
        let told = ("10.8.0.7:4000".parse().unwrap(), gateway.tcp(0));
        assert_eq!((header.source, header.destination), told);
        assert_eq!(header.tlv(1), Some(&b"mqtt"[..]), "ALPN: the client's first choice");
        assert_eq!(header.tlv(2), Some(&b"a.test"[..]), "the server name");
        assert!(header.tlv(5).is_some_and(|id| !id.is_empty() && id.len() <= 128), "the unique id");
    }
}

#[test]
fn an_optional_header_may_be_missing_before_tls() {
    let authority = Authority::new("root");
    let recorder = Recorder::start();
    let mut passed =
        json!({"id": "1", "sni": "pass.test", "upstream": {"nodes": {recorder.address.to_string(): 1}}});
    passed["tls_passthrough"] = json!(true);
    let ends = json!({"id": "2", "upstream": {"nodes": {echo("A").to_string(): 1}}});
    let objects = json!({
        "stream_routes": [passed, ends], "ssls": [ssl("1", &["a.test"], &authority.issue(&["a.test"]))],
    });
    let mut setup = serving("tls: true, tls_passthrough: true, proxy_protocol: true", &objects);
    setup.ours =
        "  listens: {\"127.0.0.1:@tcp0\": {proxy_protocol_optional: true, handshake_timeout: 300ms}}\n"
            .into();
    let mut gateway = setup.start();
    let config = Client { believes: Some(&authority), ..Client::default() }.config();
    let none = Vec::new();
    for header in of_ten().iter().chain(&of_nobody()).chain([&none]) {
        let mut stream = connect(gateway.tcp(0)).unwrap();
        stream.write_all(header).unwrap();
        let mut session = shake_hands_on(stream, Some("a.test"), &config).unwrap();
        assert_eq!(talk(&mut session).unwrap(), "A");
        let hello = browser("pass.test");
        assert_eq!(say(&gateway, &[header, &hello[..]].concat(), 999).unwrap(), "ok");
        assert!(recorder.next() == hello);
    }
    // After the header the time for a hello begins.
    let mut silent = connect(gateway.tcp(0)).unwrap();
    silent.write_all(&of_ten()[0]).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    gateway.eventually("the reason", |gateway| tls::failures(gateway, "timeout") == Some(1.0));
}

#[test]
fn a_header_of_version_2_says_what_is_asked_for() {
    let recorder = Recorder::start();
    let listens =
        |more: &str| format!("  listens: {{\"127.0.0.1:@tcp0\": {{proxy_protocol_version: 2{more}}}}}\n");
    let mut setup = serving(
        "tls_passthrough: true, proxy_protocol: true, proxy_protocol_to_upstream: true",
        &to(recorder.address),
    );
    setup.ours = listens("");
    let gateway = setup.start();
    let ten = [10, 8, 0, 7, 192, 0, 2, 1, 15, 160, 1, 187];
    let given =
        v2(PROXY, STREAM4, &ten, &[(0xea, b"vpce-1"), (5, b"their id"), (2, b"their name"), (4, b"")]);
    let hello = browser("Own.Name.");
    let told = |gateway: &Gateway, header: &[u8], rest: &[u8]| {
        assert_eq!(say(gateway, &[header, rest].concat(), 1000).unwrap(), "ok");
        let heard = recorder.next();
        let header = Header::read(&heard);
        assert!(heard[header.length..] == *rest, "{} bytes follow", heard.len() - header.length);
        header
    };
    let header = told(&gateway, &given, &hello);
    assert_eq!(header.source.ip(), gateway.tcp(0).ip(), "nobody is believed here");
    assert_eq!(header.tlv(0xea), Some(&b"vpce-1"[..]));
    assert_eq!(header.tlv(5), Some(&b"their id"[..]), "an id is kept on its way");
    assert_eq!(header.tlv(2), Some(&b"own.name"[..]), "the hello's name is the later one");
    assert_eq!(header.tlv(1), Some(&b"h2"[..]));
    let [one, other] = [(); 2].map(|()| told(&gateway, &v2(LOCAL, 0, &[], &[]), b"plain words"));
    let ids = [&one, &other].map(|header| header.tlv(5).unwrap());
    assert!(ids[0] != ids[1] && !ids[0].is_empty(), "{ids:?}");
    assert!(one.tlv(2).is_none() && one.tlv(1).is_none());

    for (wanted, kinds) in [("[]", &[][..]), ("[sni]", &[2]), ("[alpn, received]", &[1, 0xea, 5, 2])] {
        setup = gateway.setup.clone();
        setup.ours = listens(&format!(", proxy_protocol_tlvs: {wanted}"));
        let gateway = setup.start();
        let header = told(&gateway, &given, &hello);
        let found: Vec<u8> = header.tlvs.iter().map(|(kind, _)| *kind).filter(|kind| *kind != 4).collect();
        assert_eq!(found, kinds, "{wanted}");
    }
}

#[test]
fn each_node_that_is_tried_gets_a_header() {
    let authority = Authority::new("root");
    let (node, heard) = node_behind_header(&authority);
    let bad = TcpListener::bind("127.0.0.1:0").unwrap();
    let bad_address = bad.local_addr().unwrap();
    let (sender, first) = channel();
    thread::spawn(move || {
        let mut stream = bad.accept().unwrap().0;
        sender.send(take_header(&mut stream).unwrap()).unwrap();
    });
    let nodes = json!([
        {"host": "127.0.0.1", "port": bad_address.port(), "weight": 1, "priority": 1},
        {"host": "127.0.0.1", "port": node.port(), "weight": 1},
    ]);
    let objects = json!({"stream_routes": [{"id": "r1", "upstream": {"scheme": "tls", "nodes": nodes}}]});
    let gateway = serving("proxy_protocol_to_upstream: true", &objects).start();
    assert_eq!(talk(&mut connect(gateway.tcp(0)).unwrap()).unwrap(), "N");
    let (second, name) = heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(first.recv_timeout(PATIENCE).unwrap(), second);
    assert!(second.starts_with(b"PROXY TCP4 127.0.0.1 ") && name.contains("apisix_backend"), "{name}");
}
