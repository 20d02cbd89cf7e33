//! Many datagrams at a time through a gateway in this process: none is lost, joined, cut or overtaken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/datagrams.rs"]
mod datagrams;
#[path = "support/gateway.rs"]
mod gateway;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use streamgate::config::Listen;
use streamgate::net::limits;
use streamgate::session::{End, Traffic, Transport};
use streamgate_sys::datagram::Local;
use streamgate_sys::send::{Outgoing, SendBatch};

use datagrams::{arrives, check_round_trip, client, datagrams, hears, payload, send_segments, serving};
use gateway::{Gateway, Setup, accept, connect, listen, poll_until, pool, says, settings, udp};

/// Sizes of datagrams as they are sent: alone, or (bytes, size) with one call.
const RUNS: &[(usize, usize)] = &[
    (2037, 100),
    (0, 0),
    (1, 1),
    (3500, 700),
    (0, 0),
    (0, 0),
    (700, 700),
    (64_800, 1200),
    (65_507, 65_507),
    (64, 1),
    (1201, 1200),
    (20_000, 20_000),
];

/// Sends [`RUNS`] and expects them, datagram by datagram, each alone and whole.
#[track_caller]
fn check_runs(send: impl Fn(&[u8], usize), expect: impl Fn(&[u8])) {
    for (seed, &(len, size)) in RUNS.iter().enumerate() {
        send(&payload(len, seed), size);
    }
    for (seed, &(len, size)) in RUNS.iter().enumerate() {
        let bytes = payload(len, seed);
        if bytes.is_empty() {
            expect(&bytes);
        }
        bytes.chunks(size.max(1)).for_each(&expect);
    }
}

#[track_caller]
fn check_segments(listen_ip: &str, node_ip: &str) {
    let (node, addr) = udp(node_ip);
    let listen = listen(Transport::Udp, listen_ip);
    let (gateway, at) = Gateway::serving(&Setup::default(), listen, pool(settings(), &[addr]));
    let client = client(at);
    let association = check_round_trip(&client, &node, b"first");
    for socket in [&client, &node] {
        let _ = SockRef::from(socket).set_recv_buffer_size(4 << 20);
    }
    check_runs(
        |bytes, size| send_segments(&client, None, bytes, size),
        |datagram| assert_eq!(arrives(&node, datagram), association),
    );
    check_runs(
        |bytes, size| send_segments(&node, Some(association), bytes, size),
        |datagram| hears(&client, datagram),
    );
    let total = 5 + RUNS.iter().map(|(len, _)| *len as u64).sum::<u64>();
    poll_until("exact counts", || (gateway.stats.bytes() == (total, total)).then_some(()));
    assert_eq!(gateway.node.udp_dropped.count() + gateway.node.udp_undeliverable.count(), 0);
    assert_eq!(gateway.stats.active(), 1);
}

#[test]
fn segments_arrive_alone_and_in_order_both_ways() {
    check_segments("127.0.0.1", "127.0.0.1");
    check_segments("::1", "::1");
    check_segments("::1", "127.0.0.1");
}

/// An IPv6 packet holds less of a datagram than one of IPv4, so the longest go through in fragments.
#[test]
fn the_longest_datagrams_go_both_ways() {
    for (listen_ip, node_ip, len) in
        [("127.0.0.1", "127.0.0.1", 65_507), ("127.0.0.1", "::1", 65_507), ("::1", "::1", 65_527)]
    {
        let (node, addr) = udp(node_ip);
        let listen = listen(Transport::Udp, listen_ip);
        let (_gateway, at) = Gateway::serving(&Setup::default(), listen, pool(settings(), &[addr]));
        let client = client(at);
        for seed in 0..3 {
            check_round_trip(&client, &node, &payload(len, seed));
        }
    }
}

/// Clients take turns datagram by datagram, so that batches hold several of each in between.
#[test]
fn clients_in_one_batch_do_not_mix() {
    const EACH: usize = 200;
    let (_gateway, at, node) = serving(&Setup { workers: 1, ..Setup::default() }, datagrams());
    let clients: Vec<_> = (0..5).map(|_| client(at)).collect();
    let of = |client: usize, number: usize| [client.to_le_bytes(), number.to_le_bytes()].concat();
    let mut associations: HashMap<SocketAddr, (usize, usize)> = HashMap::new();
    let mut buffer = [0; 64];
    for number in 0..EACH {
        for (place, client) in clients.iter().enumerate() {
            client.send(&of(place, number)).unwrap();
        }
        if number % 10 != 9 {
            continue;
        }
        for _ in 0..10 * clients.len() {
            let (len, from) = node.recv_from(&mut buffer).expect("nothing arrived");
            let (place, next) = *associations.entry(from).or_insert_with(|| {
                let place = usize::from_le_bytes(buffer[..8].try_into().unwrap());
                (place, 0)
            });
            assert_eq!(buffer[..len], of(place, next), "of client {place}");
            associations.insert(from, (place, next + 1));
            node.send_to(&buffer[..len], from).unwrap();
        }
    }
    assert_eq!(associations.len(), clients.len());
    for (place, client) in clients.iter().enumerate() {
        (0..EACH).for_each(|number| hears(client, &of(place, number)));
    }
}

