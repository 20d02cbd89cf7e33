//! What sessions do to the whole process: its descriptors and its CPU time.
//!
//! The tests take turns: other sessions of the same process would be in their figures. `make soak`
//! runs more cycles (`SOAK_CYCLES`, a hundred connections each).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/patient.rs"]
mod patient;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use streamgate::session::{ConnectFailure, End, Transport};

use configured::Configured;
use gateway::{Gateway, Setup, accept, connect, hears_end, listen, poll_until, pool, server, settings};
use patient::{Manner, Patient};

fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn session() -> (Gateway, TcpStream, TcpStream) {
    let (upstream, addr) = server();
    let tcp = listen(Transport::Tcp, "127.0.0.1");
    let (gateway, at) = Gateway::serving(&Setup::default(), tcp, pool(settings(), &[addr]));
    let client = connect(at);
    let node = accept(&upstream);
    (gateway, client, node)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Writes until nothing is taken for a while; how much was.
fn flood(stream: &mut TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut written, mut last, mut same) = (0, 0, 0);
    poll_until("a sender that waits", || {
        while let Ok(count) = stream.write(&[7; 1 << 14]) {
            written += count;
        }
        same = if written == last { same + 1 } else { 0 };
        last = written;
        (same > 50).then_some(())
    });
    written
}

/// CPU time that the workers' threads of this process have spent.
fn workers_cpu() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let nanoseconds = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let spent = fs::read_to_string(task.join("schedstat")).ok()?;
        name.starts_with("worker-").then(|| spent.split(' ').next()?.parse::<u64>().ok()).flatten()
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[test]
fn a_stalled_receiver_costs_no_time_and_little_memory() {
    let _alone = alone();
    let (gateway, mut client, mut node) = session();
    let taken = [flood(&mut client), flood(&mut node)];
    // What the kernel's buffers of four sockets take, and one pipe each way.
    assert!(taken.iter().all(|taken| *taken < 64 << 20), "{taken:?}");
    assert!(gateway.pipes.used() <= 2);
    let before = workers_cpu();
    // Not waiting for anything: it is the time over which a spinning worker would be seen.
    thread::sleep(Duration::from_millis(400));
    let spent = workers_cpu().saturating_sub(before);
    assert!(spent < Duration::from_millis(100), "{spent:?} of CPU while nothing moves");
}

#[test]
fn connections_leave_no_descriptors() {
    let _alone = alone();
    let (upstream, addr) = server();
    let tcp = listen(Transport::Tcp, "127.0.0.1");
    let (gateway, at) = Gateway::serving(&Setup::default(), tcp, pool(settings(), &[addr]));
    let once = || {
        let (mut client, mut node) = (connect(at), accept(&upstream));
        client.write_all(b"x").unwrap();
        node.read_exact(&mut [0]).unwrap();
        drop(client);
        hears_end(&mut node);
    };
    once();
    poll_until("the end", || (gateway.sessions.used() == 0).then_some(()));
    let before = open_descriptors();
    let cycles = std::env::var("SOAK_CYCLES").map_or(300, |cycles| cycles.parse::<usize>().unwrap() * 100);
    (0..cycles).for_each(|_| once());
    poll_until("as many descriptors as before", || (open_descriptors() <= before).then_some(()));
}

/// Bulk from the client to the node; what arrives is compared.
fn bulk(client: &mut TcpStream, node: &mut TcpStream) {
    let (mut writer, said) = (client.try_clone().unwrap(), vec![5; 4 << 20]);
    let sending = thread::spawn(move || writer.write_all(&said).unwrap());
    let mut heard = vec![0; 4 << 20];
    node.read_exact(&mut heard).unwrap();
    assert!(heard.iter().all(|byte| *byte == 5));
    sending.join().unwrap();
}

