//! The `apisix_stream_*` series as APISIX shows them: names, help texts, labels and their order, codes, and
//! which sessions count. What is expected was seen on the page of a 3.18 after the same sessions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;

use std::fmt::Write as _;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use binary::{Gateway, Setup};
use peers::{ask, ask_udp, connect, echo, refused, talk};
use serde_json::{Value, json};

/// A route of `@tcp{listen}` to one node.
fn route(id: &str, listen: usize, node: SocketAddr, plugins: &Value) -> Value {
    json!({
        "id": id, "server_port": format!("@tcp{listen}"), "upstream": {"nodes": {node.to_string(): 1}},
        "plugins": plugins,
    })
}

fn named(name: &str, mut route: Value) -> Value {
    route["name"] = name.into();
    route
}

/// The lines of a family, its HELP and TYPE first.
fn family(gateway: &Gateway, name: &str) -> String {
    let page = gateway.metrics();
    let of_family = |line: &&str| {
        let rest = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
    };
    page.split_inclusive('\n').filter(of_family).collect()
}

/// Waits until a family reads so.
#[track_caller]
fn check(gateway: &mut Gateway, name: &str, expected: &str) {
    // The last look tells the difference.
    for _ in 0..2000 {
        if family(gateway, name) == expected {
            return;
        }
        binary::pause();
    }
    assert_eq!(family(gateway, name), expected, "{}", gateway.log_text());
}

/// Sends and is answered, then breaks the connection off.
fn reset(address: SocketAddr) {
    let mut stream = connect(address).unwrap();
    talk(&mut stream).unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A session whose node sends the PROXY header back; the length of the header.
fn greeting(listen: SocketAddr) -> u64 {
    let mut stream = connect(listen).unwrap();
    let port = stream.local_addr().unwrap().port();
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\n", listen.port());
    let mut heard = vec![0; header.len() + 1];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), format!("A{header}"));
    header.len() as u64
}

/// Routes with the plugin and without, to a node that answers and one that does not.
fn serving(a: SocketAddr, dead: SocketAddr) -> Gateway {
    let told = json!({"prometheus": {}});
    let by_name = json!({"prometheus": {"prefer_name": true}});
    let mut setup = Setup::objects(&json!({
        "stream_routes": [
            route("ok", 0, a, &told),
            named("my-route", route("2", 1, a, &by_name)),
            // Without a name the id stands for it; a name alone changes nothing.
            route("1", 2, a, &by_name),
            named("unused", route("dead", 3, dead, &told)),
            route("plain", 4, a, &json!({})),
            route("greeted", 6, a, &json!({})),
            {"id": "u", "server_port": "@udp0", "upstream": {"nodes": {a.to_string(): 1}}, "plugins": told},
        ],
    }));
    (setup.tcp, setup.udp) = (7, 2);
    setup.listens = vec!["", "", "", "", "", "", "proxy_protocol_to_upstream: true"];
    setup.ours = "  listens: {\"127.0.0.1:@udp0\": {responses: 1}}\n".into();
    setup.start()
}

#[test]
fn sessions_read_as_in_apisix() {
    let (a, (_kept, dead)) = (echo("A"), refused());
    let mut gateway = serving(a, dead);
    let at = |listen: usize| gateway.tcp(listen);
    let (ok, my, nameless, down, plain, unmatched) = (at(0), at(1), at(2), at(3), at(4), at(5));
    let (greeted, udp, nowhere) = (at(6), gateway.udp(0), gateway.udp(1));

    for address in [ok, ok, my, nameless, plain] {
        assert_eq!(ask(address).unwrap(), "A");
    }
    reset(ok);
    for address in [down, down, unmatched] {
        assert!(ask(address).is_err());
    }
    assert_eq!(ask_udp(udp).as_deref(), Some("A"));
    assert_eq!(ask_udp(nowhere), None);
    let header = greeting(greeted);
    let mut live = connect(ok).unwrap();
    assert_eq!(talk(&mut live).unwrap(), "A");

    check(
        &mut gateway,
        "apisix_stream_connection_total",
        "# HELP apisix_stream_connection_total Total number of connections handled per stream route in APISIX\n\
         # TYPE apisix_stream_connection_total counter\n\
         apisix_stream_connection_total{route=\"1\"} 1\n\
         apisix_stream_connection_total{route=\"dead\"} 2\n\
         apisix_stream_connection_total{route=\"my-route\"} 1\n\
         apisix_stream_connection_total{route=\"ok\"} 3\n\
         apisix_stream_connection_total{route=\"u\"} 1\n",
    );
    let status = [
        (200, ok, a, 2),
        (200, my, a, 1),
        (200, nameless, a, 1),
        (200, udp, a, 1),
        (400, ok, a, 1),
        (502, down, dead, 2),
    ];
    check_status(&mut gateway, status.map(|(code, listen, node, n)| (code, listen, node.to_string(), n)));
    let idle = [my, nameless, down, plain, unmatched, greeted, udp, nowhere];
    check_listens(&mut gateway, [(ok, 1)].into_iter().chain(idle.map(|listen| (listen, 0))).collect());
    // What is written to a client, and to a node; what is read of a client, and of a node. A header counts
    // where it is written. Of a client that is closed at once nothing is read, but a datagram was.
    let once = [2, 1, 1, 2];
    let moved = [
        (ok, [8, 4, 4, 8]),
        (my, once),
        (nameless, once),
        (plain, once),
        (greeted, [header + 1, header, 0, header + 1]),
        (udp, once),
        (nowhere, [0, 0, 1, 0]),
    ];
    check_bandwidth(&mut gateway, moved);
    drop(live);
}

