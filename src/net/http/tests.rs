//! Requests against servers that say exactly what a case says, on loopback.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::certs::verify;
use crate::resource::provider;

const LIMITS: Limits =
    Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10), body: 1 << 20 };

/// Reads what ends with `until`, answers `reply` and closes. Gives what was read.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, until: &str, reply: &[u8]) -> String {
    let (mut heard, mut piece) = (Vec::new(), [0; 1024]);
    while !heard.ends_with(until.as_bytes()) {
        match stream.read(&mut piece).await {
            Ok(length) if length > 0 => heard.extend_from_slice(&piece[..length]),
            _ => break,
        }
    }
    // A client that has what it needs may be gone.
    let _ = stream.write_all(reply).await;
    String::from_utf8(heard).unwrap()
}

/// A server for one connection.
async fn server(until: &'static str, reply: impl Into<Vec<u8>>) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, reply) = (listener.local_addr().unwrap(), reply.into());
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        converse(stream, until, &reply).await
    });
    (addr, task)
}

async fn get(reply: impl Into<Vec<u8>>, limits: Limits) -> Result<Answer, HttpError> {
    let (addr, _task) = server("\r\n\r\n", reply).await;
    ask(To::Addr(addr), None, Request::get("/", &[]), limits).await
}

#[track_caller]
fn check(reply: &'static [u8], expected: Result<(u16, &'static str), &'static str>) -> impl Future {
    let caller = std::panic::Location::caller();
    async move {
        let found = match get(reply, Limits { body: 8, ..LIMITS }).await {
            Ok(answer) => Ok((answer.status, String::from_utf8(answer.body.to_vec()).unwrap())),
            Err(error) => Err(error.to_string()),
        };
        match (&found, expected) {
            (Ok((status, body)), Ok(expected)) => assert_eq!((*status, &**body), expected, "{caller}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{caller}: {error}"),
            _ => panic!("{caller}: {found:?} and not {expected:?}"),
        }
    }
}

#[tokio::test]
async fn answers_are_read_in_each_framing() {
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Ok((200, "abc"))).await;
    check(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        Ok((200, "abc")),
    )
    .await;
    check(b"HTTP/1.0 404 Nope\r\n\r\nuntil the", Err("more than 8 bytes")).await;
    check(b"HTTP/1.0 404 Nope\r\n\r\nthe end", Ok((404, "the end"))).await;
    check(b"HTTP/1.1 204 No Content\r\n\r\n", Ok((204, ""))).await;
    check(b"HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n", Ok((500, ""))).await;
    check(b"HTTP/1.1 200 OK\r\nno header\r\nContent-Length : 2\r\n\r\nok", Ok((200, "ok"))).await;
    check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ok((200, "ok")))
        .await;
}

