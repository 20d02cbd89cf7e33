//! The HTTP/1 server of the pages: which path answers what, and limits that keep any client from
//! hurting the node.
//!
//! A connection has a time to send its request head, lives for a minute and then only to finish its
//! answer; there are at most [`MAX_CONNECTIONS`], and at most [`MAX_PAGES`] pages in memory that are as
//! large as the configuration.
//! No request body is read.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue, ORIGIN, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, control_api, status};
use crate::net::clock::unix_ms;

/// Connections to one server at once; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 256;
/// Large pages of one server that are being written or read at once.
const MAX_PAGES: usize = 4;
/// Pages about one object that are written or read at once.
const MAX_SMALL_PAGES: usize = 16;
/// How long a page waits for its place.
const PLACE: Duration = Duration::from_secs(2);
/// For the head of a request. Short: whoever connects and says nothing holds a place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection may go on asking.
const CONNECTION_LIFE: Duration = Duration::from_mins(1);
/// How long the last answer of a connection may take after that.
const LAST_ANSWER: Duration = Duration::from_secs(30);
/// After a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server answers, besides `/streamgate/status` and `/streamgate/accept-state`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pages {
    /// The path of the metrics (`export_uri`), where this server has them.
    pub metrics: Option<Box<str>>,
    /// `/status` and `/status/ready`.
    pub status: bool,
    /// `/v1/…`: the control API.
    pub control: bool,
}

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// What a request is answered from.
struct Site {
    admin: Arc<Admin>,
    pages: Pages,
    large_pages: Arc<Semaphore>,
    small_pages: Arc<Semaphore>,
}

