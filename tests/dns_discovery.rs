//! `discovery_type: dns` against a real DNS server: which nodes a service has, and sessions to them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/dnsmasq.rs"]
mod dnsmasq;
#[path = "support/peers.rs"]
mod peers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use binary::{Setup, run, stdout};
use dnsmasq::Dnsmasq;
use peers::{ask, echoes, until_answered, until_closed};
use serde_json::{Value, json};
use streamgate::config::{DnsRecord, DnsRegistry, Registries};
use streamgate::discovery;
use streamgate::metrics::Metrics;
use streamgate::resource::{Discovery, Node};
use streamgate::store::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// The zone of t/discovery/stream/dns.t of APISIX, and a few names more. dnsmasq wants target, port, priority,
/// weight.
const ZONE: &[&str] = &[
    "--srv-host=_sip._tcp.srv.test,a.test,1980,1,60",
    "--srv-host=_sip._tcp.srv.test,b.test,1981,1,20",
    "--srv-host=split.test,a.test,1980,10,100",
    "--srv-host=split.test,cd.test,1980,10,0",
    "--srv-host=priority.test,a.test,1979,1,60",
    "--srv-host=priority.test,b.test,1980,2,60",
    "--srv-host=zero.test,a.test,0,1,60",
    "--srv-host=srv-a.test,a.test,1980,1,60",
    "--srv-host=lost.test,no.test,1980,1,60",
    "--srv-host=lost.test,b.test,1980,1,60",
    "--cname=alias.test,srv-a.test",
    "--cname=plain-alias.test,a.test",
];
const HOSTS: &str = "127.0.0.1 a.test\n127.0.0.2 b.test\n127.0.0.3 cd.test\n127.0.0.4 cd.test\n\
                     127.0.0.5 srv-a.test\n::1 six.test\n::1 mix.test\n127.0.0.6 mix.test\n";

fn registry(server: SocketAddr, order: &[DnsRecord]) -> Registries {
    let order = order.to_vec();
    let dns = DnsRegistry { servers: vec![server], resolv_conf: None, order, timeout: PATIENCE };
    Registries { dns: Some(dns), ..Registries::default() }
}

/// Nodes of a service as `address:port=weight@priority`.
async fn nodes(registries: Registries, service_name: &str) -> Vec<String> {
    let service = Discovery {
        kind: "dns".into(),
        service_name: service_name.into(),
        namespace_id: None,
        group_name: None,
    };
    let (_wanted, receiver) = watch::channel(Arc::from([Arc::new(service)]));
    let (out, mut answers) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let means = discovery::Means {
        registries,
        trusted: None,
        failing: Arc::default(),
        metrics: Metrics::new(&[], ""),
    };
    tokio::spawn(discovery::run(means, receiver, out, stop));
    let batch = timeout(PATIENCE, answers.recv()).await.unwrap().unwrap();
    let [Event::Nodes { nodes, .. }] = &*batch.events else { panic!("{batch:?}") };
    let shown = |node: &Node| format!("{}:{}={}@{}", node.host, node.port, node.weight, node.priority);
    nodes.iter().map(shown).collect()
}

#[tokio::test]
async fn services_have_the_nodes_they_have_in_apisix() {
    use DnsRecord::{A, Aaaa, Cname, Last, Srv};
    let server = Dnsmasq::start(HOSTS, ZONE);
    let usual = [Last, Srv, A, Aaaa, Cname];
    let two = ["127.0.0.1:1980=60@-1", "127.0.0.2:1981=20@-1"];
    for (order, name, expected) in [
        (usual.as_slice(), "cd.test:80", ["127.0.0.3:80=1@0", "127.0.0.4:80=1@0"].as_slice()),
        (&usual, "cd.test", &[]),
        (&usual, "six.test:80", &["[::1]:80=1@0"]),
        (&usual, "mix.test:80", &["127.0.0.6:80=1@0"]),
        (&[Last, Srv, A, Cname], "six.test:80", &[]),
        (&usual, "127.0.0.9:80", &["127.0.0.9:80=1@0"]),
        (&usual, "_sip._tcp.srv.test", &two),
        (&usual, "_sip._tcp.srv.test:7", &["127.0.0.1:7=60@-1", "127.0.0.2:7=20@-1"]),
        (&usual, "split.test", &["127.0.0.1:1980=200@-10", "127.0.0.3:1980=1@-10", "127.0.0.4:1980=1@-10"]),
        (&usual, "priority.test", &["127.0.0.1:1979=60@-1", "127.0.0.2:1980=60@-2"]),
        (&usual, "zero.test", &[]),
        (&usual, "zero.test:80", &["127.0.0.1:80=60@-1"]),
        (&usual, "srv-a.test", &["127.0.0.1:1980=60@-1"]),
        (&[A, Srv], "srv-a.test", &[]),
        (&[A, Srv], "srv-a.test:80", &["127.0.0.5:80=1@0"]),
        (&usual, "lost.test", &["127.0.0.2:1980=60@-1"]),
        (&usual, "alias.test", &["127.0.0.1:1980=60@-1"]),
        (&usual, "plain-alias.test:80", &["127.0.0.1:80=1@0"]),
        (&usual, "no.test:80", &[]),
        (&usual, "localhost.no:80", &[]),
    ] {
        assert_eq!(nodes(registry(server.addr(), order), name).await, expected, "{name} by {order:?}");
    }
}

