//! What the kernel knows of a connection.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Bytes that were written to a TCP socket and not yet acknowledged by the other host (tcp(7),
/// `SIOCOUTQ`).
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the life of the borrow; this request (TIOCOUTQ is SIOCOUTQ's
    // other name) writes one int through the pointer, which leads to one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or_default()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel knows of the way to a peer (tcp(7), `TCP_INFO`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Info {
    /// The smoothed round trip time.
    pub rtt: Duration,
    /// Segments that were sent again, over the life of the connection.
    pub retransmits: u32,
}

/// Asks for [`Info`].
pub fn info(socket: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the life of the borrow; the kernel writes at most `length` bytes,
    // which is the size of what the first pointer leads to, and then how many through the second.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is integers alone, for which zeroes are values too: what an older kernel did not write.
    let info = unsafe { info.assume_init() };
    Ok(Info { rtt: Duration::from_micros(info.tcpi_rtt.into()), retransmits: info.tcpi_total_retrans })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const CHUNK: usize = 1 << 14;

    #[test]
    fn what_the_peer_has_not_taken_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        assert_eq!(unacknowledged(near.as_fd()).unwrap(), 0);
        near.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(count) = near.write(&[0; CHUNK]) {
            written += count;
        }
        let waiting = unacknowledged(near.as_fd()).unwrap();
        assert!(0 < waiting && waiting < written, "{waiting} of {written}");
        let mut left = vec![0; written];
        far.read_exact(&mut left).unwrap();
        // The acknowledgement of the last bytes may be on its way.
        let asked = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            unacknowledged(near.as_fd()).unwrap() == 0
        });
        assert!(asked, "never acknowledged");
    }

    #[test]
    fn a_connection_has_a_round_trip_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        let known = info(near.as_fd()).unwrap();
        assert!(Duration::ZERO < known.rtt && known.rtt < Duration::from_secs(10), "{known:?}");
        assert_eq!(known.retransmits, 0);
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        info(datagrams.as_fd()).unwrap_err();
    }
}
