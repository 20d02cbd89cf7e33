//! What a worker asks of the allocator once its pools are warm: nothing while sessions run, and a
//! known number of blocks to begin one.
//!
//! On failure each block is listed with who asked for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/gateway.rs"]
mod gateway;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use streamgate::session::Transport;
use streamgate_sys::allocation::{self, CountingAllocator, Recorded};

use gateway::{
    Gateway, Setup, connect, hears, hears_end, listen, poll_until, pool, says, server, settings, udp,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Blocks for a connection. tokio's, as long as connections are its tasks and sockets:
/// 1. the task, which holds the session's future;
/// 2. and 3. the `ScheduledIo` of each of the two sockets;
/// 4. the list of sockets to forget, which begins empty in each turn of the loop that closes some
///    (`RegistrationSet::release` takes it away).
///
/// Ours:
/// 5. the watch for a reset once one side has closed (`proxy::relay::Relay::check_reset`): tokio's future
///    of it is larger than what a session that is open both ways should keep room for.
const CONNECTION: u64 = 5;
/// Blocks for pipes, in either direction: one that nobody needed for a second is closed, and the next
/// bulk flow makes another, with room for it in the list of free ones.
const PIPES: u64 = 8;
/// Blocks for a UDP association: none. It is a place in the tables, and its socket is not the runtime's.
const ASSOCIATION: u64 = 0;
/// Blocks that tables may take while they grow, whatever is put in.
const GROWTH: u64 = 4;

/// One gateway with one worker at a time, so that its thread can be told from others.
struct Scene {
    gateway: Gateway,
    at: SocketAddr,
    /// The worker's thread.
    worker: u32,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(transport: Transport, node: SocketAddr) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = workers();
        let setup = Setup { workers: 1, every_outcome: false, ..Setup::default() };
        let listen = listen(transport, "127.0.0.1");
        let (gateway, at) = Gateway::serving(&setup, listen, pool(settings(), &[node]));
        let worker = *workers().difference(&before).next().unwrap();
        Self { gateway, at, worker, _alone: alone }
    }

    /// Does `work` over and over; the worker may ask for `most` blocks in all meanwhile.
    #[track_caller]
    fn check(&self, rounds: u64, most: u64, mut work: impl FnMut()) {
        let count = || allocation::of(self.worker).unwrap().allocations;
        let before = count();
        (0..rounds).for_each(|_| work());
        let found = count() - before;
        if found > most {
            allocation::record(Some(self.worker));
            (0..rounds).for_each(|_| work());
            let again = describe(&allocation::record(None));
            panic!("{found} blocks in {rounds} rounds, {most} are allowed; the same again:\n{again}");
        }
    }

    /// A connection that is gone when this returns: nothing of it is left to be counted.
    fn connection(&self) {
        let mut client = connect(self.at);
        says(&mut client, b"x");
        hears(&mut client, b"x");
        drop(client);
        poll_until("the end", || (self.gateway.stats.active() == 0).then_some(()));
    }
}

/// The threads of this process that serve sessions.
fn workers() -> BTreeSet<u32> {
    let is_worker = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "worker-0")
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().filter(is_worker);
    tasks.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Each block with the frames of ours and of tokio's above it.
fn describe(recorded: &[Recorded]) -> String {
    let mut text = String::new();
    for block in recorded.iter().take(20) {
        let from = block.from.to_string();
        let frames = from.lines().filter(|line| line.contains("streamgate::") || line.contains("tokio::"));
        let frames: Vec<_> = frames.take(8).map(str::trim).collect();
        writeln!(text, "{} bytes:\n  {}", block.bytes, frames.join("\n  ")).unwrap();
    }
    text
}

/// A server that says what it hears, on a thread that ends with the process.
fn echo() -> SocketAddr {
    fn serve(mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let len = stream.read(&mut bytes)?;
            if len == 0 {
                return Ok(());
            }
            stream.write_all(&bytes[..len])?;
        }
    }
    let (listener, addr): (TcpListener, _) = server();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

#[test]
fn a_connection_takes_a_known_number_of_blocks() {
    const ROUNDS: u64 = 50;
    let scene = Scene::new(Transport::Tcp, echo());
    (0..ROUNDS).for_each(|_| scene.connection());
    scene.check(ROUNDS, ROUNDS * CONNECTION, || scene.connection());
}

#[test]
fn requests_take_none() {
    let scene = Scene::new(Transport::Tcp, echo());
    let mut client = connect(scene.at);
    let mut request = || {
        says(&mut client, &[7; 64]);
        hears(&mut client, &[7; 64]);
    };
    (0..10).for_each(|_| request());
    scene.check(1000, 0, request);
}

#[test]
fn bulk_takes_pipes_alone() {
    const MEGABYTE: usize = 1 << 20;
    let scene = Scene::new(Transport::Tcp, echo());
    let client = connect(scene.at);
    let (bytes, mut heard) = (vec![7; MEGABYTE], vec![0; MEGABYTE]);
    let mut both_ways = || {
        thread::scope(|scope| {
            scope.spawn(|| (&client).write_all(&bytes).unwrap());
            (&client).read_exact(&mut heard).unwrap();
        });
    };
    (0..8).for_each(|_| both_ways());
    scene.check(32, PIPES, both_ways);
}

/// What a node is told it says back, on a thread that ends with the process.
fn datagram_echo() -> SocketAddr {
    let node = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = node.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((len, from)) = node.recv_from(&mut bytes) {
            let _ = node.send_to(&bytes[..len], from);
        }
    });
    addr
}

fn ping(client: &UdpSocket) {
    client.send(b"hello").unwrap();
    assert_eq!(client.recv(&mut [0; 16]).unwrap(), 5);
}

fn datagram_client(at: SocketAddr) -> UdpSocket {
    let (client, _) = udp("127.0.0.1");
    client.connect(at).unwrap();
    client
}

#[test]
fn datagrams_of_an_association_take_none() {
    let scene = Scene::new(Transport::Udp, datagram_echo());
    let client = datagram_client(scene.at);
    (0..10).for_each(|_| ping(&client));
    scene.check(1000, 0, || ping(&client));
}

#[test]
fn an_association_takes_a_known_number_of_blocks() {
    const ROUNDS: u64 = 50;
    let scene = Scene::new(Transport::Udp, datagram_echo());
    (0..ROUNDS).for_each(|_| ping(&datagram_client(scene.at)));
    scene.check(ROUNDS, ROUNDS * ASSOCIATION + GROWTH, || ping(&datagram_client(scene.at)));
}

/// The other tests would pass, too, if the worker were not counted at all.
#[test]
fn what_a_worker_takes_is_seen() {
    let scene = Scene::new(Transport::Tcp, echo());
    let before = allocation::of(scene.worker).unwrap();
    let mut client = connect(scene.at);
    says(&mut client, b"x");
    hears(&mut client, b"x");
    let after = allocation::of(scene.worker).unwrap();
    assert!(after.allocations >= before.allocations + 3, "{before:?}, {after:?}");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    hears_end(&mut client);
}
