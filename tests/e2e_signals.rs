//! The binary and the signals of nginx: what changes, what ends, and what stays.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup, Signal, free_port};
use peers::{ask, connect, echo, talk};
use serde_json::{Value, json};
use tokio::time::Instant;

/// One route for every listen, to `node`.
fn objects(node: SocketAddr) -> Value {
    json!({
        "stream_routes": [{"id": "r1", "upstream_id": "u1"}],
        "upstreams": [{"id": "u1", "nodes": {node.to_string(): 1}}],
    })
}

fn setup() -> Setup {
    Setup::objects(&objects(echo("A")))
}

fn is_refused(address: SocketAddr) -> bool {
    connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn hup_opens_and_closes_listens_and_keeps_sessions() {
    let mut gateway = setup().start();
    let old = gateway.tcp(0);
    let mut open = connect(old).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");

    gateway.ports.tcp = vec![free_port()];
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    let new = gateway.tcp(0);
    gateway.says("HUP: config.yaml was read again");
    assert_eq!(ask(new).unwrap(), "A");
    assert!(is_refused(old));
    assert_eq!(talk(&mut open).unwrap(), "A", "a session outlives its listen");
    gateway.says(&format!("opened tcp {new}"));
    gateway.says(&format!("closed tcp {old}"));
    let listens = gateway.status()["listens"].to_string();
    assert!(listens.contains(&new.to_string()), "{listens}");
}

#[test]
fn hup_moves_a_listen_to_every_address_and_back() {
    let mut gateway = setup().start();
    let narrow = std::fs::read_to_string(gateway.config_file()).unwrap();
    let port = gateway.ports.tcp[0];
    let wide = narrow.replacen(&format!("\"127.0.0.1:{port}\""), &port.to_string(), 1);
    let elsewhere = SocketAddr::from(([127, 0, 0, 9], port));
    assert!(is_refused(elsewhere));
    let mut open = connect(gateway.tcp(0)).unwrap();
    for (round, (config, wide)) in [(&wide, true), (&narrow, false)].into_iter().enumerate() {
        gateway.write_config(config);
        gateway.signal(Signal::HUP);
        gateway.eventually("the reload", |gateway| {
            let log = gateway.log_text();
            assert!(!log.contains("nothing has changed"), "{log}");
            log.matches("HUP: config.yaml was read again").count() == round + 1
        });
        assert_eq!(is_refused(elsewhere), !wide);
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
        assert_eq!(talk(&mut open).unwrap(), "A");
    }
}

/// A HUP with `config` is refused with all of `words` in the log, and changes nothing.
#[track_caller]
fn check_refused(gateway: &mut Gateway, config: &str, words: &[&str]) {
    let (open, count) = (gateway.tcp(0), gateway.log().len());
    let mut session = connect(open).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    gateway.write_config(config);
    gateway.signal(Signal::HUP);
    gateway.eventually("the refusal", |gateway| {
        gateway.log()[count..].iter().any(|line| line["message"].to_string().contains("nothing has changed"))
    });
    let said: Vec<String> = gateway.log()[count..].iter().map(|line| line["message"].to_string()).collect();
    let said = said.join("\n");
    for words in words {
        assert!(said.contains(words), "no {words} in\n{said}");
    }
    assert_eq!(talk(&mut session).unwrap(), "A");
    assert_eq!(ask(open).unwrap(), "A");
}

#[test]
fn hup_with_a_bad_file_changes_nothing() {
    let mut gateway = setup().start();
    let good = std::fs::read_to_string(gateway.config_file()).unwrap();
    let (port, new) = (gateway.ports.tcp[0].to_string(), free_port());
    // Both mistakes are told, and the first listen does not go.
    let bad = good.replace(&port, "99999").replace("worker_processes: 2", "worker_processes: 0");
    let mistakes = ["apisix.stream_proxy.tcp[0]", "99999", "nginx_config.worker_processes"];
    check_refused(&mut gateway, &bad, &mistakes);
    check_refused(&mut gateway, "apisix: [", &["config.yaml"]);
    // A worker count cannot be followed, so neither is the listen that came with it.
    let workers = good.replace(&port, &new.to_string()).replace("worker_processes: 2", "worker_processes: 3");
    let restart = ["nginx_config.worker_processes: 2 to 3 workers: takes effect after a restart"];
    check_refused(&mut gateway, &workers, &restart);
    // One port that is taken keeps the others closed.
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    let ours = format!("\"127.0.0.1:{port}\"");
    let listens = format!("{ours}, \"127.0.0.1:{new}\", \"127.0.0.1:{taken}\"");
    let pid = format!("pid {}", std::process::id());
    check_refused(&mut gateway, &good.replacen(&ours, &listens, 1), &[&taken.to_string(), &pid]);
    assert!(is_refused(SocketAddr::from(([127, 0, 0, 1], new))));
    // The file mended, the next HUP works.
    gateway.write_config(&good);
    gateway.signal(Signal::HUP);
    gateway.says("HUP: config.yaml was read again");
}

#[test]
fn term_lets_sessions_finish_and_takes_no_new_ones() {
    let mut gateway = setup().start();
    let tcp = gateway.tcp(0);
    let mut open = connect(tcp).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");
    gateway.signal(Signal::TERM);
    gateway.says("stopping: sessions have 10s to finish");
    gateway.eventually("closed listens", |_| is_refused(tcp));
    assert_eq!(talk(&mut open).unwrap(), "A");
    assert!(gateway.is_running());
    drop(open);
    assert!(gateway.ended().success());
    assert!(gateway.log().iter().any(|line| line["message"] == "stopped"), "{}", gateway.log_text());
}

#[test]
fn quit_waits_as_long_as_worker_shutdown_timeout_says() {
    let mut setup = setup();
    setup.more = "nginx_config: {worker_processes: 1, worker_shutdown_timeout: 1500ms}\n".into();
    let mut gateway = setup.start();
    let mut open = connect(gateway.tcp(0)).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");
    let begun = Instant::now();
    gateway.signal(Signal::QUIT);
    gateway.says("sessions have 1.5s to finish");
    assert_eq!(talk(&mut open).unwrap(), "A");
    assert!(gateway.ended().success());
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1500) && took < PATIENCE, "{took:?}");
    assert!(!matches!(open.read(&mut [0]), Ok(1..)), "a byte after the end");
    let line = gateway.says_end_after_exit("drained");
    assert_eq!((&line["route"], &line["side"]), (&json!("r1"), &json!("gateway")), "{line}");
}

