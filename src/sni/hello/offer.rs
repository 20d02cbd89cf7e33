//! What a client offered, for the log line of a handshake that failed.

use std::fmt;

use super::{Hello, names};

/// How many entries of a list are named.
const NAMED: usize = 16;

/// A hello as text, in the names operators search for: `versions TLSv1.2; suites
/// ECDHE-RSA-AES128-SHA, AES128-SHA, 0x1234; groups x25519, secp256r1`. Lists stop after 16 entries with
/// "and 3 more". Made only where a line is written.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a>(pub Hello<'a>);

impl fmt::Display for Offer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suites = self.0.suites().filter(|code| !names::is_signal(*code));
        list(f, "versions", self.0.versions(), names::VERSIONS)?;
        list(f, "; suites", suites, names::SUITES)?;
        list(f, "; groups", self.0.groups(), names::GROUPS)
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    codes: impl Iterator<Item = u16>,
    names: names::Table,
) -> fmt::Result {
    f.write_str(label)?;
    let mut count = 0;
    for code in codes {
        count += 1;
        if count > NAMED {
            continue;
        }
        f.write_str(if count == 1 { " " } else { ", " })?;
        match names::find(names, code) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{code:#06x}")?,
        }
    }
    match count {
        0 => f.write_str(" none"),
        1..=NAMED => Ok(()),
        _ => write!(f, " and {} more", count - NAMED),
    }
}
