//! Active checks: what is asked, and what each answer counts as. One gateway probes many upstreams here:
//! an interval cannot be shorter than a second.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/patient.rs"]
mod patient;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use configured::{Configured, set_usable};
use gateway::{Setup, poll_until};
use patient::{Manner, Patient};
use serde_json::{Value, json};
use streamgate::config::Extensions;
use streamgate::health::{Cell, Standing, State};
use streamgate::probe::Trust;
use streamgate::resource::Kind;
use streamgate::snapshot::UpstreamSettings;

const AT_ONCE: Duration = Duration::ZERO;

/// An upstream of one node that is probed like this, `more` being members of the upstream.
fn probed(node: &Patient, active: &Value, more: &Value) -> Value {
    let mut upstream = json!({"nodes": objects::nodes(&[node.addr]), "checks": {"active": active}});
    for (name, value) in more.as_object().unwrap() {
        upstream[name] = value.clone();
    }
    upstream
}

/// A gateway with a route `r0`, `r1`, … to each of these upstreams.
fn probing(settings: UpstreamSettings, upstreams: &[Value]) -> Configured {
    let names: Vec<String> = (0..upstreams.len()).map(|number| format!("r{number}")).collect();
    let object = |(port, (name, upstream)): (u16, (&'static str, &Value))| {
        [
            (Kind::StreamRoute, name, json!({"server_port": port, "upstream_id": name})),
            (Kind::Upstream, name, upstream.clone()),
        ]
    };
    let names = names.into_iter().map(|name| &*name.leak());
    let objects: Vec<_> = (9000..).zip(names.zip(upstreams)).flat_map(object).collect();
    Configured::start(&Setup { workers: 1, ..Setup::default() }, settings, Trust::default(), &objects)
}

fn cells(gateway: &Configured, nodes: &[Patient]) -> Vec<Arc<Cell>> {
    let cell = |(number, node): (usize, &Patient)| {
        objects::cell(&gateway.objects.pool_of(&format!("r{number}")), node.addr)
    };
    nodes.iter().enumerate().map(cell).collect()
}

const WELL: Standing =
    Standing { state: State::Healthy, success: 0, http_failure: 0, tcp_failure: 0, timeout_failure: 0 };
const OUT: Standing = Standing { state: State::Unhealthy, tcp_failure: 1, ..WELL };

const HEALED: Standing = Standing { success: 2, ..WELL };

/// A server, how it is checked, where it begins (`OUT` or `WELL`), and where it ends.
type Case = (&'static str, Patient, Value, Standing, Standing);

fn kind(kind: &str, healthy: Value, mut unhealthy: Value) -> Value {
    unhealthy["interval"] = json!(1);
    let mut healthy = healthy;
    healthy["interval"] = json!(1);
    json!({"type": kind, "timeout": 0.2, "healthy": healthy, "unhealthy": unhealthy})
}

/// Cases whose end differs from their beginning are waited for; the others have to be where they began
/// after two probes.
#[track_caller]
fn check(cases: Vec<Case>) {
    let mut upstreams = Vec::new();
    let (mut nodes, mut rest) = (Vec::new(), Vec::new());
    for (name, node, active, begins, ends) in cases {
        upstreams.push(probed(&node, &active, &json!({})));
        nodes.push(node);
        rest.push((name, begins, ends));
    }
    let gateway = probing(UpstreamSettings::default(), &upstreams);
    let cells = cells(&gateway, &nodes);
    for (cell, (_, begins, _)) in cells.iter().zip(&rest) {
        if *begins == OUT {
            set_usable(cell, false);
        }
    }
    for ((name, begins, ends), (cell, node)) in rest.iter().zip(cells.iter().zip(&nodes)) {
        poll_until(name, || {
            let waited = begins != ends || node.count() >= 2;
            (waited && cell.standing() == *ends).then_some(())
        });
    }
}

#[test]
fn http_statuses_count_as_they_are_listed() {
    let answers = |status| Patient::new(Manner::Answers(status, AT_ONCE));
    let plain = || kind("http", json!({"successes": 2}), json!({"http_failures": 2}));
    let sick = |failures| Standing { state: State::Unhealthy, http_failure: failures, ..WELL };
    check(vec![
        ("200 heals", answers(200), plain(), OUT, HEALED),
        ("302 heals", answers(302), plain(), OUT, HEALED),
        ("200 leaves the healthy alone", answers(200), plain(), WELL, WELL),
        ("503 counts", answers(503), plain(), WELL, sick(2)),
        ("404 counts", answers(404), plain(), WELL, sick(2)),
        ("418 says nothing of the well", answers(418), plain(), WELL, WELL),
        ("418 says nothing of the sick", answers(418), plain(), OUT, OUT),
        ("201 says nothing of the sick", answers(201), plain(), OUT, OUT),
        (
            "listed as well",
            answers(418),
            kind("http", json!({"http_statuses": [418], "successes": 2}), json!({})),
            OUT,
            HEALED,
        ),
        (
            "listed as unwell",
            answers(200),
            kind(
                "http",
                json!({"http_statuses": [201]}),
                json!({"http_statuses": [200], "http_failures": 1}),
            ),
            WELL,
            sick(1),
        ),
    ]);
}

#[test]
fn what_is_no_status_counts_by_its_kind() {
    let limits = json!({"http_failures": 1, "tcp_failures": 1, "timeouts": 1});
    let http = || kind("http", json!({}), limits.clone());
    let tcp = || kind("tcp", json!({"successes": 2}), limits.clone());
    let unhealthy = Standing { state: State::Unhealthy, ..WELL };
    let not_http = Standing { http_failure: 1, ..unhealthy };
    let late = Standing { timeout_failure: 1, ..unhealthy };
    let says = |words: &[u8]| Patient::new(Manner::Says(words.to_vec()));
    check(vec![
        ("no HTTP", says(b"SSH-2.0-OpenSSH_9.2\r\n"), http(), WELL, not_http),
        (
            "a banner before the question",
            Patient::new(Manner::Says(b"220 mail.example ESMTP\r\n".to_vec())),
            http(),
            WELL,
            not_http,
        ),
        ("HTTP without a number", says(b"HTTP/1.1 fine\r\n\r\n"), http(), WELL, not_http),
        ("silence", Patient::new(Manner::Silent), http(), WELL, late),
        ("an early end", Patient::new(Manner::Closes), http(), WELL, OUT),
        ("a refusal of HTTP", Patient::refusing(), http(), WELL, OUT),
        ("a refusal", Patient::refusing(), tcp(), WELL, OUT),
        ("silence is fine with TCP", Patient::new(Manner::Silent), tcp(), OUT, HEALED),
        ("so is an end", Patient::new(Manner::Closes), tcp(), OUT, HEALED),
    ]);
}

#[test]
fn the_four_states_are_gone_through() {
    let mut node = Patient::refusing();
    let active = kind("tcp", json!({"successes": 2}), json!({"tcp_failures": 2}));
    let gateway = Configured::to(&probed(&node, &active, &json!({})));
    let cell = gateway.cell(node.addr);
    let until = |state: State| {
        poll_until(state.label(), || (cell.standing().state == state).then_some(()));
        cell.standing()
    };
    assert_eq!(until(State::MostlyHealthy).tcp_failure, 1);
    assert!(cell.is_usable());
    assert_eq!(until(State::Unhealthy).tcp_failure, 2);
    node.listen();
    let mostly = until(State::MostlyUnhealthy);
    assert_eq!((mostly.success, mostly.tcp_failure), (1, 0));
    assert!(!cell.is_usable());
    assert_eq!(until(State::Healthy).success, 2);
}

/// Lines of requests, without regard to the case of names.
fn head(request: &str) -> BTreeMap<String, String> {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let mut found =
        BTreeMap::from([(String::new(), lines.next().unwrap().into()), ("body".into(), body.into())]);
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        assert!(found.insert(name.to_lowercase(), value.into()).is_none(), "{name} comes twice: {request}");
    }
    found
}

#[test]
fn requests_are_as_written() {
    type Expected = &'static [(&'static str, &'static str)];
    let cases: [(Value, Value, Expected); 7] = [
        (
            json!({}),
            json!({}),
            &[("", "GET / HTTP/1.1"), ("host", "127.0.0.1"), ("connection", "close"), ("body", "")],
        ),
        (json!({"http_path": "/ready?deep=1"}), json!({}), &[("", "GET /ready?deep=1 HTTP/1.1")]),
        (json!({"host": "check.example"}), json!({}), &[("host", "check.example")]),
        (
            json!({"host": "check.example"}),
            json!({"pass_host": "rewrite", "upstream_host": "up.example"}),
            &[("host", "up.example")],
        ),
        (json!({}), json!({"upstream_host": "up.example"}), &[("host", "127.0.0.1")]),
        (
            json!({"req_headers": ["X-Probe: yes", "User-Agent: curl/7.29.0"]}),
            json!({}),
            &[("x-probe", "yes"), ("user-agent", "curl/7.29.0"), ("host", "127.0.0.1")],
        ),
        (
            json!({"http_method": "POST", "http_req_body": "{\"ping\":1}", "http_path": "/p"}),
            json!({}),
            &[("", "POST /p HTTP/1.1"), ("content-length", "10"), ("body", "{\"ping\":1}")],
        ),
    ];
    let nodes: Vec<Patient> = cases.iter().map(|_| Patient::new(Manner::Answers(200, AT_ONCE))).collect();
    let upstream = |((active, more, _), node): (&(Value, Value, _), &Patient)| {
        let mut active = active.clone();
        active["healthy"] = json!({"interval": 1});
        probed(node, &active, more)
    };
    let upstreams: Vec<Value> = cases.iter().zip(&nodes).map(upstream).collect();
    let _gateway = probing(UpstreamSettings::default(), &upstreams);
    for ((active, _, expected), node) in cases.iter().zip(&nodes) {
        poll_until(&format!("probe by {active}"), || (node.count() > 0).then_some(()));
        let heard = head(&node.heard());
        for (name, value) in *expected {
            assert_eq!(heard.get(*name).map(String::as_str), Some(*value), "{active}: {heard:?}");
        }
    }
}

#[test]
fn another_port_is_probed_once_for_all_nodes_that_have_it() {
    let mut doctor = Patient::new(Manner::Silent);
    let (a, b) = (Patient::new(Manner::Silent), Patient::new(Manner::Silent));
    let active = json!({
        "type": "tcp", "port": doctor.addr.port(), "healthy": {"interval": 1},
        "unhealthy": {"interval": 1, "tcp_failures": 1},
    });
    let mut upstream = probed(&a, &active, &json!({}));
    upstream["nodes"] = objects::nodes(&[a.addr, b.addr]);
    let gateway = Configured::to(&upstream);
    poll_until("three probes", || (doctor.count() >= 3).then_some(()));
    let visits = doctor.visits();
    let took = visits[2].at - visits[0].at;
    assert!(took > Duration::from_millis(1500), "three probes of one target within {took:?}");
    doctor.refuse();
    gateway.until_usable(doctor.addr, false);
    assert!(gateway.objects.pool().nodes().iter().all(|node| !node.is_usable()));
    assert_eq!((a.count(), b.count()), (0, 0));
}

/// A case with labels and what is heard.
type Asked<'a> = (&'a str, Patient, &'a Value, Standing, Standing, &'a [u8]);

