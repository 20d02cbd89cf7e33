//! One direction of a relay: read when there is something, write until it is gone, read again.
//!
//! Reading begins only when the last bytes are written, so a slow receiver slows the sender down by
//! TCP's own means and a direction never holds more than one buffer. What carries the bytes is the
//! [`Carrier`]: a pipe for splice(2) is another variant of it.

use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buffer::Buffer;

/// Reads in one go before others get their turn: 1 MiB.
const ROUNDS: u32 = 16;

/// One direction.
pub(super) struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    carrier: Carrier,
    blocked: bool,
    finished: bool,
    moved: u64,
}

/// What holds bytes that were read and not yet written.
enum Carrier {
    /// There are none.
    Empty,
    /// Those of the buffer from `start` to `end`.
    Buffer { bytes: Buffer, start: usize, end: usize },
}

/// How far a direction got.
#[derive(Debug)]
pub(super) enum Step {
    /// It will be woken: by its sender, by its receiver, or at once where it had its turn.
    Waiting,
    /// Its sender closed, and all was written.
    Closed,
    /// Reading failed: the sender's doing.
    ReadFailed(io::Error),
    /// Writing failed: the receiver's doing.
    WriteFailed(io::Error),
}

impl<'a> Direction<'a> {
    pub(super) fn new(from: &'a TcpStream, to: &'a TcpStream) -> Self {
        Self { from, to, carrier: Carrier::Empty, blocked: false, finished: false, moved: 0 }
    }

    /// Whose bytes these are.
    pub(super) fn sender(&self) -> &'a TcpStream {
        self.from
    }

    /// Nobody reads the sender, so reading cannot tell that it has gone: its FIN has been passed on,
    /// or the receiver takes nothing.
    pub(super) fn is_unread(&self) -> bool {
        self.finished || self.blocked
    }

    /// Moves bytes until it has to wait, or its turn is over.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) -> Step {
        for _ in 0..ROUNDS {
            let flushed = self.flush(cx);
            self.blocked = flushed.is_pending();
            match flushed {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Step::WriteFailed(error),
                Poll::Pending => return Step::Waiting,
            }
            match self.fill(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Step::Closed,
                Poll::Ready(Err(error)) => return Step::ReadFailed(error),
                Poll::Pending => return Step::Waiting,
            }
        }
        cx.waker().wake_by_ref();
        Step::Waiting
    }

    /// Passes the sender's FIN on. To be called once all is written.
    pub(super) fn finish(&mut self) {
        // It fails where the receiver has gone; if that matters, the other direction meets it too.
        let _ = SockRef::from(self.to).shutdown(Shutdown::Write);
        self.finished = true;
    }

    /// The sender's FIN has been passed on.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Bytes were written since [`Direction::take_moved`].
    pub(super) fn has_moved(&self) -> bool {
        self.moved > 0
    }

    /// How many bytes were written since the last call.
    pub(super) fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Writes what is held.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Carrier::Buffer { bytes, start, end } = &mut self.carrier else { return Poll::Ready(Ok(())) };
        while let Some(rest) = bytes.get(*start..*end).filter(|rest| !rest.is_empty()) {
            ready!(self.to.poll_write_ready(cx))?;
            let written = transfer(self.to, Interest::WRITABLE, rest.len(), || {
                Ok(send(self.to, rest, SendFlags::NOSIGNAL)?)
            })?;
            let written = written.unwrap_or_default();
            *start += written;
            self.moved += written as u64;
        }
        self.carrier = Carrier::Empty;
        Poll::Ready(Ok(()))
    }

    /// Reads once; false at the sender's FIN.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            // Asked first, so that only a direction with something to read takes a buffer.
            ready!(self.from.poll_read_ready(cx))?;
            let mut bytes = Buffer::take();
            let read = transfer(self.from, Interest::READABLE, bytes.len(), || {
                Ok(recv(self.from, &mut *bytes, RecvFlags::empty())?.0)
            })?;
            match read {
                None => {}
                Some(0) => return Poll::Ready(Ok(false)),
                Some(end) => {
                    self.carrier = Carrier::Buffer { bytes, start: 0, end };
                    return Poll::Ready(Ok(true));
                }
            }
        }
    }
}

/// Moves up to `wanted` bytes by one call; `None` where the socket was not ready after all. Less than
/// wanted says the same of the next call, which is then not made (epoll(7), question 9).
fn transfer(
    socket: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> io::Result<Option<usize>> {
    let mut moved = None;
    let outcome = socket.try_io(interest, || {
        let count = call()?;
        moved = Some(count);
        // The error is how the reactor is told that the socket is to be waited for.
        if 0 < count && count < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(moved),
    }
}
