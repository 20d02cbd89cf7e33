//! One datagram a call, with the local address it was sent to or shall come from.
//!
//! A socket bound to a wildcard address learns from packet info (`IP_PKTINFO`, `IPV6_PKTINFO`) which
//! of the host's addresses a client wrote to; an answer from any other address is dropped by the
//! client's connected socket and by firewalls in between.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::address::{RawAddress, socklen_of};
use crate::control::{self, Space};

/// A local address, with the interface that makes a link-local one complete.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Local {
    /// The address.
    pub ip: IpAddr,
    /// Index of the interface a datagram came in on; used for sending from link-local addresses only.
    pub interface: u32,
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Received {
    /// How many bytes of the buffer it fills; 0 is a datagram too.
    pub len: usize,
    /// It was longer than the buffer: the rest is lost.
    pub truncated: bool,
    /// Who sent it.
    pub peer: SocketAddr,
    /// The address it was sent to, where packet info is enabled.
    pub local: Option<Local>,
}

/// Makes the kernel tell the local address of each datagram. `ipv6` is the family of the socket.
pub fn enable_packet_info(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let (level, option) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    };
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

/// Receives one datagram without waiting: `WouldBlock` where none is there.
pub fn recv_msg(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut peer = RawAddress::empty();
    let mut space = Space::default();
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = header(&mut slice);
    message.msg_name = (&raw mut peer.storage).cast();
    message.msg_namelen = peer.len;
    message.msg_control = space.pointer();
    message.msg_controllen = Space::LEN;
    // SAFETY: the descriptor is open for the life of the borrow. Every pointer of `message` leads to
    // memory of the length given beside it, which is exclusively ours and outlives the call.
    let received = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC)
    };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    peer.len = message.msg_namelen;
    // SAFETY: recvmsg has just filled `message`; `space` is alive and untouched.
    let local = unsafe { control::local(&message) };
    let peer =
        peer.decode().ok_or_else(|| io::Error::other("a datagram without an address of its sender"))?;
    Ok(Received { len, truncated: message.msg_flags & libc::MSG_TRUNC != 0, peer, local })
}

/// Sends one datagram to `peer` without waiting, from the local address `from` where given.
pub fn send_msg(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    peer: SocketAddr,
    from: Option<Local>,
) -> io::Result<usize> {
    let mut peer = RawAddress::from(peer);
    let mut space = Space::default();
    // sendmsg only reads; the structure has no const form.
    let mut slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = header(&mut slice);
    message.msg_name = (&raw mut peer.storage).cast();
    message.msg_namelen = peer.len;
    if let Some(from) = from {
        // SAFETY: `space` lives to the end of this function, as `message` does.
        unsafe { control::set_source(&mut message, &mut space, from) };
    }
    // SAFETY: the descriptor is open for the life of the borrow. Every pointer of `message` leads to
    // memory of the length given beside it that outlives the call, and the kernel only reads it.
    let sent = unsafe {
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A message of one slice, without address and control messages.
fn header(slice: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: msghdr is plain old data for which all zeroes is a value; it has private padding on
    // some systems, so it cannot be written as a literal.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = ptr::from_mut(slice);
    message.msg_iovlen = 1;
    message
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn socket(address: &str) -> UdpSocket {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    /// Receives once something is there; `recv_msg` itself never waits.
    fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Received {
        socket.peek_from(&mut [0]).unwrap();
        recv_msg(socket.as_fd(), buffer).unwrap()
    }

    #[track_caller]
    fn check(bound: &str, written_to: &str) {
        let server = socket(bound);
        enable_packet_info(server.as_fd(), server.local_addr().unwrap().is_ipv6()).unwrap();
        let mut target: SocketAddr = written_to.parse().unwrap();
        target.set_port(server.local_addr().unwrap().port());
        let client = socket(written_to);
        client.connect(target).unwrap();
        let large = vec![7; 65_000];
        for payload in [&b"question"[..], &[], &large] {
            client.send(payload).unwrap();
            let mut buffer = vec![0; 65_536];
            let received = receive(&server, &mut buffer);
            assert_eq!(&buffer[..received.len], payload);
            assert_eq!(received.peer, client.local_addr().unwrap());
            assert_eq!(received.local.map(|local| local.ip), Some(target.ip()));
            // The client is connected to `target`: it would not hear an answer from elsewhere.
            send_msg(server.as_fd(), payload, received.peer, received.local).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), payload.len());
        }
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked() {
        check("127.0.0.1:0", "127.0.0.1:0");
        check("127.0.0.2:0", "127.0.0.2:0");
        check("[::1]:0", "[::1]:0");
    }

    #[test]
    fn source_may_be_any_local_address() {
        let server = socket("127.0.0.1:0");
        let client = socket("127.0.0.1:0");
        let from = Local { ip: "127.0.0.9".parse().unwrap(), interface: 0 };
        send_msg(server.as_fd(), b"x", client.local_addr().unwrap(), Some(from)).unwrap();
        let (_, peer) = client.recv_from(&mut [0; 1]).unwrap();
        assert_eq!(peer.ip(), from.ip);
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_says_so() {
        let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        client.send_to(&[1; 100], server.local_addr().unwrap()).unwrap();
        let received = receive(&server, &mut [0; 10]);
        assert_eq!((received.len, received.truncated), (10, true));
        assert_eq!(received.local, None, "packet info was not asked for");
    }

    #[test]
    fn nothing_there_is_would_block() {
        let server = socket("127.0.0.1:0");
        let error = recv_msg(server.as_fd(), &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
