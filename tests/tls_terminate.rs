//! TLS that ends at the gateway: versions, key exchange, sessions, deadlines, and what is told of clients
//! that fail.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/openssl.rs"]
mod openssl;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup, Signal};
use openssl::s_client;
use peers::{connect, echo, talk};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion};
use serde_json::{Value, json};
use tls::{
    Authority, Client, ONLY_TLS12, ONLY_TLS13, Pair, failures, handshakes, hello, records, refusal,
    shake_hands, ssl, tapped, terminating, unrouted,
};
use tokio::time::Instant;

/// A gateway with a certificate for `a.test`, and the authority behind it.
fn serving() -> (Gateway, Authority, Pair) {
    let authority = Authority::new("root");
    let pair = authority.issue(&["a.test"]);
    (terminating(&[ssl("1", &["a.test"], &pair)]).start(), authority, pair)
}

#[test]
fn both_versions_are_spoken_with_the_whole_chain() {
    let root = Authority::new("root");
    let pair = root.below("between").issue(&["a.test"]);
    let mut gateway = terminating(&[ssl("1", &["a.test"], &pair)]).start();
    let ask = |client: Client<'_>| {
        let mut session = shake_hands(gateway.tcp(0), Some("a.test"), &client.config()).unwrap();
        assert_eq!(talk(&mut session).unwrap(), "A");
        let group = session.conn.negotiated_key_exchange_group().unwrap().name();
        (session.conn.protocol_version().unwrap(), group)
    };
    let client = Client { believes: Some(&root), ..Client::default() };
    // The hybrid is the client's first choice and ours.
    assert_eq!(ask(client), (ProtocolVersion::TLSv1_3, NamedGroup::X25519MLKEM768));
    let (version, _) = ask(Client { versions: ONLY_TLS12, ..client });
    assert_eq!(version, ProtocolVersion::TLSv1_2);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("root.pem");
    std::fs::write(&file, &root.pem).unwrap();
    let believes = ["-servername", "a.test", "-CAfile", file.to_str().unwrap(), "-verify_return_error"];
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = s_client(gateway.tcp(0), &[&believes[..], &[version]].concat(), "A?");
        assert!(said.contains(&format!("New, {name}, Cipher is ")) && said.contains("A?"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    }
    gateway.eventually("counts", |gateway| gateway.ended_so("r1", "client_closed") >= 4.0);
    assert_eq!(handshakes(&gateway, "full"), Some(4.0));
    assert_eq!(handshakes(&gateway, "resumed"), Some(0.0));
}

#[test]
fn a_client_whose_first_key_share_is_of_no_use_is_asked_again() {
    let (gateway, ..) = serving();
    for groups in ["X448:P-256", "X448:X25519", "ffdhe2048:P-384"] {
        let said = s_client(gateway.tcp(0), &["-servername", "a.test", "-tls1_3", "-groups", groups], "A?");
        assert!(said.contains("A?"), "{groups}: {said}");
    }
}

#[test]
fn a_long_chain_is_shown_whole() {
    let root = Authority::new("root");
    let mut pair = root.issue(&["a.test"]);
    // More than a record holds.
    for number in 0..60 {
        pair.cert += &Authority::new(&format!("authority number {number} of a long chain")).pem;
    }
    let gateway = terminating(&[ssl("1", &["a.test"], &pair)]).start();
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let config = Client { versions, believes: Some(&root), ..Client::default() }.config();
        let mut session = shake_hands(gateway.tcp(0), Some("a.test"), &config).unwrap();
        assert_eq!(talk(&mut session).unwrap(), "A");
        let shown = session.conn.peer_certificates().unwrap();
        assert!(shown.len() == 61 && shown.iter().map(|one| one.len()).sum::<usize>() > 16_384);
    }
}

