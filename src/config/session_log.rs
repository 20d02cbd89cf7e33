//! `streamgate.session_log`: which sessions the session log tells of, and where.

use super::SessionLog;
use super::files::Files;
use super::read::Node;
use super::read::show;
use crate::live::logs::Which;

/// Reads the section.
pub(super) fn read(section: &Node<'_>, files: &Files<'_>) -> SessionLog {
    section.only(&["long_sessions", "path", "sample", "sessions"]);
    let which = match section.at("sessions").choice(&["abnormal", "all", "none"]) {
        Some("all") => Which::All,
        Some("none") => Which::None,
        _ => Which::Abnormal,
    };
    SessionLog {
        which,
        path: section.at("path").string().map(|text| files.prefix.join(text)),
        sample: sample(&section.at("sample"), which),
        long: section.at("long_sessions").duration(),
    }
}

fn sample(node: &Node<'_>, which: Which) -> Option<f64> {
    let value = node.value()?;
    let share = value.as_f64().filter(|share| (0.0..=1.0).contains(share));
    if share.is_none() {
        node.mistake(format!("is {}; allowed is the share of normal endings, 0 to 1", show(value)));
    } else if which != Which::All {
        node.mistake("has no effect without sessions: all; abnormal endings are never left out by chance");
    }
    share
}
