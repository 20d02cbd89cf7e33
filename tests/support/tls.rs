//! Certificates, clients that speak TLS and nodes that do. Include it beside `binary` with
//! `#[path = "support/tls.rs"] mod tls;`.
//!
//! ```ignore
//! let authority = Authority::new("root");
//! let pair = authority.issue(&["a.test"]);           // ECDSA, good for years
//! let client = Client::default().config();           // believes anybody, as the test looks itself
//! let mut session = shake_hands(address, Some("a.test"), &client).unwrap();
//! assert!(pair.is_shown_by(&session));
//! ```
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientSessionStore, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, ServerConfig,
    ServerConnection, StreamOwned, SupportedProtocolVersion,
};
use serde_json::{Value, json};

use crate::binary::{Gateway, PATIENCE, Setup};
use crate::peers::{connect, echo};

/// What signs.
#[derive(Clone, Copy, Debug)]
pub enum Algorithm {
    Rsa,
    Ecdsa,
    Ed25519,
}

/// A certificate and its key, in PEM; the chain up to the authority stands behind the certificate.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Pair {
    /// The certificate itself.
    pub fn leaf(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).map(Result::unwrap).collect()
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// The server of this session has shown it.
    pub fn is_shown_by(&self, session: &Session) -> bool {
        session.conn.peer_certificates().is_some_and(|shown| shown[0] == self.leaf())
    }

    /// Both as files, whose names are given back.
    pub fn files(&self, folder: &std::path::Path, name: &str) -> [String; 2] {
        [("cert", &self.cert), ("key", &self.key)].map(|(kind, text)| {
            let path: PathBuf = folder.join(format!("{name}.{kind}"));
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        })
    }
}

/// Who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// In PEM; of one that another authority has signed its own alone.
    pub pem: String,
    /// What stands between it and the root, itself first.
    between: String,
}

impl Authority {
    /// A root.
    pub fn new(name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem, between: String::new() }
    }

    /// One below this.
    pub fn below(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let between = format!("{pem}{}", self.between);
        Self { issuer: Issuer::new(params, key), pem, between }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// A certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, Algorithm::Ecdsa, |_| ())
    }

    /// One that is over since 2020.
    pub fn issue_expired(&self, names: &[&str]) -> Pair {
        self.issue_with(names, Algorithm::Ecdsa, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    /// One whose key is of a kind, changed before it is signed.
    pub fn issue_with(
        &self,
        names: &[&str],
        algorithm: Algorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let key = match algorithm {
            Algorithm::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Algorithm::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Algorithm::Ed25519 => KeyPair::generate_for(&PKCS_ED25519),
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (key, mut params) = (key.unwrap(), CertificateParams::new(names.clone()).unwrap());
        params.distinguished_name.push(DnType::CommonName, names.concat());
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: format!("{}{}", cert.pem(), self.between), key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }
}

/// A certificate object for these names.
pub fn ssl(id: &str, names: &[&str], pair: &Pair) -> Value {
    json!({"id": id, "snis": names, "cert": pair.cert, "key": pair.key})
}

/// One listen that terminates TLS and one route to an upstream that answers `A`.
pub fn terminating(ssls: &[Value]) -> Setup {
    let upstream = json!({"nodes": {echo("A").to_string(): 1}});
    let objects = json!({"stream_routes": [{"id": "r1", "upstream": upstream}], "ssls": ssls});
    Setup { listens: vec!["tls: true"], ..Setup::objects(&objects) }
}

/// Handshakes with clients that failed for this reason.
pub fn failures(gateway: &Gateway, reason: &str) -> Option<f64> {
    gateway.metric(&format!("streamgate_tls_handshake_failures_total{{reason=\"{reason}\"}}"))
}

/// Sessions that ended so before they had a route, by the client's doing.
pub fn unrouted(gateway: &Gateway, end: &str) -> Option<f64> {
    gateway.metric(&format!("streamgate_connections_total{{route=\"\",end=\"{end}\",side=\"client\"}}"))
}

/// Handshakes with clients that were good: `full` or `resumed`.
pub fn handshakes(gateway: &Gateway, kind: &str) -> Option<f64> {
    gateway.metric(&format!("streamgate_tls_handshakes_total{{kind=\"{kind}\"}}"))
}

/// What a client offers and believes.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub versions: &'static [&'static SupportedProtocolVersion],
    pub alpn: &'a [&'a str],
    /// Certificates of others are refused; absent, all are good.
    pub believes: Option<&'a Authority>,
    /// Its certificate.
    pub shows: Option<&'a Pair>,
}

/// The versions of a client.
pub const ONLY_TLS12: &[&SupportedProtocolVersion] = &[&TLS12];
pub const ONLY_TLS13: &[&SupportedProtocolVersion] = &[&TLS13];

impl Default for Client<'_> {
    fn default() -> Self {
        Self { versions: rustls::ALL_VERSIONS, alpn: &[], believes: None, shows: None }
    }
}

