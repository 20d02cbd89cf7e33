//! Findings about certificates: when they end, and which clients fail that APISIX serves.

use streamgate::config::Config;
use streamgate::resource::{Key, Object, Ssl};

use super::objects::finding;
use super::{Finding, Level};
use crate::cli::load::Loaded;

/// Seconds of a day.
const DAY: u64 = 86_400;
/// An end within so many days is told.
const SOON: u64 = 30;

/// All of them. `now` is in seconds since 1970.
pub(super) fn findings(config: &Config, loaded: &Loaded, now: u64) -> Vec<Finding> {
    let terminating: Vec<&str> =
        config.listens.iter().filter(|listen| listen.tls).map(|listen| &*listen.written).collect();
    let mut findings = Vec::new();
    let mut served = 0;
    for (key, entry) in loaded.store.entries() {
        let Object::Ssl(ssl) = &entry.object else { continue };
        if !ssl.enabled {
            continue;
        }
        findings.extend(ssl.identities.iter().filter_map(|identity| expiry(key, identity.not_after, now)));
        if !ssl.client_type && !terminating.is_empty() {
            served += 1;
            findings.extend(differences(key, ssl));
        }
    }
    if let Some(listen) = terminating.first().filter(|_| served == 0) {
        findings.push(Finding {
            level: Level::Warn,
            rule: None,
            object: "config.yaml".into(),
            sentence: format!(
                "listen {listen} terminates TLS and there is no certificate: every handshake fails"
            ),
        });
    }
    findings
}

fn expiry(key: &Key, not_after: u64, now: u64) -> Option<Finding> {
    let date = date(not_after);
    let sentence = match not_after.checked_sub(now) {
        None => format!("expired {} days ago ({date}); clients refuse it", (now - not_after) / DAY),
        Some(left) if left < SOON * DAY => format!("expires in {} days ({date})", left / DAY),
        Some(_) => return None,
    };
    Some(finding(Level::Warn, None, key, sentence))
}

/// What clients of this object can notice.
fn differences(key: &Key, ssl: &Ssl) -> Vec<Finding> {
    let mut findings = Vec::new();
    if ssl.versions.tls12 {
        findings.push(finding(
            Level::Changes,
            Some("SG-080"),
            key,
            "static-RSA, DHE and CBC suites of TLS 1.2 are not spoken: devices that have only those fail \
             (docs/migrate.md shows how to find them)"
                .into(),
        ));
    }
    if ssl.client.is_some() {
        findings.push(finding(
            Level::Changes,
            Some("SG-081"),
            key,
            "client certificates of X.509 version 1 are refused".into(),
        ));
    }
    findings
}

/// A day of the calendar, as `2026-12-01` (the days of a civil calendar counted from 0000-03-01, so that a
/// leap day is the last of its year).
fn date(seconds: u64) -> String {
    let days = seconds / DAY + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use streamgate::resource::Kind;

    use super::*;

    #[test]
    fn days_have_dates() {
        let cases = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_796_083_200, "2026-12-01"),
            (4_102_444_799, "2099-12-31"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn what_ends_soon_is_told() {
        let key = Key::new(Kind::Ssl, "1");
        let told = |not_after| expiry(&key, not_after, 100 * DAY).map(|finding| finding.sentence);
        assert_eq!(told(130 * DAY), None);
        assert!(told(109 * DAY).unwrap().starts_with("expires in 9 days (1970-04-20)"));
        assert!(told(98 * DAY).unwrap().starts_with("expired 2 days ago"));
    }
}
