//! Nodes that die, come back, come and go, under load: no client notices more than one failed attempt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup, pause};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::time::Instant;

/// A node that greets who comes, until it is killed.
#[derive(Debug)]
struct Node {
    addr: SocketAddr,
    listener: Option<TcpListener>,
    /// Those who are not let go.
    held: Option<Arc<Mutex<Vec<TcpStream>>>>,
    taken: Arc<AtomicUsize>,
    /// Keeps the port while it is dead.
    _keeper: Socket,
}

impl Node {
    fn start(holds: bool) -> Self {
        let keeper = reusable(([127, 0, 0, 1], 0).into());
        let addr = keeper.local_addr().unwrap().as_socket().unwrap();
        let mut node = Self {
            addr,
            listener: None,
            held: holds.then(Arc::default),
            taken: Arc::default(),
            _keeper: keeper,
        };
        node.revive();
        node
    }

    fn revive(&mut self) {
        let socket = reusable(self.addr);
        socket.listen(1024).unwrap();
        let listener = TcpListener::from(socket);
        self.listener = Some(listener.try_clone().unwrap());
        let (held, taken) = (self.held.clone(), self.taken.clone());
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                taken.fetch_add(1, Relaxed);
                // Who is gone already is a probe.
                let _ = std::io::Write::write_all(&mut stream, b"!");
                if let Some(held) = &held {
                    lock(held).push(stream);
                }
            }
        });
    }

    /// Nobody is taken any more.
    fn kill(&mut self) {
        SockRef::from(&self.listener.take().unwrap()).shutdown(Shutdown::Both).unwrap();
    }

    fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }
}

fn reusable(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to(nodes: &[Node], more: &Value) -> Value {
    let node = |node: &Node| json!({"host": node.addr.ip(), "port": node.addr.port(), "weight": 1});
    let mut upstream = json!({"id": "u1", "nodes": nodes.iter().map(node).collect::<Vec<_>>()});
    for (name, value) in more.as_object().unwrap() {
        upstream[name] = value.clone();
    }
    json!({"stream_routes": [{"id": "r1", "upstream_id": "u1"}], "upstreams": [upstream]})
}

/// A session that a node has greeted, and how long that took.
fn greeted(at: SocketAddr) -> std::io::Result<(TcpStream, Duration)> {
    let began = Instant::now();
    let mut client = TcpStream::connect_timeout(&at, PATIENCE)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.read_exact(&mut [0])?;
    Ok((client, began.elapsed()))
}

/// What clients of a busy gateway met.
#[derive(Debug, Default)]
struct Met {
    sessions: usize,
    longest: Duration,
    failures: Vec<String>,
}

/// Runs `story` while four clients connect again and again.
fn under_load(at: SocketAddr, story: impl FnOnce(&dyn Fn() -> usize)) -> Met {
    let (met, over) = (Mutex::new(Met::default()), AtomicBool::new(false));
    let client = || {
        while !over.load(Relaxed) {
            let ended = greeted(at);
            let mut met = lock(&met);
            met.sessions += 1;
            match ended {
                Ok((_, took)) => met.longest = met.longest.max(took),
                Err(error) => met.failures.push(error.to_string()),
            }
        }
    };
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(client)));
        story(&|| lock(&met).sessions);
        over.store(true, Relaxed);
    });
    met.into_inner().unwrap()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        pause();
    }
}

#[test]
fn nodes_die_and_come_back_and_nobody_fails() {
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::start(false)).collect();
    let checks = json!({"active": {
        "type": "tcp", "healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1},
    }});
    let more = json!({"timeout": {"connect": 3, "send": 60, "read": 60}, "checks": checks});
    let gateway = Setup::objects(&to(&nodes, &more)).start();
    let failed = |node: SocketAddr| {
        let series = format!(
            "streamgate_connect_failures_total{{upstream=\"u1\",node=\"{node}\",reason=\"refused\"}}"
        );
        gateway.metric(&series).unwrap_or_default()
    };
    let met = under_load(gateway.tcp(0), |sessions| {
        for node in nodes.iter_mut().take(2) {
            let before = sessions();
            until("sessions", || sessions() > before + 100);
            node.kill();
            let addr = node.addr;
            until("a failed attempt", || failed(addr) > 0.0);
            // Two failed sessions or one failed probe take it out: then nobody is sent there.
            until("an end of failures", || {
                let (failures, before) = (failed(addr), sessions());
                until("sessions", || sessions() > before + 50);
                (failed(addr) - failures).abs() < 0.5
            });
            assert!(failed(addr) < 50.0, "{} attempts went to a dead node", failed(addr));
            node.revive();
            let taken = node.taken();
            until("the node's return", || node.taken() > taken + 20);
        }
    });
    assert!(gateway.ended_so("r1", "connect_failed") < 1.0, "{met:?}");
    // Whoever was in the queue of a node when it died had been connected: that is not an attempt any more.
    let cut = gateway.ended_so("r1", "upstream_reset");
    let failures = u32::try_from(met.failures.len()).unwrap();
    assert!(failures <= 8 && f64::from(failures) <= cut, "{cut} were cut: {met:?}");
    // A refusal is told at once; what is left is a busy machine.
    assert!(met.longest < Duration::from_secs(2), "{met:?}");
}

