//! What a node hears before the bytes of a session: a PROXY header, a TLS hello.
//!
//! The header comes first and in clear (`ngx_stream_proxy_module.c:1019`), and again at each attempt.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::certs::towards::NodeTls;
use crate::config::ProxyVersion;
use crate::net::dial::DialError;
use crate::net::tls::Session;
use crate::net::tls::handshake::{self, HandshakeError};
use crate::net::transfer::send_some;
use crate::proxy::record::Record;
use crate::proxy_protocol::{tlv, write_v1, write_v2};

/// Says what has to be said; TLS, where it is spoken, comes back. Header and handshake have `limit` each, as
/// connecting had (`proxy_connect_timeout` of nginx).
pub(super) async fn greet(
    stream: &TcpStream,
    record: &mut Record,
    tls: Option<&NodeTls>,
    limit: Duration,
    mut timer: Pin<&mut Sleep>,
) -> Result<Option<Session>, DialError> {
    if record.listen.proxy_protocol_to_upstream {
        timer.as_mut().reset(Instant::now() + limit);
        let header = header(record);
        send_all(stream, &header, limit, timer.as_mut()).await?;
        record.told_node(header.len());
    }
    let Some(tls) = tls else { return Ok(None) };
    let name = tls.server_name(record.inbound.sni.as_deref()).map_err(DialError::Handshake)?;
    let named = name.to_str().into_owned();
    let mut session = Session::client(tls.config.clone(), name)
        .map_err(|error| DialError::Handshake(format!("TLS cannot begin: {error}")))?;
    timer.as_mut().reset(Instant::now() + limit);
    match handshake::complete(&mut session, stream, timer).await {
        Ok(()) => Ok(Some(session)),
        Err(error) => Err(explained(error, &named, limit)),
    }
}

/// The header: the client, and the address it came to here.
fn header(record: &mut Record) -> Vec<u8> {
    let (listen, inbound) = (&record.listen, &record.inbound);
    let mut header = Vec::new();
    if listen.proxy_protocol_version == ProxyVersion::V1 {
        write_v1(&mut header, inbound.client, inbound.server);
        return header;
    }
    let wanted = listen.proxy_protocol_tlvs;
    let brought = inbound.brought.as_deref();
    let own = [
        (tlv::ALPN, brought.and_then(|brought| brought.alpn.as_deref()).filter(|_| wanted.alpn)),
        (tlv::AUTHORITY, inbound.sni.as_deref().map(str::as_bytes).filter(|_| wanted.sni)),
    ];
    let mut tlvs: Vec<(u8, &[u8])> =
        own.iter().filter_map(|(kind, value)| value.map(|value| (*kind, value))).collect();
    // Where some peers are believed, nothing that others say is passed on.
    let anybody = record.worker.shared.real_ip_from.load().is_empty();
    let believed = brought.filter(|brought| wanted.received && (anybody || brought.peer.is_some()));
    let received = believed.map(|brought| brought.tlvs.as_slice()).unwrap_or_default();
    let made: [u8; 16] = rand::random();
    if wanted.unique_id && received.iter().all(|(kind, _)| *kind != tlv::UNIQUE_ID) {
        tlvs.push((tlv::UNIQUE_ID, &made));
    }
    // Last: what does not fit is left out, and shall be theirs.
    let own: Vec<u8> = tlvs.iter().map(|(kind, _)| *kind).collect();
    let others = received.iter().filter(|(kind, _)| !own.contains(kind));
    tlvs.extend(others.map(|(kind, value)| (*kind, &**value)));
    write_v2(&mut header, inbound.client, inbound.server, tlvs);
    header
}

async fn send_all(
    stream: &TcpStream,
    bytes: &[u8],
    limit: Duration,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), DialError> {
    let mut sent = 0;
    poll_fn(|cx| {
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match send_some(stream, rest) {
                Ok(Some(count)) => sent += count,
                Ok(None) => match stream.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(DialError::System(error))),
                    Poll::Pending => {
                        return timer.as_mut().poll(cx).map(|()| Err(DialError::TimedOut(limit)));
                    }
                },
                Err(error) => return Poll::Ready(Err(DialError::System(error))),
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

fn explained(error: HandshakeError, name: &str, limit: Duration) -> DialError {
    DialError::Handshake(match error {
        HandshakeError::TimedOut => format!("no TLS handshake within {limit:?}; does the node speak TLS?"),
        HandshakeError::Closed => "closed in the TLS handshake; does the node speak TLS?".into(),
        HandshakeError::Io(error) => return DialError::System(error),
        HandshakeError::Tls(rustls::Error::InvalidMessage(error)) => {
            format!("answered with something else than TLS; is it a plain port? ({error:?})")
        }
        HandshakeError::Tls(error @ rustls::Error::InvalidCertificate(_)) => {
            format!(
                "its certificate is refused for the name {name}: {error}; see streamgate.upstream_tls, `ca` and `sni`"
            )
        }
        HandshakeError::Tls(error) => format!("TLS handshake failed: {error}"),
    })
}