#[test]
fn answers_beyond_the_last_expected_one_are_not_passed_on() {
    let (mut gateway, at, node) = serving(&Setup::default(), Listen { responses: Some(7), ..datagrams() });
    let client = client(at);
    client.send(b"q").unwrap();
    let association = arrives(&node, b"q");
    // Two calls that cannot be told from ten answers, of which the eighth and later come too late.
    send_segments(&node, Some(association), &payload(500, 1), 100);
    send_segments(&node, Some(association), &payload(500, 2), 100);
    let outcome = gateway.ends_with(End::UpstreamClosed);
    assert_eq!(outcome.traffic, Traffic { received: 1, sent: 700 });
    for answer in payload(500, 1).chunks(100).chain(payload(500, 2).chunks(100).take(2)) {
        hears(&client, answer);
    }
    client.set_nonblocking(true).unwrap();
    assert!(client.recv(&mut [0; 8]).is_err(), "an eighth answer");
}

#[test]
fn refusals_in_the_middle_of_a_batch_lose_nothing_later() {
    let (node, addr) = udp("127.0.0.1");
    drop(node);
    let (gateway, at) = Gateway::serving(&Setup::default(), datagrams(), pool(settings(), &[addr]));
    let client = client(at);
    poll_until("an ICMP error", || {
        send_segments(&client, None, &payload(1000, 0), 100);
        (gateway.node.udp_refused.count() > 0).then_some(())
    });
    let node = UdpSocket::bind(addr).unwrap();
    node.set_read_timeout(Some(gateway::PATIENCE)).unwrap();
    let last = b"the node is back";
    client.send(last).unwrap();
    let mut buffer = [0; 1000];
    let association = loop {
        let (len, from) = node.recv_from(&mut buffer).expect("nothing arrived");
        if buffer[..len] == *last {
            break from;
        }
    };
    node.send_to(b"welcome", association).unwrap();
    hears(&client, b"welcome");
    assert_eq!((gateway.stats.active(), gateway.node.udp_dropped.count()), (1, 0));
}

/// A receive buffer of several megabytes, or the reason why there is none.
fn large_buffer(socket: &UdpSocket) -> Result<(), String> {
    const WANTED: usize = 4 << 20;
    let forced = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, WANTED);
    let socket = SockRef::from(socket);
    forced.or_else(|_| socket.set_recv_buffer_size(WANTED).map_err(|_| rustix::io::Errno::PERM)).ok();
    let got = socket.recv_buffer_size().unwrap() / 2;
    if got < WANTED { Err(format!("net.core.rmem_max allows {got} bytes only")) } else { Ok(()) }
}

#[test]
fn a_burst_of_one_client_arrives_whole() {
    const BURST: usize = 5000;
    let (_gateway, at, node) = serving(&Setup::default(), datagrams());
    if let Err(why) = large_buffer(&node) {
        return println!("skipped: {why}");
    }
    let client = client(at);
    for number in 0..BURST {
        client.send(&number.to_le_bytes()).unwrap();
    }
    for number in 0..BURST {
        arrives(&node, &number.to_le_bytes());
    }
}

/// One socket plays them all: it sends from many addresses of the loopback network.
#[test]
fn ten_thousand_clients_hold() {
    const CLIENTS: u32 = 10_000;
    let limit = limits::raise_descriptors().unwrap();
    if limit < CLIENTS as usize + 500 {
        return println!("skipped: a limit of {limit} open files");
    }
    let setup = Setup { workers: 2, descriptors: 15_000, associations: 13_000, ..Setup::default() };
    let (gateway, at, node) = serving(&setup, datagrams());
    let (socket, _) = udp("127.0.0.1");
    let mut batch = SendBatch::new(1);
    let mut buffer = [0; 8];
    let mut send = |client: u32| {
        let ip = IpAddr::from(Ipv4Addr::from(0x7f01_0001 + client));
        let from = Some(Local { ip, interface: 0 });
        let message = Outgoing { peer: Some(at), from, segment: None, pieces: 0..0 };
        batch.send(socket.as_fd(), &[], &[], [&message].into_iter()).unwrap();
        node.recv_from(&mut buffer).expect("nothing arrived").1
    };
    let associations: Vec<_> = (0..CLIENTS).map(&mut send).collect();
    assert_eq!(gateway.stats.active(), u64::from(CLIENTS));
    let again: Vec<_> = (0..CLIENTS).map(send).collect();
    assert!(associations == again, "some association is another one the second time");
    assert_eq!(gateway.node.udp_evicted.count(), 0);
    assert_eq!(gateway.stats.active(), u64::from(CLIENTS));
}

/// A flood of one client may not keep the worker from connections, from other listens or from timers.
#[test]
fn a_flood_leaves_others_their_turn() {
    let (_node, addr, server) = poll_until("a port that is free both ways", || {
        let (node, addr) = udp("127.0.0.1");
        TcpListener::bind(addr).ok().map(|server| (node, addr, server))
    });
    let nodes = pool(settings(), &[addr]);
    let (mut gateway, at) = Gateway::serving(&Setup { workers: 1, ..Setup::default() }, datagrams(), nodes);
    let tcp = gateway.listen(listen(Transport::Tcp, "127.0.0.1"));
    let brief = Listen { idle_timeout: Some(Duration::from_millis(20)), ..datagrams() };
    let other = gateway.listen(brief);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (flood, bytes) = (client(at), payload(60_000, 0));
            while !stop.load(Relaxed) {
                send_segments(&flood, None, &bytes, 1000);
            }
        });
        poll_until("the flood", || (gateway.stats.bytes().0 > 1_000_000).then_some(()));
        let mut session = connect(tcp);
        let mut upstream = accept(&server);
        for byte in 0..100 {
            says(&mut session, &[byte]);
            gateway::hears(&mut upstream, &[byte]);
        }
        client(other).send(b"once").unwrap();
        let outcome = gateway.ends_with(End::IdleTimeout);
        assert_eq!(outcome.traffic.received, 4);
        stop.store(true, Relaxed);
    });
}
