//! Nodes that are names, through the binary: what sessions see of changes, of names that go, and of resolvers
//! that fail.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/dnsmasq.rs"]
mod dnsmasq;
#[path = "support/names.rs"]
mod names;
#[path = "support/peers.rs"]
mod peers;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use binary::{Gateway, Setup, pause};
use dnsmasq::Dnsmasq;
use names::{Names, Reply};
use peers::{ask, echoes, until_answered, until_closed};
use serde_json::{Value, json};
use tokio::time::Instant;

/// One route of every listen to nodes by their names, each with weight 1.
fn to(nodes: &[String]) -> Value {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|node| node.split_once(':').unwrap())
        .map(|(host, port)| json!({"host": host, "port": port.parse::<u16>().unwrap(), "weight": 1}))
        .collect();
    json!({"stream_routes": [{"id": "r1", "upstream": {"nodes": nodes}}]})
}

/// A gateway that asks this server, at most half a second for each question.
fn asking(server: SocketAddr, objects: &Value) -> Setup {
    let mut setup = Setup::objects(objects);
    setup.apisix = format!(
        "  dns_resolver: [\"{server}\"]\n  resolver_timeout: 0.5\n  enable_resolv_search_opt: false\n"
    );
    setup.more = "nginx_config: {worker_processes: 1, error_log_level: info}\n".into();
    setup
}

fn starts(server: SocketAddr, objects: &Value) -> Gateway {
    asking(server, objects).start()
}

/// Who answers so many sessions.
fn heard(address: SocketAddr, sessions: usize) -> BTreeSet<String> {
    (0..sessions).map(|_| ask(address).unwrap()).collect()
}

fn both() -> BTreeSet<String> {
    ["A", "B"].map(Into::into).into()
}

fn alone(name: &str) -> BTreeSet<String> {
    [name.into()].into()
}

#[test]
fn a_changed_record_moves_new_sessions_and_the_old_address_serves_two_ttls_more() {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3")]);
    let server = Dnsmasq::start("127.0.0.2 n.test\n", &[]);
    let gateway = starts(server.addr(), &to(&[format!("n.test:{port}")]));
    let tcp = gateway.tcp(0);
    assert_eq!(heard(tcp, 4), alone("A"));
    let mut kept = peers::connect(tcp).unwrap();
    assert_eq!(peers::talk(&mut kept).unwrap(), "A");

    server.hosts("127.0.0.3 n.test\n");
    until_answered(tcp, "B");
    let changed = Instant::now();
    assert_eq!(heard(tcp, 4), both(), "they take turns");
    while heard(tcp, 4) == both() {
        assert!(changed.elapsed() < Duration::from_secs(9), "the old address never goes");
        pause();
    }
    // The TTL is a second.
    let after = changed.elapsed();
    assert!(after > Duration::from_millis(1500), "{after:?}");
    assert_eq!(heard(tcp, 8), alone("B"));
    assert_eq!(peers::talk(&mut kept).unwrap(), "A", "sessions stay where they are");
}

#[test]
fn every_address_is_a_node_and_together_they_weigh_what_the_name_does() {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3"), ("C", "127.0.0.4")]);
    let server = Dnsmasq::start("127.0.0.2 n.test\n127.0.0.3 n.test\n127.0.0.4 one.test\n", &[]);
    let gateway = starts(server.addr(), &to(&[format!("n.test:{port}"), format!("one.test:{port}")]));
    gateway_heard(&gateway, 40, &[("A", 10), ("B", 10), ("C", 20)]);
}

#[track_caller]
fn gateway_heard(gateway: &Gateway, sessions: usize, expected: &[(&str, usize)]) {
    // The answers of both names come one after the other.
    let all: BTreeSet<String> = expected.iter().map(|(name, _)| (*name).to_owned()).collect();
    let deadline = Instant::now() + Duration::from_secs(9);
    while heard(gateway.tcp(0), 4) != all {
        assert!(Instant::now() < deadline, "not all of {all:?} answer");
        pause();
    }
    let answers: Vec<String> = (0..sessions).map(|_| ask(gateway.tcp(0)).unwrap()).collect();
    for (name, count) in expected {
        assert_eq!(answers.iter().filter(|answer| answer == name).count(), *count, "{name} in {answers:?}");
    }
}

#[test]
fn a_name_that_does_not_exist_closes_at_once_and_takes_no_other_node_with_it() {
    let port = echoes(&[("A", "127.0.0.2")]);
    let server = Dnsmasq::start("127.0.0.2 n.test\n", &[]);
    let mut objects = to(&[format!("nowhere.test:{port}"), format!("n.test:{port}")]);
    let mut nobody = to(&[format!("nowhere.test:{port}")])["stream_routes"][0].clone();
    (nobody["id"], nobody["server_port"]) = (json!("r0"), json!("@tcp1"));
    objects["stream_routes"].as_array_mut().unwrap().insert(0, nobody);
    let mut setup = asking(server.addr(), &objects);
    setup.tcp = 2;
    let mut gateway = setup.start();
    until_answered(gateway.tcp(0), "A");
    assert_eq!(heard(gateway.tcp(0), 8), alone("A"));
    let began = Instant::now();
    until_closed(gateway.tcp(1));
    assert!(began.elapsed() < Duration::from_secs(5), "not the 60 s of the connect timeout");
    gateway.says(
        "nowhere.test does not resolve: the name does not exist (NXDOMAIN); nodes of this name are left",
    );
    assert!(gateway.ended_so("r0", "no_node") >= 1.0);
    // It comes into being.
    server.hosts("127.0.0.2 n.test\n127.0.0.2 nowhere.test\n");
    until_answered(gateway.tcp(1), "A");
    gateway.says("nowhere.test resolves again");
}

