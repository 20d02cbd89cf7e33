//! TLS towards nodes: what they are told, whom they are shown, whether they are believed, and what becomes
//! of the others when one fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/names.rs"]
mod names;
#[path = "support/openssl.rs"]
mod openssl;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use binary::{Gateway, Setup};
use names::Names;
use openssl::{SServer, encrypted};
use peers::{ask, ask_udp, connect, echo, until_answered, until_closed};
use rustls::{NamedGroup, ProtocolVersion};
use serde_json::{Value, json};
use streamgate::sni::hello::{Hello, Reading, read};
use tls::{Authority, Client, Node, Seen, server_config, shake_hands, ssl};
use tokio::time::Instant;

/// An upstream of scheme tls with these nodes, in this order.
fn upstream(nodes: &[SocketAddr]) -> Value {
    let node = |(place, node): (usize, &SocketAddr)| json!({"host": node.ip(), "port": node.port(), "weight": 1, "priority": -i64::try_from(place).unwrap()});
    json!({"scheme": "tls", "nodes": nodes.iter().enumerate().map(node).collect::<Vec<_>>()})
}

fn to(upstream: &Value, ssls: &[Value]) -> Value {
    let mut upstream = upstream.clone();
    upstream["id"] = json!("u1");
    json!({"stream_routes": [{"id": "r1", "upstream_id": "u1"}], "upstreams": [upstream], "ssls": ssls})
}

/// A plain listen and one where TLS ends, both to this upstream.
fn serving(upstream: &Value, ssls: &[Value]) -> Setup {
    Setup { tcp: 2, listens: vec!["", "tls: true"], ..Setup::objects(&to(upstream, ssls)) }
}

/// A node with a certificate of nobody the gateway knows.
fn node(name: &'static str) -> Node {
    Node::start(name, server_config(&Authority::new("nobody").issue(&["node.test"]), None))
}

#[test]
fn a_node_is_told_the_clients_name_or_apisix_backend() {
    let (node, authority) = (node("N"), Authority::new("root"));
    let pair = authority.issue(&["any.test"]);
    let certificate = json!({"id": "1", "sni": "*", "cert": pair.cert, "key": pair.key});
    let mut setup = serving(&upstream(&[node.address]), &[certificate]);
    setup.apisix = "  ssl: {fallback_sni: usual.test}\n".into();
    let gateway = setup.start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "N");
    assert_eq!(node.last().sni.as_deref(), Some("apisix_backend"));
    assert_eq!(node.last().version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(node.last().alpn, None);
    let config = Client::default().config();
    for (name, told) in [(Some("Shop.test"), "shop.test"), (None, "usual.test")] {
        let mut session = shake_hands(gateway.tcp(1), name, &config).unwrap();
        assert_eq!(peers::talk(&mut session).unwrap(), "N");
        assert_eq!(node.last().sni.as_deref(), Some(told));
    }
}

#[test]
fn datagrams_to_nodes_of_scheme_tls_are_as_they_were() {
    let gateway = serving(&upstream(&[echo("E")]), &[]).start();
    assert_eq!(ask_udp(gateway.udp(0)).as_deref(), Some("E"));
}

/// Reads the hello that a node has seen.
#[track_caller]
fn offered(seen: &Seen, look: impl FnOnce(&Hello<'_>)) {
    let mut joined = Vec::new();
    let Reading::Hello(hello) = read(&seen.hello, &mut joined) else { panic!("no hello: {seen:?}") };
    look(&hello);
}

#[test]
fn a_hello_to_a_node_is_small_unless_it_is_wanted_otherwise() {
    let node = node("N");
    let hybrid = 0x11ec;
    let gateway = serving(&upstream(&[node.address]), &[]).start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "N");
    let seen = node.last();
    assert!(seen.hello.len() < 600, "{} bytes", seen.hello.len());
    offered(&seen, |hello| assert!(hello.groups().all(|group| group != hybrid)));
    assert_ne!(seen.group, Some(NamedGroup::X25519MLKEM768));

    let mut setup = serving(&upstream(&[node.address]), &[]);
    setup.ours = "  upstreams: {u1: {tls: {post_quantum: true}}}\n".into();
    assert_eq!(ask(setup.start().tcp(0)).unwrap(), "N");
    offered(&node.last(), |hello| assert!(hello.groups().any(|group| group == hybrid)));
    assert_eq!(node.last().group, Some(NamedGroup::X25519MLKEM768));
}

