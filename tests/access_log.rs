//! The access log of the real binary: its lines, its file over signals, and what a slow disk costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/proxy_headers.rs"]
mod proxy_headers;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::thread;

use binary::{Gateway, Setup, Signal, run, stderr};
use peers::{ask, ask_udp, connect, echo, refused};
use serde_json::json;

/// A gateway whose access log is `lines`: `r1` of `@tcp0` and `@udp0` leads to an echo, `dead` of `@tcp1`
/// to a node that refuses and then to the echo, nothing takes `@tcp2`.
fn setup(format: &str) -> Setup {
    let node = echo("A").to_string();
    let (closed, dead) = refused();
    // Nothing may get its port as long as the test runs.
    std::mem::forget(closed);
    let nodes = json!([
        {"host": "127.0.0.1", "port": dead.port(), "weight": 1, "priority": 1},
        {"host": "127.0.0.1", "port": node.rsplit(':').next().unwrap().parse::<u16>().unwrap(), "weight": 1},
    ]);
    let objects = json!({
        "stream_routes": [
            {"id": "r1", "name": "first", "server_port": "@tcp0", "upstream": {"nodes": {node.clone(): 1}}},
            {"id": "u1", "server_port": "@udp0", "upstream": {"nodes": {node: 1}}},
            {"id": "dead", "server_port": "@tcp1", "upstream": {"nodes": nodes}},
        ],
    });
    let mut setup = Setup { tcp: 3, ..Setup::objects(&objects) };
    setup.more = nginx_config("lines", format);
    setup
}

fn nginx_config(path: &str, format: &str) -> String {
    let format = if format.is_empty() { String::new() } else { format!(", access_log_format: '{format}'") };
    format!(
        "nginx_config: {{worker_processes: 4, stream: {{enable_access_log: true, access_log: {path}{format}}}}}\n"
    )
}

fn file(gateway: &Gateway, name: &str) -> PathBuf {
    gateway.folder().join(name)
}

fn text(gateway: &Gateway, name: &str) -> String {
    fs::read_to_string(file(gateway, name)).unwrap_or_default()
}

/// Waits until the file has so many lines; them.
#[track_caller]
fn lines(gateway: &mut Gateway, name: &str, count: usize) -> Vec<String> {
    gateway.eventually("lines of the access log", |gateway| text(gateway, name).lines().count() >= count);
    let lines: Vec<String> = text(gateway, name).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

/// A session that ends by the client's FIN.
fn session(gateway: &Gateway) {
    let mut stream = connect(gateway.tcp(0)).unwrap();
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn every_session_has_its_line_in_the_format_of_apisix() {
    let mut gateway = setup("").start();
    session(&gateway);
    let [line] = &*lines(&mut gateway, "lines", 1) else { panic!() };
    let (begin, rest) = line.split_once(" [").unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!(begin, "127.0.0.1");
    assert!(rest.starts_with("TCP 200 2 1 0."), "{line}");
    // 30/Nov/2026:21:23:52 +0000
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert!(shape.starts_with("00/") && shape[6..].starts_with("/0000:00:00:00 "), "{time}");
    let zone = &time[time.len() - 5..];
    assert!(zone.starts_with(['+', '-']) && zone[1..].parse::<u16>().is_ok(), "{time}");
}

#[test]
fn refused_sessions_attempts_and_datagrams_are_told_of() {
    let format = "$status $protocol $route_id $upstream_addr $upstream_connect_time $end $bytes_sent";
    let mut gateway = setup(format).start();
    assert_eq!(ask(gateway.tcp(1)).unwrap(), "A");
    assert_eq!(connect(gateway.tcp(2)).unwrap().read(&mut [0]).unwrap(), 0);
    assert_eq!(ask_udp(gateway.udp(0)).unwrap(), "A");
    lines(&mut gateway, "lines", 2);
    gateway.signal(Signal::INT);
    assert!(gateway.ended().success());
    // The association ended with the process, and its line was still written.
    let mut lines: Vec<String> = text(&gateway, "lines").lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert_eq!(lines[0], "001 TCP - - - no_route 0");
    assert!(lines[1].starts_with("200 TCP dead 127.0.0.1:"), "{lines:#?}");
    let words: Vec<&str> = lines[1].split(' ').collect();
    assert!(words[3].ends_with(',') && words[5] == "-," && words[6].starts_with("0.0"), "{lines:#?}");
    assert!(lines[2].starts_with("200 UDP u1 127.0.0.1:") && lines[2].ends_with("drained 2"), "{lines:#?}");
}

#[test]
fn lines_of_several_workers_are_whole_and_none_is_missing() {
    const EACH: usize = 150;
    let mut gateway = setup("<$connection $remote_port $route_name $bytes_sent>").start();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..EACH).for_each(|_| session(&gateway)));
        }
    });
    let lines = lines(&mut gateway, "lines", 4 * EACH);
    let mut numbers: Vec<u32> = Vec::new();
    for line in &lines {
        let inside = line.strip_prefix('<').and_then(|line| line.strip_suffix(" first 2>"));
        let inside = inside.unwrap_or_else(|| panic!("a line in pieces: {line}"));
        numbers.push(inside.split(' ').next().unwrap().parse().unwrap());
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), lines.len(), "$connection tells sessions apart");
}