/// `apisix_stream_status`: code, listen, node and count.
#[track_caller]
fn check_status<const N: usize>(gateway: &mut Gateway, mut rows: [(u16, SocketAddr, String, u32); N]) {
    rows.sort_by_key(|(code, listen, ..)| (*code, listen.to_string()));
    let lines = rows.map(|(code, listen, node, count)| {
        format!("apisix_stream_status{{code=\"{code}\",listen_addr=\"{listen}\",node=\"{node}\"}} {count}\n")
    });
    let expected = format!(
        "# HELP apisix_stream_status Stream sessions per termination status in APISIX\n\
         # TYPE apisix_stream_status counter\n{}",
        lines.concat()
    );
    check(gateway, "apisix_stream_status", &expected);
}

/// `apisix_stream_active_connections`: every listen, idle ones too.
#[track_caller]
fn check_listens(gateway: &mut Gateway, rows: Vec<(SocketAddr, u32)>) {
    let mut lines: Vec<String> = rows
        .into_iter()
        .map(|(listen, count)| {
            format!("apisix_stream_active_connections{{listen_addr=\"{listen}\"}} {count}\n")
        })
        .collect();
    lines.sort_unstable();
    let expected = format!(
        "# HELP apisix_stream_active_connections Number of stream sessions currently being proxied per listening \
         address\n# TYPE apisix_stream_active_connections gauge\n{}",
        lines.concat()
    );
    check(gateway, "apisix_stream_active_connections", &expected);
}

/// `apisix_stream_bandwidth`: bytes written to a client, to a node, read of a client, of a node.
#[track_caller]
fn check_bandwidth<const N: usize>(gateway: &mut Gateway, mut rows: [(SocketAddr, [u64; 4]); N]) {
    const DIRECTIONS: [(&str, &str); 4] = [
        ("egress", "downstream"),
        ("egress", "upstream"),
        ("ingress", "downstream"),
        ("ingress", "upstream"),
    ];
    rows.sort_by_key(|(listen, _)| listen.to_string());
    let mut expected =
        "# HELP apisix_stream_bandwidth Total bandwidth in bytes proxied by the stream subsystem in \
                        APISIX\n# TYPE apisix_stream_bandwidth counter\n"
            .to_owned();
    for (listen, moved) in rows {
        for ((kind, side), bytes) in DIRECTIONS.iter().zip(moved).filter(|(_, bytes)| *bytes > 0) {
            let labels = format!("listen_addr=\"{listen}\",type=\"{kind}\",side=\"{side}\"");
            // Writing to a String cannot fail.
            let _ = writeln!(expected, "apisix_stream_bandwidth{{{labels}}} {bytes}");
        }
    }
    check(gateway, "apisix_stream_bandwidth", &expected);
}

