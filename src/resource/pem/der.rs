//! As much of DER as tells a certificate or a private key from something else.
//!
//! OpenSSL's decoders look at the structure, not at the mathematics: so do these. Bytes after the
//! structure are cut off, as there.

use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const PARAMETERS: u8 = 0xa0;

/// One value: its tag, its content, all of its bytes.
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// Reads values one after another.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Value<'a>> {
        let bytes = self.0;
        let (&tag, &first) = (bytes.first()?, bytes.get(1)?);
        let (start, length) = if first < 0x80 {
            (2, usize::from(first))
        } else {
            let count = usize::from(first & 0x7f);
            let digits = bytes.get(2..2 + count).filter(|_| (1..=4).contains(&count))?;
            (2 + count, digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)))
        };
        let (whole, rest) = bytes.split_at_checked(start.checked_add(length)?)?;
        self.0 = rest;
        Some(Value { tag, content: whole.get(start..)?, whole })
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|value| value.tag == tag).map(|value| value.content)
    }
}

/// The outer sequence: a reader of its content, and its bytes.
fn sequence(bytes: &[u8]) -> Option<(Reader<'_>, &[u8])> {
    let value = Reader(bytes).next().filter(|value| value.tag == SEQUENCE)?;
    Some((Reader(value.content), value.whole))
}

/// The bytes of a certificate, without what may follow it (the `TRUSTED` attributes).
pub(super) fn certificate(bytes: &[u8]) -> Option<&[u8]> {
    let (rest, _) = X509Certificate::from_der(bytes).ok()?;
    bytes.get(..bytes.len() - rest.len())
}

/// The `SubjectPublicKeyInfo` of a certificate.
pub(super) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate.subject_pki.raw)
}

/// The bounds of a certificate's validity, in seconds since 1970.
pub(super) fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = &certificate.tbs_certificate.validity;
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Compares the keys alone: algorithm parameters may be left out in one of them.
pub(super) fn same_public_key(left: &[u8], right: &[u8]) -> bool {
    let key =
        |bytes| SubjectPublicKeyInfo::from_der(bytes).ok().map(|(_, info)| info.subject_public_key.data);
    key(left) == key(right)
}

/// RFC 8017: version and eight numbers.
pub(super) fn pkcs1(bytes: &[u8]) -> Option<&[u8]> {
    integers(bytes, 9)
}

/// OpenSSL's own form of DSA keys: version and five numbers.
pub(super) fn dsa(bytes: &[u8]) -> Option<&[u8]> {
    integers(bytes, 6)
}

fn integers(bytes: &[u8], count: usize) -> Option<&[u8]> {
    let (mut inner, whole) = sequence(bytes)?;
    (0..count).all(|_| inner.expect(INTEGER).is_some_and(|digits| !digits.is_empty())).then_some(whole)
}

/// RFC 5915, with the curve named inside.
pub(super) fn sec1(bytes: &[u8]) -> Option<&[u8]> {
    let (mut inner, whole) = sec1_head(bytes)?;
    let parameters = inner.expect(PARAMETERS)?;
    known_curve(Reader(parameters).expect(OBJECT)?).then_some(whole)
}

fn sec1_head(bytes: &[u8]) -> Option<(Reader<'_>, &[u8])> {
    let (mut inner, whole) = sequence(bytes)?;
    (inner.expect(INTEGER)? == [1]).then_some(())?;
    inner.expect(OCTETS).filter(|secret| !secret.is_empty())?;
    Some((inner, whole))
}

/// RFC 5958.
pub(super) fn pkcs8(bytes: &[u8]) -> Option<&[u8]> {
    let (mut inner, whole) = sequence(bytes)?;
    let version = inner.expect(INTEGER)?;
    let mut algorithm = Reader(inner.expect(SEQUENCE)?);
    let oid = algorithm.expect(OBJECT)?;
    let secret = inner.expect(OCTETS)?;
    let octets = |length| Reader(secret).expect(OCTETS).is_some_and(|key| key.len() == length);
    let sound = match name_of(oid)? {
        "RSA" => pkcs1(secret).is_some(),
        "EC" => known_curve(algorithm.expect(OBJECT)?) && sec1_head(secret).is_some(),
        "DSA" | "DH" => algorithm.expect(SEQUENCE).is_some() && Reader(secret).expect(INTEGER).is_some(),
        "Ed25519" | "X25519" => octets(32),
        "Ed448" => octets(57),
        _ => octets(56),
    };
    (matches!(version, [0 | 1]) && sound).then_some(whole)
}

/// The algorithms whose keys OpenSSL 3 decodes.
fn name_of(oid: &[u8]) -> Option<&'static str> {
    Some(match oid {
        // 1.2.840.113549.1.1.1 and, for RSA-PSS, .10
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1 | 10] => "RSA",
        // 1.2.840.10045.2.1
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1] => "EC",
        // 1.2.840.10040.4.1
        [0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1] => "DSA",
        // 1.2.840.113549.1.3.1
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 3, 1] => "DH",
        // 1.3.101.110 to .113
        [0x2b, 0x65, 110] => "X25519",
        [0x2b, 0x65, 111] => "X448",
        [0x2b, 0x65, 112] => "Ed25519",
        [0x2b, 0x65, 113] => "Ed448",
        _ => return None,
    })
}

/// Curves by the branch their names live in: X9.62, SECG, Brainpool, SM2.
fn known_curve(oid: &[u8]) -> bool {
    matches!(
        oid,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 0 | 1, _]
            | [0x2b, 0x81, 0x04, 0, _]
            | [0x2b, 0x24, 3, 3, 2, 8, 1, 1, _]
            | [0x2a, 0x81, 0x1c, 0xcf, 0x55, 1, 0x82, 0x2d]
    )
}

/// What a key is, for a sentence: `RSA of 1024 bits`, `Ed448`.
pub(super) fn algorithm(key: &[u8]) -> String {
    let Some((mut inner, whole)) = sequence(key) else { return "malformed".into() };
    let mut after_version = Reader(inner.0);
    after_version.next();
    match (after_version.expect(SEQUENCE), inner.expect(INTEGER)) {
        (Some(algorithm), _) => {
            let name = Reader(algorithm).expect(OBJECT).and_then(name_of).unwrap_or("of an unknown kind");
            let mut rest = Reader(inner.0);
            rest.next();
            match (name, rest.expect(OCTETS)) {
                ("RSA", Some(secret)) => rsa(secret),
                _ => name.into(),
            }
        }
        (None, Some([0 | 1])) if dsa(whole).is_some() && pkcs1(whole).is_none() => "DSA".into(),
        _ if pkcs1(whole).is_some() => rsa(whole),
        _ => "an EC key of an unsupported curve".into(),
    }
}

fn rsa(pkcs1: &[u8]) -> String {
    let modulus = sequence(pkcs1).and_then(|(mut inner, _)| {
        inner.next();
        inner.expect(INTEGER)
    });
    let significant = modulus.unwrap_or_default().iter().skip_while(|digit| **digit == 0);
    let bits = significant.count() * 8;
    format!("RSA of {bits} bits")
}
