//! Clients over TLS: each method is one kind of load on a proxy.
//!
//! All of them offer TLS 1.3 (RFC 8446), AES-128-GCM and X25519 and nothing else, so that every proxy does
//! the same cryptography. They take the one certificate that was made for the round, byte by byte, and check
//! no signature: that would cost the load's core only. A handshake of the wrong kind ends the load.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme};

use crate::certificate::Certificate;
use crate::compare::client::{self, CLIENTS, Progress, Waiting, connect, discard};
use crate::gateway::LIMIT;

/// What each connection of a download decrypts before it discards the rest unread.
const PROOF: usize = 64 * 1024;
/// Bytes of one write of an upload: eight records of the largest size.
const CHUNK: usize = 8 * 16_384;
/// Tickets that a client keeps: OpenSSL and rustls send two after a full handshake.
const TICKETS: usize = 2;

/// Clients that know the certificate of the proxies.
#[derive(Clone, Debug)]
pub struct Clients {
    full: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Clients {
    /// Clients of the proxies that have this certificate.
    pub fn of(certificate: &Certificate) -> io::Result<Self> {
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let mut full = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Known { der: certificate.der.clone(), schemes }))
            .with_no_client_auth();
        full.resumption = Resumption::disabled();
        let name = ServerName::try_from(certificate.name.clone()).map_err(io::Error::other)?;
        Ok(Self { full: Arc::new(full), name })
    }

    /// Connect, full handshake, a byte each way, close: several at a time, again and again.
    pub fn handshakes(&self, proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
        let configs = vec![Arc::clone(&self.full); CLIENTS];
        self.churn(proxy, &configs, HandshakeKind::Full, progress)
    }

    /// The same with handshakes that resume: each connection uses a ticket of the one before it.
    pub fn resumptions(&self, proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
        let mut configs = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            let mut config = ClientConfig::clone(&self.full);
            config.resumption = Resumption::in_memory_sessions(TICKETS);
            let config = Arc::new(config);
            self.open(proxy, &config)?.exchange()?;
            configs.push(config);
        }
        self.churn(proxy, &configs, HandshakeKind::Resumed, progress)
    }

    /// One connection after another for each of these configurations.
    fn churn(
        &self,
        proxy: SocketAddr,
        configs: &[Arc<ClientConfig>],
        kind: HandshakeKind,
        progress: &Progress,
    ) -> io::Result<()> {
        let mut waiting = Waiting::new()?;
        let open = |waiting: &Waiting, index, config| {
            let client = self.open(proxy, config)?;
            waiting.add(&client.stream, index)?;
            io::Result::Ok(client)
        };
        let all = configs.iter().enumerate();
        let mut clients: Vec<_> =
            all.map(|(index, config)| open(&waiting, index, config)).collect::<io::Result<_>>()?;
        while progress.goes_on() {
            let ready: Vec<usize> = waiting.ready()?.collect();
            for index in ready {
                let (Some(client), Some(config)) = (clients.get_mut(index), configs.get(index)) else {
                    continue;
                };
                if !client.turn()? {
                    continue;
                }
                client.check(kind)?;
                client.say_goodbye()?;
                progress.add(1);
                // The old one closes as it is replaced.
                *client = open(&waiting, index, config)?;
            }
        }
        Ok(())
    }

    /// So many connections on each of which a byte went each way.
    pub fn hold(&self, proxy: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
        client::several(count, || {
            let mut client = self.open(proxy, &self.full)?;
            client.exchange()?;
            // What rustls knows of the connection is of no use to who never says anything more.
            Ok(client.stream)
        })
    }

    /// All that comes over so many connections. Each decrypts a part and discards the rest in the kernel.
    pub fn download(&self, proxy: SocketAddr, connections: usize, progress: &Progress) -> io::Result<()> {
        let open = || {
            let mut client = self.open(proxy, &self.full)?;
            client.read_some(PROOF)?;
            Ok(client.stream)
        };
        discard(&client::several(connections, open)?, progress)
    }

    /// As much as can be sent over so many connections, each on a thread of its own.
    pub fn upload(&self, proxy: SocketAddr, connections: usize, progress: &Progress) -> io::Result<()> {
        let clients = client::several(connections, || self.open(proxy, &self.full))?;
        let send = |mut client: Client| {
            client.stream.set_write_timeout(Some(LIMIT))?;
            client.session.set_buffer_limit(None);
            client.shake_hands()?;
            let chunk = vec![7; CHUNK];
            while progress.goes_on() {
                client.session.writer().write_all(&chunk)?;
                client.flush()?;
            }
            io::Result::Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> =
                clients.into_iter().map(|client| scope.spawn(move || send(client))).collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
            })
        })
    }

    /// One connection from its beginning to its end: full handshake, a byte and its answer, and both ends
    /// close.
    pub fn visit(&self, proxy: SocketAddr) -> io::Result<()> {
        let mut client = self.open(proxy, &self.full)?;
        client.exchange()?;
        client.say_goodbye()?;
        client.stream.shutdown(Shutdown::Write)?;
        // What still comes is the rest of the answer, and the proxy's goodbye.
        io::copy(&mut client.stream, &mut io::sink()).map(drop)
    }

    /// The record with the ClientHello that a connection would begin with.
    pub fn hello(&self) -> io::Result<Vec<u8>> {
        let mut session = self.session(&self.full)?;
        let mut hello = Vec::new();
        session.write_tls(&mut hello)?;
        Ok(hello)
    }

    /// Connects and sends the ClientHello; the byte to be echoed follows as soon as it may.
    fn open(&self, proxy: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Client> {
        let mut client = Client { stream: connect(proxy)?, session: self.session(config)? };
        client.session.writer().write_all(b"?")?;
        client.flush()?;
        Ok(client)
    }

    fn session(&self, config: &Arc<ClientConfig>) -> io::Result<ClientConnection> {
        ClientConnection::new(Arc::clone(config), self.name.clone()).map_err(io::Error::other)
    }
}

struct Client {
    stream: TcpStream,
    session: ClientConnection,
}

impl Client {
    /// Takes what has come and sends what that leads to; whether the echoed byte was there.
    fn turn(&mut self) -> io::Result<bool> {
        self.receive()?;
        match self.session.reader().read(&mut [0]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        if self.session.read_tls(&mut self.stream)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.session.process_new_packets().map_err(io::Error::other)?;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    /// Waits for the echoed byte.
    fn exchange(&mut self) -> io::Result<()> {
        while !self.turn()? {}
        Ok(())
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        while self.session.is_handshaking() {
            self.receive()?;
        }
        Ok(())
    }

    /// Decrypts so many bytes at least.
    fn read_some(&mut self, least: usize) -> io::Result<()> {
        let mut buffer = vec![0; least];
        let mut had = 0;
        while had < least {
            self.receive()?;
            loop {
                match self.session.reader().read(&mut buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(length) => had += length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn check(&self, wanted: HandshakeKind) -> io::Result<()> {
        match self.session.handshake_kind() {
            Some(kind) if kind == wanted => Ok(()),
            other => Err(io::Error::other(format!(
                "a handshake was {other:?} instead of {wanted:?}; does the proxy send tickets, and take them back?"
            ))),
        }
    }

    fn say_goodbye(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush()
    }
}

/// Takes one certificate and no other.
#[derive(Debug)]
struct Known {
    der: CertificateDer<'static>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.der {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("the proxy has another certificate than it was given".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests;
