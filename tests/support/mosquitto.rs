//! A real MQTT broker and its clients: mosquitto (Debian's mosquitto and mosquitto-clients,
//! `scripts/deps.sh`). Include it with `#[path = "support/mosquitto.rs"] mod mosquitto;`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

/// No wait of a test is longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for the clients' own waits.
const SECONDS: &str = "30";

/// A running broker, killed when dropped.
#[derive(Debug)]
pub struct Mosquitto {
    addr: SocketAddr,
    process: Child,
    folder: TempDir,
}

impl Mosquitto {
    /// Starts one that lets everybody in. A port that is taken meanwhile is chosen anew.
    #[track_caller]
    pub fn start() -> Self {
        for _ in 0..5 {
            let mut broker = Self::spawn();
            let deadline = Instant::now() + PATIENCE;
            while broker.process.try_wait().unwrap().is_none() {
                if TcpStream::connect(broker.addr).is_ok() {
                    return broker;
                }
                assert!(Instant::now() < deadline, "mosquitto does not answer:\n{}", broker.log());
                sleep(Duration::from_millis(5));
            }
            assert!(broker.log().contains("in use"), "mosquitto ended:\n{}", broker.log());
        }
        panic!("no free port for mosquitto was found in five attempts")
    }

    fn spawn() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (config, log) = (folder.path().join("config"), folder.path().join("log"));
        fs::write(&config, format!("listener {} 127.0.0.1\nallow_anonymous true\n", addr.port())).unwrap();
        let log = fs::File::create(log).unwrap();
        // Not every user looks into /usr/sbin.
        let program = ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or("mosquitto"));
        command.arg("-c").arg(config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        Self { addr, process, folder }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn client(program: &str, at: SocketAddr, version: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", &at.ip().to_string(), "-p", &at.port().to_string(), "-V", version, "-t", "news"]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Publishes a message that the broker keeps.
pub fn publish(at: SocketAddr, version: &str, message: &str) -> ExitStatus {
    client("mosquitto_pub", at, version, &["-i", "reporter", "-q", "1", "-r", "-m", message])
        .status()
        .unwrap()
}

/// Publishes, and subscribes as another client who then hears it.
#[track_caller]
pub fn publishes_and_subscribes(at: SocketAddr, version: &str) {
    let message = format!("of {version}");
    assert!(publish(at, version, &message).success(), "{version} cannot publish");
    let reader = ["-i", "reader", "-C", "1", "-W", SECONDS];
    let Output { status, stdout, stderr } = client("mosquitto_sub", at, version, &reader).output().unwrap();
    let heard = String::from_utf8_lossy(&stdout);
    assert!(status.success(), "{version}: {status}: {}", String::from_utf8_lossy(&stderr));
    assert_eq!(heard.trim_end(), message);
}
