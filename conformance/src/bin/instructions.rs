//! `instructions GATEWAY BOUNDS [--update]`: user-space instructions of a worker for each connection,
//! request, datagram, megabyte and TLS handshake, counted by callgrind and held against BOUNDS.
//!
//! Instructions say nothing of the kernel's part, which is the larger one, but noise cannot move
//! them: what was added shows. The gateway runs under valgrind with one worker, once for each kind
//! of work and once without any; what a run counts more than that, by the amount of work, is the figure.
//! Only the worker's thread is counted.
//!
//! Exits with 1 where a figure is above its bound. `--update` writes new bounds instead.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use streamgate_conformance::counted::{
    Stage, connections, datagrams, handshakes, megabytes, megabytes_passed_on, requests,
};
use streamgate_conformance::process::{Process, find, until};
use streamgate_conformance::verdict::{conclude, say};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: instructions GATEWAY BOUNDS [--update]";
/// Valgrind starts a program slowly.
const START: Duration = Duration::from_mins(1);
/// Runs at most for one figure.
const RUNS: u32 = 3;
/// By how much new bounds are above what was measured, in percent.
const ROOM: u64 = 10;
/// Enough of them that what a connection costs does not count.
const MEGABYTES: u32 = 256;

/// A kind of work.
#[derive(Clone, Copy)]
struct Kind {
    /// What one of it is; the name that its bound has.
    name: &'static str,
    work: fn(&Stage, u32) -> io::Result<()>,
    /// How much of it is counted.
    amount: u32,
    /// How much of it is done in every run, so that nothing is counted that happens only at first.
    warm_up: u32,
    bound: Bound,
    /// Every session is told of: with an access log, and the prometheus plugin on its route.
    told: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bound {
    /// As recorded.
    Recorded,
    /// At most so many percent above another figure of this run.
    Beside(&'static str, u64),
}

/// In the order they are measured: a figure comes before those that are held against it.
const KINDS: [Kind; 7] = [
    kind("connection", connections, 1000, 100),
    Kind {
        bound: Bound::Beside("connection", 8),
        told: true,
        ..kind("connection-told", connections, 1000, 0)
    },
    kind("request", requests, 2000, 100),
    kind("datagram", datagrams, 2000, 100),
    kind("megabyte", megabytes, MEGABYTES, 8),
    Kind {
        bound: Bound::Beside("megabyte", 3),
        ..kind("megabyte-passed-on", megabytes_passed_on, MEGABYTES, 8)
    },
    kind("tls-handshake", handshakes, 200, 20),
];

const fn kind(
    name: &'static str,
    work: fn(&Stage, u32) -> io::Result<()>,
    amount: u32,
    warm_up: u32,
) -> Kind {
    Kind { name, work, amount, warm_up, bound: Bound::Recorded, told: false }
}

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
    let mut bench = Bench { gateway: Path::new(gateway), idle: [0, 0] };
    bench.idle = [bench.count(None, false)?, bench.count(None, true)?];
    let text = if update { String::new() } else { read(bounds)? };
    let (mut held, mut figures) = (true, Vec::new());
    for kind in KINDS {
        let bound = match bound(kind, &text, &figures) {
            None if !update => {
                let name = kind.name;
                return Err(format!(
                    "{bounds} has no line `{name} NUMBER`; `make bench-instructions UPDATE=1` writes it"
                )
                .into());
            }
            bound => bound.unwrap_or(0),
        };
        let measured = bench.least(kind, bound)?;
        figures.push((kind.name, measured));
        held &= update || told(kind, measured, bound, bounds);
        if update {
            say(format_args!("{:18} {measured:8} instructions", kind.name));
        }
    }
    if update {
        fs::write(bounds, bounds_text(&figures))?;
    }
    Ok(held)
}

/// Tells of a figure; whether it keeps its bound.
fn told(kind: Kind, measured: u64, bound: u64, bounds: &str) -> bool {
    let Kind { name, .. } = kind;
    let kept = measured <= bound;
    let verdict = if kept { "ok" } else { "TOO MANY" };
    say(format_args!("{name:18} {measured:8} instructions, at most {bound:8}: {verdict}"));
    match kind.bound {
        _ if kept => {}
        Bound::Recorded => say(format_args!(
            "a {name} takes {measured} instructions of a worker, {bounds} allows {bound}: find what the \
             change costs with callgrind_annotate, or accept it with `make bench-instructions UPDATE=1`"
        )),
        Bound::Beside(other, percent) => say(format_args!(
            "a {name} takes {measured} instructions of a worker, {percent} % more than a {other} are allowed: \
             find what it costs besides with callgrind_annotate"
        )),
    }
    kept
}

fn read(bounds: &str) -> Outcome<String> {
    Ok(fs::read_to_string(bounds).map_err(|error| format!("{bounds}: {error}"))?)
}

/// The bound of a kind, from a file of `name number` lines or from what was measured before.
fn bound(kind: Kind, text: &str, figures: &[(&str, u64)]) -> Option<u64> {
    match kind.bound {
        Bound::Recorded => text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find_map(|(name, bound)| if name == kind.name { bound.trim().parse().ok() } else { None }),
        Bound::Beside(other, percent) => {
            let figure = figures.iter().find_map(|(name, figure)| (*name == other).then_some(*figure));
            figure.map(|figure| figure * (100 + percent) / 100)
        }
    }
}

fn bounds_text(figures: &[(&str, u64)]) -> String {
    let mut text = format!(
        "# User-space instructions of a worker, at most: {ROOM} % above what was measured.\n\
         # `make bench-instructions` compares, `make bench-instructions UPDATE=1` writes them anew.\n"
    );
    for (name, measured) in figures {
        let recorded = |kind: &Kind| kind.name == *name && kind.bound == Bound::Recorded;
        if KINDS.iter().any(recorded) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} {}", measured * (100 + ROOM) / 100);
        }
    }
    text
}

