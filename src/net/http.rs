//! One HTTP/1.1 request on a connection of its own: what registries and health probes are asked with.
//!
//! A connection is made, one request is sent, the answer is read, the connection is closed: nothing is
//! kept for another request. Each step has the caller's deadline, and what went wrong is told apart,
//! because a server that refuses means something else to an operator than one that keeps silent. An
//! answer is whatever its status is; what a status means is the caller's to say. Limits hold what a
//! server can make us keep: a head of 64 KiB, 100 headers (hyper's own limit), a body of
//! [`Limits::body`] bytes. HTTP/1.1: RFC 9112.

use std::fmt;
use std::fmt::Write as _;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::dial::sentence;

/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum To<'a> {
    /// To this address.
    Addr(SocketAddr),
    /// To a host, by name or address without brackets, and a port. Each address the system finds for
    /// a name is tried in turn.
    Host(&'a str, u16),
}

impl fmt::Display for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// TLS below the request (`https`).
#[derive(Clone, Debug)]
pub struct Secure {
    /// How it is spoken; its ALPN, if it has one, must offer no other protocol than `http/1.1`.
    pub config: Arc<ClientConfig>,
    /// Sent as the server name, and what the certificate is verified for.
    pub name: ServerName<'static>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// Begins with a slash; with its query.
    pub path: &'a str,
    /// Sent as they are; a name may come twice. `Host` and `Connection: close` are added where they are
    /// missing.
    pub headers: &'a [(&'a str, &'a str)],
    /// Empty where the request has none.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A GET without a body.
    #[must_use]
    pub fn get(path: &'a str, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: "GET", path, headers, body: &[] }
    }
}

/// How long a request may take, and how much an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the connection to stand: finding the host's addresses, TCP and TLS.
    pub connect: Duration,
    /// From then on, for the whole answer; for its head where only the status is asked for.
    pub answer: Duration,
    /// The largest body that is read, in bytes.
    pub body: usize,
}

/// An answer with its body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code: 200, 404, …
    pub status: u16,
    /// The headers, by lower-case names.
    pub headers: HeaderMap,
    /// The body without its transfer coding; a content coding is left as it is.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// It cannot be sent: a sentence that names the part.
    #[error("the request cannot be sent: {0}")]
    Request(String),
    /// The host has no address or does not take connections.
    #[error("cannot connect: {}", sentence(.0))]
    Connect(#[source] io::Error),
    /// No connection in time.
    #[error("no connection within {0:?}; the host is down or a firewall drops the packets")]
    ConnectTimedOut(Duration),
    /// The connection stands, and TLS on it failed: a sentence.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// Connected, and no whole answer in time.
    #[error("no answer within {0:?}")]
    AnswerTimedOut(Duration),
    /// The server closed the connection before its answer was complete.
    #[error("the server closed the connection before its answer was complete")]
    Closed,
    /// The connection failed in the middle.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// What came is no HTTP/1 answer: what is wrong with it.
    #[error("the answer is not HTTP/1.1 ({0}); maybe another service listens there, or one that wants TLS")]
    NotHttp(String),
    /// The body has more bytes than the limit.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

/// Sends `request` and reads the whole answer.
pub async fn ask(
    to: To<'_>,
    secure: Option<&Secure>,
    request: Request<'_>,
    limits: Limits,
) -> Result<Answer, HttpError> {
    exchange(to, secure, request, limits, async |response| {
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, limits.body).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(HttpError::TooLarge(limits.body)),
            Err(error) => {
                let explain = |other| HttpError::Io(io::Error::other(other));
                return Err(error.downcast().map_or_else(explain, |error| told_apart(&error)));
            }
        };
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    })
    .await
}

/// Sends `request` and reads no more than the head of the answer: its status.
pub async fn status(
    to: To<'_>,
    secure: Option<&Secure>,
    request: Request<'_>,
    limits: Limits,
) -> Result<u16, HttpError> {
    exchange(to, secure, request, limits, async |response| Ok(response.status().as_u16())).await
}

