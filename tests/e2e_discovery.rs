//! The real gateway with upstreams whose nodes are in a registry: instances come and go while sessions
//! run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/registry.rs"]
mod registry;

use std::net::{SocketAddr, TcpListener};

use binary::{Gateway, Setup};
use peers::{ask, connect, echo, talk, until_answered, until_closed};
use registry::{Consul, Reply, Server, application, hosts};
use serde_json::{Value, json};

/// A gateway whose one upstream takes its nodes from the registry of `section`.
fn gateway(kind: &str, section: &str) -> Gateway {
    let upstream = json!({"discovery_type": kind, "service_name": "s", "type": "roundrobin",
        "timeout": {"connect": 1, "send": 60, "read": 60}});
    let objects = json!({"stream_routes": [{"id": "r1", "server_port": "@tcp0", "upstream": upstream}]});
    let mut setup = Setup::objects(&objects);
    setup.more = format!("discovery: {{{section}}}\n");
    setup.start()
}

/// Instances come and go, the registry fails and forgets, and comes back.
fn check(kind: &str, section: &str, set: &dyn Fn(&[SocketAddr]), fail: &dyn Fn()) {
    let (a, b) = (echo("A"), echo("B"));
    set(&[a]);
    let mut gateway = gateway(kind, section);
    let listen = gateway.tcp(0);
    until_answered(listen, "A");
    let mut session = connect(listen).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    set(&[b]);
    until_answered(listen, "B");
    // Whoever had a session with an instance that went keeps it.
    assert_eq!(talk(&mut session).unwrap(), "A");
    fail();
    gateway.eventually("a failing service", |it| it.metric("streamgate_discovery_failing") == Some(1.0));
    let told = gateway.status()["discovery"]["failing"][0].clone();
    assert_eq!(told["service"], format!("s by {kind}"), "{told}");
    assert!(told["text"].as_str().unwrap().contains("status 500"), "{told}");
    assert_eq!(ask(listen).unwrap(), "B");
    set(&[]);
    gateway.says("its registry knows no instance any more");
    assert_eq!(ask(listen).unwrap(), "B");
    set(&[a, b]);
    until_answered(listen, "A");
    assert_eq!(gateway.metric("streamgate_discovery_failing"), Some(0.0));
    assert_eq!(gateway.status()["discovery"], json!({"failing": []}));
    assert_eq!(talk(&mut session).unwrap(), "A");
}

#[test]
fn instances_of_consul_come_and_go() {
    let consul = Consul::start();
    let section = format!("consul: {{servers: ['{}']}}", consul.server.url());
    let set = |addresses: &[SocketAddr]| {
        consul.breaks(None);
        consul.set("s", addresses);
    };
    check("consul", &section, &set, &|| consul.breaks(Some(Reply::status(500))));
}

/// A registry that is polled every second.
fn check_polled(kind: &str, more: &str, page: fn(&[SocketAddr]) -> Value) {
    let server = Server::saying(Reply::json(&page(&[])));
    let section = format!("{kind}: {{host: ['{}'], fetch_interval: 1{more}}}", server.url());
    let set = |addresses: &[SocketAddr]| server.say(Reply::json(&page(addresses)));
    check(kind, &section, &set, &|| server.say(Reply::status(500)));
}

#[test]
fn instances_of_nacos_come_and_go() {
    check_polled("nacos", "", hosts);
}

#[test]
fn instances_of_eureka_come_and_go() {
    check_polled("eureka", ", prefix: /eureka", application);
}

#[test]
fn instances_may_be_names() {
    let a = echo("A");
    let named = json!({"hosts": [{"ip": "localhost", "port": a.port()}]});
    let server = Server::saying(Reply::json(&named));
    let section = format!("nacos: {{host: ['{}']}}", server.url());
    let gateway = gateway("nacos", &section);
    until_answered(gateway.tcp(0), "A");
}

#[test]
fn a_silent_registry_holds_no_session_longer_than_a_node_would() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let waits = "timeout: {connect: 600000, send: 600000, read: 600000}";
    let section = format!("nacos: {{host: ['http://{}'], {waits}}}", silent.local_addr().unwrap());
    let mut gateway = gateway("nacos", &section);
    until_closed(gateway.tcp(0));
    gateway.eventually("an ending", |gateway| gateway.ended_so("r1", "no_node") > 0.0);
}

#[test]
fn an_upstream_without_its_registry_closes_its_sessions() {
    let mut gateway = gateway("consul", "");
    until_closed(gateway.tcp(0));
    gateway.says("config.yaml has no section discovery.consul");
    gateway.eventually("an ending", |gateway| gateway.ended_so("r1", "no_node") > 0.0);
}
