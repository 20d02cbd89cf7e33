//! How often something may be logged. Pure: `now` is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Lets a number of events through in each period.
#[derive(Debug)]
pub(super) struct Rate {
    limit: u32,
    period: Duration,
    began: Option<Instant>,
    count: u32,
}

impl Rate {
    /// At most `limit` events in a `period`.
    pub(super) fn new(limit: u32, period: Duration) -> Self {
        Self { limit, period, began: None, count: 0 }
    }

    /// Counts an event; reports whether it is let through.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        if self.began.is_none_or(|began| now.duration_since(began) >= self.period) {
            self.began = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_lets_its_number_through() {
        let (mut rate, now) = (Rate::new(2, Duration::from_secs(1)), Instant::now());
        let answers: Vec<bool> =
            [0, 10, 20, 999, 1000, 1001, 1002].map(|ms| rate.allows(now + Duration::from_millis(ms))).into();
        assert_eq!(answers, [true, true, false, false, true, true, false]);
    }
}
