//! A connection to a node.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time;

/// Connects within `limit`, Nagle's algorithm off as nginx's `tcp_nodelay on`.
pub async fn connect(addr: SocketAddr, limit: Duration) -> Result<TcpStream, DialError> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(DialError::System)?;
    let stream = match time::timeout(limit, socket.connect(addr)).await {
        Ok(result) => result.map_err(DialError::System)?,
        Err(_) => return Err(DialError::TimedOut(limit)),
    };
    // A connection reset at once fails here: nginx tries the next node then, too.
    stream.set_nodelay(true).map_err(DialError::System)?;
    Ok(stream)
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
}

impl DialError {
    /// Reports whether it is this process that has run out of something: no other node would do better.
    #[must_use]
    pub fn is_exhaustion(&self) -> bool {
        matches!(self, Self::System(error) if is_exhaustion(error))
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
        let stream = connect(addr, limit).await.unwrap();
        assert!(stream.nodelay().unwrap());
        drop(listener);
        let error = connect(addr, limit).await.unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