#[test]
fn sessions_with_a_node_are_resumed() {
    let node = node("N");
    // One worker: a second connection at the same moment has no ticket yet.
    let mut setup = serving(&upstream(&[node.address]), &[]);
    setup.workers = 1;
    let gateway = setup.start();
    for _ in 0..5 {
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "N");
    }
    let resumed: Vec<bool> = node.seen().iter().map(|seen| seen.resumed).collect();
    assert_eq!(resumed, [false, true, true, true, true]);
}

#[test]
fn old_and_new_servers_of_openssl_are_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    // Over and for another name: nobody looks.
    let [cert, key] = Authority::new("root").issue_expired(&["other.test"]).files(folder.path(), "node");
    for arguments in
        [&["-tls1_2"][..], &["-tls1_3"], &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]]
    {
        let server = SServer::start(&[&["-cert", &cert, "-key", &key, "-rev"], arguments].concat());
        let gateway = serving(&upstream(&[server.address]), &[]).start();
        let mut client = connect(gateway.tcp(0)).unwrap();
        client.write_all(b"stressed\n").unwrap();
        let mut heard = [0; 9];
        client
            .read_exact(&mut heard)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", server.said()));
        assert_eq!(&heard, b"desserts\n");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut heard).unwrap(), 0, "close_notify is the node's FIN");
    }
}

#[test]
fn a_node_is_shown_the_certificate_of_the_upstream() {
    let clients = Authority::new("clients");
    let [inline, by_id] = ["inline", "by id"].map(|name| clients.issue(&[name]));
    let node = Node::start("N", server_config(&Authority::new("root").issue(&["n"]), Some(&clients)));
    let mut written = upstream(&[node.address]);
    // As the Admin API stores it, with the key that APISIX comes with.
    let stored = encrypted(&inline.key, "edd1c9f0985e76a2");
    written["tls"] = json!({"client_cert": inline.cert, "client_key": stored});
    let mut named = upstream(&[node.address]);
    named["tls"] = json!({"client_cert_id": "c1"});
    let of_clients = json!({"id": "c1", "type": "client", "cert": by_id.cert, "key": by_id.key});
    let mut gateway = serving(&written, &[]).start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "N");
    assert_eq!(node.last().shown, Some(inline.leaf()));

    gateway.write_objects(&to(&named, std::slice::from_ref(&of_clients)));
    gateway.eventually("the other certificate", |gateway| {
        ask(gateway.tcp(0)).is_ok_and(|answer| answer == "N") && node.last().shown == Some(by_id.leaf())
    });
    // Replaced while the upstream stays as it is.
    let renewed = clients.issue(&["renewed"]);
    let mut object = of_clients;
    object["cert"] = json!(renewed.cert);
    object["key"] = json!(renewed.key);
    gateway.write_objects(&to(&named, &[object]));
    gateway.eventually("the renewed certificate", |gateway| {
        ask(gateway.tcp(0)).is_ok() && node.last().shown == Some(renewed.leaf())
    });

    // Without it nobody is dialled: the node would take the gateway for somebody else.
    gateway.write_objects(&to(&named, &[]));
    until_closed(gateway.tcp(0));
    let line = gateway.says_end("upstream_tls");
    assert!(line["detail"].as_str().unwrap().contains("c1"), "{line}");
    gateway.write_objects(&to(&named, &[ssl("c1", &["a.test"], &renewed)]));
    gateway.eventually("the wrong type", |gateway| {
        assert!(ask(gateway.tcp(0)).is_err());
        gateway
            .log()
            .iter()
            .any(|line| line["detail"].as_str().is_some_and(|why| why.contains("type is not client")))
    });
    // A node that wants one and gets none breaks off, in TLS 1.3 after the gateway's handshake.
    gateway.write_objects(&to(&upstream(&[node.address]), &[]));
    gateway.eventually("a refusal of the node", |gateway| {
        assert!(ask(gateway.tcp(0)).is_err());
        gateway.ended_so("r1", "connect_failed") + gateway.ended_so("r1", "upstream_reset") >= 1.0
    });
    let line = gateway.says_end("upstream_reset");
    assert!(line["detail"].as_str().unwrap().contains("CertificateRequired"), "{line}");
}

/// A node that answers TLS with plain words.
fn plain() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(b"220 no TLS here\r\n").and_then(|()| stream.read(&mut [0; 1000]));
            });
        }
    });
    address
}

