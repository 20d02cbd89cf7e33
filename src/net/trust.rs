//! Whom this program believes when it asks others by TLS.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::certs::verify;
use crate::resource::provider;

/// Whom this program believes as a client of servers that are no nodes: those that the bundle of
/// `apisix.ssl.ssl_trusted_certificate` vouches for, or anybody, as whoever asks wants it.
#[derive(Clone)]
pub struct Trust {
    verified: Result<Arc<ClientConfig>, String>,
    anybody: Result<Arc<ClientConfig>, String>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("problem", &self.verified.as_ref().err()).finish_non_exhaustive()
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Trust {
    /// Reads the bundle. What is wrong with it is told to those that need it.
    #[must_use]
    pub fn new(bundle: Option<&Path>) -> Self {
        let verified = match bundle {
            Some(path) => from_bundle(path).map_err(|why| format!("the CA bundle {} {why}", path.display())),
            None => Err("there is no CA bundle; set apisix.ssl.ssl_trusted_certificate".into()),
        };
        Self { verified: verified.and_then(client), anybody: client(verify::anybody()) }
    }

    /// How TLS is spoken with a server whose certificate is verified, or not. The error says what is wrong
    /// with the bundle.
    pub fn towards(&self, verify: bool) -> Result<Arc<ClientConfig>, String> {
        if verify { self.verified.clone() } else { self.anybody.clone() }
    }
}

fn from_bundle(path: &Path) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    verify::bundle(found.map_err(unreadable)?)
}

fn client(verifier: Arc<dyn ServerCertVerifier>) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(Arc::new(config))
}
