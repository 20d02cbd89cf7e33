//! Segmentation offload of a whole UDP socket: many datagrams in one call, without control messages.
//!
//! For a program whose datagrams all have one size, such as a load generator, options of the socket
//! say all that the kernel needs to know (`UDP_SEGMENT` from Linux 4.18, `UDP_GRO` from 5.0, udp(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::address::socklen_of;

/// Makes each write of this socket leave as datagrams of `size` bytes, the last as long as what is
/// left; 0 turns that off. The kernel refuses a write of more than 64 of them, or longer than 65,507
/// bytes in all.
pub fn set_segment_size(socket: BorrowedFd<'_>, size: u16) -> io::Result<()> {
    set(socket, libc::UDP_SEGMENT, libc::c_int::from(size))
}

/// Lets one read of this socket return several datagrams of one sender, all of one size but the
/// last, end to end.
pub fn set_coalescing(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set(socket, libc::UDP_GRO, libc::c_int::from(on))
}

fn set(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the life of the borrow; the option value is an int that
    // lives across the call, and its true size is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            socklen_of::<libc::c_int>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let (sender, receiver) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (sender, receiver)
    }

    #[test]
    fn one_write_leaves_as_many_datagrams() {
        let (sender, receiver) = pair();
        set_segment_size(sender.as_fd(), 100).unwrap();
        sender.send(&[7; 250]).unwrap();
        let mut buffer = [0; 1_000];
        let lengths = [(); 3].map(|()| receiver.recv(&mut buffer).unwrap());
        assert_eq!(lengths, [100, 100, 50]);
        set_segment_size(sender.as_fd(), 0).unwrap();
        sender.send(&[7; 250]).unwrap();
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 250);
    }

    #[test]
    fn one_read_returns_them_together() {
        let (sender, receiver) = pair();
        set_segment_size(sender.as_fd(), 100).unwrap();
        set_coalescing(receiver.as_fd(), true).unwrap();
        sender.send(&[7; 250]).unwrap();
        assert_eq!(receiver.recv(&mut [0; 1_000]).unwrap(), 250);
        set_coalescing(receiver.as_fd(), false).unwrap();
        sender.send(&[7; 250]).unwrap();
        assert_eq!(receiver.recv(&mut [0; 1_000]).unwrap(), 100);
    }

    #[test]
    fn a_tcp_socket_is_refused() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(set_segment_size(socket.as_fd(), 100).is_err());
    }
}
