//! `tour GATEWAY`: the main job end to end, with a real etcd, shown step by step and checked.
//!
//! Starts etcd, two echo upstreams and the given streamgate binary; writes a route and an upstream
//! with etcdctl, sends TCP and UDP through, changes the upstream while a session is open, writes a
//! bad route, reads the metrics. With `ONCE=1` it ends there; else it leaves all running until
//! Ctrl-C. Exit code 0 means that every step did what it says.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use streamgate_conformance::echo;
use streamgate_conformance::etcd::Etcd;
use streamgate_conformance::gateway::{
    Gateway, LIMIT, Ports, connect, expect, http_get, talk, tcp_once, udp_once,
};
use streamgate_conformance::process::until;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match tour() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("FAILED {error}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: impl std::fmt::Display) {
    // Nobody reads any more: go on to the end all the same.
    let _ = writeln!(io::stdout(), "{line}");
}

/// What the tour started; all of it ends with this value.
struct Stage {
    upstreams: [SocketAddr; 2],
    gateway: Gateway,
    etcd: Etcd,
    /// Last: the others write into it until they end.
    _folder: tempfile::TempDir,
}

fn tour() -> Outcome {
    let binary = std::env::args().nth(1).ok_or("usage: tour PATH-OF-STREAMGATE")?;
    let (interrupted, interrupt) = mpsc::channel();
    // The receiver is gone only when the tour is over.
    ctrlc::set_handler(move || _ = interrupted.send(()))?;
    let mut stage = set_up(Path::new(&binary))?;
    let steps = || -> Outcome {
        first_bytes(&stage)?;
        change_while_open(&stage)?;
        bad_object(&stage)?;
        metrics(&stage)
    };
    if let Err(error) = steps() {
        return Err(format!("{error}\n--- the gateway said:\n{}", stage.gateway.log()).into());
    }
    if std::env::var_os("ONCE").is_some() {
        say("ok    every step did what it says");
        return Ok(());
    }
    let tcp = stage.gateway.ports.tcp;
    say(format_args!(
        "Running. Try `{binary} explain -c {} --server {tcp} --client 127.0.0.1`\n\
         or    `ETCDCTL_API=3 etcdctl --endpoints=http://{} get --prefix /apisix`. Ctrl-C stops and cleans up.",
        stage.gateway.config.display(),
        stage.etcd.address(),
    ));
    while stage.gateway.process.is_running() && interrupt.recv_timeout(Duration::from_millis(500)).is_err() {}
    Ok(())
}

fn set_up(binary: &Path) -> Outcome<Stage> {
    let begun = SystemTime::now();
    let folder = tempfile::tempdir()?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let upstreams = [echo::serve("A", any)?, echo::serve("B", any)?];
    let etcd = Etcd::start(folder.path())?;
    step(
        begun,
        format_args!("etcd http://{}  echo A {}  echo B {}", etcd.address(), upstreams[0], upstreams[1]),
    );

    let begun = SystemTime::now();
    let ports = Ports::choose()?;
    let mut gateway = Gateway::start(binary, folder.path(), etcd.address(), ports)?;
    gateway.wait_ready(LIMIT)?;
    let Ports { tcp, udp, metrics } = ports;
    step(begun, format_args!("gateway ready: tcp {tcp}, udp {udp}, metrics {metrics}"));
    Ok(Stage { upstreams, gateway, etcd, _folder: folder })
}

