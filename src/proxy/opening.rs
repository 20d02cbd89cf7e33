//! The first bytes of a connection, where its listen wants something of them before there is a route: a PROXY
//! header, a TLS hello.
//!
//! They are read, not peeked: a peek is ready again at once after a FIN. What is to be passed on as it came
//! is kept, as little memory as it needs; a connection that says nothing holds none.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::config::Listen;
use crate::net::buffer::Buffer;
use crate::net::tls::Session;
use crate::net::transfer::receive;
use crate::proxy::record::Record;
use crate::proxy::relay;
use crate::proxy::terminate;
use crate::proxy::worker::Refusal;
use crate::proxy_protocol::{self, FirstLine, Header};
use crate::session::{End, TlsFailure};
use crate::sni::hello::{self, Reading};

/// One read takes so much at most; what is waited for is never longer.
const READ: usize = hello::MOST;
/// Bytes of something that is no TLS which the log shows.
const SHOWN: usize = 16;

/// What the opening of a connection came to.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Read, and to be passed on before anything else.
    pub(super) preread: Vec<u8>,
    /// TLS with the client.
    pub(super) tls: Option<Session>,
}

/// The bytes of a client that were read so far.
struct First<'a> {
    client: &'a TcpStream,
    timer: Pin<&'a mut Sleep>,
    bytes: Vec<u8>,
    /// Where those begin that are not done with.
    at: usize,
}

/// What a hello says that outlives it.
pub(super) struct Heard {
    pub(super) max_fragment: Option<u16>,
    /// For the log, should the handshake fail.
    pub(super) message: Box<[u8]>,
}

/// What is known once the first bytes were looked at.
enum Spoken {
    Tls(Heard),
    SomethingElse,
}

/// Reads what the listen asks for and answers a TLS client, where the listen does.
pub(super) async fn open(
    record: &mut Record,
    client: &TcpStream,
    timer: Pin<&mut Sleep>,
) -> Result<Opened, Refusal> {
    let listen = record.listen.clone();
    let mut first = First { client, timer, bytes: Vec::new(), at: 0 };
    if listen.proxy_protocol {
        first.give(listen.proxy_protocol_timeout);
        header(&listen, record, &mut first).await?;
    }
    if !listen.tls && !listen.tls_passthrough {
        return Ok(Opened { preread: first.into_rest(), tls: None });
    }
    first.give(listen.handshake_timeout);
    let heard = match spoken(&listen, record, &mut first).await? {
        Spoken::SomethingElse => return Ok(Opened { preread: first.into_rest(), tls: None }),
        Spoken::Tls(heard) => heard,
    };
    if listen.tls_passthrough && (!listen.tls || record.worker.passes_through(&record.inbound)) {
        record.passes_through();
        return Ok(Opened { preread: first.into_rest(), tls: None });
    }
    let First { bytes, at, timer, .. } = first;
    let received = bytes.get(at..).unwrap_or_default();
    let tls = terminate::shake_hands(record, client, (received, heard), timer).await?;
    Ok(Opened { preread: Vec::new(), tls: Some(tls) })
}

/// Reads the PROXY header. Nothing is decided by time but the end: a header comes in any number of segments.
async fn header(listen: &Listen, record: &mut Record, first: &mut First<'_>) -> Result<(), Refusal> {
    let optional = listen.proxy_protocol_optional;
    loop {
        match proxy_protocol::read(first.rest()) {
            proxy_protocol::Reading::Header(header, length) => {
                first.at = length;
                adopt(header, record);
                return Ok(());
            }
            proxy_protocol::Reading::Absent if optional => return Ok(()),
            proxy_protocol::Reading::Absent => {
                let line = FirstLine(first.rest());
                let why =
                    format!("broken header: \"{line}\"; is the peer one that sends the PROXY protocol?");
                return Err((End::ProxyHeader, why));
            }
            proxy_protocol::Reading::Malformed(why) => return Err((End::ProxyHeader, why.to_string())),
            proxy_protocol::Reading::Need(wanted) => match first.until(wanted).await {
                Ok(true) => {}
                // It may be a client that waits for the server to speak first.
                Ok(false) | Err((End::PrereadTimeout, _)) if optional => return Ok(()),
                Ok(false) => {
                    let length = first.rest().len();
                    let why = format!("the client closed after {length} bytes of a PROXY header");
                    return Err((End::ProxyHeader, why));
                }
                Err((End::PrereadTimeout, _)) => {
                    let limit = listen.proxy_protocol_timeout;
                    return Err((End::PrereadTimeout, format!("no whole PROXY header within {limit:?}")));
                }
                Err(refusal) => return Err(refusal),
            },
        }
    }
}

