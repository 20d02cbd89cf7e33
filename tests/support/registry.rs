//! Servers of registries: an HTTP server whose answers a test chooses, and a Consul that holds blocking
//! queries. Include it with `#[path = "support/registry.rs"] mod registry;`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Method, path and query.
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Heard {
    fn read(stream: impl Read) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |line: &String| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let line = lines[0].strip_suffix(" HTTP/1.1").unwrap().to_owned();
        let mut heard = Self { line, headers: lines[1..].iter().map(header).collect(), body: String::new() };
        let length = heard.header("content-length").map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        heard.body = String::from_utf8(body).unwrap();
        Ok(heard)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// What stands before the `?`.
    pub fn path(&self) -> &str {
        let target = self.line.split(' ').nth(1).unwrap();
        target.split('?').next().unwrap()
    }

    /// A parameter of the query as it was sent.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.line.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// Bytes of the body that are announced and do not come.
    missing: usize,
}

impl Reply {
    pub fn json(value: &Value) -> Self {
        Self::bytes(value.to_string())
    }

    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: String::new(), body: body.into(), missing: 0 }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::bytes("no") }
    }

    /// Ends in the middle.
    pub fn cut(mut self) -> Self {
        self.missing = 5;
        self
    }

    pub fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        write!(self.headers, "{name}: {value}\r\n").unwrap();
        self
    }

    fn write(&self, mut stream: impl Write) -> io::Result<()> {
        let Self { status, headers, body, missing } = self;
        write!(stream, "HTTP/1.1 {status} x\r\n{headers}Content-Length: {}\r\n\r\n", body.len() + missing)?;
        stream.write_all(body)?;
        stream.flush()
    }
}

type Answer = dyn Fn(&Heard) -> Reply + Send + Sync;

/// Answers until the test process ends.
pub struct Server {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    answer: Arc<Mutex<Arc<Answer>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Heard) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(answer))
    }

    /// The same over TLS.
    pub fn start_tls(tls: ServerConfig, answer: impl Fn(&Heard) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Some(Arc::new(tls)), Arc::new(answer))
    }

    /// One that gives this answer to everything.
    pub fn saying(reply: Reply) -> Self {
        Self::start(move |_| reply.clone())
    }

    fn listen(tls: Option<Arc<ServerConfig>>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, answer) = (Arc::default(), Arc::new(Mutex::new(answer)));
        let server = Self { address, heard: Arc::clone(&heard), answer: answer.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, heard, answer) = (tls.clone(), heard.clone(), answer.clone());
                // How a client ends its connection is its own affair.
                thread::spawn(move || match tls {
                    None => serve(&stream, &stream, &heard, &answer),
                    Some(tls) => {
                        let session = ServerConnection::new(tls).unwrap();
                        let stream = Mutex::new(StreamOwned::new(session, stream));
                        serve(Shared(&stream), Shared(&stream), &heard, &answer)
                    }
                });
            }
        });
        server
    }

    /// From now on it gives this answer to everything.
    pub fn say(&self, reply: Reply) {
        *self.answer.lock().unwrap() = Arc::new(move |_| reply.clone());
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(
    reading: impl Read,
    writing: impl Write,
    heard: &Mutex<Vec<Heard>>,
    answer: &Mutex<Arc<Answer>>,
) -> io::Result<()> {
    let request = Heard::read(reading)?;
    heard.lock().unwrap().push(request.clone());
    let answer = answer.lock().unwrap().clone();
    answer(&request).write(writing)
}

/// Both directions of one stream.
struct Shared<'a, T>(&'a Mutex<T>);

impl<T: Read> Read for Shared<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl<T: Write> Write for Shared<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

/// What a Consul knows.
#[derive(Default)]
struct Catalog {
    index: u64,
    services: HashMap<String, Value>,
    /// What it answers instead, while it is there.
    broken: Option<Reply>,
    /// Queries that wait, now and at most.
    waiting: usize,
    waited: usize,
}

