//! The bytes of a connection, both ways in one task.
//!
//! A direction that has nothing to pass on holds no buffer: most connections of a gateway idle. A FIN
//! and a reset reach the other side as they would on a direct connection. The limits are checked
//! when their timer fires, not moved on each byte.
//!
//! A side that is not being read is watched for its reset: after its FIN there is nothing more to
//! read, and while the other side takes nothing reading has to wait. In the first case the session
//! ends at once. In the second what it said may still be taken, but no longer than a half-closed
//! connection may be silent.

mod carry;
mod direction;
mod meter;
mod pace;
mod secure;

use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use streamgate_sys::tcp::unacknowledged;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::session::{End, Side, Traffic};

use self::carry::{Carry, Step};
pub(super) use self::direction::{Direction, Lender};
pub(super) use self::secure::{Secure, Wire, farewell};

/// How soon it is asked again whether a peer has taken everything: at first, and at most. The kernel
/// tells nobody.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// When a relay ends by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// After so long without a byte either way.
    pub(super) idle: Duration,
    /// The same, once one side has closed.
    pub(super) half_closed: Duration,
    /// A FIN leaves the other direction open. Else the first FIN ends both, as in nginx.
    pub(super) half_close: bool,
}

/// How a relay ended; the error where it is not one that connections simply end with.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) end: End,
    pub(super) error: Option<io::Error>,
}

impl Ending {
    /// Reports whether a side was cut off: what the other one hears of it is a reset.
    pub(super) fn is_reset(&self) -> bool {
        matches!(self.end, End::ClientReset | End::UpstreamReset | End::Internal)
    }
}

/// Relays between two connections without TLS.
pub(super) fn plain<'a>(
    (client, upstream): (&'a TcpStream, &'a TcpStream),
    lender: Lender<'a>,
    limits: Limits,
    timer: Pin<&'a mut Sleep>,
    moved: impl FnMut(Traffic, Instant) + 'a,
) -> impl Future<Output = Ending> + 'a {
    let ways = (Direction::new(client, upstream, lender), Direction::new(upstream, client, lender));
    relay(ways, limits, timer, moved)
}

/// Passes bytes on from the client and to it, by the one direction and the other, until both sides are
/// done. `moved` hears of them as they move, and when.
///
/// Not an `async fn`: that keeps a second copy of its arguments as long as it runs.
pub(super) fn relay<'a, D: Carry<'a> + 'a>(
    (up, down): (D, D),
    limits: Limits,
    mut timer: Pin<&'a mut Sleep>,
    mut moved: impl FnMut(Traffic, Instant) + 'a,
) -> impl Future<Output = Ending> + 'a {
    let mut relay = Relay {
        up,
        down,
        first_closed: None,
        reset: None,
        resets: [None, None],
        limits,
        last: Instant::now(),
        armed: false,
    };
    timer.as_mut().reset(relay.last + limits.idle);
    async move {
        let ending = poll_fn(|cx| {
            let polled = relay.poll(cx, timer.as_mut());
            let traffic = Traffic { received: relay.up.take_moved(), sent: relay.down.take_moved() };
            if traffic != Traffic::default() {
                // At the very end nobody has looked at the clock.
                moved(traffic, if polled.is_ready() { Instant::now() } else { relay.last });
            }
            polled
        })
        .await;
        // A side that had closed before is not heard again: the other one has its FIN and keeps what
        // was said before.
        let told = match ending.end {
            End::ClientReset if !relay.up.is_finished() => Some(relay.down.sender()),
            End::UpstreamReset if !relay.down.is_finished() => Some(relay.up.sender()),
            _ => None,
        };
        if let Some(stream) = told {
            Box::pin(pass_reset(stream, relay.last + relay.limits.half_closed)).await;
        }
        ending
    }
}

