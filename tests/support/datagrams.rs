//! Clients and nodes of a gateway's datagrams, each played by the test.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::process::Command;

use streamgate::config::Listen;
use streamgate::session::Transport;
use streamgate_sys::send::{Outgoing, Piece, SendBatch};

use crate::gateway::{Gateway, Setup, listen, pool, settings, udp};

pub(crate) fn datagrams() -> Listen {
    listen(Transport::Udp, "127.0.0.1")
}

/// A gateway with one node, which the test plays.
pub(crate) fn serving(setup: &Setup, listen: Listen) -> (Gateway, SocketAddr, UdpSocket) {
    let (node, addr) = udp("127.0.0.1");
    let (gateway, at) = Gateway::serving(setup, listen, pool(settings(), &[addr]));
    (gateway, at, node)
}

/// A client that hears only `at`.
pub(crate) fn client(at: SocketAddr) -> UdpSocket {
    let (socket, _) = udp(&at.ip().to_string());
    socket.connect(at).unwrap();
    socket
}

/// What arrives next at the node, and where an answer has to go.
#[track_caller]
pub(crate) fn arrives(node: &UdpSocket, payload: &[u8]) -> SocketAddr {
    let mut buffer = vec![0; 65_536];
    let (len, from) = node.recv_from(&mut buffer).expect("nothing arrived");
    assert!(buffer[..len] == *payload, "{len} bytes instead of {}", payload.len());
    from
}

#[track_caller]
pub(crate) fn hears(client: &UdpSocket, payload: &[u8]) {
    let mut buffer = vec![0; 65_536];
    let len = client.recv(&mut buffer).expect("nothing arrived");
    assert!(buffer[..len] == *payload, "{len} bytes instead of {}", payload.len());
}

#[track_caller]
pub(crate) fn check_round_trip(client: &UdpSocket, node: &UdpSocket, payload: &[u8]) -> SocketAddr {
    client.send(payload).unwrap();
    let association = arrives(node, payload);
    node.send_to(payload, association).unwrap();
    hears(client, payload);
    association
}

/// Some bytes that differ from those of other seeds and places.
pub(crate) fn payload(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed).to_le_bytes()[0]).collect()
}

/// Sends `bytes` as datagrams of `size` bytes with one call, the last perhaps shorter (GSO).
#[track_caller]
pub(crate) fn send_segments(socket: &UdpSocket, to: Option<SocketAddr>, bytes: &[u8], size: usize) {
    let segment = u16::try_from(size).ok().and_then(NonZeroU16::new).filter(|_| size < bytes.len());
    let message = Outgoing { peer: to, from: None, segment, pieces: 0..1 };
    let piece = Piece { start: 0, len: bytes.len() };
    let sent = SendBatch::new(1).send(socket.as_fd(), bytes, &[piece], [&message].into_iter());
    assert_eq!(sent.expect("sending segments"), 1);
}

/// Runs the ignored test `inner` of this binary in a network of its own: `script` makes it and ends
/// with `"$0" "$@"`, the test. Skips it, and says why, where no namespace is to be had.
#[track_caller]
#[allow(clippy::print_stdout, reason = "a test that is skipped says why")]
pub(crate) fn passes_in_a_network(inner: &str, script: &str) {
    let run = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-euc", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", inner, "--ignored", "--nocapture"])
        .output();
    let Ok(run) = run else { return println!("skipped: no unshare(1)") };
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if !out.contains("running 1 test") {
        return println!("skipped: no such network to be had: {err}");
    }
    assert!(out.contains("1 passed"), "{out}{err}");
}
