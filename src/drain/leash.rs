//! Sessions that have to end because their node went down or left its upstream.
//!
//! Each holds the leash of its node and ends when the leash is pulled for it. That happens at a pace,
//! first to who has waited longest, so that thousands of clients do not come back to the other nodes at
//! once.

use tokio::sync::{Semaphore, SemaphorePermit};

/// The leash of the sessions of one node.
#[derive(Debug)]
pub struct Leash {
    /// Sessions that may end and have not noticed yet.
    pulls: Semaphore,
}

impl Default for Leash {
    fn default() -> Self {
        Self { pulls: Semaphore::new(0) }
    }
}

impl Leash {
    /// Waits until the session that asks has to end.
    pub async fn pulled(&self) {
        match self.pulls.acquire().await {
            Ok(pull) => pull.forget(),
            // Nobody closes the semaphore.
            Err(_) => std::future::pending().await,
        }
    }

    /// Reports whether the session that asks has to end, now; if so, no other session of this pull.
    #[must_use]
    pub fn is_pulled(&self) -> bool {
        self.pulls.try_acquire().map(SemaphorePermit::forget).is_ok()
    }

    /// Ends so many sessions.
    pub fn pull(&self, sessions: usize) {
        // A semaphore overflows far above what sessions there are; nobody needs more pulls than that.
        const MOST: usize = 1 << 20;
        if self.pulls.available_permits() < MOST {
            self.pulls.add_permits(sessions.min(MOST));
        }
    }

    /// Takes back what no session has noticed yet: the node serves again.
    pub fn slacken(&self) {
        self.pulls.forget_permits(usize::MAX >> 4);
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn so_many_end_as_it_was_pulled_for_the_longest_waiting_first() {
        let leash = Leash::default();
        let mut first = task::spawn(leash.pulled());
        let mut second = task::spawn(leash.pulled());
        assert_pending!(first.poll());
        assert_pending!(second.poll());
        assert!(!leash.is_pulled());
        leash.pull(1);
        assert_ready!(first.poll());
        assert_pending!(second.poll());
        drop(second);
        leash.pull(2);
        assert!(leash.is_pulled());
        leash.slacken();
        assert!(!leash.is_pulled(), "what was not noticed is taken back");
    }
}
