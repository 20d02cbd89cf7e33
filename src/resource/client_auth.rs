//! How the clients of a certificate object are verified: its `client`.
//!
//! Verification follows `SSL_CTX_set_verify_depth(3)` in what counts as depth. It differs from OpenSSL's in
//! two things: certificates of X.509 version 1 are refused, and any certificate of `ca` ends a chain, not
//! only a self-signed one.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::pem;

/// The cryptography of everything that speaks TLS: aws-lc, post-quantum key exchange preferred.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}

/// Verifies the clients of a certificate object, each of which has to show a certificate.
#[derive(Clone)]
pub struct ClientAuth {
    /// For the TLS library.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// Certificates between the client's own and a CA, at most.
    pub depth: u32,
}

impl ClientAuth {
    /// Trusts these certificates. The error reads on after the name of the field.
    pub fn new(trusted: Vec<CertificateDer<'static>>, depth: u32) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            let added = roots.add(certificate.clone());
            added.map_err(|error| format!("has a certificate that cannot be a CA: {error}"))?;
        }
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider().clone())
            .build()
            .map_err(|error| format!("cannot verify anybody: {error}"))?;
        let most = usize::try_from(depth).unwrap_or(usize::MAX);
        Ok(Self { verifier: Arc::new(Verifier { chains, trusted, most }), depth })
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth").field("depth", &self.depth).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Verifier {
    chains: Arc<dyn ClientCertVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    /// Intermediate certificates of a chain.
    most: usize,
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Self-signed client certificates are trusted by naming them, and mostly are CAs by mistake.
        if self.trusted.iter().any(|trusted| **trusted == **end_entity) {
            return match pem::validity(end_entity) {
                Some((from, _)) if now.as_secs() < from => Err(CertificateError::NotValidYet.into()),
                Some((_, until)) if now.as_secs() > until => Err(CertificateError::Expired.into()),
                Some(_) => Ok(ClientCertVerified::assertion()),
                None => Err(CertificateError::BadEncoding.into()),
            };
        }
        // A chain comes in its order (RFC 8446 4.4.2): what is over the depth could only lengthen it.
        let within = intermediates.get(..self.most).unwrap_or(intermediates);
        self.chains.verify_client_cert(end_entity, within, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    /// A certificate for `name`, signed by `issuer` or by itself.
    fn made(
        name: &str,
        ca: bool,
        issuer: Option<&Issuer<'_, KeyPair>>,
    ) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        let cert = match issuer {
            Some(issuer) => params.signed_by(&key, issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        (cert.der().clone(), Issuer::new(params, key))
    }

    #[track_caller]
    fn check(trusted: &CertificateDer<'static>, depth: u32, shown: &[&CertificateDer<'static>], good: bool) {
        let auth = ClientAuth::new(vec![trusted.clone()], depth).unwrap();
        let chain: Vec<_> = shown[1..].iter().map(|one| (*one).clone()).collect();
        let verified = auth.verifier.verify_client_cert(
            shown[0],
            &chain,
            UnixTime::since_unix_epoch(std::time::Duration::from_hours(500_000)),
        );
        assert_eq!(verified.is_ok(), good, "{verified:?}");
    }

    #[test]
    fn depth_counts_what_is_between() {
        let (root, by_root) = made("root", true, None);
        let (one, by_one) = made("one", true, Some(&by_root));
        let (two, by_two) = made("two", true, Some(&by_one));
        let (near, _) = made("near", false, Some(&by_root));
        let (middle, _) = made("middle", false, Some(&by_one));
        let (far, _) = made("far", false, Some(&by_two));
        check(&root, 0, &[&near], true);
        check(&root, 0, &[&middle, &one], false);
        check(&root, 1, &[&middle, &one, &root], true);
        check(&root, 1, &[&far, &two, &one], false);
        check(&root, 2, &[&far, &two, &one], true);
        check(&one, 0, &[&middle], true);
        check(&two, 5, &[&near], false);
    }

    #[test]
    fn a_client_may_show_what_is_trusted_itself() {
        let (own, _) = made("device", true, None);
        let (other, _) = made("device", true, None);
        check(&own, 1, &[&own], true);
        check(&own, 1, &[&other], false);
    }
}