/// Notes what a header says. Only a trusted peer's replaces the client
/// (`nginx_config.stream.real_ip_from`).
fn adopt(header: Header, record: &mut Record) {
    let trusted = record.worker.shared.trusts(record.inbound.client.ip());
    let peer = record.inbound.client;
    let brought = record.inbound.brought();
    brought.tlvs = header.tlvs.into_iter().map(|tlv| (tlv.kind, tlv.value)).collect();
    let Some(addresses) = header.addresses else { return };
    brought.proxy = Some((addresses.source, addresses.destination));
    if trusted {
        brought.peer = Some(peer);
        record.inbound.client = addresses.source;
    }
}

/// Reads until it is clear what the client speaks; notes the server name, or what stands for it.
async fn spoken(listen: &Listen, record: &mut Record, first: &mut First<'_>) -> Result<Spoken, Refusal> {
    let mut joined = Vec::new();
    loop {
        match hello::read(first.rest(), &mut joined) {
            Reading::Hello(hello) => {
                let fallback = || record.worker.shared.fallback_sni.as_deref().map(str::to_owned);
                let name = hello.normalized_name().or_else(fallback);
                let alpn = hello.alpn().next().map(Box::from);
                // Where bytes are only passed on, nobody will ask for the message.
                let message = if listen.tls { hello.message().into() } else { Box::default() };
                let heard = Heard { max_fragment: hello.max_fragment_length(), message };
                record.inbound.sni = name.map(Into::into);
                if alpn.is_some() {
                    record.inbound.brought().alpn = alpn;
                }
                return Ok(Spoken::Tls(heard));
            }
            Reading::NotTls if listen.tls_passthrough => return Ok(Spoken::SomethingElse),
            Reading::NotTls => {
                let why = format!(
                    "the connection begins with {}; is it a plain client on a TLS port?",
                    first.shown()
                );
                return Err(terminate::failed(record, TlsFailure::NotTls, &why));
            }
            Reading::Malformed(why) => {
                first.tell(terminate::DECODE_ERROR);
                return Err(terminate::failed(
                    record,
                    TlsFailure::Malformed,
                    &format!("the client's hello is malformed: {why}"),
                ));
            }
            Reading::TooLarge => {
                first.tell(terminate::DECODE_ERROR);
                let why = format!("the client's hello is longer than {} bytes", hello::MOST);
                record.worker.shared.node.tls.failed(TlsFailure::Malformed);
                return Err((End::PrereadOverflow, why));
            }
            Reading::Need(wanted) => match first.until(wanted).await {
                Ok(true) => {}
                // Whoever looks whether the port is open does no harm.
                Ok(false) if first.rest().is_empty() => {
                    return Err((End::ClientClosed, "the client closed without a word".into()));
                }
                Ok(false) => {
                    let length = first.rest().len();
                    let why = format!("the client closed after {length} bytes of its hello");
                    return Err(terminate::failed(record, TlsFailure::Closed, &why));
                }
                Err((End::PrereadTimeout, _)) => {
                    let limit = listen.handshake_timeout;
                    record.worker.shared.node.tls.failed(TlsFailure::Timeout);
                    return Err((End::PrereadTimeout, format!("no whole TLS hello within {limit:?}")));
                }
                Err(refusal) => return Err(refusal),
            },
        }
    }
}

impl First<'_> {
    /// From now on there is so much time.
    fn give(&mut self, limit: Duration) {
        self.timer.as_mut().reset(Instant::now() + limit);
    }

    /// What is not done with.
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.at);
        self.bytes
    }

    /// The beginning, for a log line.
    fn shown(&self) -> String {
        let rest = self.rest();
        format!("\"{}\"", rest.get(..SHOWN).unwrap_or(rest).escape_ascii())
    }

    /// Waits until so many bytes are there; false at the client's FIN.
    async fn until(&mut self, wanted: usize) -> Result<bool, Refusal> {
        while self.rest().len() < wanted {
            if !self.more().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits for more and takes it; false at the client's FIN.
    async fn more(&mut self) -> Result<bool, Refusal> {
        let Self { client, timer, bytes, .. } = self;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ready) = client.poll_read_ready(cx) {
                    let mut place = Buffer::take();
                    let room = place.get_mut(..READ).unwrap_or_default();
                    match ready.and_then(|()| receive(client, room)) {
                        Ok(None) => continue,
                        Ok(Some(count)) => {
                            bytes.extend_from_slice(room.get(..count).unwrap_or_default());
                            return Poll::Ready(Ok(count > 0));
                        }
                        Err(error) => return Poll::Ready(Err(lost(&error))),
                    }
                }
                return timer.as_mut().poll(cx).map(|()| Err((End::PrereadTimeout, String::new())));
            }
        })
        .await
    }

    /// Sends a few bytes, as far as the system takes them at once.
    fn tell(&self, bytes: [u8; 7]) {
        terminate::tell(self.client, bytes);
    }
}

/// The client's connection failed before it had a route.
pub(super) fn lost(error: &io::Error) -> Refusal {
    let end = if relay::is_disconnect(error) { End::ClientReset } else { End::Internal };
    (end, error.to_string())
}
