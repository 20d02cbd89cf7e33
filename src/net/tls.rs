//! TLS on a connection: what is received in, what was meant out, and back. No I/O here but in
//! [`handshake`].
//!
//! rustls's unbuffered interface is used: an idle session holds its keys and no buffer, and bulk is read
//! 64 KiB at a time, where the buffered one reads 4 KiB.
//!
//! What keeps a session sound: records leave in the order they were sealed, so everything for the peer goes
//! through one buffer, [`Outgoing`]; and after each call at most a part of a record waits in `incoming`, so
//! that sealing never has to wait for somebody to take what was received.

pub mod handshake;
mod outgoing;

use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus, WriteTraffic};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

use super::buffer::{self, Buffer};
pub use outgoing::Outgoing;

/// Content of a record, at most (RFC 8446 5.1).
const RECORD: usize = 1 << 14;
/// What a record adds to its content, at most: header, explicit nonce, tag, content type.
const OVERHEAD: usize = 64;
/// A record's header.
const HEADER: usize = 5;
/// Room kept for records that are not application data: key updates, alerts.
const SPARE: usize = 4096;
/// What is received and not understood, at most: a handshake message has 64 KiB at most and is understood when
/// it is whole.
const MOST_INCOMING: usize = 128 * 1024;

/// One side of a TLS connection.
pub struct Session {
    side: Side,
    /// Received and not yet understood: a part of a record; during a handshake, of a message.
    incoming: Vec<u8>,
    /// Understood while something else was wanted.
    early: Vec<u8>,
    outgoing: Outgoing,
    /// Content of the records sent, at most.
    fragment: usize,
    /// The peer said that it sends no more.
    peer_closed: bool,
    /// The peer was told that nothing more is sent.
    closed: bool,
    /// What is wrong, once everything before it has been taken.
    failed: Option<Error>,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// What came of receiving.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opened {
    /// So many bytes; none where only something for the session itself came.
    Bytes(usize),
    /// There is nothing to receive.
    Blocked,
    /// The peer sends no more: it said so, or its connection ended.
    Closed,
}

/// What to do once application data may be sent.
#[derive(Clone, Copy)]
enum Then<'a> {
    Nothing,
    Seal(&'a [u8]),
    Close,
}

impl Session {
    /// The side that was connected to; `received` is what the client has sent already.
    pub fn server(config: Arc<ServerConfig>, received: &[u8]) -> Result<Self, Error> {
        let fragment = config.max_fragment_size.map_or(RECORD, |size| size.saturating_sub(HEADER));
        let side = Side::Server(Box::new(UnbufferedServerConnection::new(config)?));
        Ok(Self { incoming: received.to_vec(), fragment: fragment.clamp(1, RECORD), ..Self::new(side) })
    }

