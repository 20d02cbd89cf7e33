//! How a certificate object is served.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use crate::resource::{Ssl, Versions, provider};

/// A record's header, which the TLS library counts as part of a fragment (RFC 8446 5.1).
const HEADER: usize = 5;

/// What all certificate objects share.
#[derive(Debug)]
pub struct Crypto {
    /// Makes session tickets of objects that verify no clients; absent where the system has no randomness,
    /// and sessions are not resumed then. Its keys change every six hours and leave with the process.
    tickets: Option<Arc<dyn ProducesTickets>>,
}

impl Default for Crypto {
    fn default() -> Self {
        Self { tickets: Ticketer::new().ok() }
    }
}

/// A certificate object ready for handshakes.
#[derive(Debug)]
pub struct Served {
    /// Its id.
    pub id: Arc<str>,
    /// Clients have to show a certificate.
    pub verifies_clients: bool,
    config: Arc<ServerConfig>,
}

impl Served {
    /// Prepares an object. `None` where the TLS library has no cipher suite for its versions, which
    /// those of [`Versions`] rule out.
    ///
    /// A session of one object must not be resumed by a client that another would verify: objects with
    /// `client` have tickets of their own, new ones whenever they change.
    #[must_use]
    pub fn new(ssl: &Ssl, crypto: &Crypto) -> Option<Self> {
        let builder = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(versions(ssl.versions))
            .ok()?;
        let (builder, tickets) = match &ssl.client {
            Some(auth) => (builder.with_client_cert_verifier(auth.verifier.clone()), Ticketer::new().ok()),
            None => (builder.with_no_client_auth(), crypto.tickets.clone()),
        };
        let keys = ssl.identities.iter().map(|identity| identity.certified().clone()).collect();
        let mut config = builder.with_cert_resolver(Arc::new(Keys(keys)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(tickets) = tickets {
            config.ticketer = tickets;
        }
        Some(Self { id: ssl.id.clone(), verifies_clients: ssl.client.is_some(), config: Arc::new(config) })
    }

    /// What a handshake is made with. `max_fragment` is what the client asked for by
    /// `max_fragment_length` (RFC 6066 4), in bytes: the TLS library does not confirm it, but nothing longer
    /// is sent.
    #[must_use]
    pub fn config(&self, max_fragment: Option<u16>) -> Arc<ServerConfig> {
        match max_fragment {
            None => self.config.clone(),
            Some(most) => {
                let mut config = ServerConfig::clone(&self.config);
                config.max_fragment_size = Some(usize::from(most) + HEADER);
                Arc::new(config)
            }
        }
    }
}

fn versions(allowed: Versions) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match (allowed.tls12, allowed.tls13) {
        (true, true) => &BOTH,
        (true, false) => &BOTH[1..],
        (false, true) => &BOTH[..1],
        (false, false) => &[],
    }
}

/// The pairs of an object. The client's order of signature schemes decides among them, as in OpenSSL
/// without `SSL_OP_CIPHER_SERVER_PREFERENCE`.
#[derive(Debug)]
struct Keys(Box<[Arc<CertifiedKey>]>);

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // One that does not fit is for the TLS library to refuse, which says so better.
        if let [only] = &*self.0 {
            return Some(only.clone());
        }
        let signs = |scheme| move |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(&[scheme]).is_some();
        let mut schemes = hello.signature_schemes().iter();
        let chosen = schemes.find_map(|scheme| self.0.iter().find(signs(*scheme)));
        chosen.or(self.0.first()).cloned()
    }
}
