//! `instructions GATEWAY BOUNDS [--update]`: user-space instructions of a worker for each connection,
//! each request on an open one and each datagram, counted by callgrind and held against BOUNDS.
//!
//! Instructions say nothing of the kernel's part, which is the larger one, but noise cannot move
//! them: what was added shows. The gateway runs under valgrind with one worker, once for each kind
//! of work and once without any; what a run counts more than that, by the amount of work, is the figure.
//! Only the worker's thread is counted.
//!
//! Exits with 1 where a figure is above its bound. `--update` writes new bounds instead.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use streamgate_conformance::echo;
use streamgate_conformance::gateway::{LIMIT, connect};
use streamgate_conformance::process::{Process, find, free_port, until};
use streamgate_conformance::verdict::conclude;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: instructions GATEWAY BOUNDS [--update]";
/// Valgrind starts a program slowly.
const START: Duration = Duration::from_mins(1);
/// Work done in every run, so that nothing is counted that happens only at first.
const WARM_UP: u32 = 100;
/// Bytes of a request and of a datagram.
const MESSAGE: usize = 64;
/// What the echo puts before its answer: its name, which is empty, and a colon.
const PREFIX: usize = 1;
/// Runs at most for one figure.
const RUNS: u32 = 3;
/// By how much new bounds are above what was measured, in percent.
const ROOM: u64 = 10;
/// The kinds of work, by the names that their bounds have, and how much of each.
const KINDS: [(&str, Work, u32); 3] =
    [("connection", connections, 1000), ("request", requests, 2000), ("datagram", datagrams, 2000)];
/// Between two steps of a client. Events that happen together cost one turn of the worker's loop, others
/// one each: with a pause each has its own, whatever else the machine does.
const PAUSE: Duration = Duration::from_millis(1);

type Work = fn(SocketAddr, u32) -> io::Result<()>;

fn main() -> ExitCode {
    conclude(run(&std::env::args().skip(1).collect::<Vec<_>>()))
}

/// Measures; whether every bound is kept.
fn run(arguments: &[String]) -> Outcome<bool> {
    let (gateway, bounds, update) = match arguments {
        [gateway, bounds] => (gateway, bounds, false),
        [gateway, bounds, flag] if flag == "--update" => (gateway, bounds, true),
        _ => return Err(USAGE.into()),
    };
    if find("valgrind").is_none() {
        return Err("valgrind is not installed; scripts/deps.sh installs it".into());
    }
    let text = if update { String::new() } else { read(bounds)? };
    let idle = count(gateway, &[])?;
    let (mut held, mut figures) = (true, Vec::new());
    for kind in KINDS {
        let (name, ..) = kind;
        let bound = match bound(&text, name) {
            None if !update => return Err(format!("{bounds} has no line `{name} NUMBER`").into()),
            bound => bound.unwrap_or(0),
        };
        let measured = least(gateway, idle, kind, bound)?;
        figures.push((name, measured));
        if update {
            writeln!(io::stdout(), "{name:11} {measured:7} instructions")?;
            continue;
        }
        let kept = measured <= bound;
        held &= kept;
        let verdict = if kept { "ok" } else { "TOO MANY" };
        writeln!(io::stdout(), "{name:11} {measured:7} instructions, at most {bound:7}: {verdict}")?;
        if !kept {
            writeln!(
                io::stdout(),
                "a {name} takes {measured} instructions of a worker, {bounds} allows {bound}: find what the \
                 change costs with callgrind_annotate, or accept it with `make bench-instructions UPDATE=1`"
            )?;
        }
    }
    if update {
        fs::write(bounds, bounds_text(&figures))?;
    }
    Ok(held)
}

fn read(bounds: &str) -> Outcome<String> {
    Ok(fs::read_to_string(bounds).map_err(|error| format!("{bounds}: {error}"))?)
}

/// Instructions for each of a kind of work: the least of some runs, or the first that keeps the bound.
fn least(gateway: &str, idle: u64, (_, work, amount): (&str, Work, u32), bound: u64) -> Outcome<u64> {
    let mut least = u64::MAX;
    for _ in 0..RUNS {
        let counted = count(gateway, &[(work, amount)])?;
        least = least.min(counted.saturating_sub(idle) / u64::from(amount));
        if least <= bound {
            break;
        }
    }
    Ok(least)
}