#[test]
fn a_listen_may_begin_to_end_tls_while_its_sessions_live() {
    let pair = Authority::new("root").issue(&["a.test"]);
    let mut setup = terminating(&[ssl("1", &["a.test"], &pair)]);
    setup.listens = vec![];
    let mut gateway = setup.start();
    let mut plain = connect(gateway.tcp(0)).unwrap();
    assert_eq!(talk(&mut plain).unwrap(), "A");
    gateway.setup.listens = vec!["tls: true"];
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    let config = Client::default().config();
    gateway.eventually("TLS", |gateway| shake_hands(gateway.tcp(0), Some("a.test"), &config).is_ok());
    assert_eq!(talk(&mut plain).unwrap(), "A");
    assert!(peers::ask(gateway.tcp(0)).is_err());
    gateway.eventually("the reason", |gateway| failures(gateway, "not_tls") >= Some(1.0));
}

#[test]
fn protocols_that_a_client_wants_to_speak_inside_are_no_obstacle() {
    let (gateway, ..) = serving();
    let client = Client { alpn: &["mqtt", "h2"], ..Client::default() };
    let mut session = shake_hands(gateway.tcp(0), Some("a.test"), &client.config()).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    assert_eq!(session.conn.alpn_protocol(), None);
}

#[test]
fn an_object_may_limit_the_versions() {
    let authority = Authority::new("root");
    let limited = |id: &str, protocols: Value| {
        let name = format!("{id}.test");
        let mut object = ssl(id, &[&name], &authority.issue(&[&name]));
        object["ssl_protocols"] = protocols;
        object
    };
    let mut gateway = terminating(&[
        limited("old", json!(["TLSv1.2"])),
        limited("new", json!(["TLSv1.3"])),
        limited("both", json!(["TLSv1.2", "TLSv1.3"])),
    ])
    .start();
    let at = gateway.tcp(0);
    for (name, versions, good) in [
        ("old.test", ONLY_TLS12, true),
        ("old.test", ONLY_TLS13, false),
        ("new.test", ONLY_TLS12, false),
        ("new.test", ONLY_TLS13, true),
        ("both.test", ONLY_TLS12, true),
        ("both.test", ONLY_TLS13, true),
    ] {
        let config = Client { versions, ..Client::default() }.config();
        if good {
            let mut session = shake_hands(at, Some(name), &config).unwrap();
            assert_eq!(talk(&mut session).unwrap(), "A", "{name}");
        } else {
            let why = refusal(at, Some(name), &config);
            assert!(why.contains("ProtocolVersion"), "{name}: {why}");
        }
    }
    assert_eq!(failures(&gateway, "version"), Some(2.0));
    // Two workers: either line may be the first.
    let find = |gateway: &Gateway| gateway.log().into_iter().find(|line| line["sni"] == "old.test");
    gateway.eventually("the line", |gateway| find(gateway).is_some());
    let line = find(&gateway).unwrap();
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.starts_with("version: ") && detail.contains("versions TLSv1.3"), "{detail}");
}

#[test]
fn what_a_client_offered_in_vain_is_logged() {
    let (mut gateway, ..) = serving();
    let offers = ["-servername", "A.Test", "-tls1_2", "-cipher", "AES128-SHA:AES256-SHA"];
    let said = s_client(gateway.tcp(0), &offers, "alert handshake failure");
    assert!(said.contains("alert handshake failure"), "{said}");
    let line = gateway.says_end("tls_failed");
    assert_eq!((&line["sni"], &line["side"]), (&json!("a.test"), &json!("client")), "{line}");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    let detail = line["detail"].as_str().unwrap();
    for words in ["cipher_suite: ", "versions TLSv1.2", "suites AES128-SHA, AES256-SHA", "groups none"] {
        assert!(detail.contains(words), "no {words}: {detail}");
    }
    assert_eq!(failures(&gateway, "cipher_suite"), Some(1.0));

    let detail = |gateway: &mut Gateway, reason: &str| {
        let starts = format!("{reason}: ");
        let find = |gateway: &Gateway| {
            let mut details =
                gateway.log().into_iter().filter_map(|line| Some(line["detail"].as_str()?.to_owned()));
            details.find(|detail| detail.starts_with(&starts))
        };
        gateway
            .eventually(reason, |gateway| failures(gateway, reason) == Some(1.0) && find(gateway).is_some());
        find(gateway).unwrap()
    };
    s_client(gateway.tcp(0), &["-servername", "a.test", "-tls1_3", "-groups", "X448"], "alert");
    let told = detail(&mut gateway, "group");
    assert!(told.contains("versions TLSv1.3") && told.ends_with("groups x448"), "{told}");
    let dhe = ["-servername", "a.test", "-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"];
    s_client(gateway.tcp(0), &dhe, "alert");
    gateway.eventually("the count", |gateway| failures(gateway, "cipher_suite") == Some(2.0));
    let suite = "suites DHE-RSA-AES128-GCM-SHA256;";
    gateway.eventually("the suite", |gateway| gateway.log_text().contains(suite));
    assert!(!gateway.log_text().contains("forward secrecy"), "DHE has it");
    s_client(gateway.tcp(0), &["-servername", "a.test", "-tls1_3", "-sigalgs", "ed25519"], "alert");
    assert!(detail(&mut gateway, "signature_scheme").contains("can verify no certificate"));

    let stranger = Authority::new("stranger");
    let client = Client { believes: Some(&stranger), ..Client::default() };
    refusal(gateway.tcp(0), Some("a.test"), &client.config());
    gateway.eventually("the count", |gateway| failures(gateway, "alert") == Some(1.0));
}

