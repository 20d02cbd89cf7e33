//! A real DNS server: dnsmasq (Debian's dnsmasq-base, `scripts/deps.sh`) on a free port of 127.0.0.1, which
//! knows the zone `test` alone. Include it with `#[path = "support/dnsmasq.rs"] mod dnsmasq;`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

/// No wait of a test is longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Dnsmasq {
    addr: SocketAddr,
    process: Child,
    folder: TempDir,
}

impl Dnsmasq {
    /// Starts one that knows these lines of a hosts file, whose names are good for a second, and what further
    /// arguments say. A port that is taken meanwhile is chosen anew.
    #[track_caller]
    pub fn start(hosts: &str, arguments: &[&str]) -> Self {
        for _ in 0..5 {
            let mut server = Self::spawn(hosts, arguments);
            let deadline = Instant::now() + PATIENCE;
            while server.process.try_wait().unwrap().is_none() {
                if TcpStream::connect(server.addr).is_ok() {
                    return server;
                }
                assert!(Instant::now() < deadline, "dnsmasq does not answer:\n{}", server.log());
                sleep(Duration::from_millis(5));
            }
            assert!(server.log().contains("in use"), "dnsmasq ended:\n{}", server.log());
        }
        panic!("no free port for dnsmasq was found in five attempts")
    }

    fn spawn(hosts: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("hosts"), hosts).unwrap();
        let addr = loop {
            let addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            // It wants the port for both.
            if TcpListener::bind(addr).is_ok() {
                break addr;
            }
        };
        let log = fs::File::create(folder.path().join("log")).unwrap();
        // Not every user looks into /usr/sbin.
        let program = ["/usr/sbin/dnsmasq", "dnsmasq"].into_iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or("dnsmasq"));
        command
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--listen-address=127.0.0.1", "--local=/test/", "--local-ttl=1"])
            .arg(format!("--port={}", addr.port()))
            .arg(format!("--addn-hosts={}", folder.path().join("hosts").display()))
            .args(arguments);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let process = process.unwrap_or_else(|error| panic!("dnsmasq: {error}; scripts/deps.sh installs it"));
        Self { addr, process, folder }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces the lines of the hosts file.
    pub fn hosts(&self, hosts: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, hosts).unwrap();
        fs::rename(new, self.folder.path().join("hosts")).unwrap();
        kill_process(Pid::from_child(&self.process), Signal::HUP).unwrap();
    }

    /// Ends it: its port refuses from now on.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
