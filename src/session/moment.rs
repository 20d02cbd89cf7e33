//! Points in time as logs write them.

use std::fmt;
use std::time::Duration;

/// Seconds of a day.
const DAY: u64 = 86_400;
/// As nginx writes them in `$time_local`.
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A point in time, and how far the clocks of this host are ahead of UTC then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// Since 1970.
    pub unix: Duration,
    /// Seconds east of UTC.
    pub east: i32,
    /// How it is written.
    pub style: Style,
}

/// How a [`Moment`] is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Style {
    /// `28/Sep/1970:12:00:00 +0600`: `$time_local`.
    Local,
    /// `1970-09-28T12:00:00+06:00`: `$time_iso8601`.
    Iso8601,
    /// `1970-09-28T06:00:00.000Z`: UTC to the millisecond.
    Utc,
    /// `1970-09-28T06:00:00Z`: UTC to the second.
    UtcSeconds,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let east = if matches!(self.style, Style::Utc | Style::UtcSeconds) { 0 } else { self.east };
        let seconds = self.unix.as_secs().saturating_add_signed(i64::from(east));
        let (year, month, day) = date(seconds / DAY);
        let of_day = seconds % DAY;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let (sign, away) = (if east < 0 { '-' } else { '+' }, east.unsigned_abs() / 60);
        let (hours, minutes) = (away / 60, away % 60);
        match self.style {
            Style::Local => {
                let month =
                    usize::try_from(month - 1).ok().and_then(|place| MONTHS.get(place)).unwrap_or(&"");
                write!(
                    f,
                    "{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} {sign}{hours:02}{minutes:02}"
                )
            }
            Style::Iso8601 => write!(
                f,
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{sign}{hours:02}:{minutes:02}"
            ),
            Style::Utc => {
                let millis = self.unix.subsec_millis();
                write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
            }
            Style::UtcSeconds => {
                write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
            }
        }
    }
}

/// Year, month and day of a day since 1970. Years are counted from March on, so that a leap day is a
/// year's last, and in rounds of 400, which all have the same days.
#[must_use]
pub fn date(since_1970: u64) -> (u64, u64, u64) {
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
    fn check(unix: u64, east: i32, style: Style, text: &str) {
        let unix = Duration::from_millis(unix * 1000 + 78);
        assert_eq!(Moment { unix, east, style }.to_string(), text);
    }

    #[test]
    fn times_are_written_as_by_nginx() {
        check(1_700_000_000, 0, Style::Local, "14/Nov/2023:22:13:20 +0000");
        check(1_700_000_000, 6 * 3600, Style::Local, "15/Nov/2023:04:13:20 +0600");
        check(1_700_000_000, -(3 * 3600 + 1800), Style::Iso8601, "2023-11-14T18:43:20-03:30");
        check(951_782_400, 0, Style::Utc, "2000-02-29T00:00:00.078Z");
        check(951_782_400, 3600, Style::UtcSeconds, "2000-02-29T00:00:00Z");
    }
}
