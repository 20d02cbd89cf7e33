//! Asking the servers of a registry: one request, JSON back, the next server where one fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Found, RegistryError};
use crate::certs::verify;
use crate::config::{RegistryServer, Waits};
use crate::net::http::{self, Limits, Request, Secure, To};
use crate::resource::{Node, provider};

/// The largest answer that is read, in bytes: some thousands of instances. As JSON that somebody means ill
/// with it takes thirty times that.
const MAX_ANSWER: usize = 4 << 20;

/// Requests to the servers of one registry at once, and of those that wait for a change. Together they
/// stay below the 200 connections that Consul allows an address (`limits.http_max_conns_per_client`).
const AT_ONCE: [usize; 2] = [48, 128];

/// Speaks with the servers of one registry.
#[derive(Debug)]
pub(super) struct Client {
    /// How servers with `https` are spoken with; why they cannot be.
    tls: Result<Arc<ClientConfig>, String>,
    asking: Semaphore,
    waiting: Semaphore,
}

impl Client {
    /// Verifies servers with the bundle in this file, which is read now and only where one has `https`.
    pub(super) fn verifying(servers: &[RegistryServer], trusted: Option<&Path>) -> Self {
        if !servers.iter().any(|server| server.tls) {
            return Self::with(Err("no server has https".into()));
        }
        let missing =
            || "there is no CA bundle to verify it with; set apisix.ssl.ssl_trusted_certificate".into();
        Self::with(trusted.ok_or_else(missing).and_then(bundle).and_then(client_config))
    }

    /// Takes any server, as APISIX does with eureka.
    pub(super) fn trusting() -> Self {
        Self::with(client_config(verify::anybody()))
    }

    fn with(tls: Result<Arc<ClientConfig>, String>) -> Self {
        let [asking, waiting] = AT_ONCE.map(Semaphore::new);
        Self { tls, asking, waiting }
    }

    /// Sends one request, when others have their answer. The path is that of the registry, below the
    /// server's own.
    pub(super) async fn ask(
        &self,
        server: &RegistryServer,
        request: Request<'_>,
        waits: Waits,
    ) -> Result<Said, RegistryError> {
        // Nobody closes the semaphore.
        let _permit = self.asking.acquire().await;
        self.send(server, request, waits).await
    }

    /// What one needs for a request that waits for a change; `None` while many wait.
    pub(super) fn place(&self) -> Option<Place<'_>> {
        self.waiting.try_acquire().ok().map(|permit| Place { client: self, _permit: permit })
    }

    async fn send(
        &self,
        server: &RegistryServer,
        request: Request<'_>,
        waits: Waits,
    ) -> Result<Said, RegistryError> {
        let explain = |why: &dyn std::fmt::Display| RegistryError(format!("{server}: {why}"));
        let secure = self.secure(server).map_err(|why| explain(&why))?;
        let path = format!("{}{}", server.path, request.path);
        let request = Request { path: &path, ..request };
        let limits = Limits { connect: waits.connect, answer: waits.answer, body: MAX_ANSWER };
        let answer = http::ask(To::Host(&server.host, server.port), secure.as_ref(), request, limits).await;
        let answer = answer.map_err(|error| explain(&error))?;
        let (status, headers, body) = (answer.status, answer.headers, answer.body);
        Ok(Said { status, headers, body, server: server.to_string() })
    }

    fn secure(&self, server: &RegistryServer) -> Result<Option<Secure>, String> {
        if !server.tls {
            return Ok(None);
        }
        let config = self.tls.clone()?;
        let name = ServerName::try_from(server.host.to_string());
        let name = name.map_err(|_| format!("{:?} is no server name for TLS", server.host))?;
        Ok(Some(Secure { config, name }))
    }
}

/// A place among the requests that wait.
pub(super) struct Place<'a> {
    client: &'a Client,
    _permit: SemaphorePermit<'a>,
}

