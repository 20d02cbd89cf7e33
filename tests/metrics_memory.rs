//! Memory of a node's own metrics stays flat when nothing scrapes, as long as upkeep runs.
//!
//! It stands alone in its file: what it measures is the resident memory of the whole process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use streamgate::metrics::Metrics;

const SAMPLES: u32 = 2_000_000;

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// By how much resident memory grows, in KiB, while samples come in.
fn growth(metrics: &Metrics, upkeep: bool) -> u64 {
    let before = resident_kib();
    for i in 0..SAMPLES {
        metrics.snapshot_build.record(Duration::from_micros(u64::from(i % 100)));
        if upkeep && i % 1000 == 0 {
            metrics.upkeep();
        }
    }
    resident_kib().saturating_sub(before)
}

#[test]
fn upkeep_keeps_memory_flat() {
    let metrics = Metrics::new(&[], "1");
    let with = growth(&metrics, true);
    assert!(with < 8 * 1024, "{with} KiB more with upkeep");
    // Without it every sample is kept: the measurement above would have seen that.
    let without = growth(&metrics, false);
    assert!(without > 16 * 1024, "{without} KiB more without upkeep");
}