#[test]
fn a_client_of_an_older_version_hears_that_it_is_the_version() {
    let (mut gateway, ..) = serving();
    for (version, named) in [("-tls1", "versions TLSv1;"), ("-tls1_1", "versions TLSv1.1;")] {
        let old = ["-servername", "a.test", version, "-cipher", "DEFAULT@SECLEVEL=0"];
        let said = s_client(gateway.tcp(0), &old, "alert");
        assert!(said.contains("alert protocol version"), "{said}");
        let find = |gateway: &Gateway| {
            let mut lines = gateway.log().into_iter();
            lines.find(|line| line["detail"].as_str().is_some_and(|detail| detail.contains(named)))
        };
        gateway.eventually(named, |gateway| find(gateway).is_some());
        let line = find(&gateway).unwrap();
        assert_eq!((&line["end"], &line["sni"]), (&json!("tls_failed"), &json!("a.test")), "{line}");
        assert!(line["detail"].as_str().unwrap().starts_with("version: "), "{line}");
    }
    assert_eq!(failures(&gateway, "version"), Some(2.0));
}

/// A handshake of its own that goes on with a session of an earlier one, and then a word.
#[track_caller]
fn kind(gateway: &Gateway, name: &str, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut session = shake_hands(gateway.tcp(0), Some(name), config).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    session.conn.handshake_kind().unwrap()
}

#[test]
fn sessions_are_resumed_with_tickets_whichever_worker_comes_next() {
    let (gateway, ..) = serving();
    for versions in [ONLY_TLS12, ONLY_TLS13] {
        let config = Client { versions, ..Client::default() }.config();
        assert_eq!(kind(&gateway, "a.test", &config), HandshakeKind::Full);
        for _ in 0..8 {
            assert_eq!(kind(&gateway, "a.test", &config), HandshakeKind::Resumed);
        }
    }
    assert_eq!((handshakes(&gateway, "full"), handshakes(&gateway, "resumed")), (Some(2.0), Some(16.0)));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    let file = file.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let arguments = |kept| ["-servername", "a.test", version, kept, file];
        let said = s_client(gateway.tcp(0), &arguments("-sess_out"), "A?");
        assert!(said.contains("\nNew, TLSv1."), "{said}");
        let said = s_client(gateway.tcp(0), &arguments("-sess_in"), "A?");
        assert!(said.contains("\nReused, TLSv1.") && said.contains("A?"), "{said}");
    }
    assert_eq!(handshakes(&gateway, "resumed"), Some(18.0));
}

