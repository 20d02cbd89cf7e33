//! What a client's certificate says, as nginx's variables show it.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use crate::session::ClientCertificate;

/// Reads a certificate in DER; `None` where it cannot be read.
#[must_use]
pub fn client_certificate(der: &[u8]) -> Option<ClientCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(ClientCertificate {
        subject: name(certificate.subject()).into(),
        issuer: name(certificate.issuer()).into(),
        serial: hex(serial(certificate.raw_serial()), true).into(),
        fingerprint: hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref(), false).into(),
    })
}

/// Without the byte that only says that the number is positive.
fn serial(raw: &[u8]) -> &[u8] {
    match raw {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    }
}

/// A name as in RFC 2253 (`XN_FLAG_RFC2253` of OpenSSL): its parts from the last to the first.
fn name(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (place, part) in parts.iter().rev().enumerate() {
        text.push_str(if place == 0 { "" } else { "," });
        for (place, attribute) in part.iter().enumerate() {
            text.push_str(if place == 0 { "" } else { "+" });
            let kind = attribute.attr_type();
            match oid2abbrev(kind, oid_registry()) {
                Ok(short) => text.push_str(short),
                // Writing to a String cannot fail.
                Err(_) => drop(write!(text, "{kind}")),
            }
            text.push('=');
            match attribute.as_str() {
                Ok(value) => escape(value, &mut text),
                Err(_) => drop(write!(text, "#{}", hex(attribute.as_slice(), true))),
            }
        }
    }
    text
}

fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (place, byte) in value.bytes().enumerate() {
        let edge = (byte == b' ' && (place == 0 || place == last)) || (byte == b'#' && place == 0);
        let drawn = match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => write!(text, "\\{}", char::from(byte)),
            _ if edge => write!(text, "\\{}", char::from(byte)),
            0x20..=0x7e => write!(text, "{}", char::from(byte)),
            _ => write!(text, "\\{byte:02X}"),
        };
        // Writing to a String cannot fail.
        let _ = drawn;
    }
}

fn hex(bytes: &[u8], upper: bool) -> String {
    let digit = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
    bytes.iter().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber};

    use super::*;

    #[test]
    fn names_are_those_of_openssl() {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(vec![1, 0xab]));
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Acme, Inc. \u{e9}"),
            (DnType::CommonName, " client #1"),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let key = KeyPair::generate().unwrap();
        let shown = client_certificate(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(&*shown.subject, r"CN=\ client #1,O=Acme\, Inc. \C3\A9,C=DE");
        assert_eq!(shown.issuer, shown.subject);
        assert_eq!(&*shown.serial, "01AB");
        assert_eq!(shown.fingerprint.len(), 40);
        assert_eq!(client_certificate(b"no certificate"), None);
    }
}
