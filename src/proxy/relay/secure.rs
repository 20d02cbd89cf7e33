//! One direction of a relay where TLS is spoken on either side, or on both.
//!
//! As with plain bytes, reading begins only when the last bytes are written, and an idle direction holds no
//! buffer. A `close_notify` is to TLS what a FIN is to TCP, and each is passed on as the other.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::carry::{Carry, Step, TURN, shut_down};
use super::meter::{Free, Meter, Metered};
use crate::live::bandwidth::Bounds;
use crate::net::buffer::{self, Buffer};
use crate::net::tls::{Opened, Session};
use crate::net::transfer::{receive, send_some};

/// One side of a session: its connection, and the TLS on it.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct Wire<'a> {
    pub(in crate::proxy) stream: &'a TcpStream,
    pub(in crate::proxy) tls: Option<&'a RefCell<Session>>,
}

/// One direction.
pub(in crate::proxy) struct Secure<'a, M = Free> {
    from: Wire<'a>,
    to: Wire<'a>,
    /// Read and not yet sent or sealed: the bytes from `start` to `end`.
    held: Option<(Buffer, usize, usize)>,
    /// Bytes that were sealed and have not all left.
    sealed: u64,
    /// The sender closed; the receiver is being told.
    ending: bool,
    meter: M,
    blocked: bool,
    finished: bool,
    moved: u64,
}

impl<'a> Secure<'a> {
    pub(in crate::proxy) fn new(from: Wire<'a>, to: Wire<'a>) -> Self {
        Self::metered((from, to), Free)
    }

    /// The same, no faster than so. It is sending that is bounded: a record is opened whole.
    pub(in crate::proxy) fn bounded(self, bounds: Bounds) -> Secure<'a, Metered> {
        Secure::metered((self.from, self.to), Metered::new(bounds))
    }
}

impl<'a, M: Meter> Secure<'a, M> {
    fn metered((from, to): (Wire<'a>, Wire<'a>), meter: M) -> Self {
        Self {
            from,
            to,
            held: None,
            sealed: 0,
            ending: false,
            meter,
            blocked: false,
            finished: false,
            moved: 0,
        }
    }

    /// The same with bytes that were read before.
    pub(in crate::proxy) fn preloaded(mut self, bytes: &[u8]) -> Self {
        self.held = Buffer::holding(bytes).map(|buffer| (buffer, 0, bytes.len()));
        self
    }

    /// Writes what is held.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = self.to.tls else { return self.flush_plain(cx) };
        loop {
            ready!(flush_sealed(tls, self.to.stream, cx))?;
            self.moved += std::mem::take(&mut self.sealed);
            let Some((bytes, start, end)) = &mut self.held else { return Poll::Ready(Ok(())) };
            let most = ready!(self.meter.grant(cx, || Ok(*end - *start)))?;
            let mut session = tls.borrow_mut();
            let until = (*end).min(*start + session.sealable().min(most));
            let rest = bytes.get(*start..until).unwrap_or_default();
            session.seal(rest)?;
            self.meter.settle(rest.len());
            self.sealed = rest.len() as u64;
            *start = until;
            if *start == *end {
                self.held = None;
            }
        }
    }

    fn flush_plain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, start, end)) = &mut self.held {
            let most = ready!(self.meter.grant(cx, || Ok(*end - *start)))?;
            let until = (*end).min(start.saturating_add(most));
            match send_some(self.to.stream, bytes.get(*start..until).unwrap_or_default())? {
                Some(written) => {
                    self.meter.settle(written);
                    *start += written;
                    self.moved += written as u64;
                }
                None => ready!(self.to.stream.poll_write_ready(cx))?,
            }
            if *start == *end {
                self.held = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; `None` where the sender closed.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        loop {
            let mut place = Buffer::take();
            let opened = match self.from.tls {
                None => match receive(self.from.stream, self.plain_room(&mut place))? {
                    None => Opened::Blocked,
                    Some(0) => Opened::Closed,
                    Some(count) => Opened::Bytes(count),
                },
                Some(tls) => {
                    let opened = tls.borrow_mut().open(&mut place, |room| receive(self.from.stream, room));
                    // What the session itself has to say goes at once; the other direction waits for what
                    // does not fit.
                    let answered = flush_sealed(tls, self.from.stream, cx);
                    let opened = opened?;
                    if let Poll::Ready(Err(error)) = answered {
                        return Poll::Ready(Err(error));
                    }
                    opened
                }
            };
            match opened {
                Opened::Bytes(0) => {}
                Opened::Bytes(count) => {
                    self.held = Some((place, 0, count));
                    return Poll::Ready(Ok(Some(count)));
                }
                Opened::Closed => return Poll::Ready(Ok(None)),
                Opened::Blocked => ready!(self.from.stream.poll_read_ready(cx))?,
            }
        }
    }

    /// No more is read than can be sealed at once.
    fn plain_room<'b>(&self, place: &'b mut Buffer) -> &'b mut [u8] {
        let most = self.to.tls.map_or(buffer::SIZE, |tls| tls.borrow().sealable());
        place.get_mut(..most).unwrap_or_default()
    }
}

impl<'a, M: Meter> Carry<'a> for Secure<'a, M> {
    fn sender(&self) -> &'a TcpStream {
        self.from.stream
    }

    fn is_unread(&self) -> bool {
        self.finished || self.blocked
    }

    fn is_held_back(&self) -> bool {
        self.meter.is_waiting()
    }

    fn advance(&mut self, cx: &mut Context<'_>) -> Step {
        let (rounds, mut left) = TURN;
        for _ in 0..rounds {
            let flushed = self.flush(cx);
            self.blocked = flushed.is_pending();
            match flushed {
                Poll::Ready(Ok(())) if self.ending => return Step::Closed,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Step::WriteFailed(error),
                Poll::Pending => return Step::Waiting,
            }
            if left == 0 {
                break;
            }
            match self.fill(cx) {
                Poll::Ready(Ok(Some(read))) => left = left.saturating_sub(read),
                Poll::Ready(Ok(None)) => {
                    self.ending = true;
                    if let Some(tls) = self.to.tls {
                        tls.borrow_mut().close();
                    }
                }
                Poll::Ready(Err(error)) => return Step::ReadFailed(error),
                Poll::Pending => return Step::Waiting,
            }
        }
        cx.waker().wake_by_ref();
        Step::Waiting
    }

    fn finish(&mut self) {
        shut_down(self.to.stream);
        self.finished = true;
    }

    fn is_finished(&self) -> bool {
        self.finished
    }

    fn has_moved(&self) -> bool {
        self.moved > 0
    }

    fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }
}

/// Sends what a session has for its peer.
fn flush_sealed(tls: &RefCell<Session>, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    while !tls.borrow_mut().outgoing().send(|bytes| send_some(stream, bytes))? {
        ready!(stream.poll_write_ready(cx))?;
    }
    Poll::Ready(Ok(()))
}

/// Tells a peer that the connection is over, as far as the system takes it at once.
pub(in crate::proxy) fn farewell(session: &mut Session, stream: &TcpStream) {
    session.close();
    // It fails where the peer has gone, or takes nothing: then it learns it from TCP.
    let _ = session.outgoing().send(|bytes| send_some(stream, bytes));
}
