//! One direction of a relay: read when there is something, write until it is gone, read again.
//!
//! Reading begins only when the last bytes are written, so a slow receiver slows the sender down by
//! TCP's own means and a direction never holds more than one buffer. What carries the bytes is the
//! [`Carrier`]: a pipe for splice(2) is another variant of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::buffer::Buffer;

/// Reads in one go before others get their turn: 1 MiB.
const ROUNDS: u32 = 16;

/// One direction.
pub(super) struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    carrier: Carrier,
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
    pub(super) fn new(from: ReadHalf<'a>, to: WriteHalf<'a>) -> Self {
        Self { from, to, carrier: Carrier::Empty, finished: false, moved: 0 }
    }

    /// Moves bytes until it has to wait, or its turn is over.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) -> Step {
        for _ in 0..ROUNDS {
            match self.flush(cx) {
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
    pub(super) fn finish(&mut self, cx: &mut Context<'_>) {
        // On a socket it is done at once. It fails where the receiver has gone; if that matters, the
        // other direction meets it too.
        let _ = Pin::new(&mut self.to).poll_shutdown(cx);
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
            let written = std::task::ready!(Pin::new(&mut self.to).poll_write(cx, rest))?;
            *start += written;
            self.moved += written as u64;
        }
        self.carrier = Carrier::Empty;
        Poll::Ready(Ok(()))
    }

    /// Reads once; false at the sender's FIN.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // Asked first, so that only a direction with something to read takes a buffer.
        std::task::ready!(self.from.as_ref().poll_read_ready(cx))?;
        let mut bytes = Buffer::take();
        let mut unread = ReadBuf::new(&mut bytes);
        std::task::ready!(Pin::new(&mut self.from).poll_read(cx, &mut unread))?;
        let end = unread.filled().len();
        if end == 0 {
            return Poll::Ready(Ok(false));
        }
        self.carrier = Carrier::Buffer { bytes, start: 0, end };
        Poll::Ready(Ok(true))
    }
}
