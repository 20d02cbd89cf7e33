//! Hellos that real clients sent.
//!
//! Those in `tests/fixtures/hello` are the first bytes of connections of `openssl s_client` 3.0.19 (the
//! file's name tells its options: `-noservername`, `-tls1_2`, `-tls1`, `-alpn`, `-maxfraglen 512`,
//! `-groups`, `-cipher` with suites of CBC, `-max_send_frag 512`), curl 7.88, Python 3.11 and Node 20 with
//! OpenSSL, wget with `GnuTLS` 3.7, Java 17. Rustls with a post-quantum key share says hello in the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::{fs, iter};

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use streamgate::sni::hello::{MOST, Offer, Reading, parse_message, read};

/// What a hello says; of the offer how it begins and ends.
struct Says {
    name: Option<&'static str>,
    alpn: &'static [&'static str],
    begins: &'static str,
    ends: &'static str,
    fragment: Option<u16>,
}

const OPENSSL: Says = Says {
    name: Some("db.example.com"),
    alpn: &[],
    begins: "versions TLSv1.3, TLSv1.2, TLSv1.1, TLSv1; suites TLS_AES_256_GCM_SHA384, \
             TLS_CHACHA20_POLY1305_SHA256, TLS_AES_128_GCM_SHA256, ECDHE-ECDSA-AES256-GCM-SHA384, ",
    ends: " and 14 more; groups x25519, secp256r1, x448, secp521r1, secp384r1, ffdhe2048, ffdhe3072, \
           ffdhe4096, ffdhe6144, ffdhe8192",
    fragment: None,
};

#[track_caller]
fn check_bytes(bytes: &[u8], says: &Says) {
    let mut joined = Vec::new();
    for cut in 0..bytes.len() {
        let reading = read(&bytes[..cut], &mut joined);
        let Reading::Need(count) = reading else { panic!("cut after {cut}: {reading:?}") };
        assert!(count > cut && count <= bytes.len().min(MOST), "cut after {cut}: {count}");
    }
    let followed = [bytes, b"\x17\x03\x03\x00\x10early data"].concat();
    let Reading::Hello(hello) = read(&followed, &mut joined) else { panic!("no hello") };
    assert_eq!(hello.consumed(), bytes.len());
    assert_eq!(hello.server_name(), says.name);
    assert_eq!(hello.normalized_name().as_deref(), says.name.map(normal).as_deref());
    let alpn = hello.alpn().map(|protocol| String::from_utf8_lossy(protocol).into_owned());
    assert_eq!(alpn.collect::<Vec<_>>(), says.alpn);
    assert_eq!(hello.max_fragment_length(), says.fragment);
    assert!(hello.signature_schemes().all(|scheme| scheme != 0));
    let offer = Offer(hello).to_string();
    assert!(offer.starts_with(says.begins) && offer.ends_with(says.ends), "{offer}");
    let again = parse_message(hello.message()).unwrap();
    assert_eq!((Offer(again).to_string(), again.server_name()), (offer, says.name));
}

fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_lowercase()
}

#[track_caller]
fn check(file: &str, says: &Says) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hello");
    check_bytes(&fs::read(folder.join(file).with_extension("bin")).unwrap(), says);
}

#[test]
fn openssl_is_read() {
    check("openssl", &OPENSSL);
    check("openssl-noname", &Says { name: None, ..OPENSSL });
    check("openssl-alpn", &Says { alpn: &["postgresql", "h2", "http/1.1"], ..OPENSSL });
    let tls12 = "versions TLSv1.2; suites ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES256-GCM-SHA384, ";
    let ends = " and 11 more; groups x25519, secp256r1, x448, secp521r1, secp384r1";
    check("openssl-tls12", &Says { name: Some("DB.Example.com."), begins: tls12, ends, ..OPENSSL });
    let tls10 = "versions TLSv1; suites ECDHE-ECDSA-AES256-SHA, ECDHE-RSA-AES256-SHA, DHE-RSA-AES256-SHA, ";
    let ends = " and 6 more; groups x25519, secp256r1, x448, secp521r1, secp384r1";
    check("openssl-tls10", &Says { name: Some("old.example.com"), begins: tls10, ends, ..OPENSSL });
    let groups = "versions TLSv1.3; suites TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256, \
                  TLS_AES_128_GCM_SHA256; groups secp521r1, ffdhe3072, x448";
    check("openssl-groups", &Says { begins: groups, ends: "", ..OPENSSL });
}

