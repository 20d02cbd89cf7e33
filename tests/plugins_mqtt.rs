//! mqtt-proxy: who is let in by the first packet, and that the node gets every byte of it, however it comes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/proxy_headers.rs"]
mod proxy_headers;
#[path = "support/tls.rs"]
mod tls;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use gateway::{
    Gateway, PATIENCE, Setup, accept, connect, hears, hears_end, hears_reset, listen, pool, reset, says,
    server, settings, udp,
};
use mosquitto::Mosquitto;
use serde_json::{Value, json};
use streamgate::config::Listen;
use streamgate::session::{Denied, End, Traffic, Transport};
use streamgate::snapshot::Target;

/// CONNECT of MQTT 3.1.1 and 5, both of the client `c1`.
const V4: &[u8] = b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02c1";
const V5: &[u8] = b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\x14\0\x02c1";
const DENIED: Option<Denied> = Some(Denied { plugin: "mqtt-proxy", code: 503 });

/// A gateway whose one route lets in who speaks this level of MQTT, and its node.
fn serving(listen: Listen, level: u8) -> (Gateway, SocketAddr, TcpListener) {
    let (node, addr) = server();
    let (gateway, at) = to(listen, level, addr);
    (gateway, at, node)
}

fn to(listen: Listen, level: u8, node: SocketAddr) -> (Gateway, SocketAddr) {
    let mut gateway = Gateway::start(&Setup::default());
    let pool = Target::Inline(Arc::new(pool(settings(), &[node])));
    gateway.publish(pool, &[("mqtt-proxy", json!({"protocol_level": level}))]);
    let at = gateway.listen(listen);
    (gateway, at)
}

fn tcp() -> Listen {
    listen(Transport::Tcp, "127.0.0.1")
}

#[test]
fn the_packet_may_come_in_any_pieces_and_with_others_behind_it() {
    let (mut gateway, at, node) = serving(tcp(), 4);
    let all = [V4, b"\xc0\0 and what follows"].concat();
    for size in [1, 3, V4.len() - 1, V4.len(), all.len()] {
        let mut client = connect(at);
        client.set_nodelay(true).unwrap();
        for piece in all.chunks(size) {
            says(&mut client, piece);
            // Without it the pieces may come as one.
            std::thread::yield_now();
        }
        let mut upstream = accept(&node);
        hears(&mut upstream, &all);
        says(&mut upstream, b"\x20\x02\0\0");
        hears(&mut client, b"\x20\x02\0\0");
        drop(client);
        hears_end(&mut upstream);
        drop(upstream);
        let outcome = gateway.ends_with(End::ClientClosed);
        assert_eq!(outcome.inbound.mqtt_client_id.as_deref(), Some("c1"));
        assert_eq!(outcome.traffic, Traffic { received: all.len() as u64, sent: 4 });
    }
}