#[tokio::test]
async fn what_is_no_answer_is_told_apart() {
    let closed = Err("closed the connection before its answer was complete");
    check(b"", closed).await;
    check(b"HTTP/1.1 200 OK\r\nContent-Le", closed).await;
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", closed).await;
    check(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab", closed).await;
    check(b"SSH-2.0-OpenSSH_9.2\r\n", Err("is not HTTP/1.1")).await;
    check(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", Err("is not HTTP/1.1")).await;
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789", Err("more than 8 bytes")).await;
    check(b"\x15\x03\x01\x00\x02\x02\x46", Err("is not HTTP/1.1")).await;
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let mut reply = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
    reply.resize(4 * MAX_HEAD, b'x');
    assert!(matches!(get(reply, LIMITS).await, Err(HttpError::NotHttp(_))));
}

#[tokio::test]
async fn a_request_says_what_the_caller_says() {
    let (addr, task) = server("body", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let headers = [("Host", "other"), ("X-Token", "a b"), ("x-token", "c")];
    let request = Request { method: "PROPFIND", path: "/a?b=%20c", headers: &headers, body: b"the body" };
    assert_eq!(status(To::Addr(addr), None, request, LIMITS).await.unwrap(), 200);
    let heard = task.await.unwrap();
    let lines: Vec<_> = heard.split("\r\n").collect();
    assert_eq!(lines.first(), Some(&"PROPFIND /a?b=%20c HTTP/1.1"), "{heard}");
    for line in ["Host: other", "X-Token: a b", "X-Token: c", "Connection: close", "Content-Length: 8"] {
        assert_eq!(lines.iter().filter(|it| **it == line).count(), 1, "{line} in {heard}");
    }
    assert!(heard.ends_with("\r\n\r\nthe body"), "{heard}");
}

#[tokio::test]
async fn a_host_is_named_as_it_was_given() {
    let (addr, task) = server("\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n").await;
    let to = To::Host("localhost", addr.port());
    assert_eq!(status(to, None, Request::get("/", &[]), LIMITS).await.unwrap(), 200);
    let heard = task.await.unwrap();
    assert!(heard.contains(&format!("\r\nHost: localhost:{}\r\n", addr.port())), "{heard}");
    assert_eq!(To::Host("::1", 80).to_string(), "[::1]:80");
}

#[tokio::test]
async fn a_status_needs_no_body() {
    // Ten bytes are announced and none comes.
    let (addr, _task) = server("\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
    assert_eq!(status(To::Addr(addr), None, Request::get("/", &[]), LIMITS).await.unwrap(), 200);
}

#[tokio::test]
async fn a_request_that_is_none_is_not_sent() {
    let to = To::Host("127.0.0.1", 1);
    let odd_header = [("x", "secret\n")];
    for (request, named) in [
        (Request { method: "G T", ..Request::get("/", &[]) }, "HTTP method"),
        (Request::get("no-slash", &[]), "no-slash"),
        (Request::get("/a b", &[]), "/a b"),
        (Request::get("/", &[("a b", "")]), "header name"),
        (Request::get("/", &odd_header), "header x"),
    ] {
        let error = status(to, None, request, LIMITS).await.unwrap_err();
        assert!(matches!(error, HttpError::Request(_)), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(named) && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn nothing_listening_is_an_error_of_connecting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let error = status(To::Addr(addr), None, Request::get("/", &[]), LIMITS).await.unwrap_err();
    assert!(matches!(&error, HttpError::Connect(io) if io.kind() == io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn silence_ends_with_the_deadline_of_its_step() {
    let short = Duration::from_millis(50);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let limits = Limits { answer: short, ..LIMITS };
    let error = status(To::Addr(addr), None, Request::get("/", &[]), limits).await.unwrap_err();
    assert!(matches!(error, HttpError::AnswerTimedOut(limit) if limit == short), "{error:?}");
    // A body that stops is no answer either.
    let serving = tokio::spawn(async move {
        let (_silent, (mut stream, _)) = (listener.accept().await, listener.accept().await.unwrap());
        converse(&mut stream, "\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
        stream
    });
    let error = ask(To::Addr(addr), None, Request::get("/", &[]), limits).await.unwrap_err();
    assert!(matches!(error, HttpError::AnswerTimedOut(_)), "{error:?}");
    drop(serving.await.unwrap());
    // TLS belongs to connecting.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = Limits { connect: short, ..LIMITS };
    let to = To::Addr(listener.local_addr().unwrap());
    let error = status(to, Some(&trusting(&[])), Request::get("/", &[]), limits).await.unwrap_err();
    assert!(matches!(error, HttpError::ConnectTimedOut(_)), "{error:?}");
}

/// TLS for `localhost` that believes these certificates; anybody where there are none.
fn trusting(certificates: &[rustls::pki_types::CertificateDer<'static>]) -> Secure {
    let verifier = match certificates {
        [] => verify::anybody(),
        some => verify::bundle(some.to_vec()).unwrap(),
    };
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Secure { config: Arc::new(config), name: ServerName::try_from("localhost").unwrap() }
}

#[tokio::test]
async fn https_is_spoken_with_whom_the_configuration_believes() {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                converse(stream, "\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    });
    let get = async |secure: Secure| ask(To::Addr(addr), Some(&secure), Request::get("/", &[]), LIMITS).await;
    assert_eq!(get(trusting(&[issued.cert.der().clone()])).await.unwrap().body, "ok");
    let error = get(trusting(&[other.cert.der().clone()])).await.unwrap_err();
    assert!(matches!(error, HttpError::Tls(_)), "{error:?}");
}

#[test]
fn what_is_no_letter_is_encoded() {
    assert_eq!(encoded("a-b_c.d~e@@f/g?h&i=j k"), "a-b_c.d~e%40%40f%2Fg%3Fh%26i%3Dj%20k");
    assert_eq!(encoded("ä"), "%C3%A4");
}

#[tokio::test]
async fn interim_answers_do_not_go_on_for_ever() {
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1 << 16);
    let error = get(endless, Limits { body: 0, ..LIMITS }).await.unwrap_err();
    assert!(error.to_string().contains("more came than any answer needs"), "{error}");
}
