//! Datagrams over a link between two network namespaces: packets of 1500 bytes, and a slow one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/datagrams.rs"]
mod datagrams;
#[path = "support/gateway.rs"]
mod gateway;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::SockRef;
use streamgate::session::Transport;

use datagrams::{arrives, check_round_trip, hears, passes_in_a_network, payload, send_segments};
use gateway::{Gateway, PATIENCE, Setup, listen, poll_until, pool, settings};

/// Two namespaces with a link: `near`, where the gateway is, and `far`, where clients and nodes are.
const LINK: &str = r#"
    unshare --net sleep 100 & peer=$!
    trap 'kill $peer' EXIT
    while [ "$(readlink /proc/$peer/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
    ip link add near mtu 1500 type veth peer name far mtu 1500 netns $peer
    for end in near far; do
        there=''
        last=1
        if [ $end = far ]; then there="nsenter --net=/proc/$peer/ns/net"; last=2; fi
        $there ip link set lo up
        $there ip address add 10.99.0.$last/24 dev $end
        $there ip address add fd99::$last/64 dev $end nodad
        $there ip link set $end up
    done
    export FAR=/proc/$peer/ns/net
"#;
const RUN: &str = r#""$0" "$@""#;
const NEAR: [&str; 2] = ["10.99.0.1", "fd99::1"];
const FAR: [&str; 2] = ["10.99.0.2", "fd99::2"];

/// What a socket gets for its buffers that asks for as much as the gateway does: sending, receiving.
fn buffers(socket: &UdpSocket) -> (usize, usize) {
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(4 << 20).unwrap();
    socket.set_recv_buffer_size(4 << 20).unwrap();
    (socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap())
}

/// A socket at the far end, with as large buffers as may be had.
fn far(ip: &str) -> UdpSocket {
    let bind = || {
        let namespace = File::open(std::env::var_os("FAR").unwrap()).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        UdpSocket::bind((ip, 0)).unwrap()
    };
    // The thread moves there, the socket stays there, the others see nothing of it.
    let socket = thread::scope(|scope| scope.spawn(bind).join().unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    buffers(&socket);
    socket
}

fn serving(family: usize) -> (Gateway, UdpSocket, UdpSocket) {
    let node = far(FAR[family]);
    let nodes = pool(settings(), &[node.local_addr().unwrap()]);
    let listen = listen(Transport::Udp, NEAR[family]);
    let (gateway, at) = Gateway::serving(&Setup { workers: 1, ..Setup::default() }, listen, nodes);
    let client = far(FAR[family]);
    client.connect(at).unwrap();
    (gateway, client, node)
}

#[test]
fn datagrams_longer_than_a_packet_are_fragmented() {
    passes_in_a_network("inside_fragments", &format!("{LINK}{RUN}"));
}

/// Sends datagrams one by one, of which the gateway makes messages in segments where it can.
#[track_caller]
fn check_sizes(send: impl Fn(&[u8]), expect: impl Fn(&[u8])) {
    // Below a packet, above it, and so again: what was refused must not be remembered for others.
    for size in [1000, 2000, 1472, 1473, 1400, 20_000, 65_000, 1200] {
        (0..20).for_each(|seed| send(&payload(size, seed)));
        (0..20).for_each(|seed| expect(&payload(size, seed)));
    }
}

#[test]
#[ignore = "run by datagrams_longer_than_a_packet_are_fragmented"]
fn inside_fragments() {
    for family in [0, 1] {
        let (gateway, client, node) = serving(family);
        let association = check_round_trip(&client, &node, b"first");
        let send = |bytes: &[u8]| assert_eq!(client.send(bytes).unwrap(), bytes.len());
        check_sizes(send, |bytes| assert_eq!(arrives(&node, bytes), association));
        let send = |bytes: &[u8]| assert_eq!(node.send_to(bytes, association).unwrap(), bytes.len());
        check_sizes(send, |bytes| hears(&client, bytes));
        // In segments all the way.
        let bytes = payload(60_000, 9);
        send_segments(&client, None, &bytes, SIZE);
        bytes.chunks(SIZE).for_each(|bytes| assert_eq!(arrives(&node, bytes), association));
        send_segments(&node, Some(association), &bytes, SIZE);
        bytes.chunks(SIZE).for_each(|bytes| hears(&client, bytes));
        assert_eq!(gateway.node.udp_dropped.count() + gateway.node.udp_undeliverable.count(), 0);
    }
}

/// What leaves `near` queues up, charged to the socket that sent it, until that takes no more. It
/// trickles so slowly that the receiver's buffer holds what comes within a tenth of a second.
fn slow() -> String {
    let buffer = fs::read_to_string("/proc/sys/net/core/rmem_max").ok();
    let buffer: usize = buffer.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(212_992);
    let rate = (buffer.min(4 << 20) / 50_000).max(1);
    format!("{LINK}tc qdisc add dev near root tbf rate {rate}mbit burst 128kb limit 100mb\n{RUN}")
}

const SIZE: usize = 1400;

#[test]
fn answers_wait_for_a_slow_link() {
    passes_in_a_network("inside_slow_answers", &slow());
}

#[test]
#[ignore = "run by answers_wait_for_a_slow_link"]
fn inside_slow_answers() {
    let (gateway, client, node) = serving(0);
    let association = check_round_trip(&client, &node, b"first");
    // More than the link's queue takes, and not more than may wait before it.
    let (sending, receiving) = buffers(&client);
    let run = |seed| payload(SIZE * 40, seed);
    let runs = (sending + receiving / 2) / (SIZE * 40);
    thread::scope(|scope| {
        scope.spawn(|| (0..runs).for_each(|seed| send_segments(&node, Some(association), &run(seed), SIZE)));
        (0..runs).for_each(|seed| run(seed).chunks(SIZE).for_each(|answer| hears(&client, answer)));
    });
    assert_eq!(gateway.node.udp_undeliverable.count(), 0);
}

#[test]
fn questions_to_a_slow_link_are_dropped_and_counted() {
    passes_in_a_network("inside_slow_questions", &slow());
}

#[test]
#[ignore = "run by questions_to_a_slow_link_are_dropped_and_counted"]
fn inside_slow_questions() {
    let (gateway, client, node) = serving(0);
    check_round_trip(&client, &node, b"first");
    let sent = |gateway: &Gateway| usize::try_from(gateway.stats.bytes().0).unwrap() - 5;
    let dropped = |gateway: &Gateway| usize::try_from(gateway.node.udp_dropped.count()).unwrap() * SIZE;
    let (arrived, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    node.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 2000];
            while !over.load(Relaxed) {
                arrived.fetch_add(node.recv(&mut buffer).unwrap_or(0), Relaxed);
            }
        });
        let mut given = 0;
        while dropped(&gateway) == 0 {
            assert!(given < 100 << 20, "the link takes everything");
            (0..5).for_each(|seed| send_segments(&client, None, &payload(SIZE * 40, seed), SIZE));
            given += SIZE * 40 * 5;
            let counted = || (sent(&gateway) + dropped(&gateway) == given).then_some(());
            poll_until("each datagram counted", counted);
        }
        poll_until("what was counted as sent", || (arrived.load(Relaxed) == sent(&gateway)).then_some(()));
        over.store(true, Relaxed);
    });
}
