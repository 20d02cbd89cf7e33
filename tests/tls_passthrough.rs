//! TLS that is passed on undecrypted: the hello is read and replayed, the name in it chooses the route, and
//! on a mixed listen the route chooses who ends TLS.
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
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup};
use hellos::{Recorder, browser, framed, padded};
use peers::{connect, echo, talk};
use rustls::{NamedGroup, ProtocolVersion};
use serde_json::{Value, json};
use tls::{Authority, Client, Node, failures, hello, refusal, server_config, shake_hands, ssl};
use tokio::time::Instant;

fn route(id: &str, sni: Option<&str>, node: SocketAddr) -> Value {
    let mut route = json!({"id": id, "upstream": {"nodes": {node.to_string(): 1}}});
    if let Some(sni) = sni {
        route["sni"] = sni.into();
    }
    route
}

fn passing(routes: &[Value]) -> Setup {
    Setup { listens: vec!["tls_passthrough: true"], ..Setup::objects(&json!({ "stream_routes": routes })) }
}

/// Says `bytes` in pieces and hears what the recorder behind the gateway answers at the end.
#[track_caller]
fn says(gateway: &Gateway, recorder: &Recorder, bytes: &[u8], piece: usize) {
    let mut client = connect(gateway.tcp(0)).unwrap();
    for piece in bytes.chunks(piece) {
        client.write_all(piece).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ok", "{} bytes in pieces of {piece}", bytes.len());
    assert!(recorder.next() == bytes, "other bytes arrived: {} in pieces of {piece}", bytes.len());
}

#[test]
fn a_hello_arrives_byte_for_byte_however_it_comes() {
    let recorder = Recorder::start();
    let gateway = passing(&[route("r1", None, recorder.address)]).start();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hello");
    let mut hellos: Vec<Vec<u8>> =
        fs::read_dir(folder).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(hellos.len() >= 14);
    let post_quantum = hello(Some("a.test"), &Client::default().config());
    assert!(post_quantum.len() > 1216);
    // In one record, in small ones and in the smallest; the last followed by more.
    let message = &post_quantum[5..];
    hellos.extend([framed(message, 100), framed(message, 1), browser("a.test")]);
    hellos.push([&post_quantum[..], b"\x17\x03\x03\x00\x05early"].concat());
    let count = hellos.len();
    for hello in hellos {
        for piece in [hello.len(), 1000, 7] {
            says(&gateway, &recorder, &hello, piece);
        }
    }
    says(&gateway, &recorder, &post_quantum, 1);
    says(&gateway, &recorder, &framed(message, 1), 1);
    let passed = f64::from(u32::try_from(count * 3 + 2).unwrap());
    assert_eq!(gateway.metric("streamgate_tls_passthrough_total"), Some(passed));
}

#[test]
fn the_name_chooses_the_route_and_the_node_speaks_tls() {
    let authority = Authority::new("root");
    let node = |name: &'static str, host: &str| {
        let mut config = server_config(&authority.issue(&[host]), None);
        config.alpn_protocols = vec![b"second".to_vec()];
        Node::start(name, config)
    };
    let (pay, wild, rest) = (node("P", "pay.shop.test"), node("W", "www.shop.test"), node("R", "other.test"));
    let gateway = passing(&[
        route("1", None, rest.address),
        route("2", Some("*.shop.test"), wild.address),
        route("3", Some("pay.shop.test"), pay.address),
    ])
    .start();
    let client = Client { believes: Some(&authority), alpn: &["first", "second"], ..Client::default() };
    for (name, answer, node) in [
        ("pay.shop.test", "P", &pay),
        ("PAY.Shop.test", "P", &pay),
        ("www.shop.test", "W", &wild),
        ("other.test", "R", &rest),
    ] {
        let mut session = shake_hands(gateway.tcp(0), Some(name), &client.config()).unwrap();
        assert_eq!(talk(&mut session).unwrap(), answer, "{name}");
        // The node's choices are the client's.
        assert_eq!(session.conn.alpn_protocol(), Some(&b"second"[..]));
        let seen = node.last();
        assert_eq!(seen.sni.as_deref(), Some(&*name.to_lowercase()));
        assert_eq!(seen.alpn.as_deref(), Some(&b"second"[..]));
        assert_eq!(seen.group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(seen.version, Some(ProtocolVersion::TLSv1_3));
    }
    // Who names no server goes where no name is asked for.
    let mut session = shake_hands(gateway.tcp(0), None, &Client::default().config()).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "R");
}

