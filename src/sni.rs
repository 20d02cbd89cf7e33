//! Which TLS server names a stream route accepts; the [`hello`] that names one.
//!
//! A route names one server (`db.example.com`) or, with a leading `*`, every name that ends alike.
//! As in APISIX the `*` stands for any run of characters, dots and the empty run included
//! (`apisix/stream/router/ip_port.lua:178`): `*.example.com` accepts `a.b.example.com`, and
//! `*example.com` accepts `example.com` itself. Patterns are lower-cased here, as APISIX does it from
//! 3.19 on; client names come lower-cased and without their root dot (`apisix/ssl.lua:39`).
//! Pure: no I/O, no clock.

pub mod hello;

use std::fmt;
use std::str::FromStr;

/// A parsed `sni` of a route.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SniPattern {
    /// This name alone.
    Exact(Box<str>),
    /// Every name with this ending; empty for a bare `*`.
    Suffix(Box<str>),
}

impl SniPattern {
    /// Reports whether `name`, lower case and without a final dot, is accepted.
    #[must_use]
    pub fn accepts(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == &**exact,
            Self::Suffix(ending) => name.ends_with(&**ending),
        }
    }
}

impl fmt::Display for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Suffix(ending) => write!(f, "*{ending}"),
        }
    }
}

impl FromStr for SniPattern {
    type Err = SniPatternError;

    fn from_str(text: &str) -> Result<Self, SniPatternError> {
        if text.is_empty() {
            return Err(SniPatternError::Empty);
        }
        let ending = text.strip_prefix('*');
        let name = ending.unwrap_or(text);
        if let Some((at, found)) = name.char_indices().find(|(_, c)| !is_name_char(*c)) {
            let at = text.len() - name.len() + at;
            return Err(match found {
                '*' => SniPatternError::Star { text: text.into(), at },
                _ => SniPatternError::Unexpected { text: text.into(), found, at },
            });
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if ending.is_some() { Self::Suffix(name) } else { Self::Exact(name) })
    }
}

/// Why a text is no pattern.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SniPatternError {
    /// Nothing is there.
    #[error("the server name is empty; leave `sni` out to take connections of any name and without TLS")]
    Empty,
    /// A `*` that is not the first character.
    #[error("`{text}` has a `*` at byte {at}; it may only lead, as in *.example.com")]
    Star {
        /// The whole text.
        text: Box<str>,
        /// In bytes from its start.
        at: usize,
    },
    /// A character that no server name has.
    #[error("`{text}` has {found:?} at byte {at}; a server name is made of letters, digits and - . _ [ ] :")]
    Unexpected {
        /// The whole text.
        text: Box<str>,
        /// What stands there.
        found: char,
        /// In bytes from its start.
        at: usize,
    },
}

/// The characters of `host_def_pat` (`apisix/schema_def.lua:57`).
fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '[' | ']' | ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, accepted: bool) {
        let parsed: SniPattern = pattern.parse().unwrap();
        assert_eq!(parsed.accepts(name), accepted, "{pattern} on {name}");
        assert_eq!(parsed.to_string(), pattern.to_ascii_lowercase());
    }

    #[track_caller]
    fn check_refused(text: &str, part: &str) {
        let error = text.parse::<SniPattern>().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn star_stands_for_any_run_of_characters() {
        check("x.com", "x.com", true);
        check("x.com", "a.x.com", false);
        check("*.x.com", "a.x.com", true);
        check("*.x.com", "a.b.x.com", true);
        check("*.x.com", "x.com", false);
        check("*x.com", "x.com", true);
        check("*x.com", "ax.com", true);
        check("*", "anything", true);
    }

    #[test]
    fn patterns_are_lower_cased() {
        check("DB.X.com", "db.x.com", true);
        check("*.X.COM", "a.x.com", true);
    }

    #[test]
    fn errors_point_at_the_byte() {
        check_refused("", "leave `sni` out");
        check_refused("*.x*.com", "`*` at byte 3");
        check_refused("a b", "' ' at byte 1");
        check_refused("*ü.com", "at byte 1");
        check_refused("a.com\n", "'\\n' at byte 5");
    }
}