impl Client<'_> {
    /// It keeps its sessions: one that shall not resume needs a configuration of its own.
    pub fn config(self) -> Arc<ClientConfig> {
        self.keeping(Resumption::in_memory_sessions(8))
    }

    /// Its sessions are kept there.
    pub fn keeping_in(self, store: Arc<dyn ClientSessionStore>) -> Arc<ClientConfig> {
        self.keeping(Resumption::store(store))
    }

    fn keeping(self, resumption: Resumption) -> Arc<ClientConfig> {
        let verifier: Arc<dyn ServerCertVerifier> = match self.believes {
            Some(authority) => {
                WebPkiServerVerifier::builder_with_provider(authority.roots(), provider()).build().unwrap()
            }
            None => streamgate::certs::verify::anybody(),
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match self.shows {
            Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.private_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.resumption = resumption;
        Arc::new(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A client's session.
pub type Session = StreamOwned<ClientConnection, TcpStream>;

/// A new client connection; without a name it names no server.
pub fn connection(name: Option<&str>, config: &Arc<ClientConfig>) -> ClientConnection {
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned()).unwrap(),
        None => ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST)),
    };
    ClientConnection::new(config.clone(), name).unwrap()
}

/// The first bytes such a client sends.
pub fn hello(name: Option<&str>, config: &Arc<ClientConfig>) -> Vec<u8> {
    let (mut connection, mut bytes) = (connection(name, config), Vec::new());
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Connects and shakes hands. A refusal after the client's last word shows at the first read.
pub fn shake_hands(
    address: SocketAddr,
    name: Option<&str>,
    config: &Arc<ClientConfig>,
) -> io::Result<Session> {
    shake_hands_on(connect(address)?, name, config)
}

/// The same on a connection that is there.
pub fn shake_hands_on(
    mut stream: TcpStream,
    name: Option<&str>,
    config: &Arc<ClientConfig>,
) -> io::Result<Session> {
    let mut connection = connection(name, config);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Why a client got no answer: the error of its handshake, or of its first read.
#[track_caller]
pub fn refusal(address: SocketAddr, name: Option<&str>, config: &Arc<ClientConfig>) -> String {
    let heard = shake_hands(address, name, config).and_then(|mut session| crate::peers::talk(&mut session));
    match heard {
        Ok(answer) => panic!("{name:?} was answered by {answer}"),
        Err(error) => error.to_string(),
    }
}

/// A server's side of TLS, which asks clients for certificates of `clients` where there is one.
pub fn server_config(pair: &Pair, clients: Option<&Authority>) -> ServerConfig {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(rustls::ALL_VERSIONS).unwrap();
    let builder = match clients {
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(authority.roots(), provider()).build().unwrap(),
        ),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(pair.chain(), pair.private_key()).unwrap();
    config.ticketer = aws_lc_rs::Ticketer::new().unwrap();
    config
}

/// What a node has learned of one connection.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The first bytes.
    pub hello: Vec<u8>,
    pub sni: Option<String>,
    pub alpn: Option<Vec<u8>>,
    pub version: Option<ProtocolVersion>,
    pub group: Option<NamedGroup>,
    pub resumed: bool,
    /// The certificate of the client.
    pub shown: Option<CertificateDer<'static>>,
}

/// A node that speaks TLS and puts its name before whatever it gets, until the test process ends.
#[derive(Clone, Debug)]
pub struct Node {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Node {
    pub fn start(name: &'static str, config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, config) = (node.seen.clone(), Arc::new(config));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, config) = (seen.clone(), config.clone());
                thread::spawn(move || drop(answer(name, stream, config, &seen)));
            }
        });
        node
    }

    /// The connections whose handshake was good, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last of them.
    #[track_caller]
    pub fn last(&self) -> Seen {
        self.seen().pop().unwrap()
    }
}

fn answer(
    name: &str,
    stream: TcpStream,
    config: Arc<ServerConfig>,
    seen: &Mutex<Vec<Seen>>,
) -> io::Result<()> {
    let mut hello = vec![0; 20_000];
    let length = stream.peek(&mut hello)?;
    hello.truncate(length);
    let mut session = accept_hands(stream, config)?;
    let connection = &session.conn;
    let known = Seen {
        hello,
        sni: connection.server_name().map(str::to_owned),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        version: connection.protocol_version(),
        group: connection.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        shown: connection.peer_certificates().map(|shown| shown[0].clone()),
    };
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(known);
    let mut buffer = vec![0; 65_536];
    loop {
        let length = session.read(&mut buffer)?;
        if length == 0 {
            session.conn.send_close_notify();
            return session.conn.complete_io(&mut session.sock).map(drop);
        }
        session.write_all(&[name.as_bytes(), &buffer[..length]].concat())?;
        session.flush()?;
    }
}

/// Shakes hands as a server.
pub fn accept_hands(
    mut stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// A way to `address` on which everything that comes from there is noted.
pub fn tapped(address: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (here, heard) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
    let notes = heard.clone();
    thread::spawn(move || {
        let (mut client, _) = listener.accept()?;
        let mut server = TcpStream::connect(address)?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || {
            io::copy(&mut from_client, &mut to_server).and_then(|_| to_server.shutdown(Shutdown::Write))
        });
        let mut buffer = [0; 4096];
        loop {
            let length = server.read(&mut buffer)?;
            if length == 0 {
                return client.shutdown(Shutdown::Write);
            }
            notes.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..length]);
            client.write_all(&buffer[..length])?;
        }
    });
    (here, heard)
}

/// Type and length of the whole TLS records at the beginning of `bytes`.
pub fn records(mut bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut found = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(next) = rest.get(length..) else { break };
        found.push((*kind, length));
        bytes = next;
    }
    found
}
