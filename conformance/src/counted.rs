//! The works whose instructions are counted: where a gateway listens for each, and the clients.
//!
//! Each client does one thing and waits for what comes of it, so that the turns of a worker's loop can be
//! foretold.

use std::fs;
use std::io::{self, Read, Write};
use std::iter;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::Duration;

use serde_json::json;

use crate::certificate::Certificate;
use crate::compare::tls::{self, client::Clients};
use crate::echo;
use crate::gateway::{LIMIT, connect};
use crate::process::{free_port, until};

/// Bytes of a request and of a datagram.
const MESSAGE: usize = 64;
/// What the echo puts before its answer: its name, which is empty, and a colon.
const PREFIX: usize = 1;
/// Between two steps of a client. Events that happen together cost one turn of the worker's loop, others
/// one each: with a pause each has its own, whatever else the machine does.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes that are under way at a time in bulk: what a worker moves in one turn of its loop, so that the
/// number of turns does not depend on who is faster. It fits the window that a connection begins with.
const CHUNK: usize = 64 * 1024;

/// Where the gateway listens, and for what.
#[derive(Debug)]
pub struct Stage {
    /// TCP and UDP to an echo.
    echo: SocketAddr,
    /// TLS to the same.
    tls: SocketAddr,
    /// TCP to the drain.
    plain: SocketAddr,
    /// TLS that is passed on to the same.
    passthrough: SocketAddr,
    upstream: SocketAddr,
    drain: Drain,
    certificate: Certificate,
    clients: Clients,
}

impl Stage {
    /// Upstreams that run, ports that are free, a certificate.
    pub fn new() -> io::Result<Self> {
        let at = || free_port(0).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let certificate = Certificate::ecdsa(tls::NAME)?;
        let clients = Clients::of(&certificate)?;
        let upstream = echo::serve("", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let (echo, tls, plain, passthrough) = (at()?, at()?, at()?, at()?);
        let drain = Drain::serve()?;
        Ok(Self { echo, tls, plain, passthrough, upstream, drain, certificate, clients })
    }

    /// Writes config.yaml and apisix.yaml: one worker, a listen and a route for each kind of work. The path of
    /// config.yaml. `told`: with an access log, and the prometheus plugin on every route.
    pub fn write_config(&self, folder: &Path, told: bool) -> io::Result<PathBuf> {
        let (config, metrics) = (folder.join("config.yaml"), free_port(0)?);
        let Self { echo, plain, certificate, .. } = self;
        let tcp = [
            json!({"addr": echo}),
            json!({"addr": plain}),
            json!({"addr": self.tls, "tls": true}),
            json!({"addr": self.passthrough, "tls_passthrough": true}),
        ];
        let all = json!({
            "apisix": {"proxy_mode": "stream", "enable_control": false, "stream_proxy": {"tcp": tcp, "udp": [echo]}},
            "deployment": {"role": "data_plane", "role_data_plane": {"config_provider": "yaml"}},
            "plugin_attr": {"prometheus": {"export_addr": {"ip": "127.0.0.1", "port": metrics}}},
            "nginx_config": {
                "worker_processes": 1,
                "stream": {"enable_access_log": told, "access_log": folder.join("access.log")},
            },
            "stream_plugins": ["prometheus"],
        });
        // JSON is YAML too.
        fs::write(&config, all.to_string())?;
        let (to_echo, to_drain) = (self.upstream, self.drain.address);
        let uses = [(echo, to_echo), (&self.tls, to_echo), (plain, to_drain), (&self.passthrough, to_drain)];
        let route = |(at, to): (&SocketAddr, SocketAddr)| {
            let nodes = json!({to.to_string(): 1});
            let plugins = if told { json!({"prometheus": {}}) } else { json!({}) };
            json!({"id": at.port(), "server_port": at.port(), "plugins": plugins, "upstream": {"nodes": nodes}})
        };
        let objects = json!({
            "stream_routes": uses.map(route),
            "ssls": [certificate.ssl(1)],
        });
        fs::write(folder.join("apisix.yaml"), format!("{objects}\n#END\n"))?;
        Ok(config)
    }
}

/// An upstream that counts what it gets, and closes when the other side does.
#[derive(Clone, Debug)]
struct Drain {
    address: SocketAddr,
    had: Arc<AtomicUsize>,
}

impl Drain {
    fn serve() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let drain = Self { address: listener.local_addr()?, had: Arc::default() };
        let had = Arc::clone(&drain.had);
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            for mut stream in listener.incoming().flatten() {
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    had.fetch_add(length, Relaxed);
                }
            }
        });
        Ok(drain)
    }
}

