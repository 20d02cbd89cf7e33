//! The binary's start: what keeps it from serving is said at once and whole, and what a file alone
//! needs to serve.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Output;

use binary::{Gateway, Setup, run, stderr};
use peers::{ask, ask_udp, echo, refused, until_answered};
use serde_json::{Value, json};

fn objects(node: SocketAddr) -> Value {
    json!({"stream_routes": [{"id": "r1", "upstream": {"nodes": {node.to_string(): 1}}}]})
}

/// `run` on this config.yaml, which must end by itself.
fn run_config(config: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, config).unwrap();
    fs::write(folder.path().join("apisix.json"), "{}").unwrap();
    run(&["run", "--log-format", "json", "-c", file.to_str().unwrap()], b"")
}

#[track_caller]
fn check_start(config: &str, code: i32, words: &[&str]) {
    let output = run_config(config);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for words in words {
        assert!(said.contains(words), "no {words} in\n{said}");
    }
    assert!(output.stdout.is_empty(), "standard output is not for mistakes");
}

const FROM_FILE: &str = "deployment: {role: data_plane, role_data_plane: {config_provider: json}}\n";

#[test]
fn every_mistake_is_told_at_once() {
    let config = "
apisix:
  proxy_mode: stream
  stream_proxy: {tcp: [0, 9100, 9100], udp: [\"x:1\"]}
deployment: {role: data_plane, role_data_plane: {config_provider: carrier}}
streamgate: {metrics: {max_series: -1}, listens: {1: {half_close: false}}, tyop: 1}
";
    let paths = [
        "apisix.stream_proxy.tcp[0]: ",
        "apisix.stream_proxy.tcp[2]: ",
        "apisix.stream_proxy.udp[0]: ",
        "deployment.role_data_plane.config_provider: ",
        "streamgate.metrics.max_series: ",
        "streamgate.listens.1: ",
        "streamgate.tyop: ",
    ];
    check_start(config, 64, &paths);
    let said = stderr(&run_config(config));
    assert_eq!(said.lines().count(), paths.len(), "one line a mistake:\n{said}");
}

#[test]
fn a_mode_without_streams_is_a_mistake() {
    let config = format!("apisix: {{proxy_mode: http, stream_proxy: {{tcp: [9100]}}}}\n{FROM_FILE}");
    check_start(&config, 64, &["apisix.proxy_mode: ", "http"]);
    check_start("", 64, &["apisix.proxy_mode: "]);
}

#[test]
fn a_missing_file_is_named() {
    let output = run(&["run", "-c", "/nonexistent/config.yaml"], b"");
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("/nonexistent/config.yaml"), "{}", stderr(&output));
    let output = run(&["run", "--no-such-option"], b"");
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
}

#[test]
fn every_port_that_is_taken_is_named_with_its_holder() {
    let tcp_holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp_holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [tcp, udp] = [tcp_holder.local_addr(), udp_holder.local_addr()].map(Result::unwrap);
    let config = format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [\"{tcp}\"], udp: [\"{udp}\"]}}}}\n{FROM_FILE}"
    );
    let holder = format!("(pid {}) holds it; stop it, or allow both with --share-ports", std::process::id());
    let words = [
        &*format!("listen {tcp}: cannot listen on tcp"),
        &*format!("listen {udp}: cannot listen on udp"),
        &holder,
    ];
    check_start(&config, 1, &words);
    // Not even sharing helps where the holder does not share.
    let mut setup = Setup::objects(&json!({}));
    setup.fixed_port = Some(tcp.port());
    setup.arguments.push("--share-ports".into());
    let mut gateway = Gateway::spawn(setup);
    assert_eq!(gateway.ended().code(), Some(1));
    assert!(gateway.log_text().contains("does not share it"), "{}", gateway.log_text());
}

#[test]
fn a_metrics_address_that_is_taken_is_named() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let config = format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [\"127.0.0.1:{}\"]}}}}\n{FROM_FILE}\
         plugin_attr: {{prometheus: {{export_addr: {{port: {port}}}}}}}\n",
        binary::free_port()
    );
    check_start(
        &config,
        1,
        &[&format!("cannot listen on 127.0.0.1:{port} (plugin_attr.prometheus.export_addr)")],
    );
}

#[test]
fn a_second_gateway_shares_ports_only_when_told() {
    let first = Setup::objects(&objects(echo("A"))).start();
    let mut second = Setup::objects(&objects(echo("B")));
    second.fixed_port = Some(first.ports.tcp[0]);
    let mut refused = Gateway::spawn(second.clone());
    assert_eq!(refused.ended().code(), Some(1), "{}", refused.log_text());
    let said = refused.log_text();
    let holder = format!("streamgate (pid {}) holds it", first.pid());
    assert!(said.contains(&holder) && said.contains("--share-ports"), "no {holder} in\n{said}");
    assert_eq!(ask(first.tcp(0)).unwrap(), "A");

    second.arguments.push("--share-ports".into());
    let _second = second.start();
    // Each connection goes to one of the two, by a hash of its client's port.
    until_answered(first.tcp(0), "B");
    until_answered(first.tcp(0), "A");
}

/// A file that ships, with this test's addresses in place of its own.
fn shipped(name: &str, addresses: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    let text = fs::read_to_string(path).unwrap();
    addresses.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "no {from} in deploy/{name}");
        text.replace(from, to)
    })
}

