//! One direction of a relay: read when there is something, write until it is gone, read again.
//!
//! Reading begins only when the last bytes are written, so a slow receiver slows the sender down by
//! TCP's own means and a direction never holds more than one buffer or pipe, and none while it idles.
//! Small reads are copied: that is cheaper than a pipe. A flow that keeps filling its buffer moves to
//! a pipe and back when it calms ([`Pace`]). Splicing everything cost a fifth more on small messages.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::carry::{Carry, Step, TURN, shut_down};
use super::meter::{Free, Meter, Metered};
use super::pace::Pace;
use crate::live::NodeCounters;
use crate::live::bandwidth::Bounds;
use crate::net::buffer::{self, Buffer};
use crate::net::transfer::{send_some, transfer};
use crate::proxy::pipes::{Pipe, Pipes};

/// One direction.
pub(in crate::proxy) struct Direction<'a, M = Free> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    lender: Lender<'a>,
    carrier: Carrier,
    pace: Pace,
    meter: M,
    blocked: bool,
    finished: bool,
    moved: u64,
}

/// Who lends pipes, and where it is counted how flows move.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Lender<'a> {
    pub(in crate::proxy) pipes: &'a Pipes,
    pub(in crate::proxy) node: &'a NodeCounters,
}

/// What holds bytes that were read and not yet written.
enum Carrier {
    /// There are none.
    Empty,
    /// Those of the buffer from `start` to `end`.
    Buffer { bytes: Buffer, start: usize, end: usize },
    /// So many in a pipe. Dropped with them it is closed: nobody else may find them.
    Pipe { pipe: Box<Pipe>, held: usize },
}

impl<'a> Direction<'a> {
    pub(in crate::proxy) fn new(from: &'a TcpStream, to: &'a TcpStream, lender: Lender<'a>) -> Self {
        let (carrier, pace) = (Carrier::Empty, Pace::default());
        Self { from, to, lender, carrier, pace, meter: Free, blocked: false, finished: false, moved: 0 }
    }

    /// The same, no faster than so. It is reading that is bounded: what has to wait waits in the kernel.
    pub(in crate::proxy) fn bounded(self, bounds: Bounds) -> Direction<'a, Metered> {
        let Self { from, to, lender, carrier, pace, blocked, finished, moved, .. } = self;
        Direction { from, to, lender, carrier, pace, meter: Metered::new(bounds), blocked, finished, moved }
    }
}

