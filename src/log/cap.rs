//! How many lines of one ending are written in a window of time.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::End;

/// Counts lines by ending.
#[derive(Debug)]
pub(super) struct Cap {
    limit: u32,
    length: Duration,
    end: Instant,
    written: [u32; End::COUNT],
    suppressed: [u64; End::COUNT],
}

impl Cap {
    pub(super) fn new(limit: u32, length: Duration, now: Instant) -> Self {
        let (written, suppressed) = ([0; End::COUNT], [0; End::COUNT]);
        Self { limit, length, end: now + length, written, suppressed }
    }

    /// When this window is over.
    pub(super) fn window_end(&self) -> Instant {
        self.end
    }

    /// Reports whether one more line of this ending may be written, and counts it.
    pub(super) fn admit(&mut self, end: End) -> bool {
        let (Some(written), Some(suppressed)) =
            (self.written.get_mut(end.index()), self.suppressed.get_mut(end.index()))
        else {
            return true;
        };
        if *written < self.limit {
            *written += 1;
            return true;
        }
        *suppressed += 1;
        false
    }

    /// Begins the next window. Yields how many lines of each ending the last one did not get.
    pub(super) fn next_window(&mut self, now: Instant) -> impl Iterator<Item = (End, u64)> + use<> {
        self.end = now + self.length;
        self.written.fill(0);
        let suppressed = std::mem::replace(&mut self.suppressed, [0; End::COUNT]);
        End::ALL.iter().copied().zip(suppressed).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_ending_has_a_count_of_its_own() {
        let mut cap = Cap::new(2, Duration::from_secs(10), Instant::now());
        let admitted = [End::NoRoute, End::NoRoute, End::NoRoute, End::NoNode].map(|end| cap.admit(end));
        assert_eq!(admitted, [true, true, false, true]);
        assert_eq!(cap.next_window(Instant::now()).collect::<Vec<_>>(), [(End::NoRoute, 1)]);
        assert!(cap.admit(End::NoRoute));
        assert_eq!(cap.next_window(Instant::now()).count(), 0);
    }
}
