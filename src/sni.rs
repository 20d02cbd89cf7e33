//! TLS server names: which ones a route accepts, and reading one from a ClientHello.

use std::convert::Infallible;
use std::str::FromStr;

/// A parsed `sni` of a route.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SniPattern {
    /// This name alone.
    Exact(Box<str>),
    /// Every name with this ending; empty for a bare `*`.
    Suffix(Box<str>),
}

impl FromStr for SniPattern {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.to_ascii_lowercase().into()),
            None => Self::Exact(text.to_ascii_lowercase().into()),
        })
    }
}
