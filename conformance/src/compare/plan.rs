//! What a comparison shall do.

use super::metric::Work;
use super::proxy::Proxy;

/// The proxies, the works, and how much of them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The proxies, in their order.
    pub proxies: Vec<Proxy>,
    /// What each is given to do, in its order.
    pub works: Vec<Work>,
    /// How often the proxies are started and all is measured.
    pub rounds: usize,
    /// How often each load comes in a round.
    pub turns: usize,
    /// How long it is measured each time.
    pub seconds: f64,
    /// Idle connections to hold.
    pub idle: usize,
    /// The proxies run as users without privileges: root hides the limits of pipes and of socket
    /// buffers.
    pub unprivileged: bool,
}

impl Default for Plan {
    /// All proxies and works, long enough to be believed on a quiet machine.
    fn default() -> Self {
        Self {
            proxies: Proxy::all().collect(),
            works: Work::all().collect(),
            rounds: 3,
            turns: 3,
            seconds: 1.0,
            idle: 9_000,
            unprivileged: false,
        }
    }
}

impl Plan {
    /// Reports whether all proxies do all works with nothing in their way: what a document shows.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let all = Self::default();
        self.proxies == all.proxies && self.works == all.works && !self.unprivileged
    }
}
