//! Bytes through the binary: nodes and their shares, endings, what the pages tell of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use binary::{Gateway, PATIENCE, Setup};
use peers::{ask, ask_udp, connect, echo, refused, talk, until_answered, until_closed};
use serde_json::{Value, json};

/// One route of every listen, whose upstream is this.
fn to(upstream: &Value) -> Value {
    json!({"stream_routes": [{"id": "r1", "upstream_id": "u1"}], "upstreams": [with_id("u1", upstream)]})
}

fn with_id(id: &str, object: &Value) -> Value {
    let mut object = object.clone();
    object["id"] = id.into();
    object
}

fn nodes(nodes: &[(SocketAddr, u32)]) -> Value {
    let nodes: HashMap<String, u32> =
        nodes.iter().map(|(addr, weight)| (addr.to_string(), *weight)).collect();
    json!({ "nodes": nodes })
}

#[test]
fn datagrams_go_both_ways_whole() {
    let mut gateway = Setup::objects(&to(&nodes(&[(echo("A"), 1)]))).start();
    let udp = gateway.udp(0);
    let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect(udp).unwrap();
    }
    let mut heard = vec![0; 65_535];
    // Interleaved: each client hears its own bytes.
    for length in [1, 1_400, 60_000] {
        for (mark, client) in (b'0'..).zip(&clients) {
            client.send(&vec![mark; length]).unwrap();
        }
        for (mark, client) in (b'0'..).zip(&clients) {
            let got = client.recv(&mut heard).unwrap();
            assert_eq!(got, length + 1);
            assert!(heard[0] == b'A' && heard[1..got].iter().all(|byte| *byte == mark));
        }
    }
    gateway.eventually("counts", |gateway| gateway.metric("streamgate_udp_associations") == Some(3.0));
    let received = gateway.metric("streamgate_bytes_total{route=\"r1\",direction=\"received\"}");
    assert_eq!(received, Some(3.0 * 61_401.0));
}

#[test]
fn an_udp_association_ends_after_its_answers() {
    let mut setup = Setup::objects(&to(&nodes(&[(echo("A"), 1)])));
    setup.ours = "  listens: {\"127.0.0.1:@udp0\": {responses: 1}}\n".into();
    let mut gateway = setup.start();
    assert_eq!(ask_udp(gateway.udp(0)).as_deref(), Some("A"));
    gateway.eventually("the end", |gateway| gateway.metric("streamgate_udp_associations") == Some(0.0));
}

#[test]
fn nodes_share_sessions_exactly_by_weight() {
    let (a, b) = (echo("A"), echo("B"));
    let gateway = Setup::objects(&to(&nodes(&[(a, 3), (b, 1)]))).start();
    let mut count: HashMap<String, u32> = HashMap::new();
    for _ in 0..400 {
        *count.entry(ask(gateway.tcp(0)).unwrap()).or_default() += 1;
    }
    assert_eq!((count["A"], count["B"]), (300, 100));
}

#[test]
fn another_node_is_tried_when_one_refuses() {
    let (a, (_keeper, nobody)) = (echo("A"), refused());
    let mut gateway = Setup::objects(&to(&nodes(&[(a, 1), (nobody, 1)]))).start();
    for _ in 0..20 {
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    }
    let failed = format!(
        "streamgate_node_connections_total{{upstream=\"u1\",node=\"{nobody}\",end=\"connect_failed\",side=\"upstream\"}}"
    );
    gateway.eventually("counts", |gateway| {
        gateway.metric(&failed) == Some(10.0) && gateway.ended_so("r1", "client_closed") >= 20.0
    });
    assert!(gateway.ended_so("r1", "connect_failed") < 1.0, "the sessions themselves went well");

    gateway.write_objects(&to(&nodes(&[(nobody, 1)])));
    until_closed(gateway.tcp(0));
    let line = gateway.says_end("connect_failed");
    assert_eq!((&line["route"], &line["upstream"]), (&json!("r1"), &json!("u1")), "{line}");
    assert_eq!((&line["node"], &line["side"]), (&json!(nobody.to_string()), &json!("upstream")), "{line}");
    assert!(line["detail"].as_str().unwrap().to_lowercase().contains("refused"), "{line}");
}

