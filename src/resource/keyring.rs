//! Private keys as the Admin API stores them: base64 of AES-CBC under an entry of
//! `data_encryption.keyring`.
//!
//! The entry itself is the key (16 bytes AES-128, 32 bytes AES-256) and its first 16 bytes are the
//! initial vector (`apisix/core/data_encryption.lua`). A text that begins with `---` is not encrypted.

use std::borrow::Cow;
use std::fmt;

use aes::{Aes128, Aes256};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::Decryptor;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};

/// nginx's reading of base64: it ends at the first `=`, left-over bits do not matter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The entries, in the order they are tried.
#[derive(Clone, Default)]
pub struct Keyring(Vec<Box<[u8]>>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} entries)", self.0.len())
    }
}

impl Keyring {
    /// Entries that have not 16 or 32 bytes are left out, as in APISIX.
    #[must_use]
    pub fn new<T: AsRef<str>>(entries: &[T]) -> Self {
        let entries = entries.iter().map(|entry| entry.as_ref().as_bytes());
        Self(entries.filter(|entry| matches!(entry.len(), 16 | 32)).map(Box::from).collect())
    }

    /// The text of a stored key.
    ///
    /// APISIX takes the first entry whose padding comes out clean; about one wrong key in 256 does
    /// that by chance. Here the first one that yields a PEM wins over those.
    pub fn load<'a>(&self, stored: &'a str) -> Result<Cow<'a, [u8]>, KeyringError> {
        if stored.starts_with("---") || self.0.is_empty() {
            return Ok(Cow::Borrowed(stored.as_bytes()));
        }
        let text = stored.split('=').next().unwrap_or_default();
        let cipher = BASE64.decode(text).map_err(|_| KeyringError::Base64)?;
        let mut clean = None;
        for plain in self.0.iter().filter_map(|entry| decrypt(entry, &cipher)) {
            if plain.starts_with(b"---") {
                return Ok(Cow::Owned(plain));
            }
            clean.get_or_insert(plain);
        }
        clean.map(Cow::Owned).ok_or(KeyringError::Decrypt)
    }
}

fn decrypt(entry: &[u8], cipher: &[u8]) -> Option<Vec<u8>> {
    let iv = entry.get(..16)?;
    // An empty text has no padding to check.
    if cipher.is_empty() {
        return None;
    }
    if entry.len() == 16 {
        Decryptor::<Aes128>::new_from_slices(entry, iv).ok()?.decrypt_padded_vec::<Pkcs7>(cipher).ok()
    } else {
        Decryptor::<Aes256>::new_from_slices(entry, iv).ok()?.decrypt_padded_vec::<Pkcs7>(cipher).ok()
    }
}

/// Why a stored key cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyringError {
    /// Neither PEM nor base64.
    #[error(
        "is neither a PEM (which begins with `---`, no blank before it) nor the base64 of an encrypted one"
    )]
    Base64,
    /// Every entry failed.
    #[error(
        "no entry of data_encryption.keyring decrypts it; give this node the keyring of the control plane that wrote it"
    )]
    Decrypt,
}
