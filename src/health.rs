//! Whether a node is usable: results in, one of four states out.
//!
//! The states, counters and thresholds are those of lua-resty-healthcheck 3.2 as APISIX uses it
//! (`resty/healthcheck.lua:750-817`). A target begins healthy. Each kind of result has a counter and a
//! limit of its own; a success sets the counters of failures to zero, a failure that of successes.
//! A result that says what is known in full is not counted: a success while healthy, a failure while
//! unhealthy. Pure: no I/O, no clock.

mod cell;

pub use cell::{Applied, Cause, Cell, Down, Finding};

/// What is thought of a target.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum State {
    /// Used.
    #[default]
    Healthy,
    /// Used; it has failed less often than it takes to be unhealthy.
    MostlyHealthy,
    /// Not used.
    Unhealthy,
    /// Not used; it has answered less often than it takes to be healthy.
    MostlyUnhealthy,
}

impl State {
    const ALL: [Self; 4] = [Self::Healthy, Self::MostlyHealthy, Self::Unhealthy, Self::MostlyUnhealthy];

    /// Reports whether sessions are sent there.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::MostlyHealthy)
    }

    /// APISIX's word.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::MostlyHealthy => "mostly_healthy",
            Self::Unhealthy => "unhealthy",
            Self::MostlyUnhealthy => "mostly_unhealthy",
        }
    }
}

/// What a probe or a session found out about a target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// It does what it shall.
    Success,
    /// It answers by HTTP that it is not well, or with something else than HTTP.
    HttpFailure,
    /// It could not be connected to, or broke the connection.
    TcpFailure,
    /// It did not answer in time.
    Timeout,
}

impl Report {
    /// The word in APISIX's log lines.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "SUCCESS",
            Self::HttpFailure => "HTTP",
            Self::TcpFailure => "TCP",
            Self::Timeout => "TIMEOUT",
        }
    }
}

/// How many results of a kind in a row turn the state; 0: such results are ignored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Successes to healthy.
    pub successes: u8,
    /// Failures by HTTP to unhealthy.
    pub http_failures: u8,
    /// Failed connections to unhealthy.
    pub tcp_failures: u8,
    /// Missing answers to unhealthy.
    pub timeouts: u8,
}

impl Limits {
    /// The limits of active checks where the object says nothing (`apisix/schema_def.lua:149-311`).
    pub const ACTIVE: Self = Self { successes: 2, http_failures: 5, tcp_failures: 2, timeouts: 3 };
    /// Those of passive checks.
    pub const PASSIVE: Self = Self { successes: 5, http_failures: 5, tcp_failures: 2, timeouts: 7 };

    /// The limit for results of this kind.
    #[must_use]
    pub fn of(&self, report: Report) -> u8 {
        match report {
            Report::Success => self.successes,
            Report::HttpFailure => self.http_failures,
            Report::TcpFailure => self.tcp_failures,
            Report::Timeout => self.timeouts,
        }
    }
}

/// The state of a target with its counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// Successes since the last failure.
    pub success: u8,
    /// Failures by HTTP since the last success.
    pub http_failure: u8,
    /// Failed connections since the last success.
    pub tcp_failure: u8,
    /// Missing answers since the last success.
    pub timeout_failure: u8,
}

impl Standing {
    /// The standing after one more result; `None` where it is not counted.
    #[must_use]
    pub fn after(self, report: Report, limits: &Limits) -> Option<Self> {
        let limit = limits.of(report);
        let known = match report {
            Report::Success => self.state == State::Healthy,
            _ => self.state == State::Unhealthy,
        };
        if limit == 0 || known {
            return None;
        }
        let mut next = self;
        let counter = next.counter_mut(report);
        *counter = counter.saturating_add(1);
        let reached = *counter >= limit;
        if report == Report::Success {
            next = Self { state: next.state, success: next.success, ..Self::default() };
        } else {
            next.success = 0;
        }
        next.state = match (report, self.state) {
            (Report::Success, _) if reached => State::Healthy,
            (Report::Success, State::Unhealthy) => State::MostlyUnhealthy,
            (Report::Success, state) => state,
            _ if reached => State::Unhealthy,
            (_, State::Healthy) => State::MostlyHealthy,
            (_, state) => state,
        };
        Some(next)
    }

    /// The counter that results of this kind count in.
    #[must_use]
    pub fn counter(mut self, report: Report) -> u8 {
        *self.counter_mut(report)
    }

    fn counter_mut(&mut self, report: Report) -> &mut u8 {
        match report {
            Report::Success => &mut self.success,
            Report::HttpFailure => &mut self.http_failure,
            Report::TcpFailure => &mut self.tcp_failure,
            Report::Timeout => &mut self.timeout_failure,
        }
    }

    /// All of it as a number.
    fn pack(self) -> u64 {
        u64::from_be_bytes([
            0,
            0,
            0,
            self.state as u8,
            self.success,
            self.http_failure,
            self.tcp_failure,
            self.timeout_failure,
        ])
    }

    fn unpack(number: u64) -> Self {
        let [.., state, success, http_failure, tcp_failure, timeout_failure] = number.to_be_bytes();
        let state = State::ALL.get(usize::from(state)).copied().unwrap_or_default();
        Self { state, success, http_failure, tcp_failure, timeout_failure }
    }
}

#[cfg(test)]
mod tests;
