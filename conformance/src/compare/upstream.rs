//! What the proxies forward to: echoes, a source of endless bytes, a drain and a sink that count.
//!
//! One thread serves all connections of one address, so that its own cost stays small beside the
//! proxy's and does not depend on how many there are.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::RecvFlags;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use streamgate_sys::segment::set_coalescing;

/// Answers what it gets.
pub const ECHO: u16 = 7001;
/// Sends without end.
pub const SOURCE: u16 = 7002;
/// Answers datagrams.
pub const DATAGRAMS: u16 = 7003;
/// Counts the bytes of datagrams.
pub const SINK: u16 = 7004;

/// The echo again, on each of these ports: nodes to choose among.
pub const NODES: std::ops::Range<u16> = 7101..7121;

/// Takes bytes over TCP without end and counts them.
pub const DRAIN: u16 = 7005;

/// Bytes of one write in bulk.
const CHUNK: usize = 256 * 1024;
/// Room for datagrams that wait for the sink, which shares its core with their sender.
const SINK_BUFFER: usize = 8 << 20;
/// Datagrams answered before others have their turn.
const TURN: usize = 64;

/// A running upstream; it ends with the process.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is.
    pub ip: Ipv4Addr,
    counts: Arc<Counts>,
}

/// Bytes so far.
#[derive(Debug, Default)]
struct Counts {
    datagrams: AtomicU64,
    sent: AtomicU64,
    drained: AtomicU64,
}

impl Upstream {
    /// Starts one on this address.
    pub fn start(ip: Ipv4Addr) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let mut server = Server::bind(ip, Arc::clone(&counts))?;
        thread::spawn(move || server.run());
        Ok(Self { ip, counts })
    }

    /// Bytes of datagrams that the sink has had.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.counts.datagrams.load(Relaxed)
    }

    /// Bytes that the source has handed to the kernel: some megabytes of them may not have arrived.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.counts.sent.load(Relaxed)
    }

    /// Bytes that the drain has had.
    #[must_use]
    pub fn drained(&self) -> u64 {
        self.counts.drained.load(Relaxed)
    }
}

enum Role {
    EchoListener(TcpListener),
    SourceListener(TcpListener),
    DrainListener(TcpListener),
    Echo(TcpStream),
    Source(TcpStream),
    Drain(TcpStream),
    DatagramEcho(UdpSocket),
    Sink(UdpSocket),
}

impl AsFd for Role {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::EchoListener(socket) | Self::SourceListener(socket) | Self::DrainListener(socket) => {
                socket.as_fd()
            }
            Self::Echo(socket) | Self::Source(socket) | Self::Drain(socket) => socket.as_fd(),
            Self::DatagramEcho(socket) | Self::Sink(socket) => socket.as_fd(),
        }
    }
}

/// What a turn of a socket leads to.
enum Next {
    Stay,
    Close,
    Add(Vec<Role>),
}

struct Server {
    epoll: OwnedFd,
    roles: HashMap<u64, Role>,
    last: u64,
    buffer: Vec<u8>,
    counts: Arc<Counts>,
}

impl Server {
    fn bind(ip: Ipv4Addr, counts: Arc<Counts>) -> io::Result<Self> {
        let at = |port| SocketAddr::from((ip, port));
        let sink = UdpSocket::bind(at(SINK))?;
        set_coalescing(sink.as_fd(), true)?;
        if set_socket_recv_buffer_size_force(&sink, SINK_BUFFER).is_err() {
            set_socket_recv_buffer_size(&sink, SINK_BUFFER)?;
        }
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let buffer = vec![0; CHUNK];
        let mut server = Self { epoll, roles: HashMap::new(), last: 0, buffer, counts };
        server.add(Role::EchoListener(TcpListener::bind(at(ECHO))?))?;
        for port in NODES {
            server.add(Role::EchoListener(TcpListener::bind(at(port))?))?;
        }
        server.add(Role::SourceListener(TcpListener::bind(at(SOURCE))?))?;
        server.add(Role::DrainListener(TcpListener::bind(at(DRAIN))?))?;
        server.add(Role::DatagramEcho(UdpSocket::bind(at(DATAGRAMS))?))?;
        server.add(Role::Sink(sink))?;
        Ok(server)
    }

