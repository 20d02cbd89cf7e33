//! The proxies: where their programs are, how they are set up and started.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::client;
use super::upstream::{DATAGRAMS, ECHO, SINK, SOURCE, Upstream};
use super::usage::Tree;
use crate::process::{Process, find, until};
use crate::routes::other_route;

/// How long a proxy may take until it forwards.
const START: Duration = Duration::from_secs(20);
/// Routes that streamgate has beside those in use.
const OTHER_ROUTES: usize = 1_000;
/// Where Debian puts the stream module, which is a package of its own.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// The first of the users that unprivileged proxies run as: one each, for the kernel limits the pages
/// in pipes per user.
const FIRST_USER: u32 = 64_001;

/// A proxy with its settings.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Proxy {
    /// The full gateway: 1,000 routes, metrics on.
    Streamgate,
    /// nginx with the stream module, as shipped.
    Nginx,
    /// The same with buffers of 64 KiB instead of 16.
    NginxLargeBuffer,
    /// `HAProxy` as shipped.
    Haproxy,
    /// The same made to splice: its `splice-auto` never does here.
    HaproxySplice,
    /// Envoy as shipped.
    Envoy,
}

/// Each with its name in the results and its program.
const PROXIES: [(Proxy, &str, &str); 6] = [
    (Proxy::Streamgate, "streamgate", "streamgate"),
    (Proxy::Nginx, "nginx", "nginx"),
    (Proxy::NginxLargeBuffer, "nginx 64k", "nginx"),
    (Proxy::Haproxy, "HAProxy", "haproxy"),
    (Proxy::HaproxySplice, "HAProxy splice", "haproxy"),
    (Proxy::Envoy, "Envoy", "envoy"),
];

impl Proxy {
    /// All, streamgate first.
    pub fn all() -> impl Iterator<Item = Self> {
        PROXIES.into_iter().map(|(proxy, ..)| proxy)
    }

    /// Its name in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        PROXIES[self as usize].1
    }

    /// The one of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::all().find(|proxy| proxy.name() == name)
    }

    /// Reports whether it forwards datagrams.
    #[must_use]
    pub fn forwards_datagrams(self) -> bool {
        !matches!(self, Self::Haproxy | Self::HaproxySplice)
    }

    /// Its program: the gateway given, of others the one in `PATH`; none where it is not installed.
    #[must_use]
    pub fn program(self, gateway: &Path) -> Option<PathBuf> {
        match self {
            Self::Streamgate => Some(gateway.to_owned()),
            Self::Nginx | Self::NginxLargeBuffer if !Path::new(NGINX_STREAM).exists() => None,
            _ => find(PROXIES[self as usize].2),
        }
    }

    /// The name and the version of its program, as the program tells it.
    pub fn version(self, gateway: &Path) -> io::Result<String> {
        let program = self.program(gateway).ok_or(io::ErrorKind::NotFound)?;
        let argument = match self {
            Self::Streamgate => "version",
            Self::Envoy => "--version",
            _ => "-v",
        };
        let output = Command::new(program).arg(argument).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let version = version_in(&said).ok_or_else(|| io::Error::other(format!("no version in {said:?}")))?;
        Ok(format!("{} {version}", PROXIES[self as usize].2))
    }
}

/// The first word that looks like a version.
fn version_in(said: &str) -> Option<&str> {
    said.split(|c: char| c == '/' || c.is_whitespace())
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

/// What proxies are started with.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// The streamgate to measure.
    pub gateway: &'a Path,
    /// Configuration and logs go below this folder.
    pub folder: &'a Path,
    /// The core of the proxies.
    pub core: usize,
    /// As users without privileges.
    pub unprivileged: bool,
}

/// A proxy at work.
#[derive(Debug)]
pub struct Running {
    /// Which it is.
    pub proxy: Proxy,
    /// What it forwards to.
    pub upstream: Upstream,
    ip: Ipv4Addr,
    process: Process,
}

impl Running {
    /// Starts it with an upstream of its own, and waits until it forwards.
    pub fn start(proxy: Proxy, setting: &Setting) -> io::Result<Self> {
        let number = proxy as u8 + 1;
        let (ip, upstream) = (Ipv4Addr::new(127, 0, 2, number), Ipv4Addr::new(127, 0, 1, number));
        let upstream = Upstream::start(upstream)?;
        let folder = setting.folder.join(format!("{number}"));
        fs::create_dir_all(&folder)?;
        let arguments = set_up(proxy, &folder, ip, &upstream)?;
        let program = proxy.program(setting.gateway).ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &setting.core.to_string()]);
        if setting.unprivileged {
            let user = FIRST_USER + u32::from(number);
            chown(&folder, Some(user), Some(user))?;
            let user = user.to_string();
            command.args(["setpriv", "--clear-groups", "--reuid", &user, "--regid", &user]);
        }
        command.arg(program).args(arguments);
        let log = folder.join("log");
        let process = Process::start(&mut command, &log)?;
        let mut running = Self { proxy, upstream, ip, process };
        running.wait_ready().map_err(|error| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            io::Error::other(format!("{} does not forward: {error}\n{log}", proxy.name()))
        })?;
        Ok(running)
    }

    /// Where it listens for the work of this port of the upstream.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    /// Its process with the children.
    #[must_use]
    pub fn tree(&self) -> Tree {
        Tree::new(self.process.id())
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        until(START, || {
            if self.process.is_running() {
                client::hold(self.at(ECHO), 1).map(drop)
            } else {
                // Nothing to wait for: the caller tells what it said.
                Ok(())
            }
        })?;
        if !self.process.is_running() {
            return Err(io::Error::other("it has ended"));
        }
        if self.proxy.forwards_datagrams() {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            socket.connect(self.at(DATAGRAMS))?;
            until(START, || {
                socket.send(b"?")?;
                socket.recv(&mut [0])
            })?;
        }
        Ok(())
    }
}