/// The plugin of a service counts as that of the route; a filter is asked about each session; a plugin that is
/// switched off, or not enabled, makes no series.
#[test]
fn only_sessions_that_the_plugin_applies_to_count() {
    let a = echo("A");
    let to = |id: &str, listen: usize, plugins: &Value| route(id, listen, a, plugins);
    let mut of_service = to("by-service", 0, &json!({}));
    of_service["service_id"] = "s1".into();
    let only = |wanted: &str| json!({"prometheus": {"_meta": {"filter": [["route_id", "==", wanted]]}}});
    let mut setup = Setup::objects(&json!({
        "services": [{"id": "s1", "plugins": {"prometheus": {}}}],
        "stream_routes": [
            of_service,
            to("chosen", 1, &only("chosen")),
            to("left-out", 2, &only("chosen")),
            to("off", 3, &json!({"prometheus": {"_meta": {"disable": true}}})),
        ],
    }));
    setup.tcp = 4;
    let mut gateway = setup.start();
    for listen in 0..4 {
        assert_eq!(ask(gateway.tcp(listen)).unwrap(), "A");
    }
    for id in ["by-service", "chosen", "left-out", "off"] {
        gateway.eventually(id, |gateway| gateway.ended_so(id, "client_closed") >= 1.0);
    }
    check(
        &mut gateway,
        "apisix_stream_connection_total",
        "# HELP apisix_stream_connection_total Total number of connections handled per stream route in APISIX\n\
         # TYPE apisix_stream_connection_total counter\n\
         apisix_stream_connection_total{route=\"by-service\"} 1\n\
         apisix_stream_connection_total{route=\"chosen\"} 1\n",
    );
    let rows = [0, 1].map(|listen| (200, gateway.tcp(listen), a.to_string(), 1));
    check_status(&mut gateway, rows);
}

/// Endings before a node was tried have an empty node and the code of what stopped them.
#[test]
fn sessions_without_a_node_have_their_code() {
    let a = echo("A");
    let told = json!({"prometheus": {}});
    let lost = json!({"id": "lost", "server_port": "@tcp0", "upstream_id": "none", "plugins": told});
    let mut setup = Setup::objects(&json!({"stream_routes": [lost, route("ok", 1, a, &told)]}));
    setup.tcp = 2;
    let mut gateway = setup.start();
    assert!(ask(gateway.tcp(0)).is_err());
    let page = |gateway: &Gateway| family(gateway, "apisix_stream_status");
    let line =
        format!("apisix_stream_status{{code=\"001\",listen_addr=\"{}\",node=\"\"}} 1\n", gateway.tcp(0));
    gateway.eventually(&line, |gateway| page(gateway).ends_with(&line));
}

/// A refusal has the code of its plugin, as far as nginx knows it, and no node.
#[test]
fn refusals_have_the_code_of_their_plugin() {
    let a = echo("A");
    let closed = |code: u16| json!({"prometheus": {}, "ip-restriction": {"blacklist": ["127.0.0.0/8"], "response_code": code}});
    let one = json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "server_port"});
    let mut setup = Setup::objects(&json!({"stream_routes": [
        route("forbidden", 0, a, &closed(403)),
        route("not-found", 1, a, &closed(404)),
        route("full", 2, a, &json!({"prometheus": {}, "limit-conn": one})),
        route("untold", 3, a, &json!({"ip-restriction": {"blacklist": ["127.0.0.0/8"]}})),
    ]}));
    setup.tcp = 4;
    let mut gateway = setup.start();
    let mut inside = connect(gateway.tcp(2)).unwrap();
    assert_eq!(talk(&mut inside).unwrap(), "A");
    for listen in [0, 1, 2, 2, 3] {
        assert!(ask(gateway.tcp(listen)).is_err(), "{listen}");
    }
    let none = String::new;
    let status = [
        (403, gateway.tcp(0), none(), 1),
        (400, gateway.tcp(1), none(), 1),
        (503, gateway.tcp(2), none(), 2),
    ];
    check_status(&mut gateway, status);
    check(
        &mut gateway,
        "streamgate_plugin_refusals_total",
        "# HELP streamgate_plugin_refusals_total Sessions that a plugin refused, by stream_route and plugin\n\
         # TYPE streamgate_plugin_refusals_total counter\n\
         streamgate_plugin_refusals_total{route=\"forbidden\",plugin=\"ip-restriction\"} 1\n\
         streamgate_plugin_refusals_total{route=\"not-found\",plugin=\"ip-restriction\"} 1\n\
         streamgate_plugin_refusals_total{route=\"full\",plugin=\"limit-conn\"} 2\n\
         streamgate_plugin_refusals_total{route=\"untold\",plugin=\"ip-restriction\"} 1\n",
    );
    drop(inside);
}