#[test]
fn what_is_no_tls_goes_by_the_routes_without_names_at_once() {
    let recorder = Recorder::start();
    let setup = passing(&[route("1", Some("*"), echo("S")), route("2", None, recorder.address)]);
    let gateway = setup.start();
    let hello = fs::read("tests/fixtures/hello/openssl.bin").unwrap();
    // An SSL 2 hello, a record of a version that is none, one that is no handshake, a handshake that
    // begins with something else.
    let strange: [&[u8]; 4] = [
        &[0x80, 0x2e, 1, 3, 1, 0, 0x15],
        &[&[0x16, 2, 0], &hello[3..]].concat(),
        &[&[0x17], &hello[1..]].concat(),
        &[&hello[..5], &[2], &hello[6..]].concat(),
    ];
    for said in strange.into_iter().chain([&b"GET / HTTP/1.0\r\n\r\n"[..], b"\x10\x0c\x00\x04MQTT"]) {
        for piece in [said.len(), 1] {
            says(&gateway, &recorder, said, piece);
        }
    }
    // It is decided by the first byte: the answer is not kept waiting.
    let gateway = passing(&[route("1", Some("*"), echo("S")), route("2", None, echo("A"))]).start();
    assert_eq!(talk(&mut connect(gateway.tcp(0)).unwrap()).unwrap(), "A");
    assert_eq!(gateway.metric("streamgate_tls_passthrough_total"), Some(0.0));
}

#[test]
fn a_hello_may_be_16_kib_long() {
    let recorder = Recorder::start();
    let mut gateway = passing(&[route("r1", None, recorder.address)]).start();
    let longest = padded("a.test", 16 * 1024);
    assert_eq!(longest.len(), 16 * 1024);
    says(&gateway, &recorder, &longest, longest.len());
    says(&gateway, &recorder, &longest, 1000);
    let mut client = connect(gateway.tcp(0)).unwrap();
    client.write_all(&padded("a.test", 16 * 1024 + 1)).unwrap();
    let mut heard = Vec::new();
    // What was not read makes a reset of the end.
    let _ = client.read_to_end(&mut heard);
    assert!(heard.is_empty() || heard[..2] == [21, 3], "an alert or nothing: {heard:?}");
    let line = gateway.says_end("preread_overflow");
    assert!(line["detail"].as_str().unwrap().contains("16384"), "{line}");
}

#[test]
fn a_hello_has_a_deadline_and_what_comes_later_has_none() {
    let recorder = Recorder::start();
    let mut setup = passing(&[route("r1", None, recorder.address)]);
    setup.ours = "  listens: {\"127.0.0.1:@tcp0\": {handshake_timeout: 300ms}}\n".into();
    let mut gateway = setup.start();
    let hello = browser("a.test");
    for said in [&hello[..0], &hello[..1], &hello[..hello.len() - 1]] {
        let begun = Instant::now();
        let mut client = connect(gateway.tcp(0)).unwrap();
        client.write_all(said).unwrap();
        assert_eq!(client.read(&mut [0; 10]).unwrap_or_default(), 0);
        assert!(begun.elapsed() >= Duration::from_millis(250) && begun.elapsed() < PATIENCE / 2);
    }
    gateway.eventually("ends", |gateway| gateway.ended_so("", "preread_timeout") >= 3.0);
    assert_eq!(failures(&gateway, "timeout"), Some(3.0));
    let mut client = connect(gateway.tcp(0)).unwrap();
    client.write_all(&hello).unwrap();
    let begun = Instant::now();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "closed after {:?}", begun.elapsed());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer == "ok" && recorder.next() == hello);
}

/// Routes of a mixed listen: the names `pass.test` and, as `left` says, `moves.test` are passed on to a
/// node that speaks TLS.
fn mixed(authority: &Authority, node: &Node, left: bool) -> Value {
    let pair = authority.issue(&["ends.test", "moves.test", "pass.test"]);
    let mut passed = route("1", Some("pass.test"), node.address);
    passed["tls_passthrough"] = json!(true);
    let mut moves = route("2", Some("moves.test"), if left { node.address } else { echo("M") });
    moves["tls_passthrough"] = json!(left);
    let ends = route("3", Some("ends.test"), echo("E"));
    let routes = [passed, moves, ends, route("4", None, echo("A"))];
    json!({"stream_routes": routes, "ssls": [ssl("1", &["ends.test", "moves.test"], &pair)]})
}

