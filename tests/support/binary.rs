//! The real `streamgate` binary: started on a config.yaml of its own, asked over its pages, told by
//! signals, killed when dropped. Include it with `#[path = "support/binary.rs"] mod binary;`.
//!
//! ```ignore
//! let setup = Setup::objects(&json!({"stream_routes": [{"id": "r1", "server_port": "@tcp0", …}]}));
//! let mut gateway = setup.start();             // ready when this returns
//! assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
//! gateway.signal(Signal::TERM);
//! assert!(gateway.ended().success());
//! ```
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

pub use rustix::process::Signal;

/// No wait of a test is longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn streamgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgate"));
    // What the machine sets must not reach the configuration.
    for variable in
        ["APISIX_PROFILE", "APISIX_DEPLOYMENT_ETCD_HOST", "APISIX_WORKER_PROCESSES", "NOTIFY_SOCKET"]
    {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end with `input` on standard input.
#[track_caller]
pub fn run(arguments: &[&str], input: &[u8]) -> Output {
    let (stdin, stdout, stderr) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
    let mut child = streamgate().args(arguments).stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
    let (mut pipe, input) = (child.stdin.take().unwrap(), input.to_vec());
    // A command that reads no input closes the pipe; that is no failure of the test.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What config.yaml says. Ports are chosen at the start: `tcp` and `udp` say how many.
#[derive(Clone, Debug)]
pub struct Setup {
    pub tcp: usize,
    pub udp: usize,
    /// Settings of `tcp(0)` and those after it, such as `tls: true`; none where it is empty or missing.
    pub listens: Vec<&'static str>,
    pub workers: usize,
    pub plugins: Vec<&'static str>,
    /// The `deployment:` section.
    pub deployment: String,
    /// The control API is on, at a port of its own.
    pub control: bool,
    /// Lines of `apisix:`, indented by two.
    pub apisix: String,
    /// Lines at the end of the file.
    pub more: String,
    /// Lines of `streamgate:`, indented by two.
    pub ours: String,
    /// apisix.json, where objects come from there; `"@tcp0"` stands for the port of `tcp(0)`.
    pub objects: Option<String>,
    /// Arguments of `run`.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// The port of `tcp(0)`, where it is not to be chosen.
    pub fixed_port: Option<u16>,
    /// A whole config.yaml instead of one made from the above; `@tcp0`, `@metrics`, `@control` stand for ports.
    pub whole: Option<String>,
}

impl Setup {
    fn new(deployment: String) -> Self {
        Self {
            tcp: 1,
            udp: 1,
            listens: vec![],
            workers: 2,
            plugins: vec!["prometheus", "ip-restriction", "limit-conn"],
            deployment,
            control: false,
            apisix: String::new(),
            more: String::new(),
            ours: String::new(),
            objects: None,
            arguments: vec![],
            environment: vec![],
            fixed_port: None,
            whole: None,
        }
    }

    /// Objects from the etcd at this endpoint.
    pub fn etcd(endpoint: &str) -> Self {
        Self::etcd_as(endpoint, "")
    }

    /// The same with more keys of `deployment.etcd`, such as `user: gate`.
    pub fn etcd_as(endpoint: &str, more: &str) -> Self {
        Self::new(format!(
            "  role: data_plane\n  role_data_plane: {{config_provider: etcd}}\n  \
             etcd: {{host: [\"{endpoint}\"], prefix: /apisix, {more}}}\n"
        ))
    }

    /// Objects from a file next to config.yaml.
    pub fn objects(objects: &Value) -> Self {
        let deployment = "  role: data_plane\n  role_data_plane: {config_provider: json}\n".to_owned();
        Self { objects: Some(objects.to_string()), ..Self::new(deployment) }
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let mut gateway = self.launch();
        gateway.wait_ready();
        gateway
    }

    /// Starts it and waits until its pages answer. A port that was taken between the choice and the
    /// start is chosen anew.
    #[track_caller]
    pub fn launch(self) -> Gateway {
        for _ in 0..5 {
            let mut gateway = Gateway::spawn(self.clone());
            let deadline = Instant::now() + PATIENCE;
            loop {
                if gateway.page("/streamgate/status").is_ok() {
                    return gateway;
                }
                if gateway.process.try_wait().unwrap().is_some() {
                    break;
                }
                assert!(Instant::now() < deadline, "no page answers:\n{}", gateway.log_text());
                pause();
            }
            let log = gateway.log_text();
            assert!(log.contains("cannot listen on") || log.contains("in use"), "ended at its start:\n{log}");
        }
        panic!("no free port for streamgate was found in five attempts")
    }

    fn text(&self, ports: &Ports) -> String {
        if let Some(whole) = &self.whole {
            return ports.fill(whole);
        }
        let listens = |ports: &[u16], settings: &[&str]| -> String {
            let settings = settings.iter().copied().chain(std::iter::repeat(""));
            let listen = |(port, settings): (&u16, &str)| match settings {
                "" => format!("\"127.0.0.1:{port}\""),
                settings => format!("{{addr: \"127.0.0.1:{port}\", {settings}}}"),
            };
            ports.iter().zip(settings).map(listen).collect::<Vec<_>>().join(", ")
        };
        let control = if self.control {
            format!("control: {{port: {}}}", ports.control)
        } else {
            "enable_control: false".to_owned()
        };
        let mut text = format!(
            "apisix:\n  proxy_mode: stream\n  status: {{ip: 127.0.0.1, port: {}}}\n  {control}\n  stream_proxy:\n    \
             tcp: [{}]\n    udp: [{}]\n{}deployment:\n{}",
            ports.status,
            listens(&ports.tcp, &self.listens),
            listens(&ports.udp, &[]),
            self.apisix,
            self.deployment,
        );
        let Self { workers, plugins, more, ours, .. } = self;
        let metrics = ports.metrics;
        // Writing to a String cannot fail.
        let _ = write!(text, "stream_plugins: [{}]\n{more}", plugins.join(", "));
        if !more.contains("nginx_config:") {
            let _ = writeln!(text, "nginx_config: {{worker_processes: {workers}}}");
        }
        let _ = writeln!(
            text,
            "plugin_attr: {{prometheus: {{export_addr: {{ip: 127.0.0.1, port: {metrics}}}}}}}"
        );
        if !ours.is_empty() {
            let _ = write!(text, "streamgate:\n{ours}");
        }
        ports.fill(&text)
    }
}

/// Ports of 127.0.0.1.
#[derive(Clone, Debug)]
pub struct Ports {
    pub tcp: Vec<u16>,
    pub udp: Vec<u16>,
    pub metrics: u16,
    pub status: u16,
    pub control: u16,
}

impl Ports {
    /// Puts ports in for `@tcp0`, quoted or not.
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (kind, ports) in [("tcp", &self.tcp), ("udp", &self.udp)] {
            for (number, port) in ports.iter().enumerate() {
                let (name, port) = (format!("@{kind}{number}"), port.to_string());
                text = text.replace(&format!("\"{name}\""), &port).replace(&name, &port);
            }
        }
        text.replace("@metrics", &self.metrics.to_string()).replace("@control", &self.control.to_string())
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Changed and [`rewritten`](Self::rewrite), the next HUP follows it.
    pub setup: Setup,
    pub ports: Ports,
    process: Child,
    folder: TempDir,
}

impl Gateway {
    /// Starts it without a look at what becomes of it.
    pub fn spawn(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let free = |count: usize| (0..count).map(|_| free_port()).collect();
        let mut ports = Ports {
            tcp: free(setup.tcp),
            udp: free(setup.udp),
            metrics: free_port(),
            status: free_port(),
            control: free_port(),
        };
        ports.tcp.iter_mut().zip(setup.fixed_port).for_each(|(port, fixed)| *port = fixed);
        fs::write(folder.path().join("config.yaml"), setup.text(&ports)).unwrap();
        if let Some(objects) = &setup.objects {
            let name = if objects.contains("#END") { "apisix.yaml" } else { "apisix.json" };
            fs::write(folder.path().join(name), ports.fill(objects)).unwrap();
        }
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = streamgate();
        command.args(["run", "--log-format", "json", "-c"]).arg(folder.path().join("config.yaml"));
        command.args(&setup.arguments).envs(setup.environment.iter().cloned());
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { setup, ports, process, folder }
    }

    pub fn tcp(&self, number: usize) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.tcp[number]).into()
    }

    pub fn udp(&self, number: usize) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.udp[number]).into()
    }

    /// Where `/status` and `/status/ready` are.
    pub fn status_pages(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.status).into()
    }

    /// Where metrics and `/streamgate/status` are.
    pub fn pages(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.metrics).into()
    }

    /// Where the control API is.
    pub fn control(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.control).into()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes config.yaml as `setup` and `ports` are now.
    pub fn rewrite(&self) {
        self.write_config(&self.setup.text(&self.ports));
    }

    /// Writes any text as config.yaml.
    pub fn write_config(&self, text: &str) {
        fs::write(self.config_file(), text).unwrap();
    }

    /// Writes apisix.json with ports in place of `@tcp0`.
    pub fn write_objects(&self, objects: &Value) {
        self.write("apisix.json", &objects.to_string());
    }

    /// Writes a file next to config.yaml, ports in place of `@tcp0`; seen whole or not at all.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, self.ports.fill(text)).unwrap();
        fs::rename(new, self.folder.path().join(name)).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log_text());
            pause();
        }
    }

    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.eventually("readiness", |gateway| gateway.status()["ready"] == true);
    }

    /// Asks again until it holds; a gateway that ended fails at once.
    #[track_caller]
    pub fn eventually(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(self.is_running(), "ended while waiting for {what}:\n{}", self.log_text());
            assert!(
                Instant::now() < deadline,
                "no {what} within {PATIENCE:?}\n{}\n{}",
                self.page("/streamgate/status").unwrap_or_default(),
                self.log_text()
            );
            pause();
        }
    }

    /// The body of a page that answers 200.
    pub fn page(&self, path: &str) -> io::Result<String> {
        match http(self.pages(), "GET", path)? {
            (200, body) => Ok(body),
            (code, body) => Err(io::Error::other(format!("{path} answers {code}: {body}"))),
        }
    }

    /// `/streamgate/status`; null while it does not answer.
    pub fn status(&self) -> Value {
        self.page("/streamgate/status").map_or(Value::Null, |page| serde_json::from_str(&page).unwrap())
    }

    pub fn metrics(&self) -> String {
        self.page("/apisix/prometheus/metrics").unwrap_or_default()
    }

    /// The value of a series, written as on the page; `None` where there is no such series.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let page = self.metrics();
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    /// Sessions of a route that ended so; an empty name stands for no route.
    pub fn ended_so(&self, route: &str, end: &str) -> f64 {
        let start = format!("streamgate_connections_total{{route=\"{route}\",end=\"{end}\",");
        let page = self.metrics();
        let line = page.lines().find(|line| line.starts_with(&start));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The log's whole lines.
    #[track_caller]
    pub fn log(&self) -> Vec<Value> {
        let text = self.log_text();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }

    /// Waits for a line whose message contains `words`.
    #[track_caller]
    pub fn says(&mut self, words: &str) -> Value {
        let find = |gateway: &Self| {
            let mut lines = gateway.log().into_iter();
            lines.find(|line| line["message"].as_str().is_some_and(|message| message.contains(words)))
        };
        self.eventually(words, |gateway| find(gateway).is_some());
        find(self).unwrap()
    }

    /// The line of a session that ended so, of a gateway that has written its last.
    #[track_caller]
    pub fn says_end_after_exit(&self, end: &str) -> Value {
        let line = self.log().into_iter().find(|line| line["end"] == end);
        line.unwrap_or_else(|| panic!("no session ended with {end}:\n{}", self.log_text()))
    }

    /// Waits for the line of a session that ended so.
    #[track_caller]
    pub fn says_end(&mut self, end: &str) -> Value {
        let find = |gateway: &Self| gateway.log().into_iter().find(|line| line["end"] == end);
        self.eventually(end, |gateway| find(gateway).is_some());
        find(self).unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One request: the status code and the body.
pub fn http(address: SocketAddr, method: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let code = page.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| io::Error::other(format!("no HTTP: {page}")))?;
    let body = page.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((code, body.unwrap_or_default()))
}

/// A port that is free for TCP and UDP, below the range that outgoing connections take theirs from. No two
/// calls give the same one, and tests that run beside each other look at different places: a gateway that
/// finds its port taken would else be asked over the pages of the one that has it.
pub fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    loop {
        let place = std::process::id().wrapping_mul(61).wrapping_add(CALLS.fetch_add(1, Relaxed));
        let port = 10_000 + u16::try_from(place % 22_000).unwrap();
        let free =
            TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if free {
            return port;
        }
    }
}

/// Between two looks at what is waited for.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
