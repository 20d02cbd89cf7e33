//! The first bytes of a TLS connection: whatever a stranger sends.
//!
//! The reader is compiled in from its source, which names nothing but the standard library: building this
//! takes seconds, building the gateway with coverage takes minutes.
#![no_main]

#[path = "../../src/sni"]
#[allow(dead_code, reason = "the gateway uses all of it")]
mod sni {
    pub mod hello;
}
#[path = "../invariants/client_hello.rs"]
mod invariants;

use sni::hello;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::check(bytes));
