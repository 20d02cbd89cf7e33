//! Batches of datagrams over real sockets on loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::{NonZeroU16, NonZeroUsize};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use streamgate_sys::datagram::{Local, enable_gro, enable_packet_info};
use streamgate_sys::receive::{Received, RecvBatch};
use streamgate_sys::send::{Outgoing, Piece, SendBatch};

fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn addr(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

/// Everything in one piece, in segments of `segment` bytes where that is not 0.
fn whole(len: usize, peer: Option<SocketAddr>, segment: u16) -> (Vec<Piece>, Outgoing) {
    let message = Outgoing { peer, from: None, segment: NonZeroU16::new(segment), pieces: 0..1 };
    (vec![Piece { start: 0, len }], message)
}

#[track_caller]
fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, segment: u16) {
    let (pieces, message) = whole(bytes.len(), Some(to), segment);
    let sent = SendBatch::new(1).send(socket.as_fd(), bytes, &pieces, [&message].into_iter());
    assert_eq!(sent.unwrap(), 1);
}

/// Receives once something is there; loopback delivers before `send` returns.
fn receive(socket: &UdpSocket, batch: &mut RecvBatch) -> usize {
    batch.receive(socket.as_fd(), true).unwrap()
}

fn bytes<'a>(batch: &'a RecvBatch, message: &Received) -> &'a [u8] {
    &batch.bytes()[message.start..message.start + message.len]
}

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn a_segment_size_belongs_to_its_message_alone() {
    let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    enable_gro(server.as_fd()).unwrap();
    let payload = numbered(1050);
    send(&client, &payload, addr(&server), 100);
    send(&client, b"", addr(&server), 0);
    send(&client, &payload[..700], addr(&server), 0);
    send(&client, &payload[..300], addr(&server), 150);
    let mut batch = RecvBatch::new(8, 65_535).unwrap();
    assert_eq!(receive(&server, &mut batch), 4);
    let told: Vec<_> = batch.received().iter().map(|message| (message.len, message.segment)).collect();
    let size = NonZeroUsize::new;
    assert_eq!(told, [(1050, size(100)), (0, None), (700, None), (300, size(150))]);
    for message in batch.received() {
        assert_eq!(bytes(&batch, message), &payload[..message.len]);
        assert_eq!((message.peer, message.truncated), (Some(addr(&client)), false));
    }
}

#[test]
fn segments_arrive_alone_where_gro_is_off() {
    let (server, client) = (socket("[::1]:0"), socket("[::1]:0"));
    let payload = numbered(1050);
    send(&client, &payload, addr(&server), 100);
    let mut batch = RecvBatch::new(16, 2000).unwrap();
    assert_eq!(receive(&server, &mut batch), 11);
    let got: Vec<_> = batch.received().iter().map(|message| bytes(&batch, message).to_vec()).collect();
    assert_eq!(got, payload.chunks(100).map(<[u8]>::to_vec).collect::<Vec<_>>());
    assert!(batch.received().iter().all(|message| message.segment.is_none()));
}