#[test]
fn the_upstream_may_speak_first_and_the_client_finish_first() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = server.local_addr().unwrap();
    // Greets, hears everything up to the FIN, and answers then.
    thread::spawn(move || {
        let mut stream = server.accept().unwrap().0;
        stream.write_all(b"hello\n").unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        stream.write_all(format!("{} bytes", heard.len()).as_bytes()).unwrap();
    });
    let mut gateway = Setup::objects(&to(&nodes(&[(node, 1)]))).start();
    let mut client = connect(gateway.tcp(0)).unwrap();
    let mut banner = [0; 6];
    client.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"hello\n");
    client.write_all(&vec![7; 300_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "300000 bytes");
    gateway.eventually("the ending", |gateway| {
        gateway.ended_so("r1", "client_closed") + gateway.ended_so("r1", "upstream_closed") >= 1.0
    });
    let direction = |name: &str| {
        gateway.metric(&format!("streamgate_bytes_total{{route=\"r1\",direction=\"{name}\"}}")).unwrap()
    };
    assert_eq!((direction("received"), direction("sent")), (300_000.0, 18.0));
}

#[test]
fn sessions_over_the_limit_are_closed_and_counted() {
    let mut setup = Setup::objects(&to(&nodes(&[(echo("A"), 1)])));
    setup.ours = "  max_sessions: 2\n".into();
    let mut gateway = setup.start();
    assert_eq!(gateway.metric("streamgate_tcp_sessions_limit"), Some(2.0));
    let tcp = gateway.tcp(0);
    let mut open: Vec<_> = (0..2).map(|_| connect(tcp).unwrap()).collect();
    for session in &mut open {
        assert_eq!(talk(session).unwrap(), "A");
    }
    assert!(ask(tcp).is_err());
    gateway.eventually("the count", |gateway| {
        gateway.metric("streamgate_session_limit_hits_total") == Some(1.0)
    });
    assert_eq!(gateway.says_end("limit")["side"], "gateway");
    assert_eq!(talk(&mut open[0]).unwrap(), "A", "those that live are not touched");
    drop(open);
    until_answered(tcp, "A");
}

