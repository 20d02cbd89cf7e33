//! Listening sockets: a set of them on one address, one for each worker.
//!
//! The kernel spreads connections and datagrams over the sockets of a `SO_REUSEPORT` group, which
//! any process of the same user can join: a gateway started twice would silently serve half the
//! connections each. So the first socket of a set is bound without the option, which fails on a port
//! somebody has, and joins the group afterwards. There is no moment between proof and binding.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};

use crate::net::datagram;
use crate::net::holder::{self, Holder};
use crate::session::Transport;

/// Connections that wait for `accept`; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What to bind.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// TCP or UDP.
    pub transport: Transport,
    /// The address; port 0 lets the kernel choose one for the whole set.
    pub addr: SocketAddr,
    /// Sockets of the set.
    pub count: usize,
    /// Join a group that others may be in, instead of proving the port free.
    pub share: bool,
}

/// A set of bound sockets that do not accept yet.
#[derive(Debug)]
pub struct Bound {
    /// The real address.
    pub addr: SocketAddr,
    /// What the operator should know, though it works.
    pub warning: Option<String>,
    transport: Transport,
    sockets: Vec<Socket>,
}

/// A socket that accepts: not blocking, for one worker.
#[derive(Debug)]
pub enum Listening {
    /// Of connections.
    Tcp(std::net::TcpListener),
    /// Of datagrams.
    Udp(std::net::UdpSocket),
}

/// Binds the whole set or nothing.
pub fn bind(plan: &Plan) -> Result<Bound, BindError> {
    let failed = |addr: SocketAddr| {
        move |source: io::Error| BindError {
            transport: plan.transport,
            addr,
            share: plan.share,
            // Only asked for where it helps: it reads all of /proc.
            holder: (source.kind() == io::ErrorKind::AddrInUse)
                .then(|| holder::find(plan.transport, addr))
                .flatten(),
            source,
        }
    };
    let first = socket(plan, plan.addr, plan.share).map_err(failed(plan.addr))?;
    let addr = local_addr(&first).map_err(failed(plan.addr))?;
    first.set_reuse_port(true).map_err(failed(addr))?;
    let warning = buffer_warning(plan.transport, &first);
    let mut sockets = vec![first];
    for _ in 1..plan.count {
        sockets.push(socket(plan, addr, true).map_err(failed(addr))?);
    }
    Ok(Bound { addr, warning, transport: plan.transport, sockets })
}

impl Bound {
    /// Begins to accept: from here on the kernel completes connections.
    pub fn listen(self) -> io::Result<Vec<Listening>> {
        let listen = |socket: Socket| {
            Ok(match self.transport {
                Transport::Tcp => {
                    socket.listen(BACKLOG)?;
                    Listening::Tcp(socket.into())
                }
                Transport::Udp => Listening::Udp(socket.into()),
            })
        };
        self.sockets.into_iter().map(listen).collect()
    }
}

fn socket(plan: &Plan, addr: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let kind = match plan.transport {
        Transport::Tcp => Type::STREAM,
        Transport::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(addr), kind, None)?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        // As nginx's `ipv6only=on`: `[::]:9100` and `0.0.0.0:9100` are two listens.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(reuse_port)?;
    match plan.transport {
        Transport::Tcp => {
            // Else sessions of a former run, still closing, would keep the port for a minute.
            socket.set_reuse_address(true)?;
            // Accepted sockets inherit it: one system call less for each.
            socket.set_tcp_nodelay(true)?;
        }
        Transport::Udp => {
            if addr.ip().is_unspecified() {
                streamgate_sys::datagram::enable_packet_info(socket.as_fd(), addr.is_ipv6())?;
            }
            datagram::prepare(&socket);
        }
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn local_addr(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))
}

fn buffer_warning(transport: Transport, socket: &Socket) -> Option<String> {
    let (wanted, got) = (datagram::BUFFER, datagram::received_buffer(socket).ok()?);
    (transport == Transport::Udp && got < wanted).then(|| {
        format!(
            "its receive buffer is {got} bytes instead of {wanted}, so bursts of datagrams may be lost; set \
             net.core.rmem_max to {wanted} or give the process CAP_NET_ADMIN"
        )
    })
}