#[test]
fn a_batch_takes_from_several_sockets_until_it_is_full() {
    let (first, second, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    for at in 0..3 {
        client.send_to(&[at], addr(&first)).unwrap();
        client.send_to(&[at + 10], addr(&second)).unwrap();
    }
    let mut batch = RecvBatch::new(5, 100).unwrap();
    assert_eq!(batch.receive(first.as_fd(), false).unwrap(), 3);
    assert_eq!(batch.room(), 2);
    assert_eq!(batch.receive(second.as_fd(), true).unwrap(), 2);
    let got: Vec<_> =
        batch.received().iter().map(|message| (bytes(&batch, message)[0], message.peer)).collect();
    let peer = Some(addr(&client));
    assert_eq!(got, [(0, None), (1, None), (2, None), (10, peer), (11, peer)]);
    batch.clear();
    assert_eq!(receive(&second, &mut batch), 1);
    assert_eq!(bytes(&batch, &batch.received()[0]), [12]);
    batch.release();
    assert_eq!((batch.received().len(), batch.room()), (0, 5));
    for number in 0..3 {
        assert_eq!(batch.receive(first.as_fd(), true).unwrap_err().kind(), ErrorKind::WouldBlock);
        client.send_to(&[number], addr(&first)).unwrap();
        assert_eq!(receive(&first, &mut batch), 1);
    }
    assert!(batch.received().iter().all(|message| message.peer == peer && message.len == 1));
    assert_eq!((0..3).map(|at| bytes(&batch, &batch.received()[at])[0]).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_datagram_longer_than_its_place_says_so() {
    let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    for len in [100, 10] {
        client.send_to(&numbered(len), addr(&server)).unwrap();
    }
    let mut batch = RecvBatch::new(4, 10).unwrap();
    receive(&server, &mut batch);
    let told: Vec<_> = batch.received().iter().map(|message| (message.len, message.truncated)).collect();
    assert_eq!(told, [(10, true), (10, false)]);
    assert!(batch.received().iter().all(|message| message.local.is_none()), "nobody asked for it");
}

/// Clients on `ips` ask a server on a wildcard address of its port; each hears the address it asked.
#[track_caller]
fn check_answers(ips: [&str; 2]) {
    let servers = ips.map(|ip| socket(&format!("{ip}:0")));
    let mut batch = RecvBatch::new(4, 65_535).unwrap();
    for server in &servers {
        enable_packet_info(server.as_fd(), addr(server).is_ipv6()).unwrap();
        let client = socket(&format!("{}:0", addr(server).ip()));
        client.connect(addr(server)).unwrap();
        let large = numbered(65_000);
        for payload in [&b"question"[..], &[], &large] {
            client.send(payload).unwrap();
            batch.clear();
            assert_eq!(receive(server, &mut batch), 1);
            let message = batch.received()[0];
            assert_eq!(bytes(&batch, &message), payload);
            assert_eq!(message.local.map(|local| local.ip), Some(addr(server).ip()));
            let piece = Piece { start: message.start, len: message.len };
            let answer = Outgoing { peer: message.peer, from: message.local, segment: None, pieces: 0..1 };
            let sent = SendBatch::new(1).send(server.as_fd(), batch.bytes(), &[piece], [&answer].into_iter());
            assert_eq!(sent.unwrap(), 1);
            let mut heard = vec![0; 65_536];
            assert_eq!(client.recv(&mut heard).unwrap(), payload.len());
            assert_eq!(&heard[..payload.len()], payload);
        }
    }
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    check_answers(["127.0.0.1", "127.0.0.2"]);
    check_answers(["::1", "127.0.0.3"]);
}

#[test]
fn each_message_of_a_call_has_its_own_peer_source_and_segments() {
    let server = socket("127.0.0.1:0");
    let clients = [socket("127.0.0.1:0"), socket("127.0.0.1:0"), socket("127.0.0.1:0")];
    let payload = numbered(500);
    let local = |last| Local { ip: IpAddr::from([127, 0, 0, last]), interface: 0 };
    let pieces =
        [Piece { start: 0, len: 250 }, Piece { start: 400, len: 100 }, Piece { start: 250, len: 50 }];
    let message = |client: usize, last, segment, pieces| Outgoing {
        peer: Some(addr(&clients[client])),
        from: Some(local(last)),
        segment: NonZeroU16::new(segment),
        pieces,
    };
    // The first is gathered from all the pieces, the last is empty.
    let messages = [message(0, 5, 100, 0..3), message(1, 6, 0, 1..2), message(2, 7, 0, 0..0)];
    let sent = SendBatch::new(8).send(server.as_fd(), &payload, &pieces, messages.iter());
    assert_eq!(sent.unwrap(), 3);
    let gathered = [&payload[..250], &payload[400..], &payload[250..300]].concat();
    let expected = [gathered.chunks(100).collect(), vec![&payload[400..]], vec![&[][..]]];
    for ((client, expected), last) in clients.iter().zip(expected).zip(5_u8..) {
        for datagram in expected {
            let mut heard = vec![0; 600];
            let (len, from) = client.recv_from(&mut heard).unwrap();
            assert_eq!(&heard[..len], datagram);
            assert_eq!(from, SocketAddr::new(local(last).ip, addr(&server).port()));
        }
    }
}

/// Unix sockets bound the queue of the receiver, so that a sender is told of a full one.
#[test]
fn what_was_not_sent_is_told() {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    receiver.set_nonblocking(true).unwrap();
    let payload = numbered(10_000);
    let pieces: Vec<_> = (0..payload.len()).map(|start| Piece { start, len: 1 }).collect();
    let message = |at| Outgoing { peer: None, from: None, segment: None, pieces: at..at + 1 };
    let messages: Vec<_> = (0..payload.len()).map(message).collect();
    let mut hear = {
        let mut heard = Vec::new();
        move || {
            let mut buffer = [0; 8];
            while let Ok(len) = receiver.recv(&mut buffer) {
                heard.extend_from_slice(&buffer[..len]);
            }
            heard.clone()
        }
    };
    let (mut batch, mut done, mut partial) = (SendBatch::new(7), 0, 0);
    while done < messages.len() {
        match batch.send(sender.as_fd(), &payload, &pieces, messages[done..].iter()) {
            Ok(sent) => {
                partial += usize::from(sent < 7);
                done += sent;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                hear();
            }
        }
    }
    assert!(partial > 0, "the queue was never full in the middle of a call");
    assert!(hear() == payload);
}

fn refused(result: io::Result<usize>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn what_the_kernel_refuses_is_an_error() {
    let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let payload = numbered(2000);
    // More segments than any kernel makes of one message.
    let (pieces, message) = whole(2000, Some(addr(&server)), 1);
    let sent = SendBatch::new(1).send(client.as_fd(), &payload, &pieces, [&message].into_iter());
    assert_eq!(refused(sent), Some(ErrorKind::InvalidInput));
    // Of two, the first is sent and the second tells its error when it is first.
    let good = Outgoing { segment: None, ..message.clone() };
    let mut batch = SendBatch::new(2);
    let messages = [good, message];
    assert_eq!(batch.send(client.as_fd(), &payload, &pieces, messages.iter()).unwrap(), 1);
    let rest = batch.send(client.as_fd(), &payload, &pieces, messages[1..].iter());
    assert_eq!(refused(rest), Some(ErrorKind::InvalidInput));
}

#[test]
fn pieces_outside_of_the_bytes_are_refused() {
    let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (_, message) = whole(0, Some(addr(&server)), 0);
    for piece in [Piece { start: 5, len: 6 }, Piece { start: usize::MAX, len: 2 }] {
        let sent = SendBatch::new(1).send(client.as_fd(), &[0; 10], &[piece], [&message].into_iter());
        assert_eq!(refused(sent), Some(ErrorKind::InvalidInput), "{piece:?}");
    }
    let sent = SendBatch::new(1).send(client.as_fd(), &[0; 10], &[], [&message].into_iter());
    assert_eq!(refused(sent), Some(ErrorKind::InvalidInput));
}