#[test]
fn a_handshake_has_a_deadline() {
    let pair = Authority::new("root").issue(&["a.test"]);
    let mut setup = terminating(&[ssl("1", &["a.test"], &pair)]);
    setup.ours = "  listens: {\"127.0.0.1:@tcp0\": {handshake_timeout: 300ms}}\n".into();
    let mut gateway = setup.start();
    let hello = hello(Some("a.test"), &Client::default().config());
    for said in [&hello[..0], &hello[..hello.len() / 2], &hello] {
        let mut client = connect(gateway.tcp(0)).unwrap();
        let begun = Instant::now();
        client.write_all(said).unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(250) && waited < PATIENCE / 2, "{waited:?}");
        assert_eq!(heard.is_empty(), said.len() < hello.len(), "an answer to {} bytes", said.len());
    }
    gateway.eventually("counts", |gateway| failures(gateway, "timeout") == Some(3.0));
    gateway.eventually("ends", |gateway| unrouted(gateway, "preread_timeout") == Some(2.0));
    let line = gateway.says_end("tls_failed");
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.starts_with("timeout: no handshake within 300ms; the client offers "), "{detail}");
    // It concerns the handshake alone.
    let mut session = shake_hands(gateway.tcp(0), Some("a.test"), &Client::default().config()).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(talk(&mut session).unwrap(), "A");
    }
}

#[test]
fn the_route_is_that_of_the_name() {
    let pair = Authority::new("root").issue(&["any.test"]);
    let to = |id: &str, name: &'static str, sni: Option<&str>| {
        let mut route = json!({"id": id, "upstream": {"nodes": {echo(name).to_string(): 1}}});
        if let Some(sni) = sni {
            route["sni"] = sni.into();
        }
        route
    };
    let routes = [to("1", "P", None), to("2", "W", Some("*.shop.test")), to("3", "E", Some("pay.Shop.test"))];
    let certificate = json!({"id": "1", "sni": "*", "cert": pair.cert, "key": pair.key});
    let objects = json!({"stream_routes": routes, "ssls": [certificate]});
    let mut setup = Setup { listens: vec!["tls: true"], tcp: 2, ..Setup::objects(&objects) };
    setup.apisix = "  ssl: {fallback_sni: www.shop.test}\n".into();
    let gateway = setup.start();
    let config = Client::default().config();
    for (name, answer) in [
        (Some("pay.shop.test"), "E"),
        (Some("PAY.shop.TEST"), "E"),
        (Some("www.shop.test"), "W"),
        (Some("a.b.shop.test"), "W"),
        (Some("shop.test"), "P"),
        (Some("other.test"), "P"),
        (None, "W"),
    ] {
        let mut session = shake_hands(gateway.tcp(0), name, &config).unwrap();
        assert_eq!(talk(&mut session).unwrap(), answer, "{name:?}");
    }
    assert_eq!(peers::ask(gateway.tcp(1)).unwrap(), "P", "a plain client has no name");
}

/// What the node of this test says at once.
const LONG: usize = 20_000;

#[test]
fn a_device_with_small_buffers_gets_small_records() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                stream.write_all(&[&vec![b'x'; LONG][..], b"END"].concat()).unwrap();
                let _ = stream.read(&mut [0; 10]);
            });
        }
    });
    let pair = Authority::new("root").below("between").issue(&["a.test"]);
    let objects = json!({
        "stream_routes": [{"id": "r1", "upstream": {"nodes": {node.to_string(): 1}}}],
        "ssls": [ssl("1", &["a.test"], &pair)],
    });
    let gateway = Setup { listens: vec!["tls: true"], ..Setup::objects(&objects) }.start();
    for version in ["-tls1_2", "-tls1_3"] {
        for (asked, length) in [("512", 512), ("1024", 1024), ("4096", 4096)] {
            let (address, noted) = tapped(gateway.tcp(0));
            let arguments = ["-servername", "a.test", version, "-maxfraglen", asked];
            let said = s_client(address, &arguments, "END");
            assert!(said.contains("END"), "{version} {asked}: {said}");
            let records = records(&noted.lock().unwrap());
            // What sealing adds: nonce and tag, content type.
            let longest = records.iter().map(|(_, length)| *length).max().unwrap();
            assert!(longest > length && longest <= length + 24, "{version} {asked}: {longest}");
            assert!(records.len() > LONG / length, "{version} {asked}: {records:?}");
        }
    }
    let (address, noted) = tapped(gateway.tcp(0));
    s_client(address, &["-servername", "a.test"], "END");
    let records = records(&noted.lock().unwrap());
    assert!(records.iter().any(|(_, length)| *length > 16_000), "{records:?}");
}
