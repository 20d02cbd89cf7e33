//! `load serve`, and `load connections|requests|bulk ADDRESS SECONDS CLIENTS [PID…]`: what a proxy
//! costs, for comparing two of them on one machine.
//!
//! `serve` prints the address of an echo and of a source of endless bytes. The others talk through
//! the proxy at ADDRESS to one of them and print a rate, and the CPU time that the processes PID
//! spent on each unit: on a machine with other work that is the figure to trust.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{park, scope, sleep, spawn};
use std::time::{Duration, SystemTime};

use streamgate_conformance::gateway::connect;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: load serve | load connections|requests|bulk ADDRESS SECONDS CLIENTS [PID…]";
/// Bytes of a request and of its answer.
const MESSAGE: usize = 64;
/// Bytes of one read or write in bulk.
const CHUNK: usize = 256 * 1024;

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome {
    if arguments == ["serve"] {
        return serve();
    }
    let [mode, address, seconds, clients, pids @ ..] = arguments else { return Err(USAGE.into()) };
    let (client, unit, scale): (fn(SocketAddr, &Progress) -> io::Result<()>, _, _) = match mode.as_str() {
        "connections" => (connections, "connections", 1.0),
        "requests" => (requests, "requests", 1.0),
        "bulk" => (bulk, "GB", 1e9),
        _ => return Err(USAGE.into()),
    };
    let (address, clients): (SocketAddr, u32) = (address.parse()?, clients.parse()?);
    let progress = Progress::default();
    let (units, seconds, cpu) = scope(|scope| {
        let workers: Vec<_> = (0..clients).map(|_| scope.spawn(|| client(address, &progress))).collect();
        sleep(Duration::from_millis(500));
        let (begun, done, cpu) = (SystemTime::now(), progress.done(), cpu_seconds(pids)?);
        sleep(Duration::from_secs_f64(seconds.parse()?));
        let measured =
            ((progress.done() - done) / scale, begun.elapsed()?.as_secs_f64(), cpu_seconds(pids)? - cpu);
        progress.stop.store(true, Relaxed);
        for worker in workers {
            worker.join().map_err(|_| "a client panicked")??;
        }
        Outcome::Ok(measured)
    })?;
    let rate = units / seconds;
    let each = cpu / units * 1e6;
    let busy = cpu / seconds * 100.0;
    writeln!(io::stdout(), "{rate:.1} {unit}/s, {each:.1} us CPU for each, proxy busy {busy:.0} %")?;
    Ok(())
}

/// What the clients have done, and whether they shall end.
#[derive(Default)]
struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    #[expect(clippy::cast_precision_loss, reason = "a rate for a person")]
    fn done(&self) -> f64 {
        self.done.load(Relaxed) as f64
    }

    /// Counts; whether to go on.
    fn goes_on(&self, more: usize) -> bool {
        self.done.fetch_add(more as u64, Relaxed);
        !self.stop.load(Relaxed)
    }
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [7; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}

/// One exchange on each of many connections.
fn connections(address: SocketAddr, progress: &Progress) -> io::Result<()> {
    while progress.goes_on(1) {
        exchange(&mut connect(address)?)?;
    }
    Ok(())
}

/// Many exchanges on one connection.
fn requests(address: SocketAddr, progress: &Progress) -> io::Result<()> {
    let mut stream = connect(address)?;
    while progress.goes_on(1) {
        exchange(&mut stream)?;
    }
    Ok(())
}

/// All that comes.
fn bulk(address: SocketAddr, progress: &Progress) -> io::Result<()> {
    let mut stream = connect(address)?;
    let mut chunk = vec![0; CHUNK];
    while progress.goes_on(stream.read(&mut chunk)?) {}
    Ok(())
}

fn serve() -> Outcome {
    let echo = each(|mut stream| {
        let mut chunk = [0; 4096];
        loop {
            let length = stream.read(&mut chunk)?;
            let Some(received) = chunk.get(..length).filter(|_| length > 0) else { return Ok(()) };
            stream.write_all(received)?;
        }
    })?;
    let source = each(|mut stream| {
        let chunk = vec![0; CHUNK];
        loop {
            stream.write_all(&chunk)?;
        }
    })?;
    writeln!(io::stdout(), "{echo} {source}")?;
    loop {
        park();
    }
}

/// Runs `session` for every connection, each on a thread of its own.
fn each(session: fn(TcpStream) -> io::Result<()>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its own session alone.
            spawn(move || stream.set_nodelay(true).and_then(|()| session(stream)));
        }
    });
    Ok(address)
}

/// CPU time of processes so far, from `/proc`: fields 14 and 15 of `stat` in ticks of 10 ms.
fn cpu_seconds(pids: &[String]) -> Outcome<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(") ").ok_or("no stat")?;
        for field in rest.split(' ').skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / 100.0)
}
