//! The syslog plugin through the binary: metadata and the list of plugins in etcd, what shares a connection,
//! the end of the process, and a real rsyslogd as the collector.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/peers.rs"]
mod peers;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup, Signal, free_port, pause};
use etcd::Etcd;
use peers::{ask, echo, refused, until_answered};
use serde_json::{Value, json};
use tokio::time::Instant;

const METADATA: &str = "/apisix/plugin_metadata/syslog";

/// A collector: lines with the number of the connection they came by.
fn collector() -> (SocketAddr, Receiver<(usize, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, (sender, lines)) = (listener.local_addr().unwrap(), mpsc::channel());
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send((number, line));
                }
            });
        }
    });
    (addr, lines)
}

/// What a line says, of the gateway with this process id.
#[track_caller]
fn next(lines: &Receiver<(usize, String)>, gateway: &Gateway) -> (usize, Value) {
    let (connection, line) =
        lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{}", gateway.log_text()));
    let (header, json) = line.split_once(" - - ").unwrap_or_else(|| panic!("{line}"));
    assert!(header.ends_with(&format!(" - apisix {}", gateway.pid())), "{line}");
    (connection, serde_json::from_str(json).unwrap())
}

/// A configuration whose lines leave at once.
fn at_once(to: SocketAddr) -> Value {
    json!({"host": to.ip(), "port": to.port(), "batch_max_size": 1, "flush_limit": 1})
}

fn with_format(to: SocketAddr, format: &Value) -> Value {
    let mut conf = at_once(to);
    conf["log_format"] = format.clone();
    conf
}

fn setup(setup: Setup) -> Setup {
    Setup { plugins: vec!["syslog"], ..setup }
}

fn upstream(node: SocketAddr) -> Value {
    json!({"nodes": {node.to_string(): 1}})
}

/// Lines by what became of them.
fn result(gateway: &Gateway, result: &str) -> Option<f64> {
    gateway.metric(&format!("streamgate_syslog_lines_total{{result=\"{result}\"}}"))
}

#[test]
fn routes_and_services_with_one_server_share_a_connection() {
    let (addr, lines) = collector();
    let objects = json!({
        "stream_routes": [
            {"id": "own", "server_port": "@tcp0", "upstream": upstream(echo("A")),
             "plugins": {"syslog": with_format(addr, &json!({"is": "own", "name": "$route_name"}))}},
            {"id": "by-service", "server_port": "@tcp1", "service_id": "s", "name": "n"},
        ],
        "services": [
            {"id": "s", "name": "svc", "upstream": upstream(echo("B")),
             "plugins": {"syslog": with_format(addr, &json!({"is": "service", "service_id": "$service_id", "name": "$route_name"}))}},
        ],
    });
    let gateway = setup(Setup { tcp: 2, ..Setup::objects(&objects) }).start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    assert_eq!(next(&lines, &gateway), (0, json!({"is": "own", "route_id": "own"})));
    assert_eq!(ask(gateway.tcp(1)).unwrap(), "B");
    let expected = json!({"is": "service", "service_id": "s", "name": "n", "route_id": "by-service"});
    assert_eq!(next(&lines, &gateway), (0, expected));
}

