//! The TLS side of a connection to etcd: `deployment.etcd.tls` as a rustls configuration.
//!
//! Files are read anew for each connection, so renewed certificates count without a restart.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certs::verify;
use crate::config::EtcdConfig;
use crate::resource::provider;

/// The configuration for one connection. The error is a sentence that names the file.
pub(super) fn client_config(config: &EtcdConfig) -> Result<Arc<ClientConfig>, String> {
    let verifier = verifier(config)?;
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut tls = match &config.tls_cert {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let (chain, key_der) = (certificates(cert)?, private_key(key)?);
            let pair = format!("{} and {}", cert.display(), key.display());
            let explain = |error| format!("{pair} cannot be used as deployment.etcd.tls: {error}");
            builder.with_client_auth_cert(chain, key_der).map_err(explain)?
        }
    };
    // etcd serves gRPC by ALPN only.
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(tls))
}

fn verifier(config: &EtcdConfig) -> Result<Arc<dyn ServerCertVerifier>, String> {
    if !config.tls_verify {
        return Ok(verify::anybody());
    }
    let Some(path) = &config.trusted else {
        return Err("no CA bundle to verify etcd with; set apisix.ssl.ssl_trusted_certificate".into());
    };
    verify::bundle(certificates(path)?).map_err(|why| format!("the CA bundle {} {why}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let explain = |error| format!("{} cannot be read as PEM certificates: {error}", path.display());
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(explain)?.collect::<Result<_, _>>().map_err(explain)?;
    if found.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| format!("{} cannot be read as a PEM private key: {error}", path.display()))
}
