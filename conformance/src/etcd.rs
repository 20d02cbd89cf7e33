//! A real etcd of our own: its data folder, its ports, and a small client over its JSON gateway.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::process::{Process, find, free_port, until};

/// How long etcd may take to answer for the first time.
const START: Duration = Duration::from_secs(20);
/// etcd refuses transactions of more operations (`--max-txn-ops`).
const TXN: usize = 128;

/// A running etcd, ended with this value.
#[derive(Debug)]
pub struct Etcd {
    address: SocketAddr,
    _process: Process,
}

impl Etcd {
    /// Starts one with its data and log below `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> io::Result<Self> {
        let program = find("etcd").ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "etcd is not in PATH; scripts/deps.sh installs it")
        })?;
        let (port, peer) = (free_port(0)?, free_port(0)?);
        let (client_url, peer_url) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(folder.join("etcd"));
        command.args([
            "--name",
            "one",
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("one={peer_url}")]);
        let process = Process::start(&mut command, &folder.join("etcd.log"))?;
        let etcd = Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), _process: process };
        until(START, || etcd.connect()?.put("ready", "yes"))?;
        Ok(etcd)
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client with a connection of its own.
    pub fn connect(&self) -> io::Result<Client> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(START))?;
        Ok(Client { address: self.address, stream: BufReader::new(stream) })
    }
}

/// A connection to etcd's JSON gateway, kept alive.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Writes one object.
    pub fn put(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.call("/v3/kv/put", &json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)}))
            .map(|_| ())
    }

    /// Writes many, some at a time in transactions.
    pub fn put_all(&mut self, objects: &[(String, String)]) -> io::Result<()> {
        for some in objects.chunks(TXN) {
            let puts: Vec<Value> = some
                .iter()
                .map(|(key, value)| {
                    json!({"requestPut": {"key": STANDARD.encode(key), "value": STANDARD.encode(value)}})
                })
                .collect();
            self.call("/v3/kv/txn", &json!({ "success": puts }))?;
        }
        Ok(())
    }

    fn call(&mut self, path: &str, body: &Value) -> io::Result<String> {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let (ok, length) = self.read_head()?;
        let answer = match length {
            Some(length) => self.read_part(length)?,
            None => self.read_chunks()?,
        };
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if ok { Ok(answer) } else { Err(io::Error::other(format!("etcd answers {answer}"))) }
    }

    /// Reads the status line and headers: whether it is a 200, and the length of the body; none where
    /// it comes in chunks, as long answers do.
    fn read_head(&mut self) -> io::Result<(bool, Option<usize>)> {
        let (mut ok, mut length) = (None, Some(0));
        loop {
            let line = self.read_line()?.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse().map_err(io::Error::other)?);
            }
            if line.starts_with("transfer-encoding:") {
                length = None;
            }
            if line.is_empty() {
                return Ok((ok == Some(true), length));
            }
            ok.get_or_insert(line.contains(" 200"));
        }
    }

    fn read_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let length = usize::from_str_radix(&self.read_line()?, 16).map_err(io::Error::other)?;
            whole.extend(self.read_part(length)?);
            self.read_line()?;
            if length == 0 {
                return Ok(whole);
            }
        }
    }

    fn read_part(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut part = vec![0; length];
        self.stream.read_exact(&mut part)?;
        Ok(part)
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