#[tokio::test]
async fn metadata_is_live_and_a_bad_one_rejects_itself_alone() {
    let ((addr, lines), etcd) = (collector(), Etcd::start().await);
    let mut gateway = setup(Setup::etcd(&etcd.endpoint())).start();
    let route = json!({"server_port": gateway.tcp(0).port(), "upstream": upstream(echo("A")),
        "plugins": {"syslog": at_once(addr)}});
    etcd.put("/apisix/stream_routes/1", route.to_string()).await;
    until_answered(gateway.tcp(0), "A");
    let told = gateway.says("plugin syslog has no log_format");
    assert_eq!((&told["level"], &told["route"]), (&json!("ERROR"), &json!("1")));
    let unformatted = result(&gateway, "unformatted").unwrap();
    assert!(unformatted >= 1.0 && result(&gateway, "sent") == Some(0.0), "{unformatted}");

    let metadata = async |value: &str| etcd.put(METADATA, value.to_owned()).await;
    let follows = |gateway: &mut Gateway, revision: i64| {
        gateway.eventually("the revision", |gateway| gateway.status()["revision"] == revision);
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    };
    let revision = metadata(r#"{"log_format":{"v":"1"}}"#).await;
    follows(&mut gateway, revision);
    assert_eq!(next(&lines, &gateway).1, json!({"v": "1", "route_id": "1"}));
    let revision = metadata(r#"{"log_format":{"v":"2"},"max_pending_entries":9}"#).await;
    follows(&mut gateway, revision);
    assert_eq!(next(&lines, &gateway).1, json!({"v": "2", "route_id": "1"}));

    // No JSON: the last good one counts, and nobody else is concerned.
    let revision = metadata("{").await;
    follows(&mut gateway, revision);
    assert_eq!(next(&lines, &gateway).1, json!({"v": "2", "route_id": "1"}));
    let rejected = gateway.status()["rejected"].clone();
    assert_eq!(rejected[0]["object"], "plugin_metadata/syslog", "{rejected}");
    assert_eq!(rejected.as_array().unwrap().len(), 1, "{rejected}");

    // JSON, but of no use: as in APISIX it is taken, and here it is as if it was not written.
    let revision = metadata(r#"{"log_format":"v"}"#).await;
    follows(&mut gateway, revision);
    gateway.says("log_format is \"v\"; an object is allowed");
    gateway.eventually("a session without a format", |gateway| {
        result(gateway, "unformatted") == Some(unformatted + 1.0)
    });

    let revision = metadata(r#"{"log_format":{"v":"3"}}"#).await;
    follows(&mut gateway, revision);
    assert_eq!(next(&lines, &gateway).1, json!({"v": "3", "route_id": "1"}));
    let revision = etcd.delete(METADATA).await;
    follows(&mut gateway, revision);
    gateway.eventually("sessions without a format", |gateway| {
        result(gateway, "unformatted") == Some(unformatted + 2.0)
    });
    assert!(lines.try_recv().is_err());
}

/// The key `/plugins` takes syslog off the list; whether it counts depends on `enable_admin`.
async fn list_of_plugins(traditional: bool) {
    let ((addr, lines), etcd) = (collector(), Etcd::start().await);
    let mut setup = setup(Setup::etcd(&etcd.endpoint()));
    if traditional {
        setup.deployment = format!(
            "  role: traditional\n  role_traditional: {{config_provider: etcd}}\n  etcd: {{host: [\"{}\"], prefix: \
             /apisix}}\n",
            etcd.endpoint()
        );
    }
    let mut gateway = setup.start();
    let route = json!({"server_port": gateway.tcp(0).port(), "upstream": upstream(echo("A")),
        "plugins": {"syslog": with_format(addr, &json!({}))}});
    etcd.put("/apisix/stream_routes/1", route.to_string()).await;
    until_answered(gateway.tcp(0), "A");
    next(&lines, &gateway);
    let list = json!([{"name": "mqtt-proxy", "stream": true}]).to_string();
    let revision = etcd.put("/apisix/plugins", list).await;
    gateway.eventually("the revision", |gateway| gateway.status()["revision"] == revision);
    while lines.try_recv().is_ok() {}
    let before = result(&gateway, "sent");
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    if traditional {
        assert_eq!(next(&lines, &gateway).1, json!({"route_id": "1"}), "the Admin API is in charge");
        return;
    }
    let revision = etcd.delete("/apisix/plugins").await;
    gateway.eventually("the revision", |gateway| gateway.status()["revision"] == revision);
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    next(&lines, &gateway);
    gateway.eventually("one line", |gateway| result(gateway, "sent") == before.map(|sent| sent + 1.0));
}

#[tokio::test]
async fn the_list_of_plugins_counts_on_a_data_plane() {
    list_of_plugins(false).await;
}

#[tokio::test]
async fn the_list_of_plugins_does_not_count_where_the_admin_api_is_on() {
    list_of_plugins(true).await;
}

/// A gateway whose lines wait an hour for their batch, and one session.
fn waiting(to: SocketAddr) -> Gateway {
    let mut conf = with_format(to, &json!({"v": "last"}));
    for member in ["batch_max_size", "flush_limit", "inactive_timeout", "buffer_duration"] {
        conf[member] = json!(3600);
    }
    let route = json!({"id": "1", "upstream": upstream(echo("A")), "plugins": {"syslog": conf}});
    let mut gateway = setup(Setup::objects(&json!({"stream_routes": [route]}))).start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    gateway.eventually("a line that waits", |gateway| {
        gateway.metric("streamgate_syslog_lines_waiting") == Some(1.0)
    });
    gateway
}

#[test]
fn term_and_quit_send_the_last_lines() {
    for signal in [Signal::TERM, Signal::QUIT] {
        let (addr, lines) = collector();
        let mut gateway = waiting(addr);
        gateway.signal(signal);
        assert_eq!(next(&lines, &gateway).1, json!({"v": "last", "route_id": "1"}));
        assert!(gateway.ended().success());
    }
}

#[test]
fn a_dead_server_does_not_hold_up_the_end_and_its_losses_are_told() {
    let (_socket, addr) = refused();
    let mut gateway = waiting(addr);
    let begin = Instant::now();
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().success());
    // TERM gives sessions 10 s, and there was none.
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    let log = gateway.log_text();
    assert!(
        log.contains("takes no lines: connection refused") && log.contains("1 lines for the syslog server"),
        "{log}"
    );
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_and_costs_no_session() {
    let syslog = json!({"host": "127.0.0.1", "port": 0, "log_format": {}});
    let route = json!({"id": "1", "upstream": upstream(echo("A")), "plugins": {"syslog": syslog}});
    let gateway = setup(Setup::objects(&json!({"stream_routes": [route]}))).start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    let status = gateway.status().to_string();
    assert!(
        status.contains("plugin syslog: port is 0; a port from 1 to 65535 is allowed; it does nothing"),
        "{status}"
    );
}

/// A collector as it stands in the field.
struct Rsyslogd {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Rsyslogd {
    fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let conf = format!(
            "global(workDirectory=\"{}\")\nmodule(load=\"imtcp\")\nmodule(load=\"imudp\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\")\n\
             template(name=\"parts\" type=\"string\" \
             string=\"%syslogfacility-text%|%syslogseverity-text%|%hostname%|%app-name%|%procid%|%msgid%|%msg%\\n\")\n\
             action(type=\"omfile\" file=\"{}\" template=\"parts\")\n",
            folder.path().display(),
            path("heard"),
        );
        fs::write(path("conf"), conf).unwrap();
        // Not every user looks into /usr/sbin.
        let program = ["/usr/sbin/rsyslogd", "rsyslogd"].into_iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or("rsyslogd"));
        command
            .args(["-n", "-f", &path("conf"), "-i", &path("pid")])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self { process: command.spawn().expect("rsyslogd; run scripts/deps.sh"), folder, port }
    }

    /// Waits for so many lines.
    #[track_caller]
    fn heard(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(self.folder.path().join("heard")).unwrap_or_default();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            assert!(Instant::now() < deadline, "{count} lines are wanted:\n{text}");
            pause();
        }
    }
}

impl Drop for Rsyslogd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn rsyslogd_understands_every_part_over_tcp_and_udp() {
    let rsyslogd = Rsyslogd::start();
    let to = SocketAddr::from(([127, 0, 0, 1], rsyslogd.port));
    let (over_tcp, mut over_udp) =
        (with_format(to, &json!({"over": "tcp"})), with_format(to, &json!({"over": "udp"})));
    over_udp["sock_type"] = json!("udp");
    let routes = json!({"stream_routes": [
        {"id": "t", "server_port": "@tcp0", "upstream": upstream(echo("A")), "plugins": {"syslog": over_tcp}},
        {"id": "u", "server_port": "@tcp1", "upstream": upstream(echo("A")), "plugins": {"syslog": over_udp}},
    ]});
    let gateway = setup(Setup { tcp: 2, ..Setup::objects(&routes) }).start();
    // Lines over TCP wait until it listens; then it listens for datagrams, too.
    for _ in 0..3 {
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    }
    let part = |json: &str| format!("syslog|info|-|apisix|{}|-|{json}", gateway.pid());
    let over_tcp = part(r#"{"over":"tcp","route_id":"t"}"#);
    assert_eq!(rsyslogd.heard(3), vec![over_tcp.clone(); 3]);
    for _ in 0..3 {
        assert_eq!(ask(gateway.tcp(1)).unwrap(), "A");
    }
    assert_eq!(rsyslogd.heard(6)[3..], vec![part(r#"{"over":"udp","route_id":"u"}"#); 3]);
}