/// The bound of a name in a file of `name number` lines.
fn bound(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn bounds_text(figures: &[(&str, u64)]) -> String {
    let mut text = format!(
        "# User-space instructions of a worker, at most: {ROOM} % above what was measured.\n\
         # `make bench-instructions` compares, `make bench-instructions UPDATE=1` writes them anew.\n"
    );
    for (name, measured) in figures {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} {}", measured * (100 + ROOM) / 100);
    }
    text
}

/// Instructions of the worker of a gateway that starts, warms up, does the work and stops.
fn count(gateway: &str, work: &[(Work, u32)]) -> Outcome<u64> {
    let folder = tempfile::tempdir()?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(0)?));
    let upstream = echo::serve("", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let config = write_config(folder.path(), at, upstream)?;
    let profile = folder.path().join("profile");
    let log = folder.path().join("log");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--separate-threads=yes"]);
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(gateway).arg("run").arg("-c").arg(config);
    let mut process = Process::start(&mut command, &log)?;
    let outcome = until(START, || connections(at, 1)).and_then(|()| {
        KINDS.iter().try_for_each(|(_, work, _)| work(at, WARM_UP))?;
        work.iter().try_for_each(|(work, amount)| work(at, *amount))
    });
    let log = || fs::read_to_string(&log).unwrap_or_default();
    outcome.map_err(|error| format!("the gateway does not serve: {error}\n{}", log()))?;
    // Ended in peace: killed, callgrind would write nothing.
    Command::new("kill").args(["-TERM", &process.id().to_string()]).status()?;
    let ended = process.wait()?;
    if !ended.success() {
        return Err(format!("the gateway ended with {ended}\n{}", log()).into());
    }
    of_worker(folder.path())
}

/// The sum in the profile of the thread that accepts connections. Each thread has a file of its own.
fn of_worker(folder: &Path) -> Outcome<u64> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("profile-") {
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        if text.contains("streamgate::proxy::accept::") {
            let sum = text.lines().find_map(|line| line.strip_prefix("summary: "));
            return Ok(sum.ok_or("the worker's profile has no sum")?.trim().parse()?);
        }
    }
    Err("no profile names streamgate::proxy::accept; was the gateway built without symbols?".into())
}

/// One worker, one listen for TCP and UDP, one route.
fn write_config(folder: &Path, at: SocketAddr, upstream: SocketAddr) -> Outcome<std::path::PathBuf> {
    let (config, metrics) = (folder.join("config.yaml"), free_port(0)?);
    let text = format!(
        "apisix:
  proxy_mode: stream
  stream_proxy: {{tcp: [\"{at}\"], udp: [\"{at}\"]}}
deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}
plugin_attr: {{prometheus: {{export_addr: {{ip: 127.0.0.1, port: {metrics}}}}}}}
nginx_config: {{worker_processes: 1}}
"
    );
    fs::write(&config, text)?;
    let routes = format!("stream_routes:\n  - {{id: 1, upstream: {{nodes: {{\"{upstream}\": 1}}}}}}\n#END\n");
    fs::write(folder.join("apisix.yaml"), routes)?;
    Ok(config)
}

/// Connections one after another: one byte and its echo, then both ends close.
fn connections(at: SocketAddr, amount: u32) -> io::Result<()> {
    for _ in 0..amount {
        let mut stream = connect(at)?;
        sleep(PAUSE);
        exchange(&mut stream, &[7])?;
        stream.shutdown(Shutdown::Write)?;
        if stream.read(&mut [0])? > 0 {
            return Err(io::Error::other("bytes instead of the end"));
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// Requests on one connection.
fn requests(at: SocketAddr, amount: u32) -> io::Result<()> {
    let mut stream = connect(at)?;
    (0..amount).try_for_each(|_| exchange(&mut stream, &[7; MESSAGE]))
}

/// Datagrams of one association, each with its answer.
fn datagrams(at: SocketAddr, amount: u32) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(at)?;
    for _ in 0..amount {
        socket.send(&[7; MESSAGE])?;
        socket.recv(&mut [0; MESSAGE + PREFIX])?;
        sleep(PAUSE);
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let mut answer = [0; MESSAGE + PREFIX];
    stream.write_all(message)?;
    stream.read_exact(answer.get_mut(..message.len() + PREFIX).unwrap_or_default())?;
    sleep(PAUSE);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_as_they_are_written() {
        let text = bounds_text(&[("connection", 20_000), ("request", 5)]);
        assert_eq!(bound(&text, "connection"), Some(22_000));
        assert_eq!(bound(&text, "request"), Some(5));
        assert_eq!(bound(&text, "datagram"), None);
    }
}
