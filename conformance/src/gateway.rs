//! A running streamgate, and the clients that talk through it.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Process, free_port, until};

/// No answer may take longer.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Where a gateway listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// A TCP listen.
    pub tcp: SocketAddr,
    /// A UDP listen.
    pub udp: SocketAddr,
    /// Metrics and status.
    pub metrics: SocketAddr,
}

impl Ports {
    /// The usual ones where they are free.
    pub fn choose() -> io::Result<Self> {
        let local = |port| free_port(port).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Ok(Self { tcp: local(9100)?, udp: local(9200)?, metrics: local(9091)? })
    }
}

/// A gateway process, ended with this value.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub ports: Ports,
    /// Its config.yaml.
    pub config: PathBuf,
    /// The process.
    pub process: Process,
    log: PathBuf,
}

impl Gateway {
    /// Starts the binary on this etcd with its files below `folder`.
    pub fn start(binary: &Path, folder: &Path, etcd: SocketAddr, ports: Ports) -> io::Result<Self> {
        Self::start_with(binary, folder, &config_text(etcd, ports), ports)
    }

    /// Starts the binary with this config.yaml in `folder/conf`, where its objects may lie.
    pub fn start_with(binary: &Path, folder: &Path, text: &str, ports: Ports) -> io::Result<Self> {
        std::fs::create_dir_all(folder.join("conf"))?;
        let config = folder.join("conf/config.yaml");
        std::fs::write(&config, text)?;
        let log = folder.join("gateway.log");
        let process = Process::start(Command::new(binary).arg("run").arg("-c").arg(&config), &log)?;
        Ok(Self { ports, config, process, log })
    }

    /// Waits until it is ready, or says what it logged.
    pub fn wait_ready(&mut self, limit: Duration) -> io::Result<()> {
        let ports = self.ports;
        let ready = until(limit, || {
            if !self.process.is_running() {
                return Ok(false);
            }
            let page = http_get(ports.metrics, "/streamgate/status")?;
            let ready = page.contains("\"ready\":true");
            if ready { Ok(true) } else { Err(io::Error::other(format!("not ready: {page}"))) }
        });
        match ready {
            Ok(true) => Ok(()),
            other => Err(io::Error::other(format!("the gateway is not ready: {other:?}\n{}", self.log()))),
        }
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Memory in KiB, from a line of `/proc/…/status`: `VmRSS:` is what is resident, `VmHWM:` what
    /// was at most.
    pub fn memory_kib(&self, line: &str) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().map_err(io::Error::other)
    }
}

fn config_text(etcd: SocketAddr, ports: Ports) -> String {
    let Ports { tcp, udp, metrics } = ports;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "apisix:
  proxy_mode: stream
  enable_control: false
  stream_proxy:
    tcp: [\"{tcp}\"]
    udp: [\"{udp}\"]
deployment:
  role: data_plane
  role_data_plane: {{config_provider: etcd}}
  etcd: {{host: [\"http://{etcd}\"], prefix: /apisix}}
stream_plugins: [prometheus, limit-conn, ip-restriction]
plugin_attr:
  prometheus:
    export_addr: {{ip: {}, port: {}}}
nginx_config: {{worker_processes: 2}}
",
        metrics.ip(),
        metrics.port(),
    );
    text
}

/// Connects.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends `hi` to an echo upstream of a one-letter name and reads its answer.
pub fn talk(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"hi")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The same over a connection of its own.
pub fn tcp_once(address: SocketAddr) -> io::Result<String> {
    talk(&mut connect(address)?)
}

/// The same in a datagram.
pub fn udp_once(address: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(b"hi", address)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// `answer`, where it is the wanted one.
pub fn expect(answer: String, wanted: &str) -> io::Result<String> {
    if answer == wanted {
        Ok(answer)
    } else {
        Err(io::Error::other(format!("answered {answer:?} instead of {wanted:?}")))
    }
}

/// A page with its headers.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
