//! Datagram sockets: their buffers, and one that is connected to a node.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};

/// Buffer of a UDP socket each way, in bytes: about a tenth of a second of small datagrams at full
/// rate. Memory is taken as datagrams wait, not before.
pub(super) const BUFFER: usize = 4 << 20;

/// Gives a socket its buffers, and lets the kernel hand over datagrams in one piece where it can.
/// Past `net.core.rmem_max` and `wmem_max` only `CAP_NET_ADMIN` may go; [`received_buffer`] tells.
pub(super) fn prepare(socket: &Socket) {
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
    // Linux before 5.0 does not know it; each datagram then comes alone.
    let _ = streamgate_sys::datagram::enable_gro(socket.as_fd());
}

/// The receive buffer that the kernel gave, in bytes.
pub(super) fn received_buffer(socket: &Socket) -> io::Result<usize> {
    // The kernel doubles what it is asked for, and says so (socket(7), SO_RCVBUF).
    Ok(socket.recv_buffer_size()? / 2)
}

/// A socket that hears `addr` alone and does not block.
pub fn connect(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new_raw(Domain::for_address(addr), Type::DGRAM.nonblocking().cloexec(), None)?;
    prepare(&socket);
    socket.connect(&addr.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ip: &str) {
        let (node, other) = (UdpSocket::bind((ip, 0)).unwrap(), UdpSocket::bind((ip, 0)).unwrap());
        let socket = connect(node.local_addr().unwrap()).unwrap();
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it blocks");
        let addr = socket.local_addr().unwrap();
        other.send_to(b"o", addr).unwrap();
        node.send_to(b"n", addr).unwrap();
        let mut heard = [0];
        assert_eq!((socket.recv(&mut heard).unwrap(), heard), (1, *b"n"), "it hears others");
    }

    #[test]
    fn a_connected_socket_hears_its_node_alone() {
        check("127.0.0.1");
        check("::1");
    }
}
