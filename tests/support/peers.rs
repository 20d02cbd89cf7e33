//! Upstreams that say who they are, and clients to ask them through a gateway.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// No wait of a test is longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An upstream on TCP and UDP that puts its one-letter name before whatever it gets, until the test
/// process ends.
pub fn echo(name: &'static str) -> SocketAddr {
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        // The UDP port of the same number may be taken.
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            break (tcp, udp);
        }
    };
    let address = tcp.local_addr().unwrap();
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || drop(answer(name, stream)));
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 65_535];
        loop {
            let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
            let _ = udp.send_to(&[name.as_bytes(), &buffer[..length]].concat(), from);
        }
    });
    address
}

fn answer(name: &str, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&[name.as_bytes(), &buffer[..length]].concat())?;
    }
}

/// An address that refuses connections. The socket keeps others from it.
pub fn refused() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The same from a chosen address of loopback.
pub fn connect_from(client: SocketAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&client.into())?;
    socket.connect(&address.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `?` on an open session and gives the name of the upstream behind it.
pub fn talk(stream: &mut (impl Read + Write)) -> io::Result<String> {
    stream.write_all(b"?")?;
    let mut heard = [0; 2];
    stream.read_exact(&mut heard)?;
    assert_eq!(heard[1], b'?', "{heard:?}");
    Ok(char::from(heard[0]).into())
}

/// The same over a connection of its own.
pub fn ask(address: SocketAddr) -> io::Result<String> {
    talk(&mut connect(address)?)
}

/// The same with datagrams; `None` where no answer comes at once.
pub fn ask_udp(address: SocketAddr) -> Option<String> {
    let any = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.send_to(b"?", address).unwrap();
    let mut heard = [0; 2];
    let (length, from) = socket.recv_from(&mut heard).ok()?;
    assert_eq!((length, from), (2, address), "an answer comes from the address written to");
    Some(char::from(heard[0]).into())
}

/// Waits until sessions to `address` are answered by `name`.
#[track_caller]
pub fn until_answered(address: SocketAddr, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask(address);
        if answer.as_deref().is_ok_and(|answer| answer == name) {
            return;
        }
        assert!(Instant::now() < deadline, "{address} answers {answer:?}, not {name}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until sessions to `address` are closed without a byte.
#[track_caller]
pub fn until_closed(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while let Ok(answer) = ask(address) {
        assert!(Instant::now() < deadline, "{address} still answers {answer:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Upstreams as by [`echo`], on TCP, at these addresses of loopback and one port.
pub fn echoes(all: &[(&'static str, &str)]) -> u16 {
    let bind = |port: u16| {
        let bound = all.iter().map(|(name, ip)| Ok((*name, TcpListener::bind((*ip, port))?)));
        bound.collect::<io::Result<Vec<_>>>()
    };
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let Ok(listeners) = bind(port) else { continue };
        for (name, listener) in listeners {
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || drop(answer(name, stream)));
                }
            });
        }
        return port;
    }
}