/// Makes closing the stream send a reset. That discards what the peer has not taken yet, so its host
/// has time to take it, but no longer than `until`.
async fn pass_reset(stream: &TcpStream, until: Instant) {
    let [mut pause, longest] = LOOK_AGAIN;
    while unacknowledged(stream.as_fd()).is_ok_and(|left| left > 0) && Instant::now() < until {
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
    // It fails where the peer has gone, too.
    drop(stream.set_zero_linger());
}

/// Ready when the kernel has an error for a socket, read or not.
type Reset<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>;

struct Relay<'a, D> {
    /// From the client to the upstream.
    up: D,
    /// From the upstream to the client.
    down: D,
    first_closed: Option<Side>,
    /// Was reset while the other side took nothing.
    reset: Option<Side>,
    /// Of the client and of the upstream, made when first needed: most sessions never do.
    resets: [Option<Reset<'a>>; 2],
    limits: Limits,
    /// When a byte moved last.
    last: Instant,
    /// The timer knows whom to wake.
    armed: bool,
}

impl<'a, D: Carry<'a>> Relay<'a, D> {
    #[inline]
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Ending> {
        for side in [Side::Client, Side::Upstream] {
            if let Some(ending) = self.advance(cx, side, timer.as_mut()) {
                return Poll::Ready(ending);
            }
        }
        // Of a side that is gone, what has to wait for its time is not worth more than that.
        let lasts = self.reset.is_none() || !(self.up.is_held_back() || self.down.is_held_back());
        if (self.up.has_moved() || self.down.has_moved()) && lasts {
            self.last = Instant::now();
        }
        for side in [Side::Client, Side::Upstream] {
            if let Some(ending) = self.check_reset(cx, side, timer.as_mut()) {
                return Poll::Ready(ending);
            }
        }
        self.check_limits(cx, timer)
    }

    /// Moves what one side has sent.
    #[inline]
    fn advance(&mut self, cx: &mut Context<'_>, from: Side, timer: Pin<&mut Sleep>) -> Option<Ending> {
        let (direction, other, to) = match from {
            Side::Client => (&mut self.up, &mut self.down, Side::Upstream),
            _ => (&mut self.down, &mut self.up, Side::Client),
        };
        if direction.is_finished() {
            return None;
        }
        match direction.advance(cx) {
            Step::Waiting => None,
            Step::Closed => {
                let first = *self.first_closed.get_or_insert(from);
                if other.is_finished() || !self.limits.half_close {
                    return Some(Ending { end: closed_by(first), error: None });
                }
                direction.finish();
                self.last = Instant::now();
                timer.reset(self.last + self.limits.half_closed);
                None
            }
            Step::ReadFailed(error) => Some(failed(from, error)),
            Step::WriteFailed(error) => {
                // What the other side said before it went is still passed on, as far as it is taken
                // at once: a server that answers and closes before it has read all is such a case.
                if !other.is_finished() {
                    let _ = other.advance(cx);
                }
                Some(failed(to, error))
            }
        }
    }

    /// Looks for the reset of a side that is not being read.
    fn check_reset(&mut self, cx: &mut Context<'_>, side: Side, timer: Pin<&mut Sleep>) -> Option<Ending> {
        let (direction, reset) = match (side, &mut self.resets) {
            (Side::Client, [reset, _]) => (&self.up, reset),
            (_, [_, reset]) => (&self.down, reset),
        };
        if !direction.is_unread() || self.reset == Some(side) {
            return None;
        }
        let sender = direction.sender();
        let watched = reset.get_or_insert_with(|| Box::pin(sender.ready(Interest::ERROR)));
        let Poll::Ready(outcome) = watched.as_mut().poll(cx) else { return None };
        // It says so once and must not be asked again.
        *reset = Some(Box::pin(pending()));
        outcome.ok()?;
        if direction.is_finished() {
            return Some(Ending { end: reset_by(side), error: None });
        }
        self.reset = Some(side);
        timer.reset(self.last + self.limits.half_closed);
        None
    }

    fn check_limits(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Ending> {
        // Bytes only put the end off: most often there is nothing to do.
        if self.armed && !timer.is_elapsed() {
            return Poll::Pending;
        }
        let (limit, end) = match (self.reset, self.first_closed) {
            (Some(side), _) => (self.limits.half_closed, reset_by(side)),
            (None, Some(_)) => (self.limits.half_closed, End::HalfClosedTimeout),
            (None, None) => (self.limits.idle, End::IdleTimeout),
        };
        while timer.as_mut().poll(cx).is_ready() {
            if self.reset.is_none() && (self.up.is_held_back() || self.down.is_held_back()) {
                self.last = Instant::now();
            }
            let deadline = self.last + limit;
            if deadline <= Instant::now() {
                return Poll::Ready(Ending { end, error: None });
            }
            timer.as_mut().reset(deadline);
        }
        self.armed = true;
        Poll::Pending
    }
}

fn closed_by(side: Side) -> End {
    if side == Side::Client { End::ClientClosed } else { End::UpstreamClosed }
}

fn failed(side: Side, error: io::Error) -> Ending {
    // What is wrong with its TLS is the peer's doing, too, and worth telling.
    if error.kind() == io::ErrorKind::InvalidData {
        return Ending { end: reset_by(side), error: Some(error) };
    }
    if !is_disconnect(&error) {
        return Ending { end: End::Internal, error: Some(error) };
    }
    Ending { end: reset_by(side), error: None }
}

fn reset_by(side: Side) -> End {
    if side == Side::Client { End::ClientReset } else { End::UpstreamReset }
}

/// Errors that connections end with: the peer, its host or the network between is gone.
pub(super) fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::ConnectionAborted
            | Kind::NotConnected
            | Kind::TimedOut
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
    )
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::net::TcpListener;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::live::{Budget, NodeCounters};
    use crate::proxy::pipes::Pipes;

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    const LIMITS: Limits =
        Limits { idle: Duration::from_secs(10), half_closed: Duration::from_secs(3), half_close: true };

    /// Polls the relay until `done`. Never parks: a parked runtime lets the paused clock jump.
    async fn drive(relay: &mut task::Spawn<impl Future<Output = Ending>>, mut done: impl FnMut() -> bool) {
        for _ in 0..1_000_000 {
            assert_pending!(relay.poll());
            if done() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("nothing happened");
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn any_byte_puts_the_idle_end_off() {
        let ((client, near), (far, node)) = (pair().await, pair().await);
        let (pipes, counters) = (Pipes::new(Budget::new(4)), NodeCounters::default());
        let lender = Lender { pipes: &pipes, node: &counters };
        let timer = pin!(sleep(LIMITS.idle));
        let ways = (Direction::new(&near, &far, lender), Direction::new(&far, &near, lender));
        let mut relay = task::spawn(relay(ways, LIMITS, timer, |_, _| {}));
        assert_pending!(relay.poll());
        for (from, to) in [(&client, &node), (&node, &client), (&client, &node)] {
            pass(9).await;
            drive(&mut relay, || from.try_write(b"x").is_ok()).await;
            drive(&mut relay, || to.try_read(&mut [0]).is_ok()).await;
        }
        pass(9).await;
        assert_pending!(relay.poll());
        pass(1).await;
        assert_eq!(assert_ready!(relay.poll()).end, End::IdleTimeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fin_shortens_the_wait() {
        let ((client, near), (far, node)) = (pair().await, pair().await);
        let (pipes, counters) = (Pipes::new(Budget::new(4)), NodeCounters::default());
        let lender = Lender { pipes: &pipes, node: &counters };
        let timer = pin!(sleep(LIMITS.idle));
        let ways = (Direction::new(&near, &far, lender), Direction::new(&far, &near, lender));
        let mut relay = task::spawn(relay(ways, LIMITS, timer, |_, _| {}));
        assert_pending!(relay.poll());
        pass(9).await;
        socket2::SockRef::from(&client).shutdown(std::net::Shutdown::Write).unwrap();
        drive(&mut relay, || node.try_read(&mut [0]).is_ok_and(|read| read == 0)).await;
        pass(2).await;
        assert_pending!(relay.poll());
        pass(1).await;
        assert_eq!(assert_ready!(relay.poll()).end, End::HalfClosedTimeout);
    }

    fn reset(stream: TcpStream) {
        stream.set_zero_linger().unwrap();
        drop(stream);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_that_cannot_be_read_shortens_the_wait() {
        let ((client, near), (far, node)) = (pair().await, pair().await);
        let (pipes, counters) = (Pipes::new(Budget::new(4)), NodeCounters::default());
        let lender = Lender { pipes: &pipes, node: &counters };
        let timer = pin!(sleep(LIMITS.idle));
        let ways = (Direction::new(&near, &far, lender), Direction::new(&far, &near, lender));
        let mut relay = task::spawn(relay(ways, LIMITS, timer, |_, _| {}));
        assert_pending!(relay.poll());
        // The node reads nothing: the client fills every buffer on the way.
        let mut still = 0;
        drive(&mut relay, || {
            still = if client.try_write(&[0; 16384]).is_ok() { 0 } else { still + 1 };
            still > 1000
        })
        .await;
        reset(client);
        for _ in 0..1000 {
            assert_pending!(relay.poll(), "the node may still take what was said");
            tokio::task::yield_now().await;
        }
        pass(3).await;
        assert_eq!(assert_ready!(relay.poll()).end, End::ClientReset);
        drop(node);
    }

    #[test]
    fn endings_of_the_network_are_no_errors() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::TimedOut] {
            assert_eq!(failed(Side::Upstream, kind.into()).end, End::UpstreamReset, "{kind}");
            assert_eq!(failed(Side::Client, kind.into()).end, End::ClientReset, "{kind}");
        }
        let strange = failed(Side::Client, io::ErrorKind::InvalidInput.into());
        assert!(strange.end == End::Internal && strange.error.is_some());
    }
}
