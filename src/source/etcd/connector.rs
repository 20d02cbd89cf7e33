//! One connection to one endpoint, ready for gRPC.
//!
//! etcd-client's own channel balances over endpoints and reconnects unseen; we must know when a
//! connection ends, because then the cluster behind it may be another. So a channel here is one
//! connection: once broken it stays broken, and the session ends.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::failure::{Failure, chain};
use super::tls;
use crate::config::EtcdConfig;

/// How often the HTTP/2 connection is probed. etcd closes connections that ping more often than
/// every 5 s (`--grpc-keepalive-min-time`).
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long an answer to that probe may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 flow-control windows, so that a full read does not wait for acknowledgements.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// etcd's default client port.
const DEFAULT_PORT: u16 = 2379;

/// A connected byte stream, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type BoxStream = Box<dyn Stream>;

/// An entry of `deployment.etcd.host`, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Target<'a> {
    tls: bool,
    host: &'a str,
    port: u16,
}

/// Connects to `host`, an entry of [`EtcdConfig::hosts`], within `limit`, TLS included.
pub(super) async fn connect(config: &EtcdConfig, host: &str, limit: Duration) -> Result<Channel, Failure> {
    let target = parse(host).map_err(Failure::Connection)?;
    let stream = timeout(limit, dial(config, &target))
        .await
        .map_err(|_| Failure::timeout("connect", limit))?
        .map_err(Failure::Connection)?;
    let explain = |error: tonic::transport::Error| Failure::Connection(chain(&error));
    let endpoint = Endpoint::from_shared(host.to_owned())
        .map_err(explain)?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost = || io::Error::other("the connection was lost");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
    });
    endpoint.connect_with_connector(connector).await.map_err(explain)
}

async fn dial(config: &EtcdConfig, target: &Target<'_>) -> Result<BoxStream, String> {
    let stream = TcpStream::connect((target.host, target.port)).await.map_err(|error| error.to_string())?;
    // A request must not wait for the acknowledgement of the one before.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    if !target.tls {
        return Ok(Box::new(stream));
    }
    let name = config.tls_sni.as_deref().unwrap_or(target.host);
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| format!("{name:?} is no server name; check deployment.etcd.tls.sni"))?;
    let tls = TlsConnector::from(tls::client_config(config)?);
    match tls.connect(server, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(format!("TLS handshake failed for {name}: {error}")),
    }
}

fn parse(endpoint: &str) -> Result<Target<'_>, String> {
    let malformed =
        || format!("{endpoint:?} is no etcd endpoint; write http://host:port or https://host:port");
    let (tls, rest) = match endpoint.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => return Err(malformed()),
    };
    let rest = rest.trim_end_matches('/');
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(malformed)?)),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| malformed())?,
        None => DEFAULT_PORT,
    };
    if host.is_empty() { Err(malformed()) } else { Ok(Target { tls, host, port }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(endpoint: &str, expected: Option<(bool, &str, u16)>) {
        let found = parse(endpoint).ok().map(|target| (target.tls, target.host, target.port));
        assert_eq!(found, expected, "{endpoint}");
    }

    #[test]
    fn endpoints_are_taken_apart() {
        check("http://127.0.0.1:2379", Some((false, "127.0.0.1", 2379)));
        check("https://etcd.example", Some((true, "etcd.example", 2379)));
        check("https://etcd.example:1/", Some((true, "etcd.example", 1)));
        check("http://[::1]:7", Some((false, "::1", 7)));
        check("http://[::1]", Some((false, "::1", 2379)));
        check("etcd:2379", None);
        check("http://", None);
        check("http://a:b", None);
        check("http://[::1]x", None);
    }
}