fn by_dns(service_name: &str) -> Value {
    let upstream = json!({"service_name": service_name, "discovery_type": "dns"});
    json!({"stream_routes": [{"id": "r1", "upstream_id": "u1"}], "upstreams": [with_id(upstream)]})
}

fn with_id(mut upstream: Value) -> Value {
    upstream["id"] = "u1".into();
    upstream
}

fn asking(server: SocketAddr, objects: &Value) -> Setup {
    let mut setup = Setup::objects(objects);
    setup.apisix = "  resolver_timeout: 0.5\n".into();
    setup.more = format!(
        "discovery: {{dns: {{servers: [\"{server}\"]}}}}\nnginx_config: {{worker_processes: 1, error_log_level: info}}\n"
    );
    setup
}

fn srv(target: &str, port: u16, priority: u16, weight: u16) -> String {
    format!("--srv-host=s.test,{target},{port},{priority},{weight}")
}

#[test]
fn sessions_follow_weights_and_stay_while_the_server_is_down() {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3")]);
    let zone = [srv("a.test", port, 0, 3), srv("b.test", port, 0, 1)];
    let zone: Vec<&str> = zone.iter().map(String::as_str).collect();
    let mut server = Dnsmasq::start("127.0.0.2 a.test\n127.0.0.3 b.test\n", &zone);
    let mut gateway = asking(server.addr(), &by_dns("s.test")).start();
    until_answered(gateway.tcp(0), "A");
    let answers: Vec<String> = (0..40).map(|_| ask(gateway.tcp(0)).unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "A").count(), 30, "{answers:?}");
    server.kill();
    gateway.says("service s.test by dns: no DNS server");
    let answers: Vec<String> = (0..40).map(|_| ask(gateway.tcp(0)).unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "A").count(), 30, "{answers:?}");
}

#[test]
fn the_lowest_priority_of_the_records_is_used_while_it_can_be_reached() {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3")]);
    let hosts = "127.0.0.2 a.test\n127.0.0.3 b.test\n127.0.0.4 nobody.test\n";
    for (first, expected) in [("b.test", "B"), ("nobody.test", "A")] {
        let zone = [srv("a.test", port, 20, 9), srv(first, port, 10, 1)];
        let zone: Vec<&str> = zone.iter().map(String::as_str).collect();
        let server = Dnsmasq::start(hosts, &zone);
        let gateway = asking(server.addr(), &by_dns("s.test")).start();
        for _ in 0..6 {
            until_answered(gateway.tcp(0), expected);
        }
    }
}

#[test]
fn addresses_that_change_move_sessions_and_what_is_left_out_is_named() {
    let port = echoes(&[("A", "127.0.0.2"), ("B", "127.0.0.3")]);
    let zone = ["--srv-host=zero.test,n.test,0,1,1"];
    let server = Dnsmasq::start("127.0.0.2 n.test\n", &zone);
    let mut objects = by_dns(&format!("n.test:{port}"));
    let zero = json!({"service_name": "zero.test", "discovery_type": "dns"});
    let route = json!({"id": "r0", "server_port": "@tcp1", "upstream": zero});
    objects["stream_routes"].as_array_mut().unwrap().insert(0, route);
    let mut setup = asking(server.addr(), &objects);
    setup.tcp = 2;
    let mut gateway = setup.start();
    until_answered(gateway.tcp(0), "A");
    until_closed(gateway.tcp(1));
    gateway.says("service zero.test by dns: its SRV record for n.test has port 0, and service_name has none");
    server.hosts("127.0.0.3 n.test\n");
    until_answered(gateway.tcp(0), "B");
    server.hosts("");
    gateway.says(&format!("service n.test:{port} by dns: its registry knows no instance any more"));
    until_answered(gateway.tcp(0), "B");
}

#[test]
fn without_its_section_nothing_is_served_and_check_says_what_is_true() {
    let port = echoes(&[("A", "127.0.0.2")]);
    let server = Dnsmasq::start("127.0.0.2 n.test\n", &[]);
    let mut setup = asking(server.addr(), &by_dns(&format!("n.test:{port}")));
    let with = setup.clone().start();
    until_answered(with.tcp(0), "A");
    setup.more = "nginx_config: {worker_processes: 1}\n".into();
    let mut without = setup.start();
    until_closed(without.tcp(0));
    without.says("config.yaml has no section discovery.dns");
    let checked = |gateway: &binary::Gateway| {
        let file = gateway.config_file();
        stdout(&run(&["check", "--share-ports", "-c", file.to_str().unwrap()], b""))
    };
    let text = checked(&with);
    assert!(!text.contains("upstreams/u1"), "{text}");
    let text = checked(&without);
    assert!(text.contains("WARN     upstreams/u1  config.yaml has no section discovery.dns"), "{text}");
    with.write_objects(&by_dns("n.test"));
    let text = checked(&with);
    assert!(text.contains("WARN     upstreams/u1  service n.test by dns has no instance"), "{text}");
}