#[test]
fn who_is_no_such_client_is_reset_and_no_node_hears_of_it() {
    let (mut gateway, at, node) = serving(tcp(), 4);
    for first in [V5, b"GET / HTTP/1.1\r\n\r\n", b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x02c1", b"\x10\0\0\0\0"]
    {
        let mut client = connect(at);
        says(&mut client, first);
        hears_reset(&mut client);
        let outcome = gateway.ends_with(End::PluginDenied);
        assert_eq!((outcome.denied, outcome.attempts), (DENIED, 0));
        assert!(outcome.detail.unwrap().starts_with("mqtt-proxy: "));
    }
    node.set_nonblocking(true).unwrap();
    assert!(node.accept().is_err(), "somebody came");
}

#[test]
fn a_client_may_close_its_side_behind_the_packet_and_not_inside() {
    let (mut gateway, at, node) = serving(tcp(), 5);
    let mut client = connect(at);
    says(&mut client, V5);
    client.shutdown(Shutdown::Write).unwrap();
    let mut upstream = accept(&node);
    hears(&mut upstream, V5);
    hears_end(&mut upstream);
    says(&mut upstream, b"answer");
    drop(upstream);
    hears(&mut client, b"answer");
    hears_end(&mut client);
    gateway.ends_with(End::ClientClosed);

    let mut client = connect(at);
    says(&mut client, &V5[..V5.len() - 1]);
    client.shutdown(Shutdown::Write).unwrap();
    let outcome = gateway.ends_with(End::ClientClosed);
    assert!(outcome.detail.unwrap().contains("after 19 of 20 bytes that mqtt-proxy needs"));

    let mut client = connect(at);
    says(&mut client, &V5[..5]);
    reset(client);
    gateway.ends_with(End::ClientReset);
}

#[test]
fn a_packet_is_no_longer_than_plugins_may_see() {
    let (mut gateway, at, node) = serving(tcp(), 4);
    // One type byte, three of length, twelve before the identifier.
    for (length, fits) in [(16_384, true), (16_385, false)] {
        let id = vec![b'i'; length - 16];
        let (low, high) = ((length - 4) % 128, (length - 4) / 128);
        let mut packet =
            vec![0x10, u8::try_from(low).unwrap() | 0x80, u8::try_from(high % 128).unwrap() | 0x80];
        packet.push(u8::try_from(high / 128).unwrap());
        packet.extend(b"\0\x04MQTT\x04\x02\0\x3c");
        packet.extend(u16::try_from(id.len()).unwrap().to_be_bytes());
        packet.extend(id);
        assert_eq!(packet.len(), length);
        let mut client = connect(at);
        says(&mut client, &packet);
        if fits {
            hears(&mut accept(&node), &packet);
            drop(client);
            assert!(matches!(
                gateway.outcome().end,
                End::UpstreamReset | End::ClientClosed | End::UpstreamClosed
            ));
        } else {
            hears_reset(&mut client);
            gateway.ends_with(End::PrereadOverflow);
        }
    }
}

#[test]
fn a_proxy_header_may_come_before() {
    let (mut gateway, at, node) = serving(Listen { proxy_protocol: true, ..tcp() }, 4);
    let header = proxy_headers::v1("10.1.2.3:5000".parse().unwrap(), at);
    for cut in [0, header.len() - 1, header.len(), header.len() + 3] {
        let (mut client, all) = (connect(at), [&header[..], V4].concat());
        client.set_nodelay(true).unwrap();
        says(&mut client, &all[..cut]);
        std::thread::yield_now();
        says(&mut client, &all[cut..]);
        let mut upstream = accept(&node);
        hears(&mut upstream, V4);
        drop((client, upstream));
        assert_eq!(gateway.outcome().inbound.mqtt_client_id.as_deref(), Some("c1"));
    }
}

#[test]
fn a_datagram_holds_it_whole_or_is_refused() {
    let (node, addr) = udp("127.0.0.1");
    let (mut gateway, at) = to(listen(Transport::Udp, "127.0.0.1"), 4, addr);
    let client = udp("127.0.0.1").0;
    client.send_to(&V4[..9], at).unwrap();
    let outcome = gateway.ends_with(End::PluginDenied);
    assert_eq!(outcome.denied, DENIED);
    assert!(outcome.detail.unwrap().contains("needs 16 bytes, and the datagram has 9"));
    client.send_to(V4, at).unwrap();
    let mut heard = [0; 64];
    let (count, _) = node.recv_from(&mut heard).unwrap();
    assert_eq!(&heard[..count], V4);
}

/// Objects of a gateway with mqtt-proxy before these nodes.
fn objects(level: u8, upstream: &Value) -> Value {
    let plugins = json!({"mqtt-proxy": {"protocol_level": level}});
    json!({"stream_routes": [{"id": "r1", "plugins": plugins, "upstream": upstream}]})
}

fn started(objects: &Value, listens: Vec<&'static str>) -> binary::Gateway {
    let setup = binary::Setup::objects(objects);
    binary::Setup { plugins: vec!["mqtt-proxy"], listens, ..setup }.start()
}

#[test]
fn inside_tls_what_follows_the_packet_is_no_matter() {
    let (node, addr) = server();
    let mut objects = objects(4, &json!({"nodes": {addr.to_string(): 1}}));
    objects["ssls"] = json!([tls::ssl("1", &["a.test"], &tls::Authority::new("root").issue(&["a.test"]))]);
    let gateway = started(&objects, vec!["tls: true"]);
    // Records of many sizes; the first ends inside the packet, and far more follows than plugins may see.
    let all: Vec<u8> = V4.iter().copied().chain((0..300_000_u32).map(|at| at.to_le_bytes()[0])).collect();
    for first in [1, 9, V4.len(), 200] {
        let mut session =
            tls::shake_hands(gateway.tcp(0), Some("a.test"), &tls::Client::default().config()).unwrap();
        let reader = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                session.write_all(&all[..first]).unwrap();
                session.flush().unwrap();
                session.write_all(&all[first..]).unwrap();
                session.flush().unwrap();
            });
            let mut upstream = accept(&node);
            let mut heard = vec![0; all.len()];
            upstream.read_exact(&mut heard).unwrap();
            assert!(heard == all, "cut after {first}");
            sender.join().unwrap();
            upstream
        });
        drop(reader);
    }
}

