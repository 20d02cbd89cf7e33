//! Options of datagram sockets.
//!
//! A socket bound to a wildcard address learns from packet info (`IP_PKTINFO`, `IPV6_PKTINFO`) which
//! of the host's addresses a client wrote to; an answer from any other address is dropped by the
//! client's connected socket and by firewalls in between. With GRO (udp(7), `UDP_GRO`) the kernel
//! hands over several datagrams of one peer and one size in one piece, with their size.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::address::socklen_of;

/// A local address, with the interface that makes a link-local one complete.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Local {
    /// The address.
    pub ip: IpAddr,
    /// Index of the interface a datagram came in on; used for sending from link-local addresses only.
    pub interface: u32,
}

/// Makes the kernel tell the local address of each datagram. `ipv6` is the family of the socket.
pub fn enable_packet_info(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let (level, option) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    };
    enable(socket, level, option)
}

/// Lets the kernel hand over datagrams in one piece: Linux 5.0 and later.
pub fn enable_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    enable(socket, libc::SOL_UDP, libc::UDP_GRO)
}

fn enable(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the life of the borrow; the option value is an int that
    // lives across the call, and its true size is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            socklen_of::<libc::c_int>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
