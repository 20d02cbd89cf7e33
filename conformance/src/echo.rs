//! An upstream that answers with its name and what it got, over TCP and UDP on one address.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// Largest datagram there is.
const DATAGRAM: usize = 65_535;

/// Serves until the process ends. With port 0 the system chooses; the address is returned.
pub fn serve(name: &str, address: SocketAddr) -> io::Result<SocketAddr> {
    let tcp = TcpListener::bind(address)?;
    let address = tcp.local_addr()?;
    let udp = UdpSocket::bind(address)?;
    let (stream_name, datagram_name) = (name.to_owned(), name.to_owned());
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let name = stream_name.clone();
            // A client that goes away ends its own thread alone.
            thread::spawn(move || drop(echo_stream(&name, stream)));
        }
    });
    thread::spawn(move || echo_datagrams(&datagram_name, &udp));
    Ok(address)
}

fn echo_stream(name: &str, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let received = buffer.get(..length).unwrap_or_default();
        stream.write_all(&[name.as_bytes(), b":", received].concat())?;
    }
}

fn echo_datagrams(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An ICMP error of an earlier answer shows up here; the next datagram is as good as ever.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let received = buffer.get(..length).unwrap_or_default();
        let _ = socket.send_to(&[name.as_bytes(), b":", received].concat(), from);
    }
}