/// Answers requests on `listener` until `stop`; connections that live then get a moment to finish.
pub async fn serve(listener: TcpListener, pages: Pages, admin: Arc<Admin>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let [large_pages, small_pages] = [MAX_PAGES, MAX_SMALL_PAGES].map(|most| Arc::new(Semaphore::new(most)));
    let site = Arc::new(Site { admin, pages, large_pages, small_pages });
    loop {
        let next = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = next => accepted,
        };
        match accepted {
            (Ok(permit), Ok((stream, peer))) => {
                tokio::spawn(connection(stream, peer, site.clone(), (permit, stop.clone())));
            }
            (_, Err(error)) => {
                site.admin.metrics.accept_errors.increment(1);
                tracing::warn!(%error, "cannot accept a connection to the admin pages; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
            // Nobody closes the semaphore.
            (Err(_), Ok(_)) => return,
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    site: Arc<Site>,
    (_permit, stop): (OwnedSemaphorePermit, CancellationToken),
) {
    let service = service_fn(|request: Request<Incoming>| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(&request, peer).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    // How a client of these pages ends its connection is of no interest.
    tokio::select! {
        _ = serving.as_mut() => return,
        () = sleep(CONNECTION_LIFE) => {}
        () = stop.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = timeout(LAST_ANSWER, serving).await;
}

impl Site {
    async fn answer<B>(&self, request: &Request<B>, peer: SocketAddr) -> Answer {
        let path = request.uri().path();
        let reading = matches!(*request.method(), Method::GET | Method::HEAD);
        if path == "/streamgate/accept-state" {
            return if *request.method() == Method::POST {
                self.accept_state(request, peer)
            } else {
                not_allowed("POST")
            };
        }
        let metrics = self.pages.metrics.as_deref() == Some(path);
        let control = self.pages.control && control_api::is_known(path);
        let known = metrics
            || control
            || path == "/streamgate/status"
            || (self.pages.status && matches!(path, "/status" | "/status/ready"));
        match path {
            _ if !known => plain(StatusCode::NOT_FOUND, "no such page\n".into()),
            _ if !reading => not_allowed("GET, HEAD"),
            _ if metrics => self.metrics().await,
            _ if control => self.control(request).await,
            "/status" => json(StatusCode::OK, &status::ok()),
            "/status/ready" => match status::not_ready(&self.admin.state) {
                None => json(StatusCode::OK, &status::ok()),
                Some(why) => json(StatusCode::SERVICE_UNAVAILABLE, &status::error(&why)),
            },
            _ => self.status(),
        }
    }

    async fn metrics(&self) -> Answer {
        let page = |admin: &Admin| (METRICS, StatusCode::OK, admin.metrics_page());
        self.written(&self.large_pages, page).await
    }

    async fn control<B>(&self, request: &Request<B>) -> Answer {
        let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let asked = control_api::Request {
            path: request.uri().path().into(),
            query: request.uri().query().unwrap_or_default().into(),
            html: accept.is_some_and(|accept| accept.contains("text/html")),
        };
        // A list is as large as the configuration, one object is not.
        let one = asked.path.split('/').count() > 3 || asked.path.ends_with("/explain");
        let places = if one { &self.small_pages } else { &self.large_pages };
        let page = move |admin: &Admin| {
            let page = admin.control_page(&asked);
            (if page.html { HTML } else { JSON }, page.status, page.body)
        };
        self.written(places, page).await
    }

    /// A page that is written off the runtime's thread, and holds its place until the last of its bytes has
    /// left.
    async fn written(
        &self,
        places: &Arc<Semaphore>,
        page: impl FnOnce(&Admin) -> (&'static str, StatusCode, String) + Send + 'static,
    ) -> Answer {
        let Ok(Ok(permit)) = timeout(PLACE, places.clone().acquire_owned()).await else {
            let mut busy = plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "other readers have not finished reading this page; ask less often\n".into(),
            );
            busy.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
            return busy;
        };
        let admin = self.admin.clone();
        let written = spawn_blocking(move || {
            let (content_type, status, text) = page(&admin);
            (content_type, status, HeldPage { text, _permit: permit })
        });
        match written.await {
            Ok((content_type, status, page)) => {
                let mut answer = text(content_type, Bytes::from_owner(page));
                *answer.status_mut() = status;
                answer
            }
            Err(error) => {
                plain(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the page: {error}\n"))
            }
        }
    }

    fn status(&self) -> Answer {
        let admin = &self.admin;
        let (snapshot, listens) = (admin.published.load_full(), admin.totals.listens());
        json(StatusCode::OK, &status::page(&admin.state, &snapshot, &listens, unix_ms()))
    }

    /// Only somebody on this machine may; a browser there, led by a page from elsewhere, names that
    /// page's origin.
    fn accept_state<B>(&self, request: &Request<B>, peer: SocketAddr) -> Answer {
        if !peer.ip().to_canonical().is_loopback() || request.headers().contains_key(ORIGIN) {
            let why = "accept-state is only taken from this machine, over a loopback address";
            return json(StatusCode::FORBIDDEN, &status::error(why));
        }
        if self.admin.state.held().is_none() {
            return json(StatusCode::CONFLICT, &status::error("no full read is held back"));
        }
        // A full channel already holds this message.
        let _ = self.admin.accept_state.try_send(());
        json(StatusCode::ACCEPTED, &status::ok())
    }
}

struct HeldPage {
    text: String,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldPage {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

fn json(code: StatusCode, value: &Value) -> Answer {
    let mut answer = text(JSON, format!("{value}\n").into());
    *answer.status_mut() = code;
    answer
}

fn plain(code: StatusCode, body: String) -> Answer {
    let mut answer = text("text/plain; charset=utf-8", body.into());
    *answer.status_mut() = code;
    answer
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn text(content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;
    use crate::admin::tests::{admin, hold, state};

    struct Running {
        addr: SocketAddr,
        admin: Arc<Admin>,
        accepted: mpsc::Receiver<()>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn running() -> Running {
        let (admin, accepted) = admin();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let pages = Pages { metrics: Some("/apisix/prometheus/metrics".into()), status: true, control: true };
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, pages, admin.clone(), stop.clone()));
        Running { addr, admin, accepted, stop, task }
    }

    impl Running {
        /// Sends a request as it stands and reads to the end.
        async fn ask(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.addr).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            answer
        }

        #[track_caller]
        fn check(&self, request: &str, status: &str, contains: &str) -> impl Future<Output = ()> {
            let caller = std::panic::Location::caller();
            let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            async move {
                let answer = self.ask(&request).await;
                let first = answer.lines().next().unwrap_or_default();
                assert_eq!(first, format!("HTTP/1.1 {status}"), "{caller}: {answer}");
                assert!(answer.contains(contains), "{caller}: no `{contains}` in {answer}");
            }
        }
    }

    #[tokio::test]
    async fn each_path_answers_as_it_should() {
        let node = running().await;
        let metrics = "/apisix/prometheus/metrics";
        node.check(&format!("GET {metrics}"), "200 OK", "\nstreamgate_ready 0\n").await;
        node.check(&format!("GET {metrics}"), "200 OK", "text/plain; version=0.0.4").await;
        node.check(&format!("POST {metrics}"), "405 Method Not Allowed", "allow: GET, HEAD").await;
        node.check("GET /metrics", "404 Not Found", "no such page").await;
        node.check("GET /status", "200 OK", r#"{"status":"ok"}"#).await;
        node.check("GET /streamgate/status", "200 OK", r#""kind":"etcd""#).await;
        node.check("GET /v1/healthcheck", "200 OK", "application/json").await;
        node.check("GET /v1/healthcheck HTTP/1.1\r\nAccept: text/html", "200 OK", "text/html").await;
        node.check("GET /v1/healthcheck/upstreams/u", "404 Not Found", "upstreams[u] not found").await;
        node.check("GET /v1/nope", "404 Not Found", "no such page").await;
        node.check("POST /v1/upstreams", "405 Method Not Allowed", "allow: GET, HEAD").await;
        node.check("GET /streamgate/accept-state", "405 Method Not Allowed", "allow: POST").await;
    }

    #[tokio::test]
    async fn ready_is_an_error_of_apisix_shape_until_a_state_serves() {
        let node = running().await;
        let why = r#"{"status":"error","error":"no configuration has been received from etcd yet"}"#;
        node.check("GET /status/ready", "503 Service Unavailable", why).await;
        state(&node.admin).set_ready();
        node.check("GET /status/ready", "200 OK", r#"{"status":"ok"}"#).await;
    }

    #[tokio::test]
    async fn head_has_no_body() {
        let node = running().await;
        let request = "HEAD /apisix/prometheus/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = node.ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn accept_state_reaches_its_channel_only_while_a_read_is_held() {
        let mut node = running().await;
        node.check("POST /streamgate/accept-state", "409 Conflict", "no full read is held back").await;
        assert!(node.accepted.try_recv().is_err());
        hold(&node.admin);
        node.check("POST /streamgate/accept-state HTTP/1.1\r\nOrigin: http://e", "403 Forbidden", "").await;
        assert!(node.accepted.try_recv().is_err());
        node.check("POST /streamgate/accept-state", "202 Accepted", "ok").await;
        assert!(node.accepted.try_recv().is_ok());
    }

    #[tokio::test]
    async fn accept_state_is_refused_to_other_machines() {
        let (admin, _accepted) = admin();
        hold(&admin);
        let [large_pages, small_pages] = [1, 1].map(|most| Arc::new(Semaphore::new(most)));
        let site = Site { admin, pages: Pages::default(), large_pages, small_pages };
        let request = Request::builder().method("POST").uri("/streamgate/accept-state").body(()).unwrap();
        for (peer, code) in [
            ("10.0.0.1:5", StatusCode::FORBIDDEN),
            ("[2001:db8::1]:5", StatusCode::FORBIDDEN),
            ("127.0.0.1:5", StatusCode::ACCEPTED),
            ("[::ffff:127.0.0.1]:5", StatusCode::ACCEPTED),
        ] {
            assert_eq!(site.answer(&request, peer.parse().unwrap()).await.status(), code, "{peer}");
        }
    }

    #[tokio::test]
    async fn pages_that_nobody_reads_do_not_pile_up() {
        let (admin, _accepted) = admin();
        let [large_pages, small_pages] = [MAX_PAGES; 2].map(|most| Arc::new(Semaphore::new(most)));
        let site = Site { admin, pages: Pages::default(), large_pages, small_pages };
        let mut unread = Vec::new();
        for _ in 0..MAX_PAGES {
            unread.push(site.metrics().await);
        }
        assert_eq!(site.metrics().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        unread.pop();
        assert_eq!(site.metrics().await.status(), StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_cut_off() {
        let node = running().await;
        let mut stream = TcpStream::connect(node.addr).await.unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nHo").await.unwrap();
        let mut answer = Vec::new();
        // The paused clock runs ahead to the deadlines of both sides; the server's is the nearer one.
        let limit = HEAD_TIMEOUT * 3;
        timeout(limit, stream.read_to_end(&mut answer)).await.expect("still open").unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn stopping_ends_the_server() {
        let node = running().await;
        node.stop.cancel();
        timeout(Duration::from_secs(10), node.task).await.unwrap().unwrap();
    }
}