impl<M: Meter> Direction<'_, M> {
    /// The same with bytes that were read before. They go at once, and count.
    pub(in crate::proxy) fn preloaded(mut self, bytes: &[u8]) -> Self {
        self.meter.settle(bytes.len());
        if let Some(buffer) = Buffer::holding(bytes) {
            self.carrier = Carrier::Buffer { bytes: buffer, start: 0, end: bytes.len() };
        }
        self
    }

    /// Writes what is held.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = match &mut self.carrier {
                Carrier::Buffer { bytes, start, end } if *start < *end => {
                    let rest = bytes.get(*start..*end).unwrap_or_default();
                    let written = send_some(self.to, rest)?;
                    *start += written.unwrap_or_default();
                    written
                }
                Carrier::Pipe { pipe, held } if *held > 0 => {
                    let send = || move_pages(pipe.outlet(), self.to.as_fd(), *held);
                    let written = transfer(self.to, Interest::WRITABLE, *held, send)?;
                    *held -= written.unwrap_or_default();
                    written
                }
                _ => break,
            };
            match written {
                Some(written) => self.moved += written as u64,
                None => ready!(self.to.poll_write_ready(cx))?,
            }
        }
        if let Carrier::Pipe { pipe, .. } = mem::replace(&mut self.carrier, Carrier::Empty) {
            self.lender.pipes.put(pipe);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; 0 at the sender's FIN.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let most = if M::BOUNDS { ready!(self.may_read(cx))? } else { usize::MAX };
            if self.pace.is_bulk() {
                // Asked first, so that only a flow with something to read takes a pipe.
                ready!(self.from.poll_read_ready(cx))?;
            }
            let read = match self.pipe() {
                Some(pipe) => self.fill_pipe(pipe, most)?,
                None => self.fill_buffer(most)?,
            };
            if let Some(read) = read {
                self.meter.settle(read);
                if self.pace.note(read) {
                    self.lender.node.bulk_flows.add_one();
                }
                return Poll::Ready(Ok(read));
            }
            ready!(self.from.poll_read_ready(cx))?;
        }
    }

    /// How many bytes may be read now. Only what is there has to wait: who says nothing gathers a burst.
    fn may_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.from.poll_read_ready(cx))?;
        let unread = || Ok(usize::try_from(ioctl_fionread(self.from)?).unwrap_or(usize::MAX));
        self.meter.grant(cx, unread)
    }

    /// A pipe, where the flow is worth one and there is one.
    fn pipe(&mut self) -> Option<Box<Pipe>> {
        if !self.pace.is_bulk() {
            return None;
        }
        let pipe = self.lender.pipes.take();
        if pipe.is_none() {
            self.lender.node.pipes_refused.add_one();
            self.pace.refused();
        }
        pipe
    }

    fn fill_buffer(&mut self, most: usize) -> io::Result<Option<usize>> {
        // The call is only made where there is something to read: an idle direction takes no buffer.
        transfer(self.from, Interest::READABLE, buffer::SIZE.min(most), || {
            let mut bytes = Buffer::take();
            let room = if M::BOUNDS {
                bytes.get_mut(..buffer::SIZE.min(most)).unwrap_or_default()
            } else {
                &mut *bytes
            };
            let (_, end) = recv(self.from, room, RecvFlags::empty())?;
            if end > 0 {
                self.carrier = Carrier::Buffer { bytes, start: 0, end };
            }
            Ok(end)
        })
    }

    fn fill_pipe(&mut self, pipe: Box<Pipe>, most: usize) -> io::Result<Option<usize>> {
        let most = pipe.capacity().min(most);
        let read = self.from.try_io(Interest::READABLE, || move_pages(self.from.as_fd(), pipe.inlet(), most));
        let read = match read {
            // Fewer than asked for may mean that every slot of the pipe has its small packet: only
            // the kernel's word says that there is no more.
            Ok(read) => Some(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if is_unspliceable(&error) => {
                self.pace.never();
                None
            }
            Err(error) => {
                self.lender.pipes.put(pipe);
                return Err(error);
            }
        };
        match read.filter(|read| *read > 0) {
            Some(held) => self.carrier = Carrier::Pipe { pipe, held },
            None => self.lender.pipes.put(pipe),
        }
        Ok(read)
    }
}

impl<'a, M: Meter> Carry<'a> for Direction<'a, M> {
    fn sender(&self) -> &'a TcpStream {
        self.from
    }

    fn is_unread(&self) -> bool {
        self.finished || self.blocked || self.meter.is_waiting()
    }

    fn is_held_back(&self) -> bool {
        self.meter.is_waiting()
    }

    #[inline]
    fn advance(&mut self, cx: &mut Context<'_>) -> Step {
        let (rounds, mut left) = TURN;
        for _ in 0..rounds {
            let flushed = self.flush(cx);
            self.blocked = flushed.is_pending();
            match flushed {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Step::WriteFailed(error),
                Poll::Pending => return Step::Waiting,
            }
            if left == 0 {
                break;
            }
            match self.fill(cx) {
                Poll::Ready(Ok(0)) => return Step::Closed,
                Poll::Ready(Ok(read)) => left = left.saturating_sub(read),
                Poll::Ready(Err(error)) => return Step::ReadFailed(error),
                Poll::Pending => return Step::Waiting,
            }
        }
        cx.waker().wake_by_ref();
        Step::Waiting
    }

    fn finish(&mut self) {
        shut_down(self.to);
        self.finished = true;
    }

    fn is_finished(&self) -> bool {
        self.finished
    }

    fn has_moved(&self) -> bool {
        self.moved > 0
    }

    #[inline]
    fn take_moved(&mut self) -> u64 {
        mem::take(&mut self.moved)
    }
}

/// Moves up to `wanted` bytes between a socket and a pipe, without waiting for either.
fn move_pages(from: BorrowedFd<'_>, to: BorrowedFd<'_>, wanted: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, wanted, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
}

/// Errors that say that it is the call that is refused (splice(2), and filters of system calls).
fn is_unspliceable(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOSYS | Errno::PERM))
}
