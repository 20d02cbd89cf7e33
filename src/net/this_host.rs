//! The process that sessions run in.

use std::process;

use streamgate_sys::zone::seconds_east;

use crate::session::{Host, Zone};

/// This one. A host whose kernel does not tell its name has an empty one.
#[must_use]
pub fn this_host() -> Host {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Host { hostname: hostname.trim().into(), pid: process::id(), zone: Zone(seconds_east) }
}
