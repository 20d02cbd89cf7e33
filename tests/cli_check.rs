//! What `streamgate check` reports and `streamgate explain` answers, on a file and on an etcd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/etcd.rs"]
mod etcd;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Output;

use binary::{free_port, run, stderr, stdout};
use etcd::Etcd;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A config.yaml in a folder of its own.
struct Config {
    folder: TempDir,
}

impl Config {
    fn new(listens: &str, deployment: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "apisix: {{proxy_mode: stream, stream_proxy: {{{listens}}}}}\ndeployment: {deployment}\n{more}\n"
        );
        fs::write(folder.path().join("config.yaml"), text).unwrap();
        Self { folder }
    }

    /// Objects from apisix.json, with prometheus and redis switched on.
    fn file(objects: &Value) -> Self {
        let deployment = "{role: data_plane, role_data_plane: {config_provider: json}}";
        let listens = format!("tcp: [{}]", free_port());
        let config = Self::new(
            &listens,
            deployment,
            "stream_plugins: [prometheus]\nxrpc: {protocols: [{name: redis}]}",
        );
        fs::write(config.path().join("apisix.json"), objects.to_string()).unwrap();
        config
    }

    fn etcd(etcd: &Etcd) -> Self {
        let deployment = format!(
            "{{role: data_plane, role_data_plane: {{config_provider: etcd}}, etcd: {{host: [\"{}\"]}}}}",
            etcd.endpoint()
        );
        let listens = format!("tcp: [{}], udp: [{}]", free_port(), free_port());
        Self::new(&listens, &deployment, "stream_plugins: [prometheus]")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let file = self.path().join("config.yaml");
        run(&[arguments, &["-c", file.to_str().unwrap()]].concat(), b"")
    }

    /// The report of `check`, which must end with `code`.
    #[track_caller]
    fn check(&self, more: &[&str], code: i32) -> String {
        let output = self.run(&[&["check"], more].concat());
        let report = stdout(&output);
        assert_eq!(output.status.code(), Some(code), "{report}{}", stderr(&output));
        report
    }

    #[track_caller]
    fn explain(&self, client: &str, server: &str, more: &[&str]) -> String {
        let output = self.run(&[&["explain", "--client", client, "--server", server], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    }
}

/// All of `lines` stand in the report, at the beginnings of its lines, in this order.
#[track_caller]
fn has(report: &str, lines: &[&str]) {
    let mut left = report.lines();
    for wanted in lines {
        assert!(left.any(|line| line.starts_with(wanted)), "no `{wanted}` (in this place) in\n{report}");
    }
}

fn mixed() -> Value {
    let node = json!({"nodes": {"127.0.0.1:1": 1}});
    json!({
        "stream_routes": [
            {"id": "bad", "server_port": "x"},
            {"id": "first", "server_port": 1000, "upstream_id": "u1"},
            {"id": "never", "server_port": 1000, "remote_addr": "10.0.0.0/8", "upstream_id": "u1"},
            {"id": "lost", "server_port": 1001, "upstream_id": "nowhere"},
            {"id": "empty", "server_port": 1002, "upstream_id": "none"},
            {"id": "cache", "server_port": 1003, "upstream": node, "protocol": {"name": "redis"}},
            {"id": "served", "server_port": 1004, "service_id": "s1", "name": "by service"},
        ],
        "services": [{"id": "s1", "upstream": {"type": "sometimes", "nodes": {"127.0.0.1:3": 1}}}],
        "upstreams": [
            {"id": "u1", "nodes": {"127.0.0.1:1": 1, "127.0.0.1:99999": 1}},
            {"id": "none", "nodes": {}},
            {"id": "http", "nodes": {"web.invalid:80": 1}, "type": "sometimes"},
            {"id": "http-bad", "nodes": 7},
        ],
    })
}

#[test]
fn check_reports_what_matters_most_first() {
    let report = Config::file(&mixed()).check(&[], 1);
    has(
        &report,
        &[
            "config   ok; 1 tcp and 0 udp listens",
            "file     /",
            "REJECTED stream_routes/bad  /server_port is \"x\"; an integer from 1 to 65535 is allowed",
            "CHANGES  SG-005 services/s1  the upstream of service s1: type \"sometimes\" is no balancer",
            "CHANGES  SG-050 stream_routes/cache  protocol redis: forwarded as plain TCP",
            "CHANGES  SG-004 upstreams/u1  upstream u1: node \"127.0.0.1:99999\" has no port",
            "WARN     stream_routes/empty  its connections are closed (no_node): ",
            "WARN     stream_routes/lost  its connections are closed (upstream_missing): upstream nowhere",
            "WARN     stream_routes/never  never matches: first comes earlier",
            "unused   upstreams/http-bad  /nodes is 7",
        ],
    );
    let summary = report.lines().last().unwrap();
    assert!(summary.starts_with("1 rejected, ") && summary.ends_with("; exit 1"), "{report}");
    assert!(
        report.contains("6 stream_routes, 3 upstreams (2 used by streams), 1 services, 0 ssls"),
        "{report}"
    );
    assert!(!report.contains("upstreams/http "), "what only HTTP uses is not judged\n{report}");
}

#[test]
fn check_exits_with_0_when_nothing_changes() {
    let node = json!({"nodes": {"127.0.0.1:1": 1}});
    let route = json!({"id": "1", "server_port": 1000, "upstream": node});
    let good = Config::file(&json!({ "stream_routes": [route] }));
    has(
        &good.check(&[], 0),
        &["config   ok", "file     /", "0 rejected, 0 change behaviour, 0 warnings; exit 0"],
    );
    // A warning alone is no failure.
    let lost = json!({"stream_routes": [{"id": "1", "upstream_id": "nowhere"}]});
    has(
        &Config::file(&lost).check(&[], 0),
        &["WARN     stream_routes/1", "0 rejected, 0 change behaviour, 1 warnings"],
    );
    // The objects are not looked at, nor need they be there.
    let alone = Config::file(&mixed());
    fs::remove_file(alone.path().join("apisix.json")).unwrap();
    let report = alone.check(&["--config-only"], 0);
    assert_eq!(report.lines().count(), 2, "{report}");
    let report = alone.check(&[], 1);
    has(&report, &["FAILED   cannot read the objects of "]);
    assert!(report.contains("apisix.json"), "{report}");
}

#[test]
fn check_exits_with_64_for_the_config_itself() {
    let from_file = "{role: data_plane, role_data_plane: {config_provider: json}}";
    let mistakes = Config::new("tcp: [0], udp: [x]", from_file, "streamgate: {tyop: 1}");
    let output = mistakes.run(&["check"]);
    assert_eq!(output.status.code(), Some(64));
    let said = stderr(&output);
    has(&said, &["apisix.stream_proxy.tcp[0]: ", "apisix.stream_proxy.udp[0]: ", "streamgate.tyop: "]);
}

#[test]
fn check_names_ports_that_are_held() {
    let tcp_holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp_holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [tcp, udp] = [tcp_holder.local_addr(), udp_holder.local_addr()].map(Result::unwrap);
    let listens = format!("tcp: [\"{tcp}\"], udp: [\"{udp}\"]");
    let config = Config::new(&listens, "{role: data_plane, role_data_plane: {config_provider: json}}", "");
    let report = config.check(&["--config-only"], 0);
    let by = format!("(pid {})", std::process::id());
    for held in [format!("cannot listen on tcp {tcp}: "), format!("cannot listen on udp {udp}: ")] {
        let line = report.lines().find(|line| line.contains(&held));
        let line = line.unwrap_or_else(|| panic!("no {held} in\n{report}"));
        assert!(
            line.starts_with("WARN     config.yaml  `run` would not start: ") && line.contains(&by),
            "{line}"
        );
    }
    let report = config.check(&["--config-only", "--share-ports"], 0);
    assert!(!report.contains("cannot listen"), "{report}");
}

#[tokio::test]
async fn check_reads_etcd_and_writes_nothing() {
    let etcd = Etcd::start().await;
    let node = json!({"nodes": {"127.0.0.1:1": 1}});
    let old = json!({"server_port": 1000, "upstream_id": "u1", "create_time": 100});
    let new =
        json!({"server_port": 1000, "remote_addr": "10.0.0.0/8", "upstream_id": "u1", "create_time": 200});
    let limit =
        json!({"limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}});
    etcd.put("/apisix/upstreams/u1", node.to_string()).await;
    // In key order 10 comes before 2; 2 was created earlier.
    etcd.put("/apisix/stream_routes/2", old.to_string()).await;
    etcd.put("/apisix/stream_routes/10", new.to_string()).await;
    let idle = json!({"server_port": 1001, "upstream_id": "u1", "plugins": limit});
    etcd.put("/apisix/stream_routes/idle", idle.to_string()).await;
    let revision = etcd.put("/apisix/stream_routes/bad", "{no json").await;

    let config = Config::etcd(&etcd);
    let report = config.check(&[], 1);
    has(
        &report,
        &[
            &format!(
                "etcd     {}/apisix revision {revision}; 3 stream_routes, 1 upstreams (1 used",
                etcd.endpoint()
            ),
            "REJECTED stream_routes/bad  ",
            "CHANGES  SG-030 stream_routes/10  overlaps stream_routes/2; streamgate picks 10 (key order). 2 was created earlier",
            "WARN     stream_routes/idle  /plugins/limit-conn: plugin limit-conn is not among the enabled stream_plugins",
            "1 rejected, 1 change behaviour, 1 warnings; exit 1",
        ],
    );
    assert!(report.contains("NOT ENFORCED (as in APISIX)"), "{report}");

    let said = config.explain("10.1.2.3", "127.0.0.1:1000", &[]);
    let created = etcd.ctl(&["get", "/apisix/stream_routes/10", "-w", "json"]);
    let created: Value = serde_json::from_str(&created).unwrap();
    let created = &created["kvs"][0]["mod_revision"];
    has(
        &said,
        &[
            &format!("route  10 (revision {created})   upstream u1   node 127.0.0.1:1 (roundrobin, 1 of 1)"),
            "not    2: would match, but comes later in the order",
            "not    idle: server_port 1001 is not 1000",
            "rejected stream_routes/bad: ",
            &format!("config revision {revision}"),
            "from etcd, health unknown",
        ],
    );
    assert_eq!(etcd.put("/elsewhere", "x").await, revision + 1, "something wrote to etcd");
}

#[test]
fn explain_says_why_each_other_route_fell_out() {
    let node = json!({"nodes": {"127.0.0.1:1": 1}});
    let route = |id: &str, more: Value| {
        let mut route = json!({"id": id, "upstream": node});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    let config = Config::file(&json!({"stream_routes": [
        route("port", json!({"server_port": 5})),
        route("client", json!({"remote_addr": "10.9.0.0/16"})),
        route("server", json!({"server_addr": "127.0.0.9"})),
        route("name", json!({"sni": "*.example.com"})),
        route("exact", json!({"sni": "a.example.com", "name": "the winner"})),
        route("rest", json!({})),
    ]}));
    let said = config.explain("10.8.0.7:40000", "127.0.0.1:3306", &[]);
    has(
        &said,
        &[
            "route  rest   upstream stream_routes/rest   node 127.0.0.1:1 (roundrobin, 1 of 1)",
            "not    client: remote_addr 10.9.0.0/16 does not contain 10.8.0.7",
            "not    name: sni *.example.com needs a TLS server name, and the client sent none",
            "not    server: server_addr 127.0.0.9",
            "not    port: server_port 5 is not 3306",
        ],
    );
    assert!(!said.contains("revision"), "a file has no revisions\n{said}");
    // A final dot and the case do not count.
    let said = config.explain("10.8.0.7", "127.0.0.1:3306", &["--sni", "A.Example.com."]);
    has(
        &said,
        &[
            "route  exact \"the winner\"",
            "not    name: would match, but sni *.example.com is less exact than the winner's",
            "not    rest: would match, but has no sni, and a route with one comes first",
        ],
    );
    // sni is for TCP alone: a datagram has none.
    has(&config.explain("10.8.0.7", "127.0.0.1:53", &["--udp"]), &["route  rest"]);
    let few = config.explain("10.8.0.7", "127.0.0.1:3306", &["--others", "1"]);
    assert_eq!(
        few.lines().filter(|line| line.contains(": ") && line.starts_with("not ")).count(),
        1,
        "{few}"
    );
    has(&few, &["route  rest", "not    client: ", "not    2 rules for other server names"]);
}

#[test]
fn explain_says_what_closes_a_connection() {
    let config = Config::file(&mixed());
    let closed = [
        (1001, "route  lost   closed: upstream_missing: upstream nowhere does not exist"),
        (1002, "route  empty   upstream none   closed: no_node: "),
        (1004, "route  served \"by service\"   service s1   upstream services/s1   node 127.0.0.1:3 "),
        (9999, "route  none: the connection would be closed (no_route)"),
    ];
    for (port, wanted) in closed {
        let said = config.explain("1.2.3.4", &format!("127.0.0.1:{port}"), &[]);
        has(&said, &[wanted, "not    first: ", "rejected stream_routes/bad: /server_port is \"x\""]);
    }
    let said = config.explain("1.2.3.4", "127.0.0.1:1003", &[]);
    has(&said, &["route  cache", "       protocol redis: forwarded as plain TCP, commands are not read"]);
    fs::write(config.path().join("apisix.json"), "{").unwrap();
    let output = config.run(&["explain", "--client", "1.2.3.4", "--server", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("cannot read the objects of "), "{}", stderr(&output));
}

#[test]
fn check_gives_up_on_an_etcd_that_no_endpoint_answers_for() {
    let closed = free_port();
    let deployment = format!(
        "{{role: data_plane, role_data_plane: {{config_provider: etcd}}, etcd: {{host: [\"http://127.0.0.1:{closed}\"]}}}}"
    );
    let report = Config::new(&format!("tcp: [{}]", free_port()), &deployment, "").check(&[], 1);
    assert!(report.contains("FAILED") && report.contains("refused"), "{report}");
}
