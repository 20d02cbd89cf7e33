//! `openssl s_client` and `s_server`. Include it beside `binary` with
//! `#[path = "support/openssl.rs"] mod openssl;`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::time::Instant;

use crate::binary::{PATIENCE, pause, stderr, stdout};

/// `openssl s_client` to `address`, which says `?` once it is connected. Gives back what it printed when
/// that contains `until`, or when it has ended.
#[track_caller]
pub fn s_client(address: SocketAddr, arguments: &[&str], until: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("said");
    let file = File::create(&path).unwrap();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address.to_string()]).args(arguments);
    command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut process = command.spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    // One that was refused has gone already.
    let _ = input.write_all(b"?\n");
    let deadline = Instant::now() + PATIENCE;
    let said = || String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    while process.try_wait().unwrap().is_none() && !said().contains(until) {
        if Instant::now() > deadline {
            process.kill().unwrap();
            process.wait().unwrap();
            panic!("no {until:?} in what openssl said:\n{}", said());
        }
        pause();
    }
    drop(input);
    // At the end of its input it closes the connection and goes.
    process.wait().unwrap();
    said()
}

/// `openssl s_server` on a port of its choice, until it is dropped.
#[derive(Debug)]
pub struct SServer {
    pub address: SocketAddr,
    process: Child,
    folder: TempDir,
}

impl SServer {
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("said")).unwrap();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { address: nowhere, process: command.spawn().unwrap(), folder };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = server.said();
            let line = said.lines().find_map(|line| line.strip_prefix("ACCEPT "));
            if let Some(address) = line.and_then(|line| line.trim().parse().ok()) {
                server.address = address;
                return server;
            }
            assert!(Instant::now() < deadline, "openssl does not listen:\n{said}");
            pause();
        }
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("said")).unwrap()).into_owned()
    }
}

impl Drop for SServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The key as the Admin API of APISIX writes it (`apisix/ssl.lua:63`): AES-128-CBC, the key as IV too.
pub fn encrypted(key: &str, secret: &str) -> String {
    let hex = secret.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("key");
    fs::write(&plain, key).unwrap();
    let mut command = Command::new("openssl");
    command.args(["enc", "-aes-128-cbc", "-base64", "-A", "-K", &hex, "-iv", &hex, "-in"]).arg(&plain);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}
