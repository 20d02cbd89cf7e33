//! A connection to a syslog server, over which lines go.

use std::collections::VecDeque;
use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::{Names, Way};
use crate::addr::Host;
use crate::net::dial;
use crate::net::dns::Answer;
use crate::plugin::syslog::{self, Settings};

/// Bytes that are handed over at once.
const CHUNK: usize = 64 * 1024;
/// Bytes that the system keeps of a connection before it sends them: what it has taken is lost with a server
/// that hangs, and it would take megabytes.
const UNSENT: u32 = 64 * 1024;
/// How long the address of a name is sent datagrams to: nothing tells that it moved.
const ADDRESS_IS_GOOD: Duration = Duration::from_mins(1);
/// How long a peer may leave what was sent unacknowledged, in `timeout`s: one that is switched off does not
/// close its connection.
const PATIENCE: u32 = 10;

/// How long nothing is said before the other side is asked whether it is still there.
const IDLE: Duration = Duration::from_mins(1);

/// One that stands.
pub(super) enum Connection {
    Stream(Stream),
    Datagrams(Datagrams),
}

/// What became of sending.
pub(super) struct Taken {
    /// Lines from the front that are done with.
    pub(super) lines: usize,
    /// How many of those no datagram holds.
    pub(super) unfit: usize,
    /// Datagrams sent before that found nobody, as the server's host said.
    pub(super) refused: u64,
    /// Whether the connection still stands; else why not.
    pub(super) outcome: Result<(), String>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Lines one after the other.
pub(super) struct Stream {
    io: Box<dyn Io>,
    /// What the write call takes is with the system; TLS keeps some of it.
    plain: bool,
    chunk: Vec<u8>,
}

/// A line each.
pub(super) struct Datagrams {
    socket: UdpSocket,
    /// When to look for the address anew.
    old: Option<Instant>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Stream(_)) { "Stream" } else { "Datagrams" })
    }
}

impl Connection {
    /// To the first of the server's addresses that takes one. The error is a sentence.
    pub(super) async fn open(settings: &Settings, way: &Way) -> Result<Self, String> {
        let addresses = addresses(&settings.host, settings.port, &way.names).await?;
        let mut failures = Vec::new();
        for address in addresses {
            let made = match settings.way {
                syslog::Way::Udp => datagrams(address, settings).await.map(Self::Datagrams),
                _ => stream(address, settings, way).await.map(Self::Stream),
            };
            match made {
                Ok(made) => return Ok(made),
                Err(why) => failures.push(match &settings.host {
                    Host::Ip(_) => why,
                    Host::Name(_) => format!("{address}: {why}"),
                }),
            }
        }
        Err(failures.join("; "))
    }

    /// Another one should take its place.
    pub(super) fn is_old(&self) -> bool {
        matches!(self, Self::Datagrams(Datagrams { old: Some(old), .. }) if *old <= Instant::now())
    }

    /// Waits until the server closes it. What a server says is passed over.
    pub(super) async fn closed(&mut self) {
        match self {
            Self::Stream(stream) => {
                let mut passed_over = [0; 512];
                while stream.io.read(&mut passed_over).await.is_ok_and(|count| count > 0) {}
            }
            Self::Datagrams(_) => pending().await,
        }
    }

    /// Reports whether the server has closed it.
    pub(super) async fn is_closed(&mut self) -> bool {
        let mut closed = pin!(self.closed());
        poll_fn(|cx| Poll::Ready(closed.as_mut().poll(cx).is_ready())).await
    }

    /// Sends some of these lines, at least one where it can. The server may take nothing for `limit`.
    pub(super) async fn send(&mut self, lines: &VecDeque<Box<[u8]>>, limit: Duration) -> Taken {
        match self {
            Self::Stream(stream) => stream.send(lines, limit).await,
            Self::Datagrams(datagrams) => datagrams.send(lines, limit).await,
        }
    }
}

/// Where a server is.
async fn addresses(host: &Host, port: u16, names: &Names) -> Result<Vec<SocketAddr>, String> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => name,
    };
    let resolver = names.resolver().await.map_err(|failure| failure.to_string())?;
    match resolver.addresses(name, names.dns.ipv6).await {
        Ok(Answer::Records { data, .. }) => {
            Ok(data.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
        }
        Ok(Answer::Nothing(why)) => Err(why.to_string()),
        Err(failure) => Err(failure.to_string()),
    }
}

