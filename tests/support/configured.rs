//! A gateway in this process that is configured by objects, with its active checks, as `app` wires it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;

use serde_json::Value;
use streamgate::health::{Cause, Cell, Finding, Limits, Report, Standing};
use streamgate::live::Budget;
use streamgate::probe::{self, Trust};
use streamgate::resource::Kind;
use streamgate::session::Transport;
use streamgate::snapshot::UpstreamSettings;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Gateway, Setup, listen, poll_until};
use crate::objects::{Objects, to};

pub struct Configured {
    pub gateway: Gateway,
    pub objects: Objects,
    changed: watch::Sender<()>,
    stop: CancellationToken,
}

impl Configured {
    /// One route `r1` from everywhere to an upstream `u1`.
    pub fn to(upstream: &Value) -> Self {
        Self::start(&Setup::default(), UpstreamSettings::default(), Trust::default(), &to(upstream))
    }

    pub fn start(
        setup: &Setup,
        settings: UpstreamSettings,
        trust: Trust,
        objects: &[(Kind, &str, Value)],
    ) -> Self {
        let gateway = Gateway::start(setup);
        let objects = Objects::new(0, settings, objects);
        let published = gateway.published();
        published.store(objects.snapshot.clone());
        let ((changed, told), stop) = (watch::channel(()), CancellationToken::new());
        let (token, live) = (stop.clone(), objects.live.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let descriptors = Budget::new(10_000);
            let means = probe::Means { published, live, trust, descriptors };
            runtime.block_on(probe::run(means, told, token));
        });
        Self { gateway, objects, changed, stop }
    }

    /// The address of one more listen for TCP.
    pub fn tcp(&mut self) -> SocketAddr {
        self.gateway.listen(listen(Transport::Tcp, "127.0.0.1"))
    }

    /// The address of one more listen for UDP.
    pub fn udp(&mut self) -> SocketAddr {
        self.gateway.listen(listen(Transport::Udp, "127.0.0.1"))
    }

    /// Writes an object, which has to be accepted.
    #[track_caller]
    pub fn put(&mut self, kind: Kind, id: &str, value: &Value) {
        self.objects.put(kind, id, value);
        self.publish();
    }

    /// Writes the upstream `u1`.
    #[track_caller]
    pub fn put_upstream(&mut self, value: &Value) {
        self.put(Kind::Upstream, "u1", value);
    }

    pub fn delete(&mut self, kind: Kind, id: &str) {
        self.objects.delete(kind, id);
        self.publish();
    }

    pub fn resolve(&mut self, name: &str, addresses: &[IpAddr]) {
        self.objects.resolve(name, addresses);
        self.publish();
    }

    fn publish(&self) {
        self.gateway.published().store(self.objects.snapshot.clone());
        self.changed.send(()).unwrap();
    }

    /// What is known of a target of `u1`.
    #[track_caller]
    pub fn cell(&self, addr: SocketAddr) -> Arc<Cell> {
        self.objects.cell(addr)
    }

    #[track_caller]
    pub fn standing(&self, addr: SocketAddr) -> Standing {
        self.cell(addr).standing()
    }

    /// Waits until a target of `u1` is usable, or is not.
    #[track_caller]
    pub fn until_usable(&self, addr: SocketAddr, usable: bool) {
        let what = format!("{addr} that is {}", if usable { "usable" } else { "down" });
        poll_until(&what, || (self.cell(addr).is_usable() == usable).then_some(()));
    }

    /// Takes a target of `u1` out, or lets it in, as a probe would.
    #[track_caller]
    pub fn set_usable(&self, addr: SocketAddr, usable: bool) {
        set_usable(&self.cell(addr), usable);
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Takes a target out, or lets it in, as a probe would.
#[track_caller]
pub fn set_usable(cell: &Cell, usable: bool) {
    let cause = || Cause { by: Finding::Active, why: "the test says so".into(), since_unix_ms: 0 };
    let limits = Limits { successes: 1, tcp_failures: 1, ..Limits::ACTIVE };
    let report = if usable { Report::Success } else { Report::TcpFailure };
    cell.report(report, &limits, cause);
    assert_eq!(cell.is_usable(), usable);
}
