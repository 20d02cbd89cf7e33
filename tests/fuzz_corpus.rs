//! What the fuzz targets found interesting holds on stable, in every run of the tests.
//!
//! `make fuzz` looks for more; what it finds is kept in `fuzz/corpus` and replayed here through the same
//! invariants.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::panic;
use std::path::Path;

use streamgate::plugin::mqtt_proxy::connect;
use streamgate::proxy_protocol;
use streamgate::sni::hello;

#[path = "../fuzz/invariants/client_hello.rs"]
mod client_hello;
#[path = "../fuzz/invariants/mqtt_connect.rs"]
mod mqtt_connect;
#[path = "../fuzz/invariants/proxy_header.rs"]
mod proxy_header;

/// Replays the files of a folder, each of them also cut and with something behind it.
#[track_caller]
fn check(folder: &str, invariants: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let holds = panic::catch_unwind(|| {
            invariants(&bytes);
            invariants(&bytes[..bytes.len() / 2]);
            invariants(&[&bytes[..], b"\x16\x03\x01 and more"].concat());
        });
        assert!(holds.is_ok(), "{} does not hold", path.display());
        replayed += 1;
    }
    assert!(replayed > 10, "{} holds {replayed} files", folder.display());
}

#[test]
fn hellos_hold() {
    check("fuzz/corpus/client_hello", client_hello::check);
    check("tests/fixtures/hello", client_hello::check);
}

#[test]
fn connects_hold() {
    check("fuzz/corpus/mqtt_connect", mqtt_connect::check);
}

#[test]
fn proxy_headers_hold() {
    check("fuzz/corpus/proxy_header", proxy_header::check);
}
