//! A real Prometheus for tests: started from PATH on deploy/prometheus.yml as far as that may be, with its
//! data in a directory of its own, killed when dropped. Include it with
//! `#[path = "support/prometheus.rs"] mod prometheus;`, beside `binary`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::binary::{PATIENCE, free_port, pause};

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    process: Child,
    addr: SocketAddr,
    folder: TempDir,
}

/// deploy/prometheus.yml with other targets, scraping and evaluating each second.
#[track_caller]
pub fn config(targets: &[SocketAddr]) -> String {
    let mut text = fs::read_to_string("deploy/prometheus.yml").unwrap();
    let rules = fs::canonicalize("deploy/prometheus-rules.yml").unwrap();
    let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    for (written, wanted) in [
        ("scrape_interval: 5s", "scrape_interval: 1s\n  evaluation_interval: 1s".to_owned()),
        ("/etc/prometheus/streamgate-rules.yml", rules.display().to_string()),
        ("\"gateway1:9091\", \"gateway2:9091\"", targets.join(", ")),
    ] {
        assert!(text.contains(written), "deploy/prometheus.yml lacks {written}");
        text = text.replace(written, &wanted);
    }
    text
}

/// Runs promtool in deploy/; panics with what it says unless it succeeds.
#[track_caller]
pub fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir("deploy").output();
    let output =
        output.unwrap_or_else(|error| panic!("promtool: {error}; run `make test`, which installs it"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{}", String::from_utf8_lossy(&said));
}

impl Prometheus {
    /// Starts it on these targets and waits until it answers.
    #[track_caller]
    pub fn start(targets: &[SocketAddr]) -> Self {
        for _ in 0..5 {
            let mut prometheus = Self::spawn(targets);
            let deadline = Instant::now() + PATIENCE;
            while prometheus.get("/-/ready").is_none_or(|(code, _)| code != 200) {
                if prometheus.process.try_wait().unwrap().is_some() {
                    break;
                }
                assert!(Instant::now() < deadline, "Prometheus is not ready:\n{}", prometheus.log());
                pause();
            }
            if prometheus.process.try_wait().unwrap().is_none() {
                return prometheus;
            }
            let log = prometheus.log();
            assert!(log.contains("address already in use"), "Prometheus ended:\n{log}");
        }
        panic!("no free port for Prometheus was found in five attempts")
    }

    fn spawn(targets: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let addr: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let config_file = folder.path().join("prometheus.yml");
        fs::write(&config_file, config(targets)).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config_file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus: {error}; run `make test`, which installs it"));
        Self { process, addr, folder }
    }

    /// The result of an expression now; panics where Prometheus refuses it.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in expression.bytes() {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{byte:02x}");
        }
        let answer = self.api(&path);
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        match &answer["data"]["result"] {
            Value::Array(result) if answer["data"]["resultType"] != "scalar" => result.clone(),
            scalar => vec![scalar.clone()],
        }
    }

    /// A page of its API.
    #[track_caller]
    pub fn api(&self, path: &str) -> Value {
        let Some((_, body)) = self.get(path) else { panic!("{path} is not answered:\n{}", self.log()) };
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    /// HTTP/1.0, so that the body comes in one piece.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.addr, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.addr).ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        let (head, body) = page.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn log(&self) -> String {
        fs::read_to_string(Path::new(self.folder.path()).join("log")).unwrap()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