#[test]
fn on_a_mixed_listen_the_route_decides() {
    let authority = Authority::new("root");
    let client = Client { believes: Some(&authority), ..Client::default() }.config();
    let node = Node::start("N", server_config(&authority.issue(&["pass.test", "moves.test"]), None));
    let mut setup = Setup::objects(&mixed(&authority, &node, true));
    setup.listens = vec!["tls: true, tls_passthrough: true"];
    let mut gateway = setup.start();
    let ask = |gateway: &Gateway, name| {
        let mut session = shake_hands(gateway.tcp(0), Some(name), &client)?;
        talk(&mut session)
    };
    assert_eq!(ask(&gateway, "pass.test").unwrap(), "N");
    assert_eq!(ask(&gateway, "moves.test").unwrap(), "N");
    assert_eq!(ask(&gateway, "ends.test").unwrap(), "E");
    assert_eq!(peers::ask(gateway.tcp(0)).unwrap(), "A", "plain bytes");
    assert_eq!(gateway.metric("streamgate_tls_passthrough_total"), Some(2.0));
    assert_eq!(tls::handshakes(&gateway, "full"), Some(1.0));
    let why = refusal(gateway.tcp(0), Some("nobody.test"), &client);
    assert!(why.contains("UnrecognisedName"), "{why}");

    let mut open = shake_hands(gateway.tcp(0), Some("moves.test"), &client).unwrap();
    gateway.write_objects(&mixed(&authority, &node, false));
    gateway.eventually("the move", |gateway| ask(gateway, "moves.test").is_ok_and(|answer| answer == "M"));
    assert_eq!(talk(&mut open).unwrap(), "N", "a session that lives stays as it was");
    assert_eq!(ask(&gateway, "pass.test").unwrap(), "N");
}

#[test]
fn a_mixed_listen_sends_proxy_headers_either_way() {
    let authority = Authority::new("root");
    let recorder = Recorder::start();
    let mut passed = route("1", Some("pass.test"), recorder.address);
    passed["tls_passthrough"] = json!(true);
    let routes =
        [passed, route("2", Some("ends.test"), recorder.address), route("3", None, recorder.address)];
    let pair = authority.issue(&["ends.test"]);
    let mut setup =
        Setup::objects(&json!({"stream_routes": routes, "ssls": [ssl("1", &["ends.test"], &pair)]}));
    setup.listens = vec!["tls: true, tls_passthrough: true, proxy_protocol_to_upstream: true"];
    let gateway = setup.start();
    let at = gateway.tcp(0);
    let line =
        |client: SocketAddr| format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", client.port(), at.port());

    for said in [browser("pass.test"), b"plain words".to_vec()] {
        let mut client = connect(at).unwrap();
        client.write_all(&said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 10]).unwrap(), 2);
        let expected = [line(client.local_addr().unwrap()).as_bytes(), &said].concat();
        assert!(recorder.next() == expected, "{} bytes", said.len());
    }
    let config = Client { believes: Some(&authority), ..Client::default() }.config();
    let mut session = shake_hands(at, Some("ends.test"), &config).unwrap();
    session.write_all(b"decrypted").unwrap();
    session.conn.send_close_notify();
    let mut answer = String::new();
    session.read_to_string(&mut answer).unwrap();
    let expected = line(session.sock.local_addr().unwrap()) + "decrypted";
    assert_eq!(
        (answer.as_str(), recorder.next().escape_ascii().to_string()),
        ("ok", expected.as_bytes().escape_ascii().to_string())
    );
}

#[test]
fn what_is_passed_on_is_not_encrypted_again() {
    let authority = Authority::new("root");
    let node = Node::start("N", server_config(&authority.issue(&["pass.test", "ends.test"]), None));
    let mut passed = route("1", Some("pass.test"), node.address);
    passed["tls_passthrough"] = json!(true);
    let mut routes = [passed, route("2", Some("ends.test"), node.address)];
    for route in &mut routes {
        route["upstream"]["scheme"] = json!("tls");
    }
    let certificate = ssl("1", &["ends.test"], &authority.issue(&["ends.test"]));
    let mut setup = Setup::objects(&json!({"stream_routes": routes, "ssls": [certificate]}));
    setup.listens = vec!["tls: true, tls_passthrough: true", "tls_passthrough: true"];
    setup.tcp = 2;
    let gateway = setup.start();
    let config = Client { believes: Some(&authority), ..Client::default() }.config();
    for (listen, name) in [(0, "pass.test"), (0, "ends.test"), (1, "pass.test"), (1, "ends.test")] {
        let mut session = shake_hands(gateway.tcp(listen), Some(name), &config).unwrap();
        assert_eq!(talk(&mut session).unwrap(), "N", "{name} on listen {listen}");
    }
    assert_eq!(node.seen().len(), 4);
}
