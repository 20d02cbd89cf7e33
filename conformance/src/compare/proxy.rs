//! The proxies: where their programs are, what they can do, how they are started.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use self::config::set_up;
use super::client;
use super::metric::Work;
use super::tls::client::Clients;
use super::upstream::{DATAGRAMS, ECHO, Upstream};
use super::usage::Tree;
use crate::certificate::Certificate;
use crate::process::{Process, find, until};

pub(super) mod config;

/// Where a proxy listens for connections to the least loaded of [`NODES`](super::upstream::NODES).
pub const LEAST_CONN: u16 = 7006;
/// Where it listens for those whose node is found by hashing.
pub const HASH: u16 = 7007;
/// Where streamgate listens for those that go through six plugins.
pub const PLUGINS: u16 = 7008;
/// How long a proxy may take until it forwards.
const START: Duration = Duration::from_secs(20);
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
    /// The full gateway without the prometheus plugin: it says nothing of a session that ends well.
    StreamgateSilent,
    /// The full gateway with the access log of APISIX's default format.
    StreamgateLogged,
}

/// Each with its name in the results and its program.
const PROXIES: [(Proxy, &str, &str); 8] = [
    (Proxy::Streamgate, "streamgate", "streamgate"),
    (Proxy::Nginx, "nginx", "nginx"),
    (Proxy::NginxLargeBuffer, "nginx 64k", "nginx"),
    (Proxy::Haproxy, "HAProxy", "haproxy"),
    (Proxy::HaproxySplice, "HAProxy splice", "haproxy"),
    (Proxy::Envoy, "Envoy", "envoy"),
    (Proxy::StreamgateSilent, "streamgate silent", "streamgate"),
    (Proxy::StreamgateLogged, "streamgate logged", "streamgate"),
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

    /// Reports whether it is given this to do.
    #[must_use]
    pub fn does(self, work: Work) -> bool {
        if matches!(self, Self::StreamgateSilent | Self::StreamgateLogged) {
            work == Work::Connections
        } else if work.is_of_plugins() {
            self == Self::Streamgate
        } else if work.is_of_tls() || work.is_of_balancing() {
            matches!(self, Self::Streamgate | Self::Nginx)
        } else {
            !work.is_of_datagrams() || self.forwards_datagrams()
        }
    }

    fn forwards_datagrams(self) -> bool {
        !matches!(self, Self::Haproxy | Self::HaproxySplice)
    }

    /// Its program: the gateway given, of others the one in `PATH`; none where it is not installed.
    #[must_use]
    pub fn program(self, gateway: &Path) -> Option<PathBuf> {
        match self {
            Self::Streamgate | Self::StreamgateSilent | Self::StreamgateLogged => Some(gateway.to_owned()),
            Self::Nginx | Self::NginxLargeBuffer if !Path::new(NGINX_STREAM).exists() => None,
            _ => find(PROXIES[self as usize].2),
        }
    }

    /// The name and the version of its program, as the program tells it, with those of its TLS library
    /// where it is a peer that is measured with TLS.
    pub fn version(self, gateway: &Path) -> io::Result<String> {
        let program = self.program(gateway).ok_or(io::ErrorKind::NotFound)?;
        let argument = match self {
            Self::Streamgate | Self::StreamgateSilent | Self::StreamgateLogged => "version",
            Self::Envoy => "--version",
            Self::Nginx | Self::NginxLargeBuffer => "-V",
            Self::Haproxy | Self::HaproxySplice => "-v",
        };
        let output = Command::new(program).arg(argument).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let version = version_in(&said).ok_or_else(|| io::Error::other(format!("no version in {said:?}")))?;
        let library = library_in(&said).map(|version| format!(" with OpenSSL {version}")).unwrap_or_default();
        Ok(format!("{} {version}{library}", PROXIES[self as usize].2))
    }
}

/// The first word that looks like a version.
fn version_in(said: &str) -> Option<&str> {
    said.split(|c: char| c == '/' || c.is_whitespace())
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

/// The version of OpenSSL that a program runs with: nginx names it last, after the one it was built with
/// where that is another.
fn library_in(said: &str) -> Option<&str> {
    said.rsplit_once("OpenSSL ")?.1.split_whitespace().next()
}

/// What proxies are set up for. Each stage has processes of its own.
#[derive(Clone, Copy, Debug)]
pub enum Stage<'a> {
    /// TCP and UDP as they are.
    Plain,
    /// TLS that ends at the proxy, with this certificate, and TLS that is passed on.
    Tls(&'a Certificate),
}

impl Stage<'_> {
    /// Reports whether this is where a work is done.
    #[must_use]
    pub fn has(self, work: Work) -> bool {
        work.is_of_tls() == matches!(self, Self::Tls(_))
    }

    fn name(self) -> &'static str {
        if matches!(self, Self::Plain) { "plain" } else { "tls" }
    }

    /// The networks of the proxies and of their upstreams: what one stage leaves behind is not in the
    /// way of another.
    fn networks(self) -> [u8; 2] {
        if matches!(self, Self::Plain) { [2, 1] } else { [4, 3] }
    }
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
    pub fn start(proxy: Proxy, stage: Stage, setting: &Setting) -> io::Result<Self> {
        let number = proxy as u8 + 1;
        let [ip, upstream] = stage.networks().map(|network| Ipv4Addr::new(127, 0, network, number));
        let upstream = Upstream::start(upstream)?;
        let folder = setting.folder.join(stage.name()).join(format!("{number}"));
        fs::create_dir_all(&folder)?;
        let arguments = set_up(proxy, stage, &folder, [ip, upstream.ip])?;
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
        running.wait_ready(stage).map_err(|error| {
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

    fn wait_ready(&mut self, stage: Stage) -> io::Result<()> {
        let address = self.at(ECHO);
        until(START, || {
            if !self.process.is_running() {
                // Nothing to wait for: the caller tells what it said.
                return Ok(());
            }
            let held = match stage {
                Stage::Plain => client::hold(address, 1),
                Stage::Tls(certificate) => Clients::of(certificate)?.hold(address, 1),
            };
            held.map(drop)
        })?;
        if !self.process.is_running() {
            return Err(io::Error::other("it has ended"));
        }
        if matches!(stage, Stage::Plain) && self.proxy.forwards_datagrams() {
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
        assert_eq!(library_in(haproxy), None);
        let built = "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22 25 Aug 2026";
        assert_eq!(library_in(built), Some("3.0.22"));
        assert_eq!(
            library_in(&format!("{built} (running with OpenSSL 3.0.19 27 Jan 2026)\n")),
            Some("3.0.19")
        );
    }
}