#[test]
fn a_zone_that_denies_all_its_names_for_a_moment_is_no_outage() {
    let port = echoes(&[("A", "127.0.0.2")]);
    let server = Dnsmasq::start("127.0.0.2 n.test\n", &[]);
    let mut gateway = starts(server.addr(), &to(&[format!("n.test:{port}")]));
    until_answered(gateway.tcp(0), "A");
    server.hosts("");
    gateway.says(
        "n.test does not resolve any more: the name does not exist (NXDOMAIN); its last addresses serve",
    );
    assert_eq!(heard(gateway.tcp(0), 8), alone("A"));
    server.hosts("127.0.0.2 n.test\n");
    gateway.says("n.test resolves again");
    assert_eq!(heard(gateway.tcp(0), 8), alone("A"));
}

#[test]
fn a_resolver_that_dies_changes_nothing() {
    let port = echoes(&[("A", "127.0.0.2")]);
    let mut server = Dnsmasq::start("127.0.0.2 n.test\n", &[]);
    let mut gateway = starts(server.addr(), &to(&[format!("n.test:{port}")]));
    until_answered(gateway.tcp(0), "A");
    server.kill();
    gateway.says("n.test does not resolve: no DNS server");
    assert_eq!(heard(gateway.tcp(0), 8), alone("A"));
}

#[track_caller]
fn check_failing(failing: Reply, told: &str) {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3")]);
    let server = Names::start(&[]);
    server.set("n.test", Reply::addresses(&["127.0.0.2"], 1));
    let mut gateway = starts(server.addr(), &to(&[format!("n.test:{port}")]));
    until_answered(gateway.tcp(0), "A");
    server.set("n.test", failing);
    gateway.says(&format!("n.test does not resolve: {told}"));
    let asked = server.asked("n.test");
    gateway.eventually("further questions", |_| server.asked("n.test") > asked + 1);
    assert_eq!(heard(gateway.tcp(0), 4), alone("A"));
    server.set("n.test", Reply::addresses(&["127.0.0.3"], 60));
    until_answered(gateway.tcp(0), "B");
    gateway.says("n.test resolves again");
    let lines = gateway.log().into_iter().filter(|line| line["name"] == "n.test").count();
    assert_eq!(lines, 2, "each change is told once:\n{}", gateway.log_text());
}

#[test]
fn a_resolver_that_answers_servfail_changes_nothing() {
    check_failing(Reply::Fails, "the DNS server answers with an error: Server Failure");
}

#[test]
fn a_resolver_that_refuses_changes_nothing() {
    check_failing(Reply::Refuses, "the DNS server answers with an error: Query Refused");
}

#[test]
fn a_resolver_that_is_silent_changes_nothing() {
    check_failing(Reply::Silence, "no DNS server answers in time");
}

#[test]
fn a_ttl_of_0_is_asked_for_once_a_second() {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3")]);
    let server = Names::start(&[]);
    server.set("n.test", Reply::addresses(&["127.0.0.2"], 0));
    let began = Instant::now();
    let gateway = starts(server.addr(), &to(&[format!("n.test:{port}")]));
    until_answered(gateway.tcp(0), "A");
    let _ = heard(gateway.tcp(0), 200);
    server.set("n.test", Reply::addresses(&["127.0.0.3"], 0));
    until_answered(gateway.tcp(0), "B");
    let (asked, seconds) = (server.asked("n.test"), began.elapsed().as_secs());
    assert!(asked >= 2 && asked as u64 <= seconds + 2, "{asked} questions in {seconds} s");
}

#[test]
fn a_name_inside_a_service_resolves_like_any_other() {
    let port = echoes(&[("A", "127.0.0.2")]);
    let server = Dnsmasq::start("127.0.0.2 n.test\n", &[]);
    let nodes = to(&[format!("n.test:{port}")])["stream_routes"][0]["upstream"].clone();
    let objects = json!({
        "stream_routes": [{"id": "r1", "service_id": "s1"}],
        "services": [{"id": "s1", "upstream": nodes}],
    });
    until_answered(starts(server.addr(), &objects).tcp(0), "A");
}

#[test]
fn by_default_a_name_is_tried_once_whatever_its_addresses() {
    // Nobody listens on 127.0.0.4 and 127.0.0.5: one attempt for the one node that is written.
    let port = echoes(&[("A", "127.0.0.2")]);
    let server = Dnsmasq::start("127.0.0.4 n.test\n127.0.0.5 n.test\n127.0.0.2 n.test\n", &[]);
    let gateway = starts(server.addr(), &to(&[format!("n.test:{port}")]));
    let answered = (0..12).filter(|_| ask(gateway.tcp(0)).is_ok()).count();
    assert_eq!(answered, 4, "a third of the turns is the good one's");
}
