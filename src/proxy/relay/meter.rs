//! How much a direction may move at a time, and when.
//!
//! Most sessions have no bound and a direction without one is another type: it asks for nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::live::bandwidth::Bounds;

/// What is read or sent at once is never more.
const MOST: usize = 256 * 1024;
/// A wait for ever. Longer ones are beyond what timers take.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// Bounds what a direction moves.
pub(in crate::proxy) trait Meter {
    /// There may be a bound.
    const BOUNDS: bool;

    /// Asks to move what is `available`: how many bytes of it, once their time has come. Nothing is waited
    /// for where nothing is there; then it may be the end, and one byte may be asked for.
    fn grant(
        &mut self,
        cx: &mut Context<'_>,
        available: impl FnOnce() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;

    /// So many bytes were moved.
    fn settle(&mut self, moved: usize);

    /// There are bytes whose time has not come.
    fn is_waiting(&self) -> bool;
}

/// No bound.
#[derive(Debug)]
pub(in crate::proxy) struct Free;

impl Meter for Free {
    const BOUNDS: bool = false;

    fn grant(
        &mut self,
        _cx: &mut Context<'_>,
        _available: impl FnOnce() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(usize::MAX))
    }

    fn settle(&mut self, _moved: usize) {}

    fn is_waiting(&self) -> bool {
        false
    }
}

/// The bounds of a session's direction.
#[derive(Debug)]
pub(in crate::proxy) struct Metered {
    bounds: Bounds,
    /// Bytes that have a place, and when its time comes.
    turn: Option<(usize, Instant)>,
    /// Made when it is first needed.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Metered {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, turn: None, timer: None, waiting: false }
    }

    /// Waits until then.
    fn until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl Meter for Metered {
    const BOUNDS: bool = true;

    fn grant(
        &mut self,
        cx: &mut Context<'_>,
        available: impl FnOnce() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.bounds.is_none() {
            return Poll::Ready(Ok(usize::MAX));
        }
        let now = Instant::now();
        let (bytes, at) = if let Some(turn) = self.turn {
            turn
        } else {
            let bytes = available()?.min(self.bounds.turn(now.into_std())).min(MOST);
            if bytes == 0 {
                return Poll::Ready(Ok(1));
            }
            let wait = self.bounds.reserve(bytes, now.into_std()).min(FOR_EVER);
            *self.turn.insert((bytes, now + wait))
        };
        if at > now {
            self.waiting = true;
            ready!(self.until(at, cx));
        }
        self.waiting = false;
        Poll::Ready(Ok(bytes))
    }

    fn settle(&mut self, moved: usize) {
        if self.bounds.is_none() {
            return;
        }
        let reserved = self.turn.take().map_or(0, |(bytes, _)| bytes);
        self.bounds.settle(reserved, moved, Instant::now().into_std());
    }

    fn is_waiting(&self) -> bool {
        // Its time may have come while something else keeps it.
        self.waiting && self.turn.is_some_and(|(_, at)| Instant::now() < at)
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        // Others of the key need not wait for what will not be moved.
        if self.turn.is_some() {
            self.settle(0);
        }
    }
}