#[test]
fn who_is_refused_inside_tls_is_told_by_its_end() {
    let (_node, addr) = server();
    let mut objects = objects(4, &json!({"nodes": {addr.to_string(): 1}}));
    objects["ssls"] = json!([tls::ssl("1", &["a.test"], &tls::Authority::new("root").issue(&["a.test"]))]);
    let mut gateway = started(&objects, vec!["tls: true"]);
    let mut session =
        tls::shake_hands(gateway.tcp(0), Some("a.test"), &tls::Client::default().config()).unwrap();
    session.write_all(V5).unwrap();
    assert_eq!(session.read(&mut [0; 8]).unwrap(), 0, "a close_notify");
    let line = gateway.says_end("plugin_denied");
    assert!(line.to_string().contains("mqtt-proxy: the client's protocol level is 5"), "{line}");
}

#[test]
fn clients_of_mosquitto_publish_and_subscribe() {
    let broker = Mosquitto::start();
    for (level, version, other) in [(4, "mqttv311", "mqttv5"), (5, "mqttv5", "mqttv311")] {
        let nodes = json!({"nodes": {broker.addr().to_string(): 1}});
        let gateway = started(&objects(level, &nodes), vec![]);
        mosquitto::publishes_and_subscribes(gateway.tcp(0), version);
        assert!(!mosquitto::publish(gateway.tcp(0), other, "x").success(), "{other} at level {level}");
    }
}

#[test]
fn a_client_goes_where_its_name_says() {
    let nodes: BTreeMap<String, u32> =
        ["A", "B", "C"].into_iter().map(|name| (peers::echo(name).to_string(), 1)).collect();
    let upstream = json!({"type": "chash", "hash_on": "vars", "key": "mqtt_client_id", "nodes": nodes});
    let gateway = started(&objects(4, &upstream), vec![]);
    let node_of = |id: &str| {
        let length = u8::try_from(id.len()).unwrap();
        let packet = [b"\x10", &[12 + length][..], b"\0\x04MQTT\x04\x02\0\x3c\0", &[length], id.as_bytes()];
        let mut client = TcpStream::connect_timeout(&gateway.tcp(0), PATIENCE).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.write_all(&packet.concat()).unwrap();
        let mut name = [0];
        client.read_exact(&mut name).unwrap();
        name[0]
    };
    let ids: Vec<String> = (0..30).map(|number| format!("device-{number}")).collect();
    let first: Vec<u8> = ids.iter().map(|id| node_of(id)).collect();
    let again: Vec<u8> = ids.iter().map(|id| node_of(id)).collect();
    assert_eq!(first, again);
    assert!([b'A', b'B', b'C'].iter().all(|name| first.contains(name)), "{first:?}");
}