/// A node whose queue is full answers nothing: whoever meets it waits for one attempt, and soon nobody does.
#[test]
fn a_node_that_keeps_silent_costs_one_wait_and_then_none() {
    let mut nodes: Vec<Node> = (0..2).map(|_| Node::start(false)).collect();
    let full = reusable(([127, 0, 0, 1], 0).into());
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let queue: Vec<Socket> = (0..4)
        .map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            // It is under way, and stays so.
            let _ = client.connect(&addr.into());
            client
        })
        .collect();
    nodes.push(Node { addr, listener: None, held: None, taken: Arc::default(), _keeper: full });
    let checks = json!({"active": {"type": "tcp", "unhealthy": {"interval": 60}}});
    let more = json!({"timeout": {"connect": 0.4, "send": 60, "read": 60}, "checks": checks});
    let gateway = Setup::objects(&to(&nodes, &more)).start();
    let met = under_load(gateway.tcp(0), |sessions| until("sessions", || sessions() > 300));
    assert!(met.failures.is_empty(), "{met:?}");
    assert!(met.longest >= Duration::from_millis(400) && met.longest < Duration::from_millis(800), "{met:?}");
    let series =
        format!("streamgate_connect_failures_total{{upstream=\"u1\",node=\"{addr}\",reason=\"timed_out\"}}");
    let waited = gateway.metric(&series).unwrap();
    assert!((2.0..=8.0).contains(&waited), "{waited} attempts, two take it out, four clients were under way");
    drop(queue);
}

/// Sessions of each node as the gateway counts them, by address.
fn counts(gateway: &Gateway, nodes: &[Node]) -> Vec<usize> {
    let page = gateway.metrics();
    let counts: BTreeMap<&str, &str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("streamgate_node_active_connections{upstream=\"u1\",node=\""))
        .filter_map(|line| line.split_once("\"} "))
        .collect();
    let count = |node: &Node| counts.get(&*node.addr.to_string()).map_or(0, |count| count.parse().unwrap());
    nodes.iter().map(count).collect()
}

/// Descriptors that the test may use: half of them for clients, half for nodes.
fn connections() -> usize {
    let limit =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
    5000.min((limit - 500) / 2)
}

/// Ends them with resets: the nodes close nothing.
fn end(clients: Vec<TcpStream>) {
    for client in clients {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Connects so many clients, from four threads.
fn hold(at: SocketAddr, count: usize) -> Vec<TcpStream> {
    thread::scope(|scope| {
        let part = |number: usize| {
            (0..count / 4 + usize::from(number < count % 4))
                .map(|_| greeted(at).unwrap().0)
                .collect::<Vec<_>>()
        };
        let parts: Vec<_> = (0..4).map(|number| scope.spawn(move || part(number))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

#[track_caller]
fn check_alive(held: &[TcpStream]) {
    for client in held {
        client.set_nonblocking(true).unwrap();
        let heard = (&mut &*client).read(&mut [0]);
        assert_eq!(heard.expect_err("a session was cut").kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn from_two_nodes_to_twenty_and_back_with_5000_sessions() {
    let total = connections();
    let nodes: Vec<Node> = (0..20).map(|_| Node::start(true)).collect();
    let least = json!({"type": "least_conn"});
    let mut gateway = Setup::objects(&to(&nodes[..2], &least)).start();
    let at = gateway.tcp(0);
    // A third on two nodes: half of it each.
    let mut held = hold(at, total * 2 / 5);
    let each = total / 5;
    assert_eq!(counts(&gateway, &nodes[..2]), [each; 2]);

    gateway.write_objects(&to(&nodes, &least));
    gateway.eventually("twenty nodes", |gateway| gateway.metrics().contains(&nodes[19].addr.to_string()));
    // The rest goes to the new ones alone, for they have less.
    held.extend(hold(at, total - held.len()));
    let found = counts(&gateway, &nodes);
    let (least_of_new, most_of_new) = (found[2..].iter().min().unwrap(), found[2..].iter().max().unwrap());
    assert_eq!(found[..2], [each; 2]);
    assert!(most_of_new - least_of_new <= 1, "{found:?}");
    assert_eq!(found.iter().sum::<usize>(), held.len());
    check_alive(&held);

    gateway.write_objects(&to(&nodes[..2], &least));
    gateway.eventually("two nodes", |gateway| !gateway.metrics().contains(&nodes[19].addr.to_string()));
    check_alive(&held);
    let new = hold(at, 100);
    assert_eq!(counts(&gateway, &nodes[..2]), [each + 50; 2]);
    let sessions = f64::from(u32::try_from(held.len() + 100).unwrap());
    assert_eq!(gateway.metric("streamgate_tcp_sessions"), Some(sessions));
    end(new);
    gateway.eventually("ends", |gateway| counts(gateway, &nodes[..2]) == [each; 2]);
    // Who had left counts on: with all twenty back, the new ones still have what they had.
    gateway.write_objects(&to(&nodes, &least));
    gateway.eventually("twenty nodes", |gateway| gateway.metrics().contains(&nodes[19].addr.to_string()));
    assert_eq!(counts(&gateway, &nodes), found);
    check_alive(&held);
    end(held);
    gateway.eventually("no sessions", |gateway| counts(gateway, &nodes).iter().sum::<usize>() == 0);
}