/// A node that takes a connection and says nothing.
fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn a_failed_handshake_is_a_failed_attempt() {
    let node = node("N");
    let (_held, silent) = silent();
    for (bad, why) in
        [(plain(), "is it a plain port?"), (silent, "no TLS handshake within"), (echo("E"), "plain port")]
    {
        let mut both = upstream(&[bad, node.address]);
        both["timeout"] = json!({"connect": 0.3, "send": 60, "read": 60});
        let mut gateway = serving(&both, &[]).start();
        let begun = Instant::now();
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "N", "{why}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        let failed = format!(
            "streamgate_node_connections_total{{upstream=\"u1\",node=\"{bad}\",end=\"connect_failed\",side=\"upstream\"}}"
        );
        gateway.eventually("the count", |gateway| {
            gateway.metric(&failed) == Some(1.0) && gateway.ended_so("r1", "client_closed") >= 1.0
        });

        let mut alone = both.clone();
        alone["nodes"].as_array_mut().unwrap().pop();
        gateway.write_objects(&to(&alone, &[]));
        until_closed(gateway.tcp(0));
        let line = gateway.says_end("connect_failed");
        let detail = line["detail"].as_str().unwrap();
        assert!(detail.contains(why) && detail.contains(&bad.to_string()), "{detail}");
    }
}

#[test]
fn nodes_are_verified_where_it_is_wanted() {
    let (authority, stranger) = (Authority::new("authority of nodes"), Authority::new("stranger"));
    let good = Node::start("G", server_config(&authority.issue(&["node.test"]), None));
    let wrong_name = Node::start("W", server_config(&authority.issue(&["other.test"]), None));
    let over = Node::start("O", server_config(&authority.issue_expired(&["node.test"]), None));
    let unknown = Node::start("U", server_config(&stranger.issue(&["node.test"]), None));
    let by_name = |nodes: &[&Node]| {
        let mut all = upstream(&nodes.iter().map(|node| node.address).collect::<Vec<_>>());
        for node in all["nodes"].as_array_mut().unwrap() {
            node["host"] = json!("node.test");
        }
        all
    };
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    fs::write(&bundle, &authority.pem).unwrap();
    let names = Names::start(&[("node.test", &["127.0.0.1"])]);
    let resolver = format!("  dns_resolver: [\"{}\"]\n  enable_resolv_search_opt: false\n", names.addr());
    let verify = format!("verify: true, ca: {}, sni: node", bundle.display());
    let start = |upstream: &Value, ours: String| {
        let mut setup = serving(upstream, &[]);
        setup.ours = ours;
        setup.apisix = format!("{resolver}  ssl: {{ssl_trusted_certificate: {}}}\n", bundle.display());
        setup.start()
    };
    let all = by_name(&[&wrong_name, &over, &unknown, &good]);
    let gateway = start(&all, format!("  upstream_tls: {{{verify}}}\n"));
    until_answered(gateway.tcp(0), "G");
    assert_eq!(good.last().sni.as_deref(), Some("node.test"));
    for node in [&wrong_name, &over, &unknown] {
        assert_eq!(node.seen().len(), 0, "it was believed");
    }

    for (node, why) in [(&wrong_name, "node.test"), (&over, "expired"), (&unknown, "UnknownIssuer")] {
        let mut gateway = start(&by_name(&[node]), format!("  upstream_tls: {{{verify}}}\n"));
        gateway.eventually("the refusal", |gateway| {
            ask(gateway.tcp(0)).is_err() && gateway.ended_so("r1", "connect_failed") >= 1.0
        });
        let line = gateway.says_end("connect_failed");
        assert!(line["detail"].as_str().unwrap().contains(why), "no {why}: {line}");
    }
    // For one upstream alone, and with the bundle of all outgoing connections.
    let ours = "  upstream_tls: {verify: true}\n  upstreams: {u1: {tls: {verify: false}}}\n";
    until_answered(start(&by_name(&[&unknown]), ours.into()).tcp(0), "U");
    let ours = "  upstream_tls: {verify: true, sni: node}\n";
    until_answered(start(&by_name(&[&good]), ours.into()).tcp(0), "G");
}

#[test]
fn the_clients_name_is_verified_where_it_is_what_is_sent() {
    let authority = Authority::new("root");
    let node = Node::start("N", server_config(&authority.issue(&["shop.test"]), None));
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    fs::write(&bundle, &authority.pem).unwrap();
    let certificate = ssl("1", &["shop.test", "other.test"], &authority.issue(&["shop.test"]));
    let mut setup = serving(&upstream(&[node.address]), &[certificate]);
    setup.ours = format!("  upstream_tls: {{verify: true, ca: {}}}\n", bundle.display());
    let gateway: Gateway = setup.start();
    let config = Client::default().config();
    let talk = |name| {
        shake_hands(gateway.tcp(1), Some(name), &config).and_then(|mut session| peers::talk(&mut session))
    };
    assert_eq!(talk("shop.test").unwrap(), "N");
    assert!(talk("other.test").is_err());
    assert!(ask(gateway.tcp(0)).is_err(), "apisix_backend is in no certificate");
}