/// Why an address could not be bound.
#[derive(Debug)]
pub struct BindError {
    transport: Transport,
    addr: SocketAddr,
    share: bool,
    holder: Option<Holder>,
    source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {} {}: ", self.transport.label(), self.addr)?;
        match self.source.kind() {
            io::ErrorKind::AddrInUse => self.fmt_taken(f),
            io::ErrorKind::PermissionDenied if self.addr.port() < 1024 => f.write_str(
                "ports below 1024 need CAP_NET_BIND_SERVICE; start as root, set AmbientCapabilities= in the \
                 systemd unit, or lower net.ipv4.ip_unprivileged_port_start",
            ),
            io::ErrorKind::AddrNotAvailable => f.write_str(
                "no interface of this host has the address; correct it, or set net.ipv4.ip_nonlocal_bind \
                 where it moves between hosts",
            ),
            _ => self.source.fmt(f),
        }
    }
}

impl BindError {
    fn fmt_taken(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.holder {
            Some(holder) => write!(f, "{holder} holds it")?,
            None => f.write_str("another process holds it")?,
        }
        if self.share {
            return f.write_str(" and does not share it (another user, or no SO_REUSEPORT); stop it first");
        }
        f.write_str("; stop it, or allow both with --share-ports")
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(transport: Transport, addr: &str) -> Plan {
        Plan { transport, addr: addr.parse().unwrap(), count: 3, share: false }
    }

    fn addr_of(socket: &Listening) -> SocketAddr {
        match socket {
            Listening::Tcp(socket) => socket.local_addr().unwrap(),
            Listening::Udp(socket) => socket.local_addr().unwrap(),
        }
    }

    #[track_caller]
    fn check_set(transport: Transport, addr: &str) {
        let bound = bind(&plan(transport, addr)).unwrap();
        let real = bound.addr;
        assert_ne!(real.port(), 0);
        let sockets = bound.listen().unwrap();
        assert_eq!(sockets.iter().map(addr_of).collect::<Vec<_>>(), [real; 3]);
    }

    #[test]
    fn the_first_socket_decides_the_port() {
        check_set(Transport::Tcp, "127.0.0.1:0");
        check_set(Transport::Udp, "127.0.0.1:0");
        check_set(Transport::Tcp, "[::1]:0");
        check_set(Transport::Udp, "[::1]:0");
    }

    #[track_caller]
    fn check_taken(transport: Transport) {
        let held = bind(&plan(transport, "127.0.0.1:0")).unwrap();
        let addr = held.addr;
        let _sockets = held.listen().unwrap();
        let again = Plan { addr, ..plan(transport, "127.0.0.1:0") };
        let error = bind(&again).unwrap_err().to_string();
        let pid = format!("(pid {})", std::process::id());
        assert!(error.contains(&addr.to_string()) && error.contains(&pid), "{error}");
        assert!(error.contains("--share-ports"), "{error}");
        assert_eq!(bind(&Plan { share: true, ..again }).unwrap().addr, addr);
    }

    #[test]
    fn a_taken_port_names_its_holder_and_may_be_shared() {
        check_taken(Transport::Tcp);
        check_taken(Transport::Udp);
    }

    #[test]
    fn who_does_not_share_is_named_too() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let plan =
            Plan { addr: holder.local_addr().unwrap(), share: true, ..plan(Transport::Tcp, "127.0.0.1:0") };
        let error = bind(&plan).unwrap_err().to_string();
        assert!(error.contains("does not share it"), "{error}");
    }

    #[test]
    fn an_address_of_nobody_says_so() {
        // TEST-NET-1 of RFC 5737.
        let error = bind(&plan(Transport::Tcp, "192.0.2.1:0")).unwrap_err().to_string();
        assert!(error.contains("no interface"), "{error}");
    }

    #[test]
    fn connections_reach_every_socket_of_the_set() {
        let bound = bind(&plan(Transport::Tcp, "127.0.0.1:0")).unwrap();
        let addr = bound.addr;
        let sockets = bound.listen().unwrap();
        // Of 300 connections over three sockets, none gets nothing but once in 10^50 runs.
        let _clients: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        for socket in sockets {
            let Listening::Tcp(socket) = socket else { panic!("not a TCP socket") };
            socket.accept().unwrap();
        }
    }

    #[test]
    fn datagrams_reach_every_socket_of_the_set() {
        let bound = bind(&plan(Transport::Udp, "127.0.0.1:0")).unwrap();
        let addr = bound.addr;
        let sockets = bound.listen().unwrap();
        let client = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let clients: Vec<_> = (0..300).map(|_| client()).collect();
        for client in &clients {
            client.send_to(b"x", addr).unwrap();
        }
        for socket in sockets {
            let Listening::Udp(socket) = socket else { panic!("not a UDP socket") };
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            socket.recv(&mut [0]).unwrap();
        }
    }
}