async fn stream(address: SocketAddr, settings: &Settings, way: &Way) -> Result<Stream, String> {
    let limit = settings.timeout;
    let connected = dial::connect(address, limit, pin!(sleep(limit))).await;
    let stream = connected.map_err(|error| error.to_string())?;
    // Without them a server that hangs or vanishes is noticed later, and no more than that.
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_user_timeout(Some(limit * PATIENCE));
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE).with_interval(IDLE / 6));
    let (plain, io): (bool, Box<dyn Io>) = match settings.way {
        syslog::Way::Tls { verify } => (false, Box::new(secured(stream, settings, verify, way).await?)),
        _ => (true, Box::new(stream)),
    };
    Ok(Stream { io, plain, chunk: Vec::new() })
}

async fn secured(
    stream: TcpStream,
    settings: &Settings,
    verify: bool,
    way: &Way,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let config = way.trust.towards(verify)?;
    let name = match &settings.host {
        Host::Ip(ip) => ServerName::from(*ip),
        Host::Name(name) => ServerName::try_from(name.to_string())
            .map_err(|_| format!("{name:?} is no server name for TLS"))?,
    };
    match timeout(settings.timeout, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("the TLS handshake failed: {error}")),
        Err(_) => Err(format!("no TLS handshake within {:?}", settings.timeout)),
    }
}

async fn datagrams(address: SocketAddr, settings: &Settings) -> Result<Datagrams, String> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let connected = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        Ok(socket)
    };
    let socket = connected.await.map_err(|error: io::Error| dial::sentence(&error))?;
    let named = matches!(settings.host, Host::Name(_));
    Ok(Datagrams { socket, old: named.then(|| Instant::now() + ADDRESS_IS_GOOD) })
}

impl Stream {
    async fn send(&mut self, lines: &VecDeque<Box<[u8]>>, limit: Duration) -> Taken {
        self.chunk.clear();
        let mut ends = Vec::new();
        for line in lines {
            if !ends.is_empty() && self.chunk.len() + line.len() > CHUNK {
                break;
            }
            self.chunk.extend_from_slice(line);
            ends.push(self.chunk.len());
        }
        let mut taken = 0;
        let outcome = write_all(&mut self.io, &self.chunk, &mut taken, limit).await;
        if outcome.is_err() && !self.plain {
            taken = 0;
        }
        // A line that left in part is sent again whole: on another connection.
        let lines = ends.iter().take_while(|end| **end <= taken).count();
        Taken { lines, unfit: 0, refused: 0, outcome }
    }
}

async fn write_all(
    io: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    taken: &mut usize,
    limit: Duration,
) -> Result<(), String> {
    let slow = |_| format!("it takes nothing for {limit:?}; it hangs, or the way to it is broken");
    let told = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::CONNRESET | Errno::PIPE) => "it closed the connection while lines were sent".into(),
        _ => error.to_string(),
    };
    while let Some(rest) = bytes.get(*taken..).filter(|rest| !rest.is_empty()) {
        match timeout(limit, io.write(rest)).await.map_err(slow)?.map_err(told)? {
            0 => return Err("it takes nothing more".into()),
            count => *taken += count,
        }
    }
    timeout(limit, io.flush()).await.map_err(slow)?.map_err(told)
}

impl Datagrams {
    async fn send(&self, lines: &VecDeque<Box<[u8]>>, limit: Duration) -> Taken {
        let mut taken = Taken { lines: 0, unfit: 0, refused: 0, outcome: Ok(()) };
        for line in lines {
            match self.send_one(line, &mut taken.refused, limit).await {
                Ok(fits) => taken.unfit += usize::from(!fits),
                Err(why) => {
                    taken.outcome = Err(why);
                    break;
                }
            }
            taken.lines += 1;
        }
        taken
    }

    /// Reports whether a datagram can hold the line.
    async fn send_one(&self, line: &[u8], refused: &mut u64, limit: Duration) -> Result<bool, String> {
        let mut again = false;
        loop {
            let sent = timeout(limit, self.socket.send(line)).await;
            let error = match sent {
                Ok(Ok(_)) => return Ok(true),
                Ok(Err(error)) => error,
                Err(_) => return Err(format!("no datagram leaves for {limit:?}")),
            };
            match Errno::from_io_error(&error) {
                Some(Errno::MSGSIZE) => return Ok(false),
                // The error of an earlier datagram; this one was not sent.
                Some(Errno::CONNREFUSED) if !again => {
                    *refused += 1;
                    again = true;
                }
                _ => return Err(dial::sentence(&error)),
            }
        }
    }
}