/// Connections one after another: one byte and its echo, then both ends close.
pub fn connections(stage: &Stage, amount: u32) -> io::Result<()> {
    for _ in 0..amount {
        let mut stream = connect(stage.echo)?;
        sleep(PAUSE);
        exchange(&mut stream, &[7])?;
        end(&mut stream)?;
        sleep(PAUSE);
    }
    Ok(())
}

/// Requests on one connection.
pub fn requests(stage: &Stage, amount: u32) -> io::Result<()> {
    let mut stream = connect(stage.echo)?;
    (0..amount).try_for_each(|_| exchange(&mut stream, &[7; MESSAGE]))
}

/// Datagrams of one association, each with its answer.
pub fn datagrams(stage: &Stage, amount: u32) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(stage.echo)?;
    for _ in 0..amount {
        socket.send(&[7; MESSAGE])?;
        socket.recv(&mut [0; MESSAGE + PREFIX])?;
        sleep(PAUSE);
    }
    Ok(())
}

/// Megabytes on one connection, which begins as one with TLS does.
pub fn megabytes(stage: &Stage, amount: u32) -> io::Result<()> {
    send(stage.plain, &stage.drain, &stage.clients.hello()?, amount)
}

/// The same through a listen that reads that beginning.
pub fn megabytes_passed_on(stage: &Stage, amount: u32) -> io::Result<()> {
    send(stage.passthrough, &stage.drain, &stage.clients.hello()?, amount)
}

/// Sends `first` and then so many megabytes, each chunk once the one before has arrived.
fn send(at: SocketAddr, drain: &Drain, first: &[u8], amount: u32) -> io::Result<()> {
    let mut stream = connect(at)?;
    let mut wanted = drain.had.load(Relaxed);
    let chunk = vec![7; CHUNK];
    let chunks = amount as usize * (1 << 20) / CHUNK;
    for bytes in iter::once(first).chain(iter::repeat_n(&chunk[..], chunks)) {
        stream.write_all(bytes)?;
        wanted += bytes.len();
        until(LIMIT, || match drain.had.load(Relaxed) {
            had if had == wanted => Ok(()),
            had => Err(io::Error::other(format!("{had} of {wanted} bytes arrived"))),
        })?;
    }
    end(&mut stream)
}

/// TLS connections one after another: full handshake, one byte and its echo, then both ends close.
pub fn handshakes(stage: &Stage, amount: u32) -> io::Result<()> {
    (0..amount).try_for_each(|_| {
        stage.clients.visit(stage.tls)?;
        sleep(PAUSE);
        Ok(())
    })
}

/// Says that nothing more comes, and waits until the other side says so.
fn end(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    if stream.read(&mut [0])? > 0 {
        return Err(io::Error::other("bytes instead of the end"));
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let mut answer = [0; MESSAGE + PREFIX];
    stream.write_all(message)?;
    stream.read_exact(answer.get_mut(..message.len() + PREFIX).unwrap_or_default())?;
    sleep(PAUSE);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_sent_arrives() {
        let drain = Drain::serve().unwrap();
        for _ in 0..2 {
            send(drain.address, &drain, b"first", 1).unwrap();
        }
        assert_eq!(drain.had.load(Relaxed), 2 * (5 + (1 << 20)));
    }

    #[test]
    fn every_work_has_its_listen_and_its_route() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::new().unwrap();
        let config = fs::read_to_string(stage.write_config(folder.path(), true).unwrap()).unwrap();
        assert_eq!(config.matches("tls_passthrough").count(), 1, "{config}");
        assert!(config.contains(&stage.plain.to_string()), "{config}");
        let objects = fs::read_to_string(folder.path().join("apisix.yaml")).unwrap();
        assert_eq!(objects.matches("server_port").count(), 4, "{objects}");
        assert_eq!(objects.matches("prometheus").count(), 4, "{objects}");
    }
}
