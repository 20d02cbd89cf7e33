//! A connection to a node.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::session::ConnectFailure;

/// Connects within `limit`, Nagle's algorithm off as nginx's `tcp_nodelay on`. The timer is the
/// caller's, who goes on to use it: a session needs one at a time, and putting it off costs little.
///
/// Not tokio's own `connect`: its future is larger than what a session keeps all its life, and it
/// asks each socket for an error where the reactor knows that there is none.
pub async fn connect(
    addr: SocketAddr,
    limit: Duration,
    mut timer: Pin<&mut Sleep>,
) -> Result<TcpStream, DialError> {
    let stream = begin(addr).map_err(DialError::System)?;
    timer.as_mut().reset(Instant::now() + limit);
    let connected = poll_fn(|cx| match poll_connected(&stream, cx) {
        Poll::Ready(connected) => Poll::Ready(connected.map_err(DialError::System)),
        Poll::Pending => timer.as_mut().poll(cx).map(|()| Err(DialError::TimedOut(limit))),
    });
    connected.await?;
    Ok(stream)
}

/// A socket on its way to `addr`.
fn begin(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&addr.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}

/// Ready when the connection stands, or cannot. A connection reset at once is an error, too: nginx
/// tries the next node then.
fn poll_connected(stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(stream.poll_write_ready(cx))?;
    // Answers at once: one of them is there.
    let ready = ready!(pin!(stream.ready(Interest::WRITABLE | Interest::ERROR)).poll(cx))?;
    // A failed connection is closed and in error (EPOLLHUP, EPOLLERR); one that stands is neither.
    if !ready.is_error() && !ready.is_write_closed() {
        return Poll::Ready(Ok(()));
    }
    let error = stream.take_error()?.unwrap_or_else(|| Errno::CONNRESET.into());
    Poll::Ready(Err(error))
}

/// Why a node was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No answer.
    #[error("no answer within {0:?}; the host is down or a firewall drops the packets")]
    TimedOut(Duration),
    /// The system's error.
    #[error("{}", sentence(.0))]
    System(#[source] io::Error),
    /// It was reached, and TLS with it failed: a sentence.
    #[error("{0}")]
    Handshake(String),
}

impl DialError {
    /// What it counts as.
    #[must_use]
    pub fn failure(&self) -> ConnectFailure {
        match self {
            Self::TimedOut(_) => ConnectFailure::TimedOut,
            Self::System(error) => failure(error),
            Self::Handshake(_) => ConnectFailure::Tls,
        }
    }

    /// Reports whether it is this process that has run out of something: no other node would do better.
    #[must_use]
    pub fn is_exhaustion(&self) -> bool {
        matches!(self, Self::System(error) if is_exhaustion(error))
    }
}

/// What an error of connecting counts as.
#[must_use]
pub fn failure(error: &io::Error) -> ConnectFailure {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => ConnectFailure::Refused,
        Some(Errno::CONNRESET) => ConnectFailure::Reset,
        Some(Errno::TIMEDOUT) => ConnectFailure::TimedOut,
        Some(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN) => ConnectFailure::Unreachable,
        Some(Errno::ADDRNOTAVAIL | Errno::AGAIN) => ConnectFailure::Exhausted,
        _ if is_exhaustion(error) => ConnectFailure::Exhausted,
        _ => ConnectFailure::Other,
    }
}

/// Reports whether an error says that descriptors or memory ran out.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// What an error of connecting means to an operator; without its value where the words say it all.
#[must_use]
pub fn sentence(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => "connection refused; nothing listens there, or a firewall rejects".into(),
        Some(Errno::CONNRESET) => "reset while connecting; the node closed at once".into(),
        Some(Errno::HOSTUNREACH) => "no route to host; it is down or a firewall rejects".into(),
        Some(Errno::NETUNREACH) => "network unreachable; this host has no route there".into(),
        // UDP sockets get EAGAIN from the automatic choice of a port.
        Some(Errno::ADDRNOTAVAIL | Errno::AGAIN) => "no ephemeral port is left towards this node; widen \
             net.ipv4.ip_local_port_range, or give the upstream more nodes"
            .into(),
        Some(Errno::MFILE) => "this process is out of descriptors; raise LimitNOFILE".into(),
        Some(Errno::NFILE) => "the host is out of descriptors; raise fs.file-max".into(),
        Some(Errno::PERM | Errno::ACCESS) => "forbidden by a local firewall rule".into(),
        Some(Errno::INVAL) => "the address cannot be connected to from here".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[track_caller]
    fn check(errno: Errno, words: &str, exhaustion: bool) {
        let error = DialError::System(errno.into());
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.is_exhaustion(), exhaustion, "{error}");
    }

    #[test]
    fn errors_say_what_to_do() {
        check(Errno::CONNREFUSED, "nothing listens there", false);
        check(Errno::ADDRNOTAVAIL, "ip_local_port_range", false);
        check(Errno::MFILE, "LimitNOFILE", true);
        check(Errno::NOBUFS, "", true);
    }

    #[tokio::test]
    async fn refused_is_told_from_connected() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let limit = Duration::from_secs(5);
        let mut timer = pin!(sleep(limit));
        let stream = connect(addr, limit, timer.as_mut()).await.unwrap();
        assert!(stream.nodelay().unwrap());
        drop(listener);
        let error = connect(addr, limit, timer.as_mut()).await.unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn a_node_that_closes_at_once_was_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let limit = Duration::from_secs(5);
        let stream = connect(addr, limit, pin!(sleep(limit))).await.unwrap();
        closing.join().unwrap();
        stream.readable().await.unwrap();
        assert_eq!(stream.try_read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_reset_before_it_is_looked_at_is_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = begin(listener.local_addr().unwrap()).unwrap();
        let (node, _) = listener.accept().unwrap();
        socket2::SockRef::from(&node).set_linger(Some(Duration::ZERO)).unwrap();
        drop(node);
        let error = poll_fn(|cx| poll_connected(&stream, cx)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