/// The names and labels of the series that belong to a route, or mention it.
fn series(page: &str, words: &str) -> Vec<(String, String)> {
    let lines = page.lines().filter(|line| !line.starts_with('#') && line.contains(words));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn series_come_at_zero_and_go_with_their_route() {
    let a = echo("A");
    let one_of =
        |routes: &[Value]| json!({"stream_routes": routes, "upstreams": [with_id("u1", &nodes(&[(a, 1)]))]});
    let plain = json!({"id": "plain", "server_port": "@tcp0", "upstream_id": "u1"});
    let told = json!({
        "id": "told", "name": "front door", "server_port": "@tcp1", "upstream_id": "u1",
        "plugins": {"prometheus": {"prefer_name": true}},
    });
    let mut setup = Setup::objects(&one_of(&[plain.clone(), told.clone()]));
    setup.tcp = 2;
    let mut gateway = setup.start();

    let page = gateway.metrics();
    for words in ["route=\"plain\"", "route=\"told\"", "upstream=\"u1\""] {
        let lines = series(&page, words);
        assert!(lines.len() > 20, "{words}: {lines:?}");
        for (name, value) in lines {
            assert_eq!(value, "0", "{name}");
        }
    }
    for name in ["connections_total", "active_connections", "bytes_total", "connect_seconds_bucket"] {
        assert!(page.contains(&format!("streamgate_{name}{{route=\"plain\"")), "no {name}");
    }
    assert!(page.contains("apisix_node_info{"), "{page}");

    for listen in [0, 1] {
        let mut open = connect(gateway.tcp(listen)).unwrap();
        assert_eq!(talk(&mut open).unwrap(), "A");
        let id = ["plain", "told"][listen];
        let active = format!("streamgate_active_connections{{route=\"{id}\"}}");
        assert_eq!(gateway.metric(&active), Some(1.0));
        drop(open);
        gateway.eventually("the ending", |gateway| gateway.ended_so(id, "client_closed") >= 1.0);
        assert_eq!(gateway.metric(&active), Some(0.0));
        let samples = format!("streamgate_session_seconds_count{{route=\"{id}\"}}");
        assert_eq!(gateway.metric(&samples), Some(1.0));
    }
    // Only the plugin makes APISIX's series.
    assert_eq!(gateway.metric("apisix_stream_connection_total{route=\"front door\"}"), Some(1.0));
    let page = gateway.metrics();
    assert_eq!(page.lines().filter(|line| line.starts_with("apisix_stream_connection_total{")).count(), 1);
    let listen =
        format!("apisix_stream_status{{code=\"200\",listen_addr=\"{}\",node=\"{a}\"}}", gateway.tcp(1));
    assert_eq!(gateway.metric(&listen), Some(1.0), "{page}");

    gateway.write_objects(&one_of(&[plain]));
    gateway.eventually("the end of its series", |gateway| {
        series(&gateway.metrics(), "route=\"told\"").is_empty()
    });
    assert!(!series(&gateway.metrics(), "route=\"plain\"").is_empty());
    gateway.write_objects(&json!({}));
    gateway.eventually("the end of all", |gateway| {
        let page = gateway.metrics();
        series(&page, "route=\"plain\"").is_empty() && series(&page, "upstream=\"u1\"").is_empty()
    });
}

/// What the status page says about a route that is served in part.
fn degraded(gateway: &Gateway, route: &str) -> String {
    let status = gateway.status();
    let lists = status["degraded"].as_array().unwrap();
    lists.iter().filter(|one| one["route"] == route).map(|one| one["why"].to_string()).collect()
}

#[test]
fn what_is_not_built_says_so() {
    let a = echo("A").to_string();
    let route = |id: &str, port: &str, more: Value| {
        let mut route = json!({"id": id, "server_port": port, "upstream": {"nodes": {&a: 1}}});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    let off = json!({"ip-restriction": {"whitelist": ["10.0.0.0/8"], "_meta": {"disable": true}}});
    let mut setup = Setup::objects(&json!({"stream_routes": [
        route("redis", "@tcp0", json!({"protocol": {"name": "redis"}})),
        route("off", "@tcp1", json!({"plugins": off})),
    ]}));
    setup.tcp = 2;
    setup.more = "xrpc: {protocols: [{name: redis}]}\n".into();
    let gateway = setup.start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A", "forwarded as plain TCP");
    assert!(degraded(&gateway, "redis").contains("redis"), "{}", gateway.status());
    assert_eq!(ask(gateway.tcp(1)).unwrap(), "A", "a plugin that is switched off does nothing");
    assert_eq!(degraded(&gateway, "off"), "");
    assert_eq!(gateway.metric("streamgate_degraded_routes"), Some(1.0));
}

#[test]
fn a_refusal_names_its_plugin() {
    let node = json!({"nodes": {echo("A").to_string(): 1}});
    let denying = json!({"ip-restriction": {"blacklist": ["127.0.0.0/8"]}});
    let mut gateway = Setup::objects(&json!({"stream_routes": [
        {"id": "ip", "server_port": "@tcp0", "plugins": denying, "upstream": node},
    ]}))
    .start();
    assert!(ask(gateway.tcp(0)).is_err());
    gateway.eventually("the ending", |gateway| gateway.ended_so("ip", "plugin_denied") >= 1.0);
    let find = |gateway: &Gateway| {
        gateway.log().into_iter().find(|line| line["end"] == "plugin_denied" && line["route"] == "ip")
    };
    gateway.eventually("the line", |gateway| find(gateway).is_some());
    let line = find(&gateway).unwrap();
    assert_eq!(
        line["detail"], "ip-restriction: client 127.0.0.1 is on the blacklist (127.0.0.0/8)",
        "{line}"
    );
}

/// A DNS server that knows `known.test` as 127.0.0.1 and nothing else.
fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // RFC 1035 4.1: id, flags, counts; then the question: name, type, class.
            let name_end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap();
            let is_known = query[12..name_end] == *b"\x05known\x04test";
            let found = is_known && query[name_end + 1..name_end + 3] == [0, 1];
            let flags = if is_known { [0x81, 0x80] } else { [0x81, 0x83] };
            let mut answer = [&query[..2], &flags[..], &[0, 1, 0, u8::from(found), 0, 0, 0, 0]].concat();
            answer.extend_from_slice(&query[12..name_end + 5]);
            if found {
                // The name of the question, A, IN, 60 s, four bytes.
                answer.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x7f\x00\x00\x01");
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

#[test]
fn names_of_nodes_are_resolved() {
    let port = echo("A").port();
    let node = |host: &str| json!({"nodes": [{"host": host, "port": port, "weight": 1}]});
    let mut setup = Setup::objects(&json!({
        "stream_routes": [
            {"id": "hosts", "server_port": "@tcp0", "upstream": node("localhost")},
            {"id": "dns", "server_port": "@tcp1", "upstream": node("known.test")},
            {"id": "nowhere", "server_port": "@tcp2", "upstream": node("unknown.test")},
        ],
    }));
    setup.tcp = 3;
    setup.apisix = format!("  dns_resolver: [\"{}\"]\n  enable_resolv_search_opt: false\n", name_server());
    let mut gateway = setup.start();
    until_answered(gateway.tcp(0), "A");
    until_answered(gateway.tcp(1), "A");
    assert!(ask(gateway.tcp(2)).is_err());
    gateway.eventually("the ending", |gateway| gateway.ended_so("nowhere", "no_node") >= 1.0);
    assert_eq!(gateway.says_end("no_node")["route"], "nowhere");
    let line = gateway.says("unknown.test does not resolve");
    assert_eq!((&line["level"], &line["name"]), (&json!("WARN"), &json!("unknown.test")));
}
