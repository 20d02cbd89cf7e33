//! The bytes of TCP sessions under conditions that are hard on a relay.
//!
//! `make soak` runs the long versions: `SOAK_CYCLES` says how often a flow changes between copying and
//! splicing, about 2 MiB each time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/gateway.rs"]
mod gateway;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use streamgate::session::{End, Transport};

use gateway::{
    Gateway, Setup, accept, connect, hears_end, hears_reset, listen, poll_until, pool, reset, server,
    settings,
};

const BULK: usize = 1 << 20;

fn session(setup: &Setup) -> (Gateway, TcpStream, TcpStream) {
    let (upstream, addr) = server();
    let (gateway, at) =
        Gateway::serving(setup, listen(Transport::Tcp, "127.0.0.1"), pool(settings(), &[addr]));
    let client = connect(at);
    let node = accept(&upstream);
    (gateway, client, node)
}

/// Bytes that say where they stand: no two places within 16 MiB look alike.
#[derive(Clone)]
struct Pattern {
    state: u64,
    /// What of the last word is not used yet.
    left: Vec<u8>,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        Self { state: 2 * seed + 1, left: vec![] }
    }

    fn next(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.left);
        while bytes.len() < len {
            // Marsaglia's xorshift64 (Journal of Statistical Software 8/14, 2003).
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            bytes.extend_from_slice(&self.state.to_le_bytes());
        }
        self.left = bytes.split_off(len);
        bytes
    }
}

/// Reads so many bytes and compares them.
#[track_caller]
fn hears_next(stream: &mut TcpStream, pattern: &mut Pattern, len: usize) {
    let mut heard = vec![0; len];
    stream.read_exact(&mut heard).unwrap();
    assert!(heard == pattern.next(len), "the bytes differ");
}

/// Sends and hears at the same time, so that neither side waits for the other to read.
fn exchange(stream: &mut TcpStream, out: &mut Pattern, back: &mut Pattern, len: usize) {
    let (mut writer, said) = (stream.try_clone().unwrap(), out.next(len));
    let sending = thread::spawn(move || writer.write_all(&said).unwrap());
    hears_next(stream, back, len);
    sending.join().unwrap();
}

/// Bulk one time and small messages the next, for `cycles` times, from this side's point of view.
fn speak(mut stream: TcpStream, first: bool, cycles: usize) -> TcpStream {
    let (mut out, mut back) = (Pattern::new(u64::from(first)), Pattern::new(u64::from(!first)));
    for cycle in 0..cycles {
        exchange(&mut stream, &mut out, &mut back, BULK + cycle);
        // In turns: each is a read of its own for the gateway.
        for size in (1..=10).map(|step| step * step * (1 + cycle % 7)) {
            if first {
                stream.write_all(&out.next(size)).unwrap();
                hears_next(&mut stream, &mut back, size);
            } else {
                hears_next(&mut stream, &mut back, size);
                stream.write_all(&out.next(size)).unwrap();
            }
        }
    }
    stream
}

#[test]
fn a_flow_that_changes_between_copying_and_splicing_keeps_its_bytes() {
    let cycles = std::env::var("SOAK_CYCLES").map_or(50, |cycles| cycles.parse().unwrap());
    let (mut gateway, client, node) = session(&Setup::default());
    let server = thread::spawn(move || speak(node, false, cycles));
    let client = speak(client, true, cycles);
    let node = server.join().unwrap();
    let changes = gateway.node.bulk_flows.count();
    assert!(changes > cycles as u64 / 2, "{changes} changes to splicing in {cycles} cycles");
    drop(client);
    let mut node = node;
    hears_end(&mut node);
    drop(node);
    let outcome = gateway.ends_with(End::ClientClosed);
    assert!(outcome.traffic.received > (cycles * BULK) as u64);
    poll_until("closed pipes", || (gateway.pipes.used() == 0).then_some(()));
}