#[test]
fn probes_of_tcp_may_say_and_expect_something() {
    let ping = json!({"streamgate/tcp-send": r"PING\r\n", "streamgate/tcp-expect": r"+PONG"});
    let blank = json!({"streamgate/tcp-expect": r"a\sb\x00"});
    let send = json!({"streamgate/tcp-send": r"QUIT\n"});
    let limits = json!({"tcp_failures": 1, "timeouts": 1});
    let active = || kind("tcp", json!({"successes": 2}), limits.clone());
    let late = Standing { state: State::Unhealthy, timeout_failure: 1, ..WELL };
    let replies = |question, answer| Patient::new(Manner::Replies(question, answer));
    let says = |words: &[u8]| Patient::new(Manner::Says(words.to_vec()));
    let cases: Vec<Asked<'_>> = vec![
        ("pong", replies(b"PING\r\n", b"+PONG\r\n"), &ping, OUT, WELL, b"PING\r\n"),
        ("pong later on", replies(b"PING\r\n", b"hello +PONG"), &ping, OUT, WELL, b"PING\r\n"),
        ("no pong", replies(b"PING\r\n", b"-LOADING"), &ping, WELL, late, b"PING\r\n"),
        ("nothing", Patient::new(Manner::Silent), &ping, WELL, late, b"PING\r\n"),
        ("an end instead", Patient::new(Manner::Closes), &ping, WELL, OUT, b""),
        ("a banner", says(b"xa b\0"), &blank, OUT, WELL, b""),
        ("16 KiB of something else", says(&[b'z'; 40_000]), &blank, WELL, OUT, b""),
        ("a word", Patient::new(Manner::Silent), &send, OUT, WELL, b"QUIT\n"),
    ];
    let upstreams: Vec<Value> = cases
        .iter()
        .map(|(_, node, labels, ..)| probed(node, &active(), &json!({"labels": labels})))
        .collect();
    // What config.yaml says wins over the label, member by member.
    let mut own = Extensions::default();
    own.set("tcp_send", "HELO").unwrap();
    let asked = Patient::new(Manner::Replies(b"HELO", b"+PONG"));
    let last = format!("r{}", cases.len());
    let settings =
        UpstreamSettings { extensions: [(last.as_str().into(), own)].into(), ..UpstreamSettings::default() };
    let upstreams = [upstreams, vec![probed(&asked, &active(), &json!({"labels": ping}))]].concat();
    let gateway = probing(settings, &upstreams);
    let overridden = objects::cell(&gateway.objects.pool_of(&last), asked.addr);
    set_usable(&overridden, false);
    for (number, (name, node, _, begins, ends, heard)) in cases.iter().enumerate() {
        let cell = objects::cell(&gateway.objects.pool_of(&format!("r{number}")), node.addr);
        if *begins == OUT {
            set_usable(&cell, false);
        }
        poll_until(name, || (cell.standing().state == ends.state && node.count() > 0).then_some(()));
        let (now, visit) = (cell.standing(), &node.visits()[0]);
        assert_eq!(
            (now.tcp_failure, now.timeout_failure),
            (ends.tcp_failure, ends.timeout_failure),
            "{name}"
        );
        assert_eq!(visit.heard, *heard, "{name}");
    }
    poll_until("an answer to what config.yaml says", || overridden.is_usable().then_some(()));
}

