//! The process that sessions run in, as variables show it.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Moment, Name, Style, Variable};

/// The process.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Host {
    /// `$hostname`.
    pub hostname: Arc<str>,
    /// `$pid`.
    pub pid: u32,
    /// The time zone of its clocks.
    pub zone: Zone,
}

/// A time zone: how many seconds its clocks are ahead of UTC at a time since 1970.
#[derive(Clone, Copy)]
pub struct Zone(pub fn(i64) -> i32);

impl Host {
    /// The value of a variable about the process or the time.
    #[must_use]
    pub fn value(&self, name: Name, time: SystemTime) -> Option<Variable<'_>> {
        let unix = || time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(match name {
            Name::Hostname => Variable::Text(&self.hostname),
            Name::Pid => Variable::Number(self.pid.into()),
            // No nginx: its own version.
            Name::NginxVersion => Variable::Text(env!("CARGO_PKG_VERSION")),
            Name::Msec => Variable::Seconds(unix()),
            Name::TimeLocal => Variable::Moment(self.moment(time, Style::Local)),
            Name::TimeIso8601 => Variable::Moment(self.moment(time, Style::Iso8601)),
            _ => return None,
        })
    }

    /// A point in time as the clocks of this host show it.
    #[must_use]
    pub fn moment(&self, time: SystemTime, style: Style) -> Moment {
        let unix = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(unix.as_secs()).unwrap_or_default();
        Moment { unix, east: (self.zone.0)(seconds), style }
    }
}

/// UTC.
impl Default for Zone {
    fn default() -> Self {
        Self(|_| 0)
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

impl Eq for Zone {}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Zone")
    }
}
