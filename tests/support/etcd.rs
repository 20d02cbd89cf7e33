//! A real etcd for tests: started from PATH with its own data directory and free ports, killed when
//! dropped. Include it with `#[path = "support/etcd.rs"] mod etcd;`.
//!
//! ```ignore
//! let mut etcd = Etcd::start().await;          // healthy when this returns
//! etcd.put("/apisix/upstreams/1", "{}").await;
//! etcd.stop();
//! etcd.restart().await;                        // same ports, same data
//! ```
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use etcd_client::{Client, Txn, TxnOp};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long etcd may take to become healthy on a busy machine.
const START: Duration = Duration::from_secs(30);

/// One single-member cluster.
#[derive(Debug)]
pub struct Etcd {
    process: Option<Child>,
    folder: TempDir,
    ports: Ports,
    /// Flags besides the usual ones.
    flags: Vec<String>,
    tls: Option<Tls>,
}

/// Ports of 127.0.0.1.
#[derive(Clone, Copy, Debug)]
struct Ports {
    /// Clients, plain HTTP; what the helpers below use.
    plain: u16,
    /// Clients, TLS, where asked for.
    tls: u16,
    peer: u16,
}

/// Files for a listener with TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Clients must show a certificate of this CA.
    pub client_ca: Option<PathBuf>,
}

impl Etcd {
    /// A fresh etcd on plain HTTP.
    pub async fn start() -> Self {
        Self::start_with(&[], None).await
    }

    /// A fresh etcd with more flags, such as `--max-request-bytes=9000000`, and a second listener
    /// with TLS. etcd cannot listen on port 0: free ports are looked for and others tried when one
    /// was taken meanwhile.
    pub async fn start_with(flags: &[&str], tls: Option<Tls>) -> Self {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        for _ in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let (flags, tls) = (flags.clone(), tls.clone());
            let mut etcd = Self { process: None, folder, ports: free_ports(), flags, tls };
            match etcd.launch().await {
                Ok(()) => return etcd,
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("etcd did not start: {log}"),
            }
        }
        panic!("no free port for etcd was found in five attempts")
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.plain)
    }

    /// `https://127.0.0.1:port`, if started with TLS.
    pub fn tls_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.tls)
    }

    /// Where the plain listener is.
    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.plain).into()
    }

    /// Kills etcd; connections break, the port refuses.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A paused process is not killed before it goes on.
            let _ = kill_process(pid(&process), Signal::CONT);
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it again on the same ports with the data it had.
    pub async fn restart(&mut self) {
        self.stop();
        if let Err(log) = self.launch().await {
            panic!("etcd did not start again: {log}");
        }
    }

    /// Stops it and throws its data away. The cluster id stays the same, unless another
    /// `--initial-cluster-token` is given.
    pub fn wipe(&mut self, token: Option<&str>) {
        self.stop();
        fs::remove_dir_all(self.folder.path().join("data")).unwrap();
        self.flags.extend(token.map(|token| format!("--initial-cluster-token={token}")));
    }

    /// Stops it in its tracks: connections stay open, nothing answers.
    pub fn pause(&self) {
        kill_process(pid(self.process.as_ref().unwrap()), Signal::STOP).unwrap();
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        kill_process(pid(self.process.as_ref().unwrap()), Signal::CONT).unwrap();
    }

    /// A client on the plain listener, without a user.
    pub async fn client(&self) -> Client {
        Client::connect([self.endpoint()], None).await.unwrap()
    }

    /// Writes a key; returns the revision.
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> i64 {
        let answer = self.client().await.put(key, value, None).await.unwrap();
        answer.header().unwrap().revision()
    }

    /// Deletes a key; returns the revision.
    pub async fn delete(&self, key: &str) -> i64 {
        let answer = self.client().await.delete(key, None).await.unwrap();
        answer.header().unwrap().revision()
    }

    /// Writes (`Some`) and deletes (`None`) keys at one revision, which is returned.
    pub async fn txn(&self, changes: &[(&str, Option<&str>)]) -> i64 {
        let operations: Vec<_> = changes
            .iter()
            .map(|(key, value)| match value {
                Some(value) => TxnOp::put(*key, *value, None),
                None => TxnOp::delete(*key, None),
            })
            .collect();
        let answer = self.client().await.txn(Txn::new().and_then(operations)).await.unwrap();
        answer.header().unwrap().revision()
    }

    /// Forgets the history before `revision`.
    pub async fn compact(&self, revision: i64) {
        self.client().await.compact(revision, None).await.unwrap();
    }

    /// Runs etcdctl against the plain listener; panics unless it succeeds.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("etcdctl: {error}; run `make test`, which installs it"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "etcdctl {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Switches authentication on: `root` with password `root`, and `user` with `password` who may
    /// read `{prefix}/` and nothing else. From then on write with `ctl(&["--user=root:root", "put", …])`.
    pub fn enable_auth(&self, user: &str, password: &str, prefix: &str) {
        self.ctl(&["user", "add", "root:root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["role", "add", "reader"]);
        self.ctl(&[
            "role",
            "grant-permission",
            "reader",
            "read",
            &format!("{prefix}/"),
            &format!("{prefix}0"),
        ]);
        self.ctl(&["user", "add", &format!("{user}:{password}")]);
        self.ctl(&["user", "grant-role", user, "reader"]);
        self.ctl(&["auth", "enable"]);
    }

    async fn launch(&mut self) -> Result<(), String> {
        let log = self.folder.path().join("log");
        let file = File::create(&log).unwrap();
        let process = Command::new("etcd")
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("etcd: {error}; run `make test`, which installs it"));
        self.process = Some(process);
        let deadline = Instant::now() + START;
        while !healthy(self.addr()) {
            if let Some(status) = self.exited() {
                return Err(format!("{status}: {}", fs::read_to_string(log).unwrap()));
            }
            if Instant::now() > deadline {
                return Err(format!("not healthy in {START:?}: {}", fs::read_to_string(log).unwrap()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().unwrap()?;
        self.process = None;
        Some(status)
    }

    fn arguments(&self) -> Vec<String> {
        let (plain, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.ports.peer));
        let mut clients = plain;
        let mut arguments = self.flags.clone();
        if let Some(tls) = &self.tls {
            clients = format!("{clients},{}", self.tls_endpoint());
            arguments.push(format!("--cert-file={}", tls.cert.display()));
            arguments.push(format!("--key-file={}", tls.key.display()));
            if let Some(ca) = &tls.client_ca {
                arguments.push("--client-cert-auth".into());
                arguments.push(format!("--trusted-ca-file={}", ca.display()));
            }
        }
        arguments.extend([
            "--name=test".into(),
            format!("--data-dir={}", self.folder.path().join("data").display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=test={peer}"),
            "--logger=zap".into(),
            "--log-level=error".into(),
        ]);
        arguments
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pid(process: &Child) -> Pid {
    Pid::from_child(process)
}

/// Ports below the range that outgoing connections take theirs from, so that they are still free
/// when etcd starts again.
fn free_ports() -> Ports {
    let free = || loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    };
    Ports { plain: free(), tls: free(), peer: free() }
}

/// Asks `/health`, which says true once there is a leader.
fn healthy(addr: SocketAddr) -> bool {
    let limit = Duration::from_secs(2);
    let Ok(mut stream) = TcpStream::connect_timeout(&addr, limit) else { return false };
    let _ = stream.set_read_timeout(Some(limit));
    let mut answer = String::new();
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains(r#""health":"true""#)
}
