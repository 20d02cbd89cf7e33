//! Clients over UDP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use streamgate_sys::segment::set_segment_size;

use super::client::{Progress, Waiting};

/// Clients, each with a socket and so an association of its own.
const CLIENTS: usize = 16;
/// Datagrams that each has under way: all of them together fit the default buffer of a proxy's socket.
const WINDOW: usize = 8;
/// Bytes of a datagram and of its echo.
const MESSAGE: usize = 64;
/// A client that hears nothing for so long takes what it had under way for lost.
const LOST: Duration = Duration::from_millis(100);

/// Senders of a flood.
const SENDERS: usize = 4;
/// Bytes of a datagram of a flood: about what QUIC sends.
pub const SEGMENT: u16 = 1200;
/// Datagrams that a sender hands to the kernel at once.
const SEGMENTS: usize = 32;

struct Client {
    socket: UdpSocket,
    heard: bool,
}

/// Datagrams and their echoes, a window of them under way for each client.
pub fn echoes(proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    let mut waiting = Waiting::new()?;
    let mut clients = Vec::with_capacity(CLIENTS);
    for index in 0..CLIENTS {
        let socket = connected(proxy)?;
        socket.set_nonblocking(true)?;
        waiting.add(&socket, index)?;
        clients.push(Client { socket, heard: false });
    }
    let mut checked = SystemTime::UNIX_EPOCH;
    while progress.goes_on() {
        for index in waiting.ready()? {
            let Some(client) = clients.get_mut(index) else { continue };
            let answers = client.receive()?;
            progress.add(answers);
            client.send(answers)?;
        }
        if checked.elapsed().is_ok_and(|since| since > LOST) {
            checked = SystemTime::now();
            for client in &mut clients {
                if !std::mem::take(&mut client.heard) {
                    client.send(WINDOW)?;
                }
            }
        }
    }
    Ok(())
}

impl Client {
    /// How many answers are there.
    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 2 * MESSAGE];
        let mut answers = 0;
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(_) => answers += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.heard |= answers > 0;
        Ok(answers)
    }

    fn send(&self, count: usize) -> io::Result<()> {
        (0..count).try_for_each(|_| self.socket.send(&[7; MESSAGE]).map(drop))
    }
}

/// Datagrams one way as fast as they can be sent, many in one call; what arrives is counted by the
/// sink.
pub fn segments(proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    let senders = (0..SENDERS).map(|_| connected(proxy)).collect::<io::Result<Vec<_>>>()?;
    let burst = vec![7; SEGMENTS * usize::from(SEGMENT)];
    senders.iter().try_for_each(|sender| set_segment_size(sender.as_fd(), SEGMENT))?;
    senders.iter().cycle().take_while(|_| progress.goes_on()).try_for_each(|sender| {
        sender.send(&burst)?;
        Ok(())
    })
}

fn connected(proxy: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(proxy)?;
    Ok(socket)
}