#[test]
fn a_process_without_free_descriptors_copies_until_there_are_some() {
    let _alone = alone();
    let (mut gateway, mut client, mut node) = session();
    let limit = getrlimit(Resource::Nofile);
    let spare = client.try_clone().unwrap();
    let full = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().file_name());
    let highest = full.filter_map(|fd| fd.to_str()?.parse::<u64>().ok()).max().unwrap();
    // `bulk` itself takes one: the spare one goes for it.
    setrlimit(Resource::Nofile, Rlimit { current: Some(highest), ..limit }).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    drop(spare);
    bulk(&mut client, &mut node);
    let refused = gateway.node.pipes_refused.count();
    drop(taken);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(refused > 0 && gateway.pipes.used() == 0, "{refused} refused");
    bulk(&mut client, &mut node);
    assert!(gateway.pipes.used() > 0, "a flow that was refused a pipe asks again");
    drop(client);
    hears_end(&mut node);
    drop(node);
    gateway.ends_with(End::ClientClosed);
}

/// The cores that each worker's thread may run on, as the kernel writes them.
fn cores_of_workers() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let cores = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        field("Name:")?.starts_with("worker-").then(|| field("Cpus_allowed_list:").map(str::to_owned))?
    });
    cores.collect()
}

#[test]
fn pinned_workers_stay_on_one_core_each() {
    let _alone = alone();
    let crew = |pinned| {
        let gateway = Gateway::start(&Setup { pinned, ..Setup::default() });
        let cores = cores_of_workers();
        drop(gateway.stop(Duration::ZERO));
        cores
    };
    let mut pinned = crew(true);
    assert_eq!(pinned.len(), 2);
    assert!(pinned.iter().all(|cores| cores.parse::<usize>().is_ok()), "{pinned:?}");
    pinned.dedup();
    let free = crew(false);
    let cores = thread::available_parallelism().unwrap().get();
    assert_eq!(pinned.len(), cores.min(2), "two workers, {cores} cores: {pinned:?}");
    assert!(free.iter().all(|all| cores == 1 || all.parse::<usize>().is_err()), "{free:?}");
}

/// What this process lacks is not the node's fault, and no node is left for it.
#[test]
fn descriptors_that_ran_out_count_against_nobody() {
    let _alone = alone();
    let (first, second) = (Patient::new(Manner::Closes), Patient::new(Manner::Closes));
    let passive = json!({"unhealthy": {"tcp_failures": 1}});
    let checks = json!({"active": {"type": "tcp"}, "passive": passive});
    let mut upstream = json!({"nodes": objects::nodes(&[first.addr, second.addr]), "checks": checks});
    upstream["nodes"][1]["priority"] = json!(-1);
    let mut gateway = Configured::to(&upstream);
    let at = gateway.tcp();
    let _ = connect(at).read(&mut [0]);
    gateway.gateway.ends_with(End::UpstreamClosed);
    let limit = getrlimit(Resource::Nofile);
    let client = {
        let spare = [fs::File::open("/dev/null").unwrap(), fs::File::open("/dev/null").unwrap()];
        let open = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().file_name());
        let highest = open.filter_map(|fd| fd.to_str()?.parse::<u64>().ok()).max().unwrap();
        setrlimit(Resource::Nofile, Rlimit { current: Some(highest), ..limit }).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
        // One for the client here, one for its connection at the gateway, none for a node.
        drop(spare);
        let client = connect(at);
        let ended = gateway.gateway.outcome().end;
        drop(taken);
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(ended, End::Limit);
        client
    };
    drop(client);
    let counts = [first.addr, second.addr].map(|addr| gateway.standing(addr).tcp_failure);
    assert_eq!(counts, [0, 0]);
    assert_eq!(gateway.objects.pool().nodes()[0].stats.failed_count(ConnectFailure::Exhausted), 1);
    assert_eq!(gateway.objects.pool().nodes()[1].stats.failed_count(ConnectFailure::Exhausted), 0);
    let _ = connect(at).read(&mut [0]);
    gateway.gateway.ends_with(End::UpstreamClosed);
}