#[test]
fn what_fails_with_modern_libraries_is_named() {
    let cbc = "versions TLSv1.2; suites ECDHE-RSA-AES128-SHA, AES128-SHA, DHE-RSA-AES256-SHA256; \
               groups x25519, secp256r1, x448, secp521r1, secp384r1";
    check("openssl-cbc", &Says { name: Some("cbc.example.com"), begins: cbc, ends: "", ..OPENSSL });
    let rsa = "versions TLSv1.2; suites AES128-SHA, AES256-SHA; groups none";
    let device = Says { name: Some("device.example.com"), begins: rsa, ends: "", ..OPENSSL };
    check("openssl-maxfraglen", &Says { fragment: Some(512), ..device });
}

#[test]
fn hellos_in_several_records_are_read() {
    let protocols: Vec<_> = (0..40).map(|index| format!("protocol-number-{index:03}-of-many")).collect();
    let protocols: Vec<&'static str> = protocols.into_iter().map(|text| &*text.leak()).collect();
    check("openssl-records", &Says { name: Some("records.example.com"), alpn: protocols.leak(), ..OPENSSL });
}

#[test]
fn other_clients_are_read() {
    let h2 = &["h2", "http/1.1"];
    check("curl", &Says { name: Some("curl.example.com"), alpn: h2, ..OPENSSL });
    let two = "versions TLSv1.3, TLSv1.2; suites TLS_AES_256_GCM_SHA384, ";
    let python = " and 1 more; groups x25519, secp256r1, x448, secp521r1, secp384r1, ffdhe2048, ffdhe3072, \
                  ffdhe4096, ffdhe6144, ffdhe8192";
    check("python", &Says { name: Some("python.example.com"), begins: two, ends: python, ..OPENSSL });
    let node = Says { name: Some("node.example.com"), alpn: &["h2"], begins: two, ..OPENSSL };
    check("node", &Says { ends: ", ffdhe6144, ffdhe8192", ..node });
    let java = Says { name: Some("java.example.com"), alpn: h2, begins: two, ..OPENSSL };
    check("java", &Says { ends: ", ffdhe6144, ffdhe8192", ..java });
    let gnutls = " and 13 more; groups secp256r1, secp384r1, secp521r1, x25519, x448, ffdhe2048, ffdhe3072, \
                  ffdhe4096, ffdhe6144, ffdhe8192";
    let four = "versions TLSv1.3, TLSv1.2, TLSv1.1, TLSv1; suites TLS_AES_256_GCM_SHA384, ";
    check("gnutls", &Says { name: Some("localhost"), begins: four, ends: gnutls, ..OPENSSL });
}

/// The first bytes of a rustls client that puts at most so many into a record.
fn rustls_hello(record: Option<usize>) -> Vec<u8> {
    let mut config =
        ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    config.max_fragment_size = record;
    let mut client = ClientConnection::new(Arc::new(config), "pq.example.com".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn post_quantum_hellos_are_read_however_they_are_split() {
    let says = Says {
        name: Some("pq.example.com"),
        alpn: &["mqtt"],
        begins: "versions TLSv1.3, TLSv1.2; suites TLS_",
        ends: "",
        fragment: None,
    };
    for record in iter::once(None).chain([32, 100, 517, 1400].map(Some)) {
        let bytes = rustls_hello(record);
        assert!(bytes.len() > 1216, "{} bytes hold no key of ML-KEM-768", bytes.len());
        check_bytes(&bytes, &says);
        let mut joined = Vec::new();
        let Reading::Hello(hello) = read(&bytes, &mut joined) else { panic!("no hello") };
        assert_eq!(hello.groups().next(), Some(0x11ec), "X25519MLKEM768 comes first");
    }
}
