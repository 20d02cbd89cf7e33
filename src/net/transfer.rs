//! Bytes in and out of a socket, by one system call at a time and never waiting.

use std::io;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Moves up to `wanted` bytes by one call; `None` where the socket is not ready. Less than
/// wanted says the same of the next call, which is then not made (epoll(7), question 9).
#[inline]
pub fn transfer(
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

/// Receives into `bytes`: how many, 0 at the peer's FIN, `None` where there is nothing.
#[inline]
pub fn receive(socket: &TcpStream, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    transfer(socket, Interest::READABLE, bytes.len(), || Ok(recv(socket, bytes, RecvFlags::empty())?.1))
}

/// Sends of `bytes` what the socket takes; `None` where it takes nothing.
#[inline]
pub fn send_some(socket: &TcpStream, bytes: &[u8]) -> io::Result<Option<usize>> {
    transfer(socket, Interest::WRITABLE, bytes.len(), || Ok(send(socket, bytes, SendFlags::NOSIGNAL)?))
}
