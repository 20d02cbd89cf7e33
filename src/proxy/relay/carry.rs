//! What a relay asks of a direction, whatever its bytes go through.

use std::io;
use std::net::Shutdown;
use std::task::Context;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Reads, and about as many bytes, in one go before others get their turn.
pub(super) const TURN: (u32, usize) = (16, 1 << 20);

/// How far a direction got.
#[derive(Debug)]
pub(in crate::proxy) enum Step {
    /// It will be woken: by its sender, by its receiver, or at once where it had its turn.
    Waiting,
    /// Its sender closed, and all was written.
    Closed,
    /// Reading failed: the sender's doing.
    ReadFailed(io::Error),
    /// Writing failed: the receiver's doing.
    WriteFailed(io::Error),
}

/// One direction of a session.
pub(in crate::proxy) trait Carry<'a> {
    /// Whose bytes these are.
    fn sender(&self) -> &'a TcpStream;
    /// Nobody reads the sender, so reading cannot tell that it has gone: its FIN has been passed on,
    /// or the receiver takes nothing.
    fn is_unread(&self) -> bool;
    /// The sender's bytes are there and may not move yet: it is not idle.
    fn is_held_back(&self) -> bool;
    /// Moves bytes until it has to wait, or its turn is over.
    fn advance(&mut self, cx: &mut Context<'_>) -> Step;
    /// Passes the sender's FIN on. To be called once all is written.
    fn finish(&mut self);
    /// The sender's FIN has been passed on.
    fn is_finished(&self) -> bool;
    /// Bytes were written since [`Carry::take_moved`].
    fn has_moved(&self) -> bool;
    /// How many bytes were written since the last call.
    fn take_moved(&mut self) -> u64;
}

/// Sends a FIN.
pub(super) fn shut_down(stream: &TcpStream) {
    // It fails where the receiver has gone; if that matters, the other direction meets it too.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}
