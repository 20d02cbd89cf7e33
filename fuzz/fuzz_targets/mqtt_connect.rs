//! The first bytes of a connection whose route lets only MQTT clients in.
//!
//! The reader is compiled in from its source, which names nothing but the standard library: building this
//! takes seconds, building the gateway with coverage takes minutes.
#![no_main]

#[path = "../../src/plugin/mqtt_proxy"]
#[allow(dead_code, reason = "the gateway uses all of it")]
mod mqtt_proxy {
    pub mod connect;
}
#[path = "../invariants/mqtt_connect.rs"]
mod invariants;

use mqtt_proxy::connect;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::check(bytes));
