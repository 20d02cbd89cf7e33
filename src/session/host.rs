//! The process that sessions run in, as variables show it.

use std::sync::Arc;
use std::time::SystemTime;

use super::Variable;

/// The process.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Host {
    /// `$hostname`.
    pub hostname: Arc<str>,
    /// `$pid`.
    pub pid: u32,
}

impl Host {
    /// The value of a variable about the process or the time.
    #[must_use]
    pub fn variable(&self, name: &str, time: SystemTime) -> Option<Variable<'_>> {
        let _ = time;
        match name {
            "hostname" => Some(Variable::Text(&self.hostname)),
            _ => None,
        }
    }
}