#[test]
fn targets_follow_the_addresses_of_a_name() {
    let (old, new) = (Patient::new(Manner::Silent), Patient::new(Manner::Silent));
    let active = json!({"type": "tcp", "port": old.addr.port(), "healthy": {"interval": 1}});
    let named = |port: u16| {
        let mut active = active.clone();
        active["port"] = json!(port);
        json!({"nodes": [{"host": "db.test", "port": 5432, "weight": 1}], "checks": {"active": active}})
    };
    let mut gateway = Configured::to(&named(old.addr.port()));
    assert_eq!(gateway.objects.pool().checked().unwrap().targets.len(), 0);
    gateway.resolve("db.test", &["127.0.0.1".parse().unwrap()]);
    poll_until("a probe", || (old.count() > 0).then_some(()));
    let target = gateway.objects.pool().checked().unwrap().targets[0].clone();
    assert_eq!((target.addr, &*target.host), (old.addr, "db.test"));
    // An address more: what is known of the first stays. Then the first goes.
    set_usable(&target.cell, false);
    gateway.resolve("db.test", &["127.0.0.1".parse().unwrap(), "127.0.0.9".parse().unwrap()]);
    assert!(Arc::ptr_eq(&gateway.cell(old.addr), &target.cell));
    gateway.put_upstream(&named(new.addr.port()));
    gateway.resolve("db.test", &["127.0.0.1".parse().unwrap()]);
    poll_until("a probe of the new target", || (new.count() >= 2).then_some(()));
    let before = old.count();
    poll_until("two more", || (new.count() >= 4).then_some(()));
    assert_eq!(old.count(), before, "the old target is left alone");
    assert!(gateway.cell(new.addr).is_usable());
}
