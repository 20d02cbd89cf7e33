//! What many ssl objects cost a gateway: the time until it is ready, and memory.
//!
//! It reads them from apisix.json with one route for their TLS listen, beside a gateway that has the route
//! alone. Some of the names are then asked for, and each must get its own certificate.

use std::error::Error;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::certificate::{Certificate, rsa_key};
use crate::compare::tls::client::Clients;
use crate::compare::usage::Tree;
use crate::echo;
use crate::figures::Figure;
use crate::gateway::{Gateway, LIMIT, Ports, http_get};
use crate::process::until;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// How long a start may take at most.
const START: Duration = Duration::from_mins(2);
/// What a start left over may be given back only after a while.
const SETTLE: Duration = Duration::from_secs(2);
/// Names that are asked for.
const ASKED: usize = 20;
/// What is wanted of 10,000 of them: seconds until ready, and megabytes.
const LIMITS: (f64, f64) = (5.0, 200.0);

/// Measures gateways with `count` certificates, in so many rounds each time: with an ECDSA key for each, then
/// with one RSA key for all.
pub fn measure(binary: &Path, count: usize, rounds: usize) -> Outcome<Vec<Figure>> {
    let bench = Bench { binary };
    let name = |index| format!("host{index}.example.com");
    let own_keys =
        (0..count).map(|index| Certificate::ecdsa(&name(index))).collect::<io::Result<Vec<_>>>()?;
    let key = rsa_key()?;
    let one_key =
        (0..count).map(|index| Certificate::signed(&name(index), &key)).collect::<io::Result<Vec<_>>>()?;
    let kinds = [("ECDSA P-256, a key each", own_keys), ("RSA 2048, one key", one_key)];
    let mut figures = Vec::new();
    for (kind, certificates) in kinds {
        let (mut ready, mut cpu, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let without = bench.start(&[])?;
            let with = bench.start(&certificates)?;
            ready.push(with.ready);
            cpu.push(with.cpu - without.cpu);
            memory.push((with.resident - without.resident) / 1e6);
        }
        let what = |what| format!("{count} certificates ({kind}): {what}");
        figures.push(Figure::new(what("start to ready"), "s", ready).at_most(LIMITS.0));
        figures.push(Figure::new(what("CPU time meanwhile"), "s", cpu));
        figures.push(Figure::new(what("resident memory"), "MB", memory).at_most(LIMITS.1));
    }
    Ok(figures)
}

struct Bench<'a> {
    binary: &'a Path,
}

/// What one start took.
struct Start {
    /// Seconds.
    ready: f64,
    /// Seconds of CPU time.
    cpu: f64,
    /// Bytes.
    resident: f64,
}

impl Bench<'_> {
    fn start(&self, certificates: &[Certificate]) -> Outcome<Start> {
        let folder = tempfile::tempdir()?;
        let (ports, upstream) = (Ports::choose()?, echo::serve("A", (Ipv4Addr::LOCALHOST, 0).into())?);
        let beside = folder.path().join("conf");
        fs::create_dir_all(&beside)?;
        fs::write(beside.join("apisix.json"), objects(ports, upstream, certificates).to_string())?;
        let text = config_text(ports).to_string();

        let begun = SystemTime::now();
        let mut gateway = Gateway::start_with(self.binary, folder.path(), &text, ports)?;
        gateway.wait_ready(START)?;
        let ready = begun.elapsed()?.as_secs_f64();
        let tree = Tree::new(gateway.process.id());
        let cpu = tree.cpu_seconds()?;
        none_refused(ports)?;
        sleep(SETTLE);
        let resident = tree.resident_bytes()?;
        ask(ports, certificates)?;
        Ok(Start { ready, cpu, resident })
    }
}

/// Visits some of the names, the last among them.
fn ask(ports: Ports, certificates: &[Certificate]) -> io::Result<()> {
    for certificate in certificates.iter().rev().step_by((certificates.len() / ASKED).max(1)) {
        let clients = Clients::of(certificate)?;
        // The listen opens after the first objects.
        until(LIMIT, || clients.visit(ports.tcp))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", certificate.name)))?;
    }
    Ok(())
}

/// An object that is refused or left out costs nothing.
fn none_refused(ports: Ports) -> Outcome<()> {
    let page = http_get(ports.metrics, "/streamgate/status")?;
    let (_, body) = page.split_once("\r\n\r\n").ok_or("no status")?;
    let status: Value = serde_json::from_str(body)?;
    for list in ["rejected", "degraded"] {
        if let Some(one) = status[list].as_array().ok_or("not a status")?.first() {
            return Err(format!("{list}: {one}").into());
        }
    }
    Ok(())
}

fn config_text(ports: Ports) -> Value {
    let Ports { tcp, metrics, .. } = ports;
    json!({
        "apisix": {"proxy_mode": "stream", "enable_control": false, "stream_proxy": {"tcp": [{"addr": tcp, "tls": true}]}},
        "deployment": {"role": "data_plane", "role_data_plane": {"config_provider": "json"}},
        "plugin_attr": {"prometheus": {"export_addr": {"ip": metrics.ip(), "port": metrics.port()}}},
        "nginx_config": {"worker_processes": 2},
    })
}

fn objects(ports: Ports, upstream: SocketAddr, certificates: &[Certificate]) -> Value {
    let ssls: Vec<Value> = certificates.iter().enumerate().map(|(id, one)| one.ssl(id)).collect();
    let route =
        json!({"id": "1", "server_port": ports.tcp.port(), "upstream": {"nodes": {upstream.to_string(): 1}}});
    json!({"stream_routes": [route], "ssls": ssls})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_an_object() {
        let certificates = ["a.test", "b.test"].map(|name| Certificate::ecdsa(name).unwrap());
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 9100));
        let objects = objects(Ports { tcp: at, udp: at, metrics: at }, at, &certificates);
        assert_eq!(objects["ssls"][1]["sni"], "b.test");
        assert_eq!(objects["ssls"][1]["cert"], json!(certificates[1].pem));
        assert_eq!(objects["ssls"].as_array().unwrap().len(), 2);
    }
}
