//! What the kernel knows of a connection.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were written to a TCP socket and not yet acknowledged by the other host (tcp(7),
/// `SIOCOUTQ`).
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the life of the borrow; this request (TIOCOUTQ is SIOCOUTQ's
    // other name) writes one int through the pointer, which leads to one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or_default()) } else { Err(io::Error::last_os_error()) }
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
}