/// Writes the configuration; the arguments of the program, the file last.
fn set_up(proxy: Proxy, folder: &Path, ip: Ipv4Addr, upstream: &Upstream) -> io::Result<Vec<String>> {
    let (template, values): (&str, &[(&str, &str)]) = match proxy {
        Proxy::Streamgate => (include_str!("../../../benches/peers/streamgate.yaml"), &[]),
        Proxy::Nginx => (NGINX, &[("@BUFFER@", "")]),
        Proxy::NginxLargeBuffer => (NGINX, &[("@BUFFER@", "proxy_buffer_size 64k;")]),
        Proxy::Haproxy => (HAPROXY, &[("@PIPES@", ""), ("@SPLICE@", "")]),
        Proxy::HaproxySplice => (HAPROXY, SPLICE),
        Proxy::Envoy => (include_str!("../../../benches/peers/envoy.yaml"), &[]),
    };
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let mut text = template
        .replace("@LISTEN@", &ip.to_string())
        .replace("@UPSTREAM@", &upstream.ip.to_string())
        .replace("@FOLDER@", &folder.to_string_lossy())
        .replace("@FILES@", &files.to_string());
    for (name, value) in values {
        text = text.replace(name, value);
    }
    // Envoy reads YAML only from a file of that ending.
    let file = folder.join("config.yaml");
    fs::write(&file, text)?;
    fs::write(folder.join("apisix.yaml"), objects(upstream.ip))?;
    let words = match proxy {
        Proxy::Streamgate => "run -c",
        Proxy::Nginx | Proxy::NginxLargeBuffer => "-e stderr -c",
        Proxy::Haproxy | Proxy::HaproxySplice => "-db -f",
        Proxy::Envoy => "--concurrency 1 --disable-hot-restart --log-level error -c",
    };
    Ok(words.split(' ').map(str::to_owned).chain([file.to_string_lossy().into_owned()]).collect())
}

const NGINX: &str = include_str!("../../../benches/peers/nginx.conf");
const HAPROXY: &str = include_str!("../../../benches/peers/haproxy.cfg");
const SPLICE: &[(&str, &str)] =
    &[("@PIPES@", "maxpipes 200"), ("@SPLICE@", "option splice-request\n  option splice-response")];

/// Streamgate's `apisix.yaml`: the routes in use among many others.
fn objects(upstream: Ipv4Addr) -> String {
    let mut text = String::from("stream_routes:\n");
    for port in [ECHO, SOURCE, DATAGRAMS, SINK] {
        let node = SocketAddr::from((IpAddr::from(upstream), port));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            r#"  - {{"id": "in-use-{port}", "server_port": {port}, "plugins": {{"prometheus": {{}}}}, "upstream": {{"type": "roundrobin", "timeout": {{"connect": 5, "send": 600, "read": 600}}, "nodes": {{"{node}": 1}}}}}}"#
        );
    }
    for (key, value) in (0..OTHER_ROUTES).map(other_route) {
        let id = key.rsplit('/').next().unwrap_or_default();
        let fields = value.trim_start_matches('{');
        let _ = writeln!(text, r#"  - {{"id": "{id}", {fields}"#);
    }
    text.push_str("#END\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_the_order_of_the_declaration_and_no_name_twice() {
        for (row, proxy) in Proxy::all().enumerate() {
            assert_eq!(proxy as usize, row, "{proxy:?}");
            assert_eq!(Proxy::of_name(proxy.name()), Some(proxy));
        }
        assert_eq!(Proxy::of_name("other"), None);
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let haproxy = "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n";
        assert_eq!(version_in(haproxy), Some("2.6.12-1+deb12u4"));
        assert_eq!(version_in("nginx version: nginx/1.22.1\n"), Some("1.22.1"));
        assert_eq!(version_in("\nenvoy  version: 9e5/1.40.0/Clean/RELEASE\n"), Some("1.40.0"));
        assert_eq!(version_in("streamgate 0.1.0\n"), Some("0.1.0"));
        assert_eq!(version_in("no such option"), None);
    }

    #[test]
    fn templates_are_filled_whole() {
        let folder = tempfile::tempdir().unwrap();
        let upstream = Upstream::start(Ipv4Addr::new(127, 71, 0, 2)).unwrap();
        for proxy in Proxy::all() {
            let arguments = set_up(proxy, folder.path(), Ipv4Addr::new(127, 71, 0, 3), &upstream).unwrap();
            let text = fs::read_to_string(arguments.last().unwrap()).unwrap();
            assert!(text.contains("127.71.0.3"), "{text}");
            assert!(!text.contains('@') || proxy == Proxy::Envoy, "{text}");
            assert!(!text.contains("@LISTEN@") && !text.contains("@UPSTREAM@"), "{text}");
        }
        let routes = objects(upstream.ip);
        assert_eq!(routes.matches("\"id\"").count(), OTHER_ROUTES + 4);
    }
}