/// Writes until nothing is taken for a while; what was written.
fn flood(stream: &mut TcpStream, pattern: &mut Pattern) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut written, mut waiting) = (0, vec![]);
    let (mut last, mut same) = (0, 0);
    poll_until("a sender that waits", || {
        loop {
            if waiting.is_empty() {
                waiting = pattern.next(1 << 16);
            }
            let Ok(count) = stream.write(&waiting) else { break };
            waiting.drain(..count);
            written += count;
        }
        same = if written == last { same + 1 } else { 0 };
        last = written;
        (same > 50).then_some(())
    });
    written
}

#[test]
fn a_reset_loses_nothing_that_was_taken() {
    for of_the_client in [true, false] {
        let (mut gateway, client, node) = session(&Setup::default());
        let (mut gone, mut left, end) =
            if of_the_client { (client, node, End::ClientReset) } else { (node, client, End::UpstreamReset) };
        let mut pattern = Pattern::new(7);
        flood(&mut gone, &mut pattern.clone());
        assert_eq!(gateway.pipes.used(), 1, "there are bytes in a pipe");
        reset(gone);
        let moved = |gateway: &Gateway| gateway.stats.bytes().0 + gateway.stats.bytes().1;
        let before = moved(&gateway);
        let mut heard = 0;
        let mut chunk = vec![0; 1 << 16];
        let error = loop {
            match left.read(&mut chunk) {
                Ok(0) => panic!("the end instead of a reset"),
                Ok(count) => {
                    assert!(chunk[..count] == pattern.next(count), "the bytes differ");
                    heard += count as u64;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        gateway.ends_with(end);
        // Nothing that was written to the one who is left was taken back by the reset.
        assert_eq!(heard, moved(&gateway));
        assert!(heard > before, "what the pipe held came later");
        poll_until("closed pipes", || (gateway.pipes.used() == 0).then_some(()));
    }
}

#[test]
fn a_fin_behind_bulk_comes_last() {
    let (mut gateway, mut client, mut node) = session(&Setup::default());
    let said = Pattern::new(3).next(16 << 20);
    let expected = said.clone();
    let sending = thread::spawn(move || {
        client.write_all(&said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let mut heard = Vec::new();
    node.read_to_end(&mut heard).unwrap();
    assert!(heard == expected, "{} bytes of {}", heard.len(), expected.len());
    let mut client = sending.join().unwrap();
    assert!(gateway.node.bulk_flows.count() > 0);
    node.write_all(b"thanks").unwrap();
    drop(node);
    let mut last = String::new();
    client.read_to_string(&mut last).unwrap();
    assert_eq!(last, "thanks");
    gateway.ends_with(End::ClientClosed);
}

#[test]
fn without_a_pipe_bulk_is_copied() {
    let (mut gateway, client, node) = session(&Setup { pipes: 0, ..Setup::default() });
    let server = thread::spawn(move || speak(node, false, 4));
    let client = speak(client, true, 4);
    let node = server.join().unwrap();
    assert!(gateway.node.pipes_refused.count() > 0);
    reset(client);
    hears_reset(&mut { node });
    gateway.ends_with(End::ClientReset);
}

#[test]
fn bytes_that_come_one_by_one_keep_their_order() {
    let (gateway, client, node) = session(&Setup::default());
    let speak = |mut stream: TcpStream| {
        move || {
            let mut reader = stream.try_clone().unwrap();
            let reading = thread::spawn(move || {
                let mut heard = [0; 5000];
                reader.read_exact(&mut heard).unwrap();
                heard
            });
            let said = Pattern::new(9).next(5000);
            for byte in &said {
                stream.write_all(&[*byte]).unwrap();
            }
            assert_eq!(reading.join().unwrap()[..], said);
        }
    };
    let (client, node) = (thread::spawn(speak(client)), thread::spawn(speak(node)));
    client.join().unwrap();
    node.join().unwrap();
    assert_eq!(gateway.node.bulk_flows.count(), 0);
}