fn first_bytes(stage: &Stage) -> Outcome {
    let [a, _] = stage.upstreams;
    put(stage, "upstreams/u1", &format!(r#"{{"nodes":{{"{a}":1}}}}"#))?;
    let port = stage.gateway.ports.tcp.port();
    put(stage, "stream_routes/r1", &format!(r#"{{"server_port":{port},"upstream_id":"u1"}}"#))?;
    let port = stage.gateway.ports.udp.port();
    put(stage, "stream_routes/r2", &format!(r#"{{"server_port":{port},"upstream_id":"u1"}}"#))?;
    let answer = until(LIMIT, || expect(tcp_once(stage.gateway.ports.tcp)?, "A:hi"))?;
    say(format_args!("  tcp {} \"hi\" -> {answer:?}", stage.gateway.ports.tcp.port()));
    let answer = until(LIMIT, || expect(udp_once(stage.gateway.ports.udp)?, "A:hi"))?;
    say(format_args!("  udp {} \"hi\" -> {answer:?}", stage.gateway.ports.udp.port()));
    Ok(())
}

fn change_while_open(stage: &Stage) -> Outcome {
    let mut open = connect(stage.gateway.ports.tcp)?;
    expect(talk(&mut open)?, "A:hi")?;
    let b = stage.upstreams[1];
    put(stage, "upstreams/u1", &format!(r#"{{"nodes":{{"{b}":1}}}}"#))?;
    let begun = SystemTime::now();
    let answer = until(LIMIT, || expect(tcp_once(stage.gateway.ports.tcp)?, "B:hi"))?;
    let took = begun.elapsed()?;
    expect(talk(&mut open)?, "A:hi")?;
    say(format_args!(
        "  tcp {} \"hi\" -> {answer:?}      first seen {:.1} ms after etcdctl returned; the open session still talks to A",
        stage.gateway.ports.tcp.port(),
        took.as_secs_f64() * 1000.0,
    ));
    Ok(())
}

fn bad_object(stage: &Stage) -> Outcome {
    put(stage, "stream_routes/r1", r#"{"server_port":"x"}"#)?;
    let status = until(LIMIT, || {
        let page = http_get(stage.gateway.ports.metrics, "/streamgate/status")?;
        let rejected = page.contains("/server_port");
        if rejected { Ok(page) } else { Err(io::Error::other(format!("not rejected yet: {page}"))) }
    })?;
    let body = status.split("\r\n\r\n").nth(1).unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body)?;
    say(format_args!("  rejected: {}", body["rejected"][0]));
    expect(tcp_once(stage.gateway.ports.tcp)?, "B:hi")?;
    say(format_args!(
        "  tcp {} \"hi\" -> \"B:hi\"      the last good version of r1 keeps serving",
        stage.gateway.ports.tcp.port()
    ));
    Ok(())
}

fn metrics(stage: &Stage) -> Outcome {
    let page = http_get(stage.gateway.ports.metrics, "/apisix/prometheus/metrics")?;
    say(format_args!(
        "$ curl -s {}/apisix/prometheus/metrics | grep -E 'rejected|connections_total'",
        stage.gateway.ports.metrics
    ));
    let shown = |line: &&str| {
        !line.starts_with('#')
            && (line.starts_with("streamgate_rejected_objects")
                || line.starts_with("streamgate_connections_total"))
            && !line.ends_with(" 0")
    };
    let lines: Vec<&str> = page.lines().filter(shown).collect();
    for line in &lines {
        say(format_args!("  {line}"));
    }
    let rejected = "streamgate_rejected_objects{kind=\"stream_routes\"} 1";
    if !lines.contains(&rejected) || !lines.iter().any(|line| line.contains("route=\"r1\"")) {
        return Err(format!("the metrics page lacks {rejected} or connections of r1:\n{page}").into());
    }
    Ok(())
}

fn step(begun: SystemTime, line: std::fmt::Arguments<'_>) {
    let took = begun.elapsed().unwrap_or_default();
    say(format_args!("ok {:4.1}s  {line}", took.as_secs_f64()));
}

fn put(stage: &Stage, key: &str, value: &str) -> Outcome {
    say(format_args!("$ etcdctl put /apisix/{key} '{value}'"));
    etcdctl(&format!("http://{}", stage.etcd.address()), &["put", &format!("/apisix/{key}"), value])?;
    Ok(())
}

fn etcdctl(endpoint: &str, arguments: &[&str]) -> io::Result<()> {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", endpoint]).args(arguments);
    let output = command.output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("etcdctl: {}", String::from_utf8_lossy(&output.stderr))))
    }
}
