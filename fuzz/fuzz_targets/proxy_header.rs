//! The first bytes of a connection where a PROXY header is wanted.
//!
//! The reader is compiled in from its source, which names nothing but the standard library: building this
//! takes seconds, building the gateway with coverage takes minutes.
#![no_main]

#[path = "../../src"]
#[allow(dead_code, reason = "the gateway uses all of it")]
mod source {
    pub mod proxy_protocol;
}
#[path = "../invariants/proxy_header.rs"]
mod invariants;

use source::proxy_protocol;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::check(bytes));
