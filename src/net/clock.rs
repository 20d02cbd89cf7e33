//! The wall clock, and how its times are written: RFC 3339 in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::session::{Moment, Style};

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time in UTC, given in milliseconds since 1970, such as `2026-11-24T18:05:53Z`.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    written(unix_ms, Style::UtcSeconds)
}

/// The same with its milliseconds, such as `2026-11-24T18:05:53.042Z`.
#[must_use]
pub fn rfc3339_ms(unix_ms: u64) -> String {
    written(unix_ms, Style::Utc)
}

fn written(unix_ms: u64, style: Style) -> String {
    Moment { unix: Duration::from_millis(unix_ms), east: 0, style }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, text: &str) {
        assert_eq!(rfc3339(seconds * 1000 + 999), text);
        assert_eq!(rfc3339_ms(seconds * 1000 + 42), text.replace('Z', ".042Z"));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(1_735_689_599, "2024-12-31T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }
}