#[test]
fn usr1_opens_the_file_anew_and_loses_nothing() {
    let mut gateway = setup("$end").start();
    session(&gateway);
    fs::rename(file(&gateway, "lines"), file(&gateway, "old")).unwrap();
    // The line is still in the worker's block.
    gateway.signal(Signal::USR1);
    gateway.says("USR1: opened the files");
    assert_eq!(lines(&mut gateway, "old", 1), ["client_closed"]);
    session(&gateway);
    assert_eq!(lines(&mut gateway, "lines", 1), ["client_closed"]);
    assert_eq!(text(&gateway, "old").lines().count(), 1);
}

#[test]
fn hup_follows_path_and_format_or_changes_nothing() {
    let mut gateway = setup("one $end").start();
    session(&gateway);
    lines(&mut gateway, "lines", 1);
    gateway.setup.more = nginx_config("second", "two $end");
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    gateway.says("HUP: config.yaml was read again");
    session(&gateway);
    assert_eq!(lines(&mut gateway, "second", 1), ["two client_closed"]);
    gateway.setup.more = nginx_config("nowhere/third", "three");
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    gateway.says("nowhere/third: No such file or directory");
    gateway.says("nothing has changed");
    session(&gateway);
    assert_eq!(lines(&mut gateway, "second", 2)[1], "two client_closed");
    gateway.setup.more = "nginx_config: {worker_processes: 4}\n".into();
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    gateway.eventually("the reload", |gateway| gateway.log_text().matches("was read again").count() == 2);
    session(&gateway);
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().success());
    assert_eq!(text(&gateway, "second").lines().count(), 2);
    assert_eq!(text(&gateway, "lines").lines().count(), 1);
}

#[test]
fn what_a_client_sends_cannot_make_a_line() {
    let mut setup = setup("$remote_addr $proxy_protocol_tlv_authority|");
    setup.listens = vec!["proxy_protocol: true"];
    let mut gateway = setup.start();
    let addresses = [10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 81];
    let name: &[u8] = b"a\"\n10.9.9.9 forged\x1b[2J";
    let header = proxy_headers::v2(proxy_headers::PROXY, proxy_headers::STREAM4, &addresses, &[(2, name)]);
    let mut stream = connect(gateway.tcp(0)).unwrap();
    stream.write_all(&header).unwrap();
    assert_eq!(peers::talk(&mut stream).unwrap(), "A");
    drop(stream);
    let line = r"127.0.0.1 a\x22\x0A10.9.9.9 forged\x1B[2J|";
    assert_eq!(lines(&mut gateway, "lines", 1), [line]);
}

/// Starts a gateway that must not; what it says.
#[track_caller]
fn check_start(more: String, code: i32, words: &[&str]) {
    let setup = Setup { more, ..setup("") };
    let mut gateway = Gateway::spawn(setup);
    let ended = gateway.ended();
    let log = gateway.log_text();
    assert_eq!(ended.code(), Some(code), "{log}");
    for words in words {
        assert!(log.contains(words), "no {words} in\n{log}");
    }
}

#[test]
fn a_file_that_cannot_be_had_and_a_format_that_is_none_end_the_start() {
    let words = ["nginx_config.stream.access_log", "/nowhere/x: No such file", "make the folder"];
    check_start(nginx_config("nowhere/x", ""), 1, &words);
    let words =
        ["nginx_config.stream.access_log_format: names the variable $remote_adr", "is $remote_addr meant?"];
    check_start(nginx_config("lines", "$remote_adr"), 64, &words);
}

#[test]
fn check_tells_of_a_format_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let text = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [9100]}}\n\
                nginx_config: {stream: {enable_access_log: true, access_log_format: '$uri $ssl_curve'}}\n";
    fs::write(&config, text).unwrap();
    let output = run(&["check", "-c", config.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("names the variable $uri, which there is not"), "{}", stderr(&output));
}

#[test]
fn a_disk_that_blocks_delays_no_session_and_lines_are_counted() {
    // A line is long, so that few sessions fill every buffer on the way.
    let long = "x".repeat(60_000);
    let mut setup = setup(&format!("$end {long}"));
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    setup.more = setup.more.replace("access_log: lines", &format!("access_log: {}", pipe.display()));
    let reader = File::options().read(true).write(true).open(&pipe).unwrap();
    let mut gateway = setup.start();
    let lost = "streamgate_access_log_lines_dropped_total";
    for _ in 0..400 {
        session(&gateway);
    }
    gateway.eventually("lost lines", |gateway| gateway.metric(lost).is_some_and(|lost| lost > 0.0));
    session(&gateway);
    assert!(gateway.ended_so("r1", "client_closed") >= 401.0);
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().success(), "{}", gateway.log_text());
    assert!(gateway.log_text().contains("could not be written in time"), "{}", gateway.log_text());
    drop(reader);
}
