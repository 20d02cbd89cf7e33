//! Self-signed certificates, made when a measurement runs.

use std::io;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The name that it is for.
    pub name: String,
    /// The certificate as PEM.
    pub pem: String,
    /// Its private key as PEM (PKCS #8).
    pub key_pem: String,
    /// The certificate as clients see it.
    pub der: CertificateDer<'static>,
}

impl Certificate {
    /// One for `name`, a DNS name, with an ECDSA key on P-256 of its own.
    pub fn ecdsa(name: &str) -> io::Result<Self> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        Self::signed(name, &key)
    }

    /// One for `name` with this key, which may be that of others too.
    pub fn signed(name: &str, key: &KeyPair) -> io::Result<Self> {
        let made = CertificateParams::new([name.to_owned()]).and_then(|params| params.self_signed(key));
        let made = made.map_err(io::Error::other)?;
        let (pem, key_pem) = (made.pem(), key.serialize_pem());
        Ok(Self { name: name.to_owned(), pem, key_pem, der: made.der().clone() })
    }

    /// The ssl object that gives it to an APISIX, with this id.
    #[must_use]
    pub fn ssl(&self, id: usize) -> Value {
        json!({"id": id.to_string(), "sni": self.name, "cert": self.pem, "key": self.key_pem})
    }
}

/// An RSA key of 2,048 bits.
pub fn rsa_key() -> io::Result<KeyPair> {
    KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_key_of_its_own_where_none_is_given() {
        let [a, b] = ["a.test", "b.test"].map(|name| Certificate::ecdsa(name).unwrap());
        assert_ne!(a.key_pem, b.key_pem);
        assert!(a.pem.starts_with("-----BEGIN CERTIFICATE-----"), "{}", a.pem);
        assert!(a.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"), "{}", a.key_pem);
        let key = rsa_key().unwrap();
        let [a, b] = ["a.test", "b.test"].map(|name| Certificate::signed(name, &key).unwrap());
        assert_eq!(a.key_pem, b.key_pem);
        assert_ne!(a.der, b.der);
        // A PKCS #8 key of 2,048 bits takes about 1,200 bytes, in base64 a third more.
        assert!((1_600..1_800).contains(&a.key_pem.len()), "{}", a.key_pem.len());
    }
}
