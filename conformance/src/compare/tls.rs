//! What is measured of proxies that are set up for TLS: handshakes, bytes, memory, and what it costs to
//! read a ClientHello and pass the rest on.
//!
//! Bytes are counted where they are plain: at the upstream, which a gigabyte leaves or reaches whatever the
//! records on the other side are like.

use std::io;
use std::net::SocketAddr;

use self::client::Clients;
use super::client::{Progress, download, upload};
use super::metric::{Metric, Work};
use super::plan::Plan;
use super::proxy::Running;
use super::round::{Measured, Values, hold, measure};
use super::upstream::{DRAIN, ECHO, SOURCE};
use crate::certificate::Certificate;

pub mod client;

/// The server name of all connections.
pub const NAME: &str = "bench.test";
/// How far above the port of the upstream a proxy listens to pass TLS on.
pub const PASSTHROUGH: u16 = 100;
/// How far above it listens for plain TCP.
pub const PLAIN: u16 = 200;

pub(super) fn does(
    proxy: &Running,
    work: Work,
    plan: &Plan,
    certificate: &Certificate,
) -> io::Result<Values> {
    let clients = Clients::of(certificate)?;
    let bench = Bench { proxy, plan, clients };
    match work {
        Work::TlsIdle => bench.idle(),
        Work::TlsHandshakes => bench.connections(Clients::handshakes, Metric::TlsHandshake),
        Work::TlsResumed => bench.connections(Clients::resumptions, Metric::TlsResumed),
        Work::TlsBulkOne => bench.bulk(1, Metric::TlsBulkOne),
        Work::TlsBulkEight => bench.bulk(8, Metric::TlsBulkEight),
        Work::TlsUploadOne => bench.upload(1, Metric::TlsUploadOne),
        Work::TlsUploadEight => bench.upload(8, Metric::TlsUploadEight),
        Work::Passthrough => bench.passthrough(),
        other => Err(io::Error::other(format!("{} is not of TLS", other.name()))),
    }
}

struct Bench<'a> {
    proxy: &'a Running,
    plan: &'a Plan,
    clients: Clients,
}

impl Bench<'_> {
    fn idle(&self) -> io::Result<Values> {
        let held = hold(self.proxy, self.plan, |count| self.clients.hold(self.proxy.at(ECHO), count))?;
        Ok(vec![(Metric::TlsIdleMemory, held.end(self.proxy)?)])
    }

    fn connections(
        &self,
        load: fn(&Clients, SocketAddr, &Progress) -> io::Result<()>,
        metric: Metric,
    ) -> io::Result<Values> {
        let progress = Progress::default();
        let load = || load(&self.clients, self.proxy.at(ECHO), &progress);
        let measured = measure(self.proxy, self.plan, &progress, load, || progress.done())?;
        Ok(vec![measured.cpu(metric)])
    }

    fn bulk(&self, connections: usize, metric: Metric) -> io::Result<Values> {
        let at = self.proxy.at(SOURCE);
        let measured = self.sent(|progress| self.clients.download(at, connections, progress))?;
        Ok(vec![measured.gigabyte(metric)])
    }

    fn upload(&self, connections: usize, metric: Metric) -> io::Result<Values> {
        let at = self.proxy.at(DRAIN);
        let measured = self.drained(|progress| self.clients.upload(at, connections, progress))?;
        Ok(vec![measured.gigabyte(metric)])
    }

    /// The same bytes through the listen that reads the ClientHello and through the plain one. What comes
    /// after a ClientHello is the same to both, so neither client nor upstream shakes hands.
    fn passthrough(&self) -> io::Result<Values> {
        let hello = self.clients.hello()?;
        let mut values = Vec::new();
        for (more, metric) in [(PLAIN, Metric::PlainBulk), (PASSTHROUGH, Metric::PassthroughBulk)] {
            let at = self.proxy.at(SOURCE + more);
            values.push(self.sent(|progress| download(at, &hello, progress))?.gigabyte(metric));
        }
        for (more, metric) in [(PLAIN, Metric::PlainUpload), (PASSTHROUGH, Metric::PassthroughUpload)] {
            let at = self.proxy.at(DRAIN + more);
            values.push(self.drained(|progress| upload(at, &hello, progress))?.gigabyte(metric));
        }
        Ok(values)
    }

    fn sent(&self, load: impl Fn(&Progress) -> io::Result<()> + Sync) -> io::Result<Measured> {
        let progress = Progress::default();
        let sent = || self.proxy.upstream.sent();
        measure(self.proxy, self.plan, &progress, || load(&progress), sent)
    }

    fn drained(&self, load: impl Fn(&Progress) -> io::Result<()> + Sync) -> io::Result<Measured> {
        let progress = Progress::default();
        let drained = || self.proxy.upstream.drained();
        measure(self.proxy, self.plan, &progress, || load(&progress), drained)
    }
}
