//! Certificates and private keys in PEM, read as OpenSSL reads them.
//!
//! APISIX accepts what `PEM_read_bio_X509_AUX` and `PEM_read_bio_PrivateKey` parse: text around the
//! blocks, a byte order mark, blocks of another kind before the wanted one, `TRUSTED CERTIFICATE`.
//! What comes out is DER that any TLS library reads. Whether *ours* can serve it is another question,
//! answered by [`servable`].

mod der;

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};

use super::keyring::Keyring;

/// OpenSSL wants whole padding and looks at no left-over bits.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Why a text holds no certificate or key; reads on after the name of a field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PemError {
    /// No block of the wanted kind.
    #[error("holds no {wanted} in PEM (found: {found}); it has to begin with `-----BEGIN `")]
    Missing {
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// The kinds of the blocks that are there.
        found: String,
    },
    /// A block without its end, or with one that says something else.
    #[error(
        "has a {kind} block without its line `-----END {kind}-----`; the text is cut or has lost its line breaks"
    )]
    Unterminated {
        /// What stands after BEGIN.
        kind: String,
    },
    /// The inside is no base64.
    #[error("has a {kind} block that is not base64")]
    Base64 {
        /// What stands after BEGIN.
        kind: String,
    },
    /// The inside is base64 of something else.
    #[error("has a {kind} block that does not contain one: {why}")]
    Content {
        /// What stands after BEGIN.
        kind: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// One block: what stands after BEGIN, and its base64 lines.
struct Block<'a> {
    kind: &'a str,
    body: String,
    encrypted: bool,
}

impl Block<'_> {
    fn decode(&self) -> Result<Vec<u8>, PemError> {
        BASE64.decode(&self.body).map_err(|_| PemError::Base64 { kind: self.kind.into() })
    }

    fn content(&self, why: &'static str) -> PemError {
        PemError::Content { kind: self.kind.into(), why }
    }
}

/// Reads the blocks of a text one after another.
struct Blocks<'a> {
    lines: std::str::Lines<'a>,
    seen: Vec<&'a str>,
}

impl<'a> Blocks<'a> {
    fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { lines: text.lines(), seen: Vec::new() }
    }

    /// The next block of a wanted kind; others are passed over, but must be whole.
    fn next(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Option<Block<'a>>, PemError> {
        while let Some(line) = self.lines.next() {
            let begin = trimmed(line).strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----"));
            let Some(kind) = begin else { continue };
            self.seen.push(kind);
            let block = self.block(kind)?;
            if wanted(kind) {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    fn block(&mut self, kind: &'a str) -> Result<Block<'a>, PemError> {
        let (mut body, mut encrypted) = (String::new(), false);
        for line in self.lines.by_ref().map(trimmed) {
            if let Some(end) = line.strip_prefix("-----END ") {
                if end.strip_suffix("-----") == Some(kind) {
                    return Ok(Block { kind, body, encrypted });
                }
                break;
            }
            // RFC 1421 headers: `Proc-Type: 4,ENCRYPTED`.
            if line.contains(':') {
                encrypted |= line.contains("ENCRYPTED");
            } else {
                body.push_str(line);
            }
        }
        Err(PemError::Unterminated { kind: kind.into() })
    }

    fn missing(self, wanted: &'static str) -> PemError {
        let found = if self.seen.is_empty() { "no PEM block at all".into() } else { self.seen.join(", ") };
        PemError::Missing { wanted, found }
    }
}

/// Blanks and control characters at the end of a line do not count (`sanitize_line` in `pem_lib.c`).
fn trimmed(line: &str) -> &str {
    line.trim_end_matches(|c: char| c <= ' ')
}

/// The certificates of a text as DER, the leaf first.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut blocks = Blocks::new(text);
    let mut found = Vec::new();
    // `TRUSTED CERTIFICATE` counts in the first place alone (`PEM_read_bio_X509_AUX`).
    while let Some(block) = blocks.next(|kind| {
        matches!(kind, "CERTIFICATE" | "X509 CERTIFICATE")
            || found.is_empty() && kind == "TRUSTED CERTIFICATE"
    })? {
        let bytes = block.decode()?;
        let der = der::certificate(&bytes).ok_or_else(|| block.content("its DER is malformed"))?;
        found.push(CertificateDer::from(der.to_vec()));
    }
    if found.is_empty() { Err(blocks.missing("certificate")) } else { Ok(found) }
}

/// The first private key of a text.
pub fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    let mut blocks = Blocks::new(text);
    let Some(block) = blocks.next(|kind| kind.ends_with("PRIVATE KEY"))? else {
        return Err(blocks.missing("private key"));
    };
    if block.encrypted || block.kind == "ENCRYPTED PRIVATE KEY" {
        return Err(
            block.content("it is protected by a pass phrase, which cannot be given; store it without")
        );
    }
    let bytes = block.decode()?;
    let malformed = || block.content("its DER is malformed or of an unknown algorithm");
    let key: Option<PrivateKeyDer<'static>> = match block.kind {
        "PRIVATE KEY" => der::pkcs8(&bytes).map(|der| PrivatePkcs8KeyDer::from(der.to_vec()).into()),
        "RSA PRIVATE KEY" => der::pkcs1(&bytes).map(|der| PrivatePkcs1KeyDer::from(der.to_vec()).into()),
        "EC PRIVATE KEY" => der::sec1(&bytes).map(|der| PrivateSec1KeyDer::from(der.to_vec()).into()),
        // Nothing we serve with; kept as a form that `servable` refuses by name.
        "DSA PRIVATE KEY" => der::dsa(&bytes).map(|der| PrivatePkcs8KeyDer::from(der.to_vec()).into()),
        _ => None,
    };
    key.ok_or_else(malformed)
}

/// The private key of a field that may be encrypted with the keyring. The error reads on after the
/// name of the field.
pub fn stored_key(keyring: &Keyring, stored: &str) -> Result<PrivateKeyDer<'static>, String> {
    let plain = keyring.load(stored).map_err(|error| error.to_string())?;
    private_key(&String::from_utf8_lossy(&plain)).map_err(|error| error.to_string())
}

/// The key as the TLS library of this program signs with it, where it can serve the pair; if not, why.
///
/// `CertifiedKey::keys_match` would refuse certificates of X.509 version 1, which serve well: the keys
/// are compared here.
pub fn servable(
    chain: &[CertificateDer<'_>],
    key: &PrivateKeyDer<'_>,
) -> Result<Arc<dyn SigningKey>, String> {
    let signing = any_supported_type(key).map_err(|_| {
        format!(
            "its private key is {}, with which this program cannot sign",
            der::algorithm(key.secret_der())
        )
    })?;
    let certified = chain.first().and_then(|leaf| der::public_key(leaf));
    match (certified, signing.public_key()) {
        (Some(certified), Some(own)) if !der::same_public_key(certified, &own) => {
            Err("its private key does not belong to its certificate".into())
        }
        _ => Ok(signing),
    }
}

/// From when until when a certificate is valid, in seconds since 1970; times before count as 0. `None`
/// where it is malformed.
#[must_use]
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (from, until) = der::validity(certificate)?;
    Some((u64::try_from(from).unwrap_or(0), u64::try_from(until).unwrap_or(0)))
}