/// A gateway to count of.
struct Bench<'a> {
    gateway: &'a Path,
    /// What a run without work takes, and one whose sessions are told of.
    idle: [u64; 2],
}

impl Bench<'_> {
    /// Instructions for one of a kind: the least of some runs, or the first that keeps the bound.
    fn least(&self, kind: Kind, bound: u64) -> Outcome<u64> {
        let mut least = u64::MAX;
        for _ in 0..RUNS {
            let counted = self.count(Some(kind), kind.told)?;
            let [idle, told] = self.idle;
            let idle = if kind.told { told } else { idle };
            least = least.min(counted.saturating_sub(idle) / u64::from(kind.amount));
            if least <= bound {
                break;
            }
        }
        Ok(least)
    }

    /// Instructions of the worker of a gateway that starts, warms up, does the work and stops.
    fn count(&self, kind: Option<Kind>, told: bool) -> Outcome<u64> {
        let folder = tempfile::tempdir()?;
        let stage = Stage::new()?;
        let config = stage.write_config(folder.path(), told)?;
        let profile = folder.path().join("profile");
        let log = folder.path().join("log");
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--separate-threads=yes"]);
        command.arg(format!("--callgrind-out-file={}", profile.display()));
        command.arg(self.gateway).arg("run").arg("-c").arg(config);
        let mut process = Process::start(&mut command, &log)?;
        let outcome = until(START, || connections(&stage, 1)).and_then(|()| {
            KINDS.into_iter().try_for_each(|kind| (kind.work)(&stage, kind.warm_up))?;
            kind.map_or(Ok(()), |kind| (kind.work)(&stage, kind.amount))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str, figures: &[(&str, u64)]) -> Option<u64> {
        bound(*KINDS.iter().find(|kind| kind.name == name).unwrap(), text, figures)
    }

    #[test]
    fn bounds_are_read_as_they_are_written() {
        let figures = [("connection", 20_000), ("megabyte", 5000), ("megabyte-passed-on", 5100)];
        let text = bounds_text(&figures);
        assert_eq!(of("connection", &text, &[]), Some(22_000));
        assert_eq!(of("megabyte", &text, &[]), Some(5500));
        assert_eq!(of("datagram", &text, &figures), None);
        assert!(!text.contains("passed-on"), "{text}");
    }

    #[test]
    fn one_figure_may_bound_another() {
        assert_eq!(of("megabyte-passed-on", "", &[("megabyte", 1000)]), Some(1030));
        assert_eq!(of("megabyte-passed-on", "megabyte-passed-on 5", &[]), None);
    }
}