#[test]
fn the_shipped_files_serve_without_etcd_and_follow_edits() {
    let (a, b) = (echo("A").to_string(), echo("B").to_string());
    let listens = [("- 9100", "- 127.0.0.1:@tcp0"), ("- 9200", "- 127.0.0.1:@udp0")];
    let objects = |node: &str| {
        let ports = [("9100", "@tcp0"), ("9200", "@udp0"), ("127.0.0.1:9300", node)];
        shipped("apisix.yaml", &ports)
    };
    let mut setup = Setup::objects(&Value::Null);
    let metrics = "plugin_attr: {prometheus: {export_addr: {port: @metrics}}}\n";
    setup.whole = Some(shipped("standalone.yaml", &listens) + metrics);
    setup.objects = Some(objects(&a));
    let mut gateway = setup.start();
    let (tcp, udp) = (gateway.tcp(0), gateway.udp(0));
    assert_eq!(ask(tcp).unwrap(), "A");
    gateway.eventually("a datagram's answer", |_| ask_udp(udp).as_deref() == Some("A"));

    gateway.write("apisix.yaml", &objects(&b));
    until_answered(tcp, "B");
    gateway.eventually("a datagram's answer", |_| ask_udp(udp).as_deref() == Some("B"));
    // Half a file is no file: APISIX's end mark tells.
    gateway.write("apisix.yaml", &objects(&a).replace("#END", ""));
    gateway.eventually("the reason", |gateway| {
        gateway.status()["source"]["problem"]["text"].as_str().is_some_and(|text| text.contains("#END"))
    });
    assert_eq!(ask(tcp).unwrap(), "B");
    gateway.write("apisix.yaml", &objects(&a));
    until_answered(tcp, "A");
    assert_eq!(gateway.status()["source"]["problem"], Value::Null);
}

#[test]
fn without_its_file_a_gateway_waits_for_it() {
    let mut setup = Setup::objects(&Value::Null);
    setup.objects = None;
    let mut gateway = setup.launch();
    gateway.eventually("the reason", |gateway| {
        gateway.status()["source"]["problem"]["text"]
            .as_str()
            .is_some_and(|text| text.contains("apisix.json"))
    });
    assert_eq!(gateway.status()["ready"], false);
    gateway.write_objects(&objects(echo("A")));
    gateway.wait_ready();
    until_answered(gateway.tcp(0), "A");
}

/// The first of `count` ports in a row that are free.
fn free_range(count: u16) -> u16 {
    loop {
        let first = binary::free_port();
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + count).all(is_free) {
            return first;
        }
    }
}

#[test]
fn every_form_of_a_listen_serves() {
    let first = free_range(3);
    let last = first + 2;
    let mut setup = Setup::objects(&objects(echo("A")));
    (setup.tcp, setup.udp) = (4, 3);
    setup.whole = Some(format!(
        "apisix:
  proxy_mode: http&stream
  enable_control: false
  stream_proxy:
    tcp: [@tcp0, \"@tcp1\", \"[::1]:@tcp2\", {{addr: \"127.0.0.1:@tcp3\", tls: false}}, \"127.0.0.1:{first}-{last}\"]
    udp: [@udp0, \"[::1]:@udp1\", \"127.0.0.1:@udp2\"]
{FROM_FILE}plugin_attr: {{prometheus: {{export_addr: {{port: @metrics}}}}}}
"
    ));
    let mut gateway = setup.start();
    let v6 = |port: u16| SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    for number in [0, 1, 3] {
        assert_eq!(ask(gateway.tcp(number)).unwrap(), "A");
    }
    for port in first..=last {
        assert_eq!(ask(([127, 0, 0, 1], port).into()).unwrap(), "A");
    }
    // An unspecified address answers on each of this host's.
    assert_eq!(ask(([127, 0, 0, 9], gateway.ports.tcp[0]).into()).unwrap(), "A");
    assert_eq!(ask(v6(gateway.ports.tcp[2])).unwrap(), "A");
    for address in [gateway.udp(0), ([127, 0, 0, 9], gateway.ports.udp[0]).into(), gateway.udp(2)] {
        gateway.eventually("a datagram's answer", |_| ask_udp(address).as_deref() == Some("A"));
    }
    let address = v6(gateway.ports.udp[1]);
    gateway.eventually("a datagram's answer", |_| ask_udp(address).as_deref() == Some("A"));
    assert_eq!(gateway.status()["listens"].as_array().unwrap().len(), 10);
}

#[test]
fn the_environment_replaces_what_the_file_says() {
    let (_keeper, nobody) = refused();
    let mut setup = Setup::etcd("http://127.0.0.1:1");
    setup.environment = vec![
        ("APISIX_DEPLOYMENT_ETCD_HOST".into(), format!("[\"http://{nobody}\"]")),
        ("APISIX_WORKER_PROCESSES".into(), "1".into()),
        ("LEVEL".into(), "info".into()),
    ];
    setup.more = "nginx_config: {worker_processes: 2, error_log_level: \"${{LEVEL}}\"}\n".into();
    let mut gateway = setup.launch();
    gateway.eventually("the reason", |gateway| {
        let status = gateway.status();
        status["source"]["problem"]["text"].as_str().is_some_and(|text| text.contains(&nobody.to_string()))
    });
}

#[test]
fn logs_are_json_unless_asked_for_otherwise() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let config = format!("apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [\"{taken}\"]}}}}\n{FROM_FILE}");
    fs::write(&file, config).unwrap();
    let lines = |more: &[&str]| {
        let said = stderr(&run(&[&["run", "-c", file.to_str().unwrap()], more].concat(), b""));
        assert!(said.contains("cannot start: listen "), "{said}");
        said.lines().map(|line| serde_json::from_str::<Value>(line).is_ok()).collect::<Vec<_>>()
    };
    assert!(lines(&[]).iter().all(|is_json| *is_json), "no terminal, so JSON");
    assert!(lines(&["--log-format", "json"]).iter().all(|is_json| *is_json));
    assert!(lines(&["--log-format", "human"]).iter().all(|is_json| !is_json));
}
