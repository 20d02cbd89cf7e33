//! The process itself, under the names every Prometheus client library uses.
//!
//! Read from `/proc` at each scrape (proc(5)); what cannot be read has no line.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use crate::admin::text::{self, Kind};

/// Appends the `process_*` families.
pub(crate) fn render(out: &mut String, started_unix_ms: u64) {
    let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
    if let Some(stat) = &stat {
        let help = "User and system CPU time spent";
        one(out, "process_cpu_seconds_total", Kind::Counter, help, seconds(stat.cpu_ticks));
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        one(out, "process_max_fds", Kind::Gauge, "Descriptors that may be open", limit);
    }
    if let Some(open) = open_descriptors() {
        one(out, "process_open_fds", Kind::Gauge, "Open descriptors", open);
    }
    if let Some(stat) = &stat {
        let page_size = u64::try_from(page_size()).unwrap_or(4096);
        let resident = stat.resident_pages.saturating_mul(page_size);
        one(out, "process_resident_memory_bytes", Kind::Gauge, "Resident memory", resident);
    }
    let started = std::time::Duration::from_millis(started_unix_ms).as_secs_f64();
    one(
        out,
        "process_start_time_seconds",
        Kind::Gauge,
        "Start of the process, in seconds since 1970",
        started,
    );
    if let Some(stat) = &stat {
        one(out, "process_virtual_memory_bytes", Kind::Gauge, "Virtual memory", stat.virtual_bytes);
    }
}

fn one(out: &mut String, name: &str, kind: Kind, help: &str, value: impl std::fmt::Display) {
    text::family(out, name, kind, help);
    text::sample(out, name, "", value);
}

#[expect(clippy::cast_precision_loss, reason = "seconds are a float in Prometheus")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second().max(1) as f64
}

/// The size of `/proc/self/fd` is the number of descriptors since Linux 6.2; it is 0 before.
fn open_descriptors() -> Option<u64> {
    let told = fs::metadata("/proc/self/fd").ok()?.len();
    if told > 0 {
        return Some(told);
    }
    let listed = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is that of the listing.
    u64::try_from(listed.saturating_sub(1)).ok()
}

#[derive(Debug, Eq, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// The name of the process stands in parentheses and may hold any character.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the state after the name is its field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.checked_add(field(15)?)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_any_name() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 12345 1048576 300 184467";
        let expected = Stat { cpu_ticks: 300, virtual_bytes: 1_048_576, resident_pages: 300 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (short) S 1"), None);
    }

    #[test]
    fn all_families_are_there_and_sorted() {
        let mut out = String::new();
        render(&mut out, 1_500);
        let names: Vec<&str> =
            out.lines().filter_map(|line| line.strip_prefix("# TYPE process_")?.split(' ').next()).collect();
        assert_eq!(
            names,
            [
                "cpu_seconds_total",
                "max_fds",
                "open_fds",
                "resident_memory_bytes",
                "start_time_seconds",
                "virtual_memory_bytes"
            ]
        );
        assert!(out.contains("\nprocess_start_time_seconds 1.5\n"), "{out}");
    }
}
