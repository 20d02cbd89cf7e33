//! The clients on a server of rustls that notes what it sees.

use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::compare::tls::NAME;
use crate::process::until;

type Stream = StreamOwned<ServerConnection, TcpStream>;

struct Server {
    address: SocketAddr,
    kinds: Arc<Mutex<Vec<HandshakeKind>>>,
}

impl Server {
    /// One that sends so many tickets and serves each connection with `serve`.
    fn start(certificate: &Certificate, tickets: usize, serve: fn(&mut Stream) -> io::Result<()>) -> Self {
        let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der.clone()], key)
            .unwrap();
        config.send_tls13_tickets = tickets;
        let config = Arc::new(config);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let server = Self { address: listener.local_addr().unwrap(), kinds: Arc::default() };
        let kinds = Arc::clone(&server.kinds);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = ServerConnection::new(Arc::clone(&config)).unwrap();
                let (mut stream, kinds) = (StreamOwned::new(session, stream), Arc::clone(&kinds));
                // A client that goes away ends its own session alone.
                thread::spawn(move || {
                    while stream.conn.is_handshaking() {
                        stream.conn.complete_io(&mut stream.sock)?;
                    }
                    kinds.lock().unwrap().extend(stream.conn.handshake_kind());
                    serve(&mut stream)
                });
            }
        });
        server
    }

    fn count(&self, kind: HandshakeKind) -> usize {
        self.kinds.lock().unwrap().iter().filter(|seen| **seen == kind).count()
    }
}

fn echo(stream: &mut Stream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    stream.read(&mut byte).map(drop)
}

fn source(stream: &mut Stream) -> io::Result<()> {
    let chunk = vec![7; PROOF];
    loop {
        stream.write_all(&chunk)?;
    }
}

fn drain(stream: &mut Stream) -> io::Result<()> {
    let mut buffer = vec![0; PROOF];
    let mut had = 0;
    while had < 4 * CHUNK {
        had += stream.read(&mut buffer)?;
    }
    Ok(())
}

/// Runs a load until it has done so many units, or has ended.
fn run(units: u64, load: impl FnOnce(&Progress) -> io::Result<()> + Send) -> io::Result<()> {
    let progress = Progress::default();
    thread::scope(|scope| {
        let load = scope.spawn(|| load(&progress));
        let done = until(Duration::from_secs(10), || {
            let enough = progress.done() >= units || load.is_finished();
            if enough { Ok(()) } else { Err(io::Error::other(format!("{} units", progress.done()))) }
        });
        progress.stop();
        load.join().unwrap()?;
        done
    })
}

#[test]
fn handshakes_are_full_or_resumed_as_asked() {
    let certificate = Certificate::ecdsa(NAME).unwrap();
    let clients = Clients::of(&certificate).unwrap();
    let server = Server::start(&certificate, 2, echo);
    run(100, |progress| clients.handshakes(server.address, progress)).unwrap();
    assert!(server.count(HandshakeKind::Full) >= 100);
    assert_eq!(server.count(HandshakeKind::Resumed), 0);
    run(100, |progress| clients.resumptions(server.address, progress)).unwrap();
    assert!(server.count(HandshakeKind::Resumed) >= 100);
}

#[test]
fn a_server_without_tickets_ends_resumptions() {
    let certificate = Certificate::ecdsa(NAME).unwrap();
    let clients = Clients::of(&certificate).unwrap();
    let server = Server::start(&certificate, 0, echo);
    let error = run(1, |progress| clients.resumptions(server.address, progress)).unwrap_err().to_string();
    assert!(error.contains("instead of Resumed"), "{error}");
}

#[test]
fn another_certificate_of_the_same_name_is_refused() {
    let [own, other] = [(), ()].map(|()| Certificate::ecdsa(NAME).unwrap());
    let server = Server::start(&own, 2, echo);
    assert_eq!(Clients::of(&own).unwrap().hold(server.address, 2).unwrap().len(), 2);
    let error = Clients::of(&other).unwrap().hold(server.address, 2).unwrap_err().to_string();
    assert!(error.contains("another certificate"), "{error}");
}

#[test]
fn a_visit_ends_in_peace() {
    let certificate = Certificate::ecdsa(NAME).unwrap();
    let server = Server::start(&certificate, 2, echo);
    let clients = Clients::of(&certificate).unwrap();
    (0..3).for_each(|_| clients.visit(server.address).unwrap());
    assert_eq!(server.count(HandshakeKind::Full), 3);
}

#[test]
fn bytes_go_both_ways() {
    let certificate = Certificate::ecdsa(NAME).unwrap();
    let clients = Clients::of(&certificate).unwrap();
    let server = Server::start(&certificate, 2, source);
    run(1 << 20, |progress| clients.download(server.address, 2, progress)).unwrap();
    // It ends each connection after a while, which a client notices.
    let server = Server::start(&certificate, 2, drain);
    run(u64::MAX, |progress| clients.upload(server.address, 2, progress)).unwrap_err();
    assert_eq!(server.count(HandshakeKind::Full), 2);
}

#[test]
fn a_hello_is_one_record_with_the_name() {
    let certificate = Certificate::ecdsa(NAME).unwrap();
    let hello = Clients::of(&certificate).unwrap().hello().unwrap();
    // RFC 8446, section 5.1: the type, two bytes of version, two of length.
    assert_eq!(hello[0], 22);
    assert_eq!(usize::from(u16::from_be_bytes([hello[3], hello[4]])) + 5, hello.len());
    assert!(hello.windows(NAME.len()).any(|bytes| bytes == NAME.as_bytes()), "{hello:?}");
}