impl Place<'_> {
    /// Sends one request that the server may hold.
    pub(super) async fn ask(
        self,
        server: &RegistryServer,
        request: Request<'_>,
        waits: Waits,
    ) -> Result<Said, RegistryError> {
        self.client.send(server, request, waits).await
    }
}

fn bundle(path: &Path) -> Result<Arc<dyn rustls::client::danger::ServerCertVerifier>, String> {
    let shown = path.display();
    let explain = |error| format!("the CA bundle {shown} cannot be read: {error}");
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(explain)?.collect();
    verify::bundle(found.map_err(explain)?).map_err(|why| format!("the CA bundle {shown} {why}"))
}

fn client_config(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// What a server said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    body: bytes::Bytes,
    /// Who said it.
    server: String,
}

impl Said {
    /// The answer, which must be good and JSON.
    pub(super) fn json(&self) -> Result<Value, RegistryError> {
        let server = &self.server;
        match self.status {
            200 => serde_json::from_slice(&self.body)
                .map_err(|error| RegistryError(format!("{server} answers what is no JSON: {error}"))),
            401 | 403 => Err(RegistryError(format!(
                "{server} refuses with status {}; check the token or the user and password in config.yaml",
                self.status
            ))),
            404 => Err(RegistryError(format!(
                "{server} answers with status 404; it may be no such registry, or have another prefix"
            ))),
            other => Err(RegistryError(format!("{server} answers with status {other}"))),
        }
    }

    /// An error about what the answer says.
    pub(super) fn odd(&self, why: &str) -> RegistryError {
        RegistryError(format!("{} answers what cannot be used: {why}", self.server))
    }
}

/// Whose turn it is among the servers: whoever answered last, then the others in their order.
#[derive(Debug)]
pub(super) struct Turn {
    first: usize,
    count: usize,
}

impl Turn {
    /// Begins anywhere, so that not every gateway asks the first server.
    pub(super) fn new(servers: &[RegistryServer]) -> Self {
        let count = servers.len();
        Self { first: rand::random_range(0..count.max(1)), count }
    }

    /// The places of all servers, each once.
    pub(super) fn round(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (self.first, self.count);
        (0..count).map(move |step| (first + step) % count)
    }

    /// The server at this place comes first from now on.
    pub(super) fn stay(&mut self, place: usize) {
        self.first = place;
    }

    /// The place of the server that comes first.
    pub(super) fn first(&self) -> usize {
        self.first
    }
}

/// A registry that each of its servers can answer for, asked from time to time.
pub(super) trait Polled: Send + Sync {
    /// What the server at this place says.
    fn query(&self, place: usize) -> impl Future<Output = Result<Vec<Node>, RegistryError>> + Send;
    /// Which server comes first.
    fn turn(&mut self) -> &mut Turn;
    /// How long an answer is good.
    fn interval(&self) -> Duration;
}

/// Asks servers one after the other until one answers.
pub(super) async fn poll(polled: &mut impl Polled) -> Result<Found, RegistryError> {
    let mut failures = Vec::new();
    for place in polled.turn().round() {
        match polled.query(place).await {
            Ok(nodes) => {
                polled.turn().stay(place);
                return Ok(Found { nodes, again: spread(polled.interval()) });
            }
            Err(error) => failures.push(error),
        }
    }
    Err(all(&failures))
}

/// What went wrong at each server.
pub(super) fn all(failures: &[RegistryError]) -> RegistryError {
    let told: Vec<String> = failures.iter().map(ToString::to_string).collect();
    RegistryError(told.join("; "))
}

/// When to poll again: a little sooner than asked for, so that not all services are polled at once.
pub(super) fn spread(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + rand::random::<f64>() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_begins_with_who_answered() {
        let mut turn = Turn { first: 0, count: 3 };
        turn.stay(2);
        assert_eq!(turn.round().collect::<Vec<_>>(), [2, 0, 1]);
    }
}