    /// The side that connects.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(Side::Client(Box::new(UnbufferedClientConnection::new(config, name)?))))
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            incoming: Vec::new(),
            early: Vec::new(),
            outgoing: Outgoing::default(),
            fragment: RECORD,
            peer_closed: false,
            closed: false,
            failed: None,
        }
    }

    /// What was negotiated.
    #[must_use]
    pub fn facts(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    /// What has to be sent to the peer.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// How many bytes [`Self::seal`] takes at once.
    #[must_use]
    pub fn sealable(&self) -> usize {
        (buffer::SIZE - SPARE) / (self.fragment + OVERHEAD) * self.fragment
    }

    /// Goes on with the handshake as far as what was received allows; reports whether it is over. What
    /// the peer has to be told, of an error too, is in [`Self::outgoing`].
    pub fn advance(&mut self) -> Result<bool, Error> {
        let outcome = self.turn(Then::Nothing);
        let over = !self.facts().is_handshaking();
        match outcome {
            // What came after the handshake is for whoever opens it to meet.
            Err(error) if over => self.failed = Some(error),
            outcome => outcome?,
        }
        Ok(over)
    }

    /// Receives once by `receive`, which is given a place and returns how many bytes it put there, `None`
    /// where there was nothing. For handshakes: [`Self::advance`] looks at what came.
    pub fn receive(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Opened> {
        if self.incoming.len() > MOST_INCOMING {
            return Err(invalid(Error::General("a handshake message does not end".into())));
        }
        let mut received = Buffer::take();
        Ok(match receive(&mut received)? {
            None => Opened::Blocked,
            Some(0) => Opened::Closed,
            Some(count) => {
                self.incoming.extend_from_slice(received.get(..count).unwrap_or_default());
                Opened::Bytes(count)
            }
        })
    }

    /// Receives once as [`Self::receive`] does and puts what was meant into `into`, [`buffer::SIZE`] bytes.
    ///
    /// An error of the kind `InvalidData` is TLS's; what the peer is to be told is in [`Self::outgoing`].
    pub fn open(
        &mut self,
        into: &mut [u8],
        receive: impl FnOnce(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Opened> {
        if !self.early.is_empty() {
            return Ok(Opened::Bytes(take_front(&mut self.early, into)));
        }
        if let Some(error) = self.failed.take() {
            return Err(invalid(error));
        }
        if self.peer_closed {
            return Ok(Opened::Closed);
        }
        let mut received = Buffer::take();
        let waiting = self.incoming.len();
        let count = match received.get_mut(waiting..) {
            Some(room) if room.len() >= RECORD => receive(room)?,
            _ => return Err(invalid(Error::General("a handshake message does not end".into()))),
        };
        let count = match count {
            None => return Ok(Opened::Blocked),
            Some(0) => return Ok(Opened::Closed),
            Some(count) => count,
        };
        let Some(received) = received.get_mut(..waiting + count) else { return Ok(Opened::Closed) };
        if let Some(place) = received.get_mut(..waiting) {
            place.copy_from_slice(&self.incoming);
        }
        let mut taken = Taken { into, filled: 0, early: &mut self.early, peer_closed: &mut self.peer_closed };
        let (used, outcome) = self.side.turn(received, &mut taken, &mut self.outgoing, Then::Nothing);
        let filled = taken.filled;
        let rest = received.get(used..).unwrap_or_default();
        // Nearly always nothing is left, and then nothing is held.
        self.incoming = rest.to_vec();
        match outcome {
            Err(error) if filled == 0 => Err(invalid(error)),
            outcome => {
                self.failed = outcome.err();
                Ok(Opened::Bytes(filled))
            }
        }
    }

    /// Adds these bytes, [`Self::sealable`] at most, to what has to be sent.
    pub fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        self.turn(Then::Seal(plain)).map_err(invalid)
    }

    /// Tells the peer, after everything else, that nothing more is sent (`close_notify`).
    pub fn close(&mut self) {
        if !mem::replace(&mut self.closed, true) {
            // It fails where the session has failed before, and the peer was told so.
            let _ = self.turn(Then::Close);
        }
    }

    /// Looks at what waits, keeping for later what the peer meant for others.
    fn turn(&mut self, then: Then<'_>) -> Result<(), Error> {
        let mut taken =
            Taken { into: &mut [], filled: 0, early: &mut self.early, peer_closed: &mut self.peer_closed };
        let (used, outcome) = self.side.turn(&mut self.incoming, &mut taken, &mut self.outgoing, then);
        self.incoming.drain(..used.min(self.incoming.len()));
        outcome
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("incoming", &self.incoming.len())
            .field("early", &self.early.len())
            .field("outgoing", &self.outgoing)
            .field("peer_closed", &self.peer_closed)
            .finish_non_exhaustive()
    }
}

/// An error of TLS as one of a connection.
fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Moves what fits from the front of `bytes`.
fn take_front(bytes: &mut Vec<u8>, into: &mut [u8]) -> usize {
    let count = bytes.len().min(into.len());
    into.iter_mut().zip(bytes.drain(..count)).for_each(|(to, from)| *to = from);
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
    count
}

/// Where what was received goes.
struct Taken<'a> {
    into: &'a mut [u8],
    filled: usize,
    /// What does not fit into `into`.
    early: &'a mut Vec<u8>,
    peer_closed: &'a mut bool,
}

impl Taken<'_> {
    fn add(&mut self, bytes: &[u8]) {
        match self.into.get_mut(self.filled..self.filled + bytes.len()) {
            Some(place) if self.early.is_empty() => {
                place.copy_from_slice(bytes);
                self.filled += bytes.len();
            }
            _ => self.early.extend_from_slice(bytes),
        }
    }
}

/// What the two kinds of connections have in common.
trait Engine {
    type Data;
    fn process<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Engine for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }
}

impl Engine for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }
}

impl Side {
    fn turn(
        &mut self,
        received: &mut [u8],
        taken: &mut Taken<'_>,
        outgoing: &mut Outgoing,
        then: Then<'_>,
    ) -> (usize, Result<(), Error>) {
        match self {
            Self::Server(connection) => turn(&mut **connection, received, taken, outgoing, then),
            Self::Client(connection) => turn(&mut **connection, received, taken, outgoing, then),
        }
    }
}

/// Looks at records until the peer has to say more; tells how many bytes are done with. `then` is done where
/// application data may be sent already.
fn turn<C: Engine>(
    engine: &mut C,
    received: &mut [u8],
    taken: &mut Taken<'_>,
    outgoing: &mut Outgoing,
    then: Then<'_>,
) -> (usize, Result<(), Error>) {
    let mut used = 0;
    let outcome = loop {
        let rest = received.get_mut(used..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state, .. } = engine.process(rest);
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut outcome = None;
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            taken.add(record.payload);
                        }
                        Err(error) => outcome = Some(Err(error)),
                    }
                }
                outcome
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => outgoing
                .put(|room| data.encode(room))
                .err()
                .map(|error| Err(Error::General(error.to_string()))),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => {
                *taken.peer_closed = true;
                None
            }
            Ok(ConnectionState::WriteTraffic(traffic)) => Some(write(traffic, outgoing, then)),
            Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Some(match then {
                Then::Seal(_) => Err(Error::HandshakeNotComplete),
                Then::Nothing | Then::Close => Ok(()),
            }),
            Ok(_) => Some(Err(Error::General("the TLS library is in an unknown state".into()))),
            Err(error) => Some(Err(error)),
        };
        used += discard;
        if let Some(outcome) = step {
            break outcome;
        }
    };
    if outcome.is_err() {
        let rest = received.get_mut(used..).unwrap_or_default();
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) = engine.process(rest).state {
            // Without room the peer only learns less.
            let _ = outgoing.put(|room| alert.encode(room));
        }
    }
    (used, outcome)
}

fn write<D>(mut traffic: WriteTraffic<'_, D>, outgoing: &mut Outgoing, then: Then<'_>) -> Result<(), Error> {
    let written = match then {
        Then::Nothing => Ok(()),
        Then::Seal(plain) => outgoing.put(|room| traffic.encrypt(plain, room)),
        Then::Close => outgoing.put(|room| traffic.queue_close_notify(room)),
    };
    written.map_err(|error| Error::General(error.to_string()))
}
