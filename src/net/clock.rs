//! The wall clock, and how its times are written: RFC 3339 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day.
const DAY: u64 = 86_400;

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time in UTC, given in milliseconds since 1970, such as `2026-11-24T18:05:53Z`.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    format!("{}Z", to_the_second(unix_ms))
}

/// The same with its milliseconds, such as `2026-11-24T18:05:53.042Z`.
#[must_use]
pub fn rfc3339_ms(unix_ms: u64) -> String {
    format!("{}.{:03}Z", to_the_second(unix_ms), unix_ms % 1000)
}

fn to_the_second(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = date(seconds / DAY);
    let of_day = seconds % DAY;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// The date of a day since 1970. Years are counted from March on, so that a leap day is a year's last, and
/// in rounds of 400, which all have the same days.
fn date(since_1970: u64) -> (u64, u64, u64) {
    const ROUND: u64 = 146_097;
    // From the first of March of the year 0.
    let days = since_1970 + 719_468;
    let (round, of_round) = (days / ROUND, days % ROUND);
    let year = (of_round - of_round / 1_460 + of_round / 36_524 - of_round / (ROUND - 1)) / 365;
    let of_year = of_round - (365 * year + year / 4 - year / 100);
    // From March on the lengths of months repeat every five: 153 days.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (round * 400 + year + u64::from(month <= 2), month, day)
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