/// A Consul with one endpoint: `/v1/health/service/<name>`.
pub struct Consul {
    pub server: Server,
    catalog: Arc<(Mutex<Catalog>, Condvar)>,
}

impl Consul {
    pub fn start() -> Self {
        let catalog = Arc::new((Mutex::new(Catalog { index: 10, ..Catalog::default() }), Condvar::new()));
        let known = catalog.clone();
        let server = Server::start(move |heard| {
            let (catalog, changed) = &*known;
            let service = heard.path().strip_prefix("/v1/health/service/").unwrap().to_owned();
            let mut catalog = catalog.lock().unwrap();
            if let Some(index) = heard.parameter("index") {
                let index: u64 = index.parse().unwrap();
                let wait = heard.parameter("wait").unwrap().strip_suffix("ms").unwrap().parse().unwrap();
                let still = |catalog: &mut Catalog| catalog.index == index && catalog.broken.is_none();
                catalog.waiting += 1;
                catalog.waited = catalog.waited.max(catalog.waiting);
                catalog = changed.wait_timeout_while(catalog, Duration::from_millis(wait), still).unwrap().0;
                catalog.waiting -= 1;
            }
            if let Some(broken) = &catalog.broken {
                return broken.clone();
            }
            let found = catalog.services.get(&service).cloned().unwrap_or_else(|| json!([]));
            Reply::json(&found).header("X-Consul-Index", catalog.index)
        });
        Self { server, catalog }
    }

    fn change(&self, change: impl FnOnce(&mut Catalog)) {
        change(&mut self.catalog.0.lock().unwrap());
        self.catalog.1.notify_all();
    }

    /// The service has these instances now.
    pub fn set(&self, service: &str, addresses: &[SocketAddr]) {
        let value = Value::Array(addresses.iter().map(instance).collect());
        self.change(|catalog| {
            catalog.index += 1;
            catalog.services.insert(service.into(), value);
        });
    }

    /// It was set up anew: its indexes begin again.
    pub fn restart(&self, index: u64) {
        self.change(|catalog| catalog.index = index);
    }

    /// How many queries wait.
    pub fn waiting(&self) -> usize {
        self.catalog.0.lock().unwrap().waiting
    }

    /// How many waited at once at most.
    pub fn waited(&self) -> usize {
        self.catalog.0.lock().unwrap().waited
    }

    /// It gives this answer to everything, or works again.
    pub fn breaks(&self, reply: Option<Reply>) {
        self.change(|catalog| catalog.broken = reply);
    }
}

/// An instance as Consul writes it.
pub fn instance(address: &SocketAddr) -> Value {
    json!({
        "Node": {"Node": "n", "Address": "127.0.0.99"},
        "Service": {"ID": address.to_string(), "Address": address.ip().to_string(), "Port": address.port(),
            "Weights": {"Passing": 1, "Warning": 1}},
        "Checks": [],
    })
}

/// Instances as Nacos writes them.
pub fn hosts(addresses: &[SocketAddr]) -> Value {
    let host = |address: &SocketAddr| {
        json!({"ip": address.ip().to_string(), "port": address.port(), "weight": 1.0, "healthy": true,
            "enabled": true, "clusterName": "DEFAULT"})
    };
    json!({"name": "g@@s", "hosts": addresses.iter().map(host).collect::<Vec<_>>()})
}

/// An application as Eureka writes it; one instance alone is an object, as at some servers.
pub fn application(addresses: &[SocketAddr]) -> Value {
    let instance = |address: &SocketAddr| {
        json!({"app": "APP", "ipAddr": address.ip().to_string(), "status": "UP", "overriddenstatus": "UNKNOWN",
            "port": {"$": address.port(), "@enabled": "true"}, "securePort": {"$": 443, "@enabled": "false"},
            "metadata": {"@class": "java.util.Collections$EmptyMap"}})
    };
    let mut all: Vec<Value> = addresses.iter().map(instance).collect();
    let instances = if all.len() == 1 { all.remove(0) } else { Value::Array(all) };
    json!({"application": {"name": "APP", "instance": instances}})
}