    fn add(&mut self, role: Role) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&role, true)?;
        let interest = if matches!(role, Role::Source(_)) { EventFlags::OUT } else { EventFlags::IN };
        self.last += 1;
        epoll::add(&self.epoll, &role, EventData::new_u64(self.last), interest)?;
        self.roles.insert(self.last, role);
        Ok(())
    }

    /// Serves until the process ends, or until nothing can be served any more.
    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(256);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                self.turn(event.data.u64())?;
            }
        }
    }

    fn turn(&mut self, token: u64) -> io::Result<()> {
        let Some(role) = self.roles.get_mut(&token) else { return Ok(()) };
        // A client that goes away, or does not read what small messages it gets, ends its own session alone.
        match serve(role, &mut self.buffer, &self.counts).unwrap_or(Next::Close) {
            Next::Stay => Ok(()),
            Next::Close => {
                self.roles.remove(&token);
                Ok(())
            }
            Next::Add(roles) => roles.into_iter().try_for_each(|role| self.add(role)),
        }
    }
}

fn serve(role: &mut Role, buffer: &mut [u8], counts: &Counts) -> io::Result<Next> {
    match role {
        Role::EchoListener(listener) => Ok(Next::Add(accept(listener).map(Role::Echo).collect())),
        Role::SourceListener(listener) => Ok(Next::Add(accept(listener).map(Role::Source).collect())),
        Role::DrainListener(listener) => Ok(Next::Add(accept(listener).map(Role::Drain).collect())),
        Role::Echo(stream) => match stream.read(buffer) {
            Ok(0) => Ok(Next::Close),
            Ok(length) => {
                stream.write_all(buffer.get(..length).unwrap_or_default())?;
                Ok(Next::Stay)
            }
            Err(error) => waits(error),
        },
        Role::Source(stream) => match stream.write(buffer) {
            Ok(length) => {
                counts.sent.fetch_add(length as u64, Relaxed);
                Ok(Next::Stay)
            }
            Err(error) => waits(error),
        },
        // tcp(7): TRUNC discards the bytes instead of copying them.
        Role::Drain(stream) => match rustix::net::recv(stream, buffer, RecvFlags::TRUNC) {
            Ok((_, 0)) => Ok(Next::Close),
            Ok((_, length)) => {
                counts.drained.fetch_add(length as u64, Relaxed);
                Ok(Next::Stay)
            }
            Err(error) => waits(error.into()),
        },
        Role::DatagramEcho(socket) => {
            for _ in 0..TURN {
                let Ok((length, from)) = socket.recv_from(buffer) else { break };
                // Full buffers and unreachable clients lose their answers, as with any UDP server.
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
            }
            Ok(Next::Stay)
        }
        Role::Sink(socket) => {
            while let Ok(length) = socket.recv(buffer) {
                counts.datagrams.fetch_add(length as u64, Relaxed);
            }
            Ok(Next::Stay)
        }
    }
}

fn accept(listener: &TcpListener) -> impl Iterator<Item = TcpStream> {
    // The answers are single writes; nobody waits for more bytes to fill a packet.
    listener.incoming().map_while(Result::ok).inspect(|stream| drop(stream.set_nodelay(true)))
}

fn waits(error: io::Error) -> io::Result<Next> {
    if error.kind() == io::ErrorKind::WouldBlock { Ok(Next::Stay) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::until;

    #[test]
    fn each_port_does_its_work() {
        // An address of this test's own: the ports are fixed.
        let ip = Ipv4Addr::new(127, 71, 0, 1);
        let upstream = Upstream::start(ip).unwrap();
        let mut echo = crate::gateway::connect((ip, ECHO).into()).unwrap();
        echo.write_all(b"hi").unwrap();
        let mut answer = [0; 2];
        echo.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hi");

        let mut source = crate::gateway::connect((ip, SOURCE).into()).unwrap();
        source.read_exact(&mut vec![1; 4 * CHUNK]).unwrap();
        assert!(upstream.sent() >= 4 * CHUNK as u64);

        let mut drain = crate::gateway::connect((ip, DRAIN).into()).unwrap();
        drain.write_all(&vec![1; 4 * CHUNK]).unwrap();
        until(Duration::from_secs(5), || match upstream.drained() {
            count if count == 4 * CHUNK as u64 => Ok(()),
            other => Err(io::Error::other(format!("{other} bytes drained"))),
        })
        .unwrap();

        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect((ip, DATAGRAMS)).unwrap();
        socket.send(b"question").unwrap();
        assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 8);
        socket.connect((ip, SINK)).unwrap();
        socket.send(&[0; 700]).unwrap();
        until(Duration::from_secs(5), || match upstream.received() {
            700 => Ok(()),
            other => Err(io::Error::other(format!("{other} bytes counted"))),
        })
        .unwrap();
    }
}
