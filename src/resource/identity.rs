//! A certificate with its key, ready to sign.

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::pem;

/// Certificates of a chain together, in bytes of DER: what a handshake sends has to fit 64 KiB.
const LONGEST: usize = 56 * 1024;

/// A certificate chain with its private key, ready to sign. Two are equal when their chains are: the
/// key belongs to the first certificate.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    /// When the first certificate ends, in seconds since 1970.
    pub not_after: u64,
}

impl Identity {
    /// A chain and the key of its first certificate. The error says why the TLS library of this
    /// program cannot serve the pair.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<Self, String> {
        let length: usize = chain.iter().map(|certificate| certificate.len()).sum();
        if length > LONGEST {
            return Err(format!(
                "its certificates are {length} bytes long; at most {LONGEST} fit a handshake here"
            ));
        }
        let signing = pem::servable(&chain, key)?;
        let not_after = chain.first().and_then(pem::validity).map_or(0, |(_, until)| until);
        Ok(Self { certified: Arc::new(CertifiedKey::new(chain, signing)), not_after })
    }

    /// The chain with the key that signs for it.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// Without anything of the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificates", &self.certified.cert.len())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Eq for Identity {}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.certified, &other.certified) || self.certified.cert == other.certified.cert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_no_handshake_takes_is_refused() {
        let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let leaf = made.cert.der();
        let fitting = LONGEST / leaf.len();
        assert!(Identity::new(vec![leaf.clone(); fitting], &key).is_ok());
        let why = Identity::new(vec![leaf.clone(); fitting + 1], &key).unwrap_err();
        assert!(why.contains("at most 57344 fit a handshake"), "{why}");
    }
}