async fn exchange<T>(
    to: To<'_>,
    secure: Option<&Secure>,
    request: Request<'_>,
    limits: Limits,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, HttpError>,
) -> Result<T, HttpError> {
    let request = written(&to, request)?;
    let connected = timeout(limits.connect, connect(to, secure)).await;
    let stream = connected.map_err(|_| HttpError::ConnectTimedOut(limits.connect))??;
    // Interim answers (RFC 9110, 15.2) may come without end; chunks of one byte take six.
    let stream = Bounded { stream, left: limits.body.saturating_mul(6).saturating_add(2 * MAX_HEAD) };
    let answered = async {
        let handshake = builder().handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| told_apart(&error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| told_apart(&error))?;
            read(response).await
        };
        // What ends the connection ends the answer, too; and one that came whole outlives it.
        let connection = async {
            let _ = connection.await;
            pending().await
        };
        tokio::select! {
            // The request waits in the connection before that looks at what a server says unasked: else the
            // request would hear only that the connection is gone.
            biased;
            answer = answer => answer,
            never = pin!(connection) => never,
        }
    };
    timeout(limits.answer, answered).await.map_err(|_| HttpError::AnswerTimedOut(limits.answer))?
}

/// Odd headers are left out: what is asked for is a status, or a body.
fn builder() -> hyper::client::conn::http1::Builder {
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    builder
}

/// The request as hyper sends it.
fn written(to: &To<'_>, request: Request<'_>) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
    let odd = |what: &str, value: &str| HttpError::Request(format!("{value:?} is no {what}"));
    let method =
        Method::from_bytes(request.method.as_bytes()).map_err(|_| odd("HTTP method", request.method))?;
    let path = Some(request.path).filter(|path| path.starts_with('/'));
    let uri = path.and_then(|path| path.parse::<Uri>().ok());
    let uri = uri.ok_or_else(|| odd("path, which begins with a slash", request.path))?;
    let mut ready = hyper::Request::new(Full::new(Bytes::copy_from_slice(request.body)));
    *ready.method_mut() = method;
    *ready.uri_mut() = uri;
    let headers = ready.headers_mut();
    for (name, value) in request.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| odd("header name", name))?;
        // The value may be a secret.
        let value = HeaderValue::from_str(value)
            .map_err(|_| HttpError::Request(format!("the value of header {name} has odd characters")))?;
        headers.append(name, value);
    }
    if !headers.contains_key(HOST) {
        let host = to.to_string();
        let value = HeaderValue::from_str(&host).map_err(|_| odd("host", &host))?;
        headers.insert(HOST, value);
    }
    if !headers.contains_key(CONNECTION) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(ready)
}

/// A stream of which only so many bytes are read.
struct Bounded {
    stream: Box<dyn Stream>,
    left: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other("more came than any answer needs")));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.left = self.left.saturating_sub(buffer.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connected byte stream, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(to: To<'_>, secure: Option<&Secure>) -> Result<Box<dyn Stream>, HttpError> {
    let stream = match to {
        To::Addr(addr) => TcpStream::connect(addr).await,
        To::Host(host, port) => TcpStream::connect((host, port)).await,
    };
    let stream = stream.map_err(HttpError::Connect)?;
    let Some(secure) = secure else { return Ok(Box::new(stream)) };
    match TlsConnector::from(secure.config.clone()).connect(secure.name.clone(), stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(HttpError::Tls(error.to_string())),
    }
}

/// A text as part of a path or query (RFC 3986, 2.1).
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// What an error of hyper's means.
fn told_apart(error: &hyper::Error) -> HttpError {
    if error.is_parse() {
        return HttpError::NotHttp(error.to_string());
    }
    let (mut cause, mut first) = (std::error::Error::source(error), error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::UnexpectedEof => HttpError::Closed,
                kind => HttpError::Io(io::Error::new(kind, io.to_string())),
            };
        }
        first = inner.downcast_ref().unwrap_or(first);
        cause = inner.source();
    }
    if first.is_incomplete_message() || first.is_closed() || first.is_canceled() {
        return HttpError::Closed;
    }
    // Such as a banner that came before the request was sent.
    HttpError::NotHttp(first.to_string())
}

#[cfg(test)]
mod tests;
