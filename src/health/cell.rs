//! The standing of one target, shared by whoever reports and whoever asks.
//!
//! No locks: sessions report failed connects from their workers while probes report from the control
//! plane, and picks only ask whether a target is usable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;

use super::{Limits, Report, Standing};

/// Who found something out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Finding {
    /// A probe.
    Active,
    /// A session.
    Passive,
    /// Nobody: the time was over for which a target stays out that nothing probes.
    BackOff,
}

impl Finding {
    /// The word in status pages.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::BackOff => "back_off",
        }
    }
}

/// Why a target is in its state.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cause {
    /// Who found it out.
    pub by: Finding,
    /// What: a sentence for the operator.
    pub why: Box<str>,
    /// Since when: milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// How many targets of an upstream are not usable. Mostly none, and a pick need not ask each node.
#[derive(Debug, Default)]
pub struct Down(AtomicUsize);

impl Down {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// The standing of one target. It outlives snapshots: an edited upstream goes on with what is known.
#[derive(Debug)]
pub struct Cell {
    standing: AtomicU64,
    cause: ArcSwapOption<Cause>,
    /// When a probe or a session found something out last: milliseconds since 1970; 0: never.
    heard_unix_ms: AtomicU64,
    /// Times in a row that it was taken out by sessions and let in again unproven.
    relapses: AtomicUsize,
    down: Arc<Down>,
}

/// What became of a result that was counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Applied {
    /// The standing now.
    pub now: Standing,
    /// Before, the target was usable and now it is not, or the other way round.
    pub turned: bool,
}

impl Cell {
    /// A healthy target, of an upstream whose unusable ones count in `down`.
    #[must_use]
    pub fn new(down: Arc<Down>) -> Self {
        Self {
            standing: AtomicU64::new(Standing::default().pack()),
            cause: ArcSwapOption::empty(),
            heard_unix_ms: AtomicU64::new(0),
            relapses: AtomicUsize::new(0),
            down,
        }
    }

    /// The standing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing::unpack(self.standing.load(Relaxed))
    }

    /// Reports whether sessions are sent there.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.standing().state.is_usable()
    }

    /// Why and since when it is in its state; `None` before its first change.
    #[must_use]
    pub fn cause(&self) -> Option<Arc<Cause>> {
        self.cause.load_full()
    }

    /// Notes that something was found out, counted or not.
    pub fn heard(&self, now_unix_ms: u64) {
        self.heard_unix_ms.store(now_unix_ms, Relaxed);
    }

    /// When that was last, in milliseconds since 1970; `None`: never.
    #[must_use]
    pub fn heard_unix_ms(&self) -> Option<u64> {
        Some(self.heard_unix_ms.load(Relaxed)).filter(|at| *at > 0)
    }

    /// Counts a result; `None` where it is one that is not counted. `cause` is asked where the state
    /// changed, but for changes between the two in which it is not used.
    pub fn report(&self, report: Report, limits: &Limits, cause: impl FnOnce() -> Cause) -> Option<Applied> {
        let step = |number| Standing::unpack(number).after(report, limits).map(Standing::pack);
        let before = Standing::unpack(self.standing.fetch_update(Relaxed, Relaxed, step).ok()?);
        // The one whose step it was tells of it.
        let now = before.after(report, limits)?;
        let turned = self.changed(before, now);
        // While it is down, the reason is that for which it was taken out.
        if before.state != now.state && (turned || now.state.is_usable()) {
            self.cause.store(Some(Arc::new(cause())));
        }
        Some(Applied { now, turned })
    }

    /// Lets a target in again that nothing probes, on trial: one more failure than its limit allows
    /// for takes it out for longer. Reports whether it was out.
    pub fn revive(&self, cause: Cause) -> bool {
        let fresh = Standing::default();
        let before = Standing::unpack(self.standing.swap(fresh.pack(), Relaxed));
        let turned = self.changed(before, fresh);
        if turned {
            self.relapses.fetch_add(1, Relaxed);
            self.cause.store(Some(Arc::new(cause)));
        }
        turned
    }

    /// Times in a row it was let in again by [`Self::revive`] since [`Self::proven`].
    #[must_use]
    pub fn relapses(&self) -> usize {
        self.relapses.load(Relaxed)
    }

    /// It has served since it was let in: the next time it is taken out is the first again.
    pub fn proven(&self) {
        self.relapses.store(0, Relaxed);
    }

    /// Keeps the count of unusable targets.
    fn changed(&self, before: Standing, now: Standing) -> bool {
        match (before.state.is_usable(), now.state.is_usable()) {
            (true, false) => _ = self.down.0.fetch_add(1, Relaxed),
            (false, true) => _ = self.down.0.fetch_sub(1, Relaxed),
            _ => return false,
        }
        true
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if !self.is_usable() {
            self.down.0.fetch_sub(1, Relaxed);
        }
    }
}
