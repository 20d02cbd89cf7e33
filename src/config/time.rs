//! Times as nginx writes them: `240s`, `500ms`, `1m 30s`, a bare number of seconds.

use std::time::Duration;

/// Units from the largest down, in milliseconds (nginx `core/ngx_parse.c`, `ngx_parse_time`).
const UNITS: &[(&str, u64)] = &[
    ("y", 365 * 24 * 3_600_000),
    ("M", 30 * 24 * 3_600_000),
    ("w", 7 * 24 * 3_600_000),
    ("d", 24 * 3_600_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("", 1000),
    ("ms", 1),
];

/// Reads a time. As in nginx units come from large to small, each once, blanks between them.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut smaller = UNITS;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (digits, after) = split(rest, |c| c.is_ascii_digit());
        let (unit, after) = split(after, |c| c.is_ascii_alphabetic());
        let place = smaller.iter().position(|(name, _)| *name == unit)?;
        let (_, millis) = smaller.get(place)?;
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(*millis)?)?;
        smaller = smaller.get(place + 1..)?;
        rest = after.trim_start();
    }
    (!text.trim().is_empty()).then_some(Duration::from_millis(total))
}

/// The leading characters that are `wanted`, and the rest.
fn split(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, millis: Option<u64>) {
        assert_eq!(parse(text), millis.map(Duration::from_millis), "{text:?}");
    }

    #[test]
    fn times_are_read_as_nginx_reads_them() {
        check("240s", Some(240_000));
        check("240", Some(240_000));
        check("500ms", Some(500));
        check("1m 30s", Some(90_000));
        check("1m30s", Some(90_000));
        check("1h", Some(3_600_000));
        check("0", Some(0));
        check("30s 1m", None);
        check("1s 2s", None);
        check("1.5s", None);
        check("-1s", None);
        check("s", None);
        check("", None);
        check("99999999999999999999s", None);
        check("10 years", None);
    }
}