#[track_caller]
fn check_ends_at_once(signals: &[Signal]) {
    let mut setup = setup();
    // Nobody waits for this long.
    setup.more = "nginx_config: {worker_processes: 1, worker_shutdown_timeout: 1h}\n".into();
    let mut gateway = setup.start();
    let mut open = connect(gateway.tcp(0)).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");
    for (count, signal) in signals.iter().enumerate() {
        if count > 0 {
            gateway.says("stopping: sessions have");
        }
        gateway.signal(*signal);
    }
    let begun = Instant::now();
    assert!(gateway.ended().success(), "{signals:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{signals:?} took {:?}", begun.elapsed());
}

#[test]
fn int_or_a_second_signal_ends_at_once() {
    check_ends_at_once(&[Signal::INT]);
    check_ends_at_once(&[Signal::QUIT, Signal::TERM]);
    check_ends_at_once(&[Signal::TERM, Signal::INT]);
    check_ends_at_once(&[Signal::TERM, Signal::TERM]);
}

#[test]
fn it_stops_while_it_still_waits_for_etcd() {
    let (_keeper, nobody) = peers::refused();
    let mut gateway = Setup::etcd(&format!("http://{nobody}")).launch();
    gateway.signal(Signal::HUP);
    gateway.says("HUP: config.yaml was read again");
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().success());
}

#[test]
fn the_other_signals_of_nginx_end_nothing() {
    let mut gateway = setup().start();
    let mut open = connect(gateway.tcp(0)).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");
    for signal in [Signal::USR1, Signal::USR2, Signal::WINCH] {
        gateway.signal(signal);
    }
    gateway.says("USR1: ");
    gateway.says("USR2: ");
    // A signal that was handled after WINCH shows that WINCH did no harm.
    gateway.signal(Signal::HUP);
    gateway.says("HUP: config.yaml was read again");
    assert_eq!(talk(&mut open).unwrap(), "A");
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
}

#[test]
fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hears = |wanted: &str| {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(told.lines().any(|line| line == wanted), "{told:?} instead of {wanted}");
    };
    let mut setup = setup();
    setup.environment.push(("NOTIFY_SOCKET".into(), path.display().to_string()));
    let mut gateway = setup.launch();
    hears("READY=1");
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A", "it is told when listens are open");
    gateway.signal(Signal::HUP);
    hears("RELOADING=1");
    hears("READY=1");
    gateway.signal(Signal::TERM);
    hears("STOPPING=1");
    assert!(gateway.ended().success());
}
