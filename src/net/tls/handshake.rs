//! The handshake of a [`Session`] on its connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::{Opened, Session};
use crate::net::transfer::{receive, send_some};

/// Why a handshake failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The timer came first.
    TimedOut,
    /// The peer closed its connection in the middle.
    Closed,
    /// The connection failed.
    Io(io::Error),
    /// The peers do not agree. What there is to say of it was sent.
    Tls(rustls::Error),
}

/// Shakes hands. `timer` is set by the caller, and ends it.
pub async fn complete(
    session: &mut Session,
    stream: &TcpStream,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), HandshakeError> {
    loop {
        let advanced = session.advance();
        send_all(session, stream, timer.as_mut()).await?;
        if advanced.map_err(HandshakeError::Tls)? {
            return Ok(());
        }
        loop {
            match session.receive(|place| receive(stream, place)).map_err(HandshakeError::Io)? {
                Opened::Bytes(_) => break,
                Opened::Closed => return Err(HandshakeError::Closed),
                Opened::Blocked => wait(|cx| stream.poll_read_ready(cx), timer.as_mut()).await?,
            }
        }
    }
}

/// Sends what is there for the peer.
pub async fn send_all(
    session: &mut Session,
    stream: &TcpStream,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), HandshakeError> {
    while !session.outgoing().send(|bytes| send_some(stream, bytes)).map_err(HandshakeError::Io)? {
        wait(|cx| stream.poll_write_ready(cx), timer.as_mut()).await?;
    }
    Ok(())
}

/// Waits for a socket, but no longer than the timer.
async fn wait(
    ready: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), HandshakeError> {
    poll_fn(|cx| match ready(cx) {
        Poll::Ready(outcome) => Poll::Ready(outcome.map_err(HandshakeError::Io)),
        Poll::Pending => timer.as_mut().poll(cx).map(|()| Err(HandshakeError::TimedOut)),
    })
    .await
}
