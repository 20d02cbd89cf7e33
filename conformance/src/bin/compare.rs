//! `compare GATEWAY [OPTION]…`: streamgate beside nginx, HAProxy and Envoy on the same work.
//!
//! Each round runs in a network and process namespace of its own, which ends with this program
//! however it ends. Exits with 1 where a required median is missed or a figure is missing.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use streamgate_conformance::compare::limit::Verdict;
use streamgate_conformance::compare::metric::{Metric, Work};
use streamgate_conformance::compare::plan::Plan;
use streamgate_conformance::compare::proxy::{Proxy, Setting};
use streamgate_conformance::compare::report::{Report, put_into};
use streamgate_conformance::compare::results::Results;
use streamgate_conformance::compare::round::{self, Sample};
use streamgate_conformance::figures::short;
use streamgate_conformance::machine::Machine;
use streamgate_conformance::verdict::{conclude, say};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: compare GATEWAY [OPTION]…
  --rounds N      how often the proxies are started and all is measured (3)
  --turns N       how often each load comes in a round (3)
  --seconds S     how long it is measured each time (1)
  --idle N        idle connections to hold (9000)
  --proxies A,B   only these, by their names in the results
  --works A,B     only these: idle, connections, requests, paced, bulk-1, bulk-8, first-bytes, datagrams, segments,
                  least-conn, hash, plugins, tls-idle, tls-handshake, tls-resumed, tls-bulk-1, tls-bulk-8, tls-upload-1, tls-upload-8, passthrough
  --installed     leave out the peers that are not installed
  --unprivileged  start the proxies as users without privileges
  --report        exit with 0 whatever is missed
  --json FILE     where the results go (target/bench/compare.json)
  --write FILE    a document to put the tables into, where all was measured as root";
/// Descriptors that one process needs beside those of idle connections: a round holds both ends.
const SPARE_FILES: u64 = 800;
/// What a round sets below `net.ipv4`: the kernel's own buffers, whatever this machine is tuned to;
/// the congestion control that every namespace may have (BBR paces by timers, which on loopback cost
/// more than copying does, and nothing is lost there); and more ports for outgoing connections than a
/// load can leave in `TIME_WAIT`.
const SYSCTLS: [(&str, &str); 4] = [
    ("tcp_congestion_control", "reno"),
    ("tcp_rmem", "4096 131072 6291456"),
    ("tcp_wmem", "4096 16384 4194304"),
    ("ip_local_port_range", "10000 65000"),
];

fn main() -> ExitCode {
    conclude(run(&std::env::args().skip(1).collect::<Vec<_>>()))
}

struct Options {
    gateway: PathBuf,
    plan: Plan,
    report: bool,
    json: PathBuf,
    write: Option<PathBuf>,
    /// This process is the first of the namespaces of a round.
    inside: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let gateway = fs::canonicalize(arguments.next().ok_or(USAGE)?)?;
        let (mut plan, mut installed) = (Plan::default(), false);
        let (mut report, mut inside) = (false, false);
        let (mut json, mut write) = (PathBuf::from("target/bench/compare.json"), None);
        while let Some(option) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{option} needs a value\n{USAGE}"));
            match option.as_str() {
                "--rounds" => plan.rounds = value()?.parse()?,
                "--turns" => plan.turns = value()?.parse()?,
                "--seconds" => plan.seconds = value()?.parse()?,
                "--idle" => plan.idle = value()?.parse()?,
                "--proxies" => plan.proxies = named(&value()?, Proxy::of_name)?,
                "--works" => plan.works = named(&value()?, Work::of_name)?,
                "--installed" => installed = true,
                "--unprivileged" => plan.unprivileged = true,
                "--report" => report = true,
                "--json" => json = value()?.into(),
                "--write" => write = Some(value()?.into()),
                "--inside" => inside = true,
                _ => return Err(format!("unknown option {option}\n{USAGE}").into()),
            }
        }
        if installed {
            plan.proxies.retain(|proxy| proxy.program(&gateway).is_some());
        }
        Ok(Self { gateway, plan, report, json, write, inside })
    }

    /// The folder of configurations and logs; they stay for whoever asks what a proxy said.
    fn folder(&self) -> PathBuf {
        self.json.with_extension("files")
    }
}

/// The values of these names, which commas part.
fn named<T>(names: &str, of_name: fn(&str) -> Option<T>) -> Outcome<Vec<T>> {
    let value = |name| of_name(name).ok_or_else(|| format!("nothing is called {name}\n{USAGE}").into());
    names.split(',').map(value).collect()
}

fn run(arguments: &[String]) -> Outcome<bool> {
    let options = Options::parse(arguments.iter().cloned())?;
    if options.inside {
        return inside(&options).map(|()| true);
    }
    let mut versions = Vec::new();
    for proxy in &options.plan.proxies {
        let version = proxy.version(&options.gateway).map_err(|error| {
            let name = proxy.name();
            format!("{name} does not start ({error}); scripts/peers.sh installs it, benches/run.sh finds it")
        })?;
        if !versions.iter().any(|(_, known)| *known == version) {
            versions.push((*proxy, version));
        }
    }
    let machine = Machine::this();
    say(format_args!("{machine}, load {}", Machine::load()));
    let mut results = Results::default();
    for number in 0..options.plan.rounds {
        outside(&options, number, arguments, &mut results)?;
    }
    finish(&options, &Report { results, machine, versions, plan: options.plan.clone() })
}

/// Starts a round in namespaces of its own and collects what it says.
fn outside(options: &Options, number: usize, arguments: &[String], results: &mut Results) -> Outcome {
    say(format_args!("round {} of {}", number + 1, options.plan.rounds));
    // Ends with this process however it ends, and takes the namespace and all in it along.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.arg(std::env::current_exe()?).args(arguments).arg("--inside");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
        let sample = sample(&line?)?;
        let Sample { metric, proxy, value } = sample;
        say(format_args!("  {:<18} {}: {} {}", proxy.name(), metric.what(), short(value), metric.unit()));
        results.push(sample);
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("round {}: {status}", number + 1).into()) }
}

fn sample(line: &str) -> Outcome<Sample> {
    let json: Value = serde_json::from_str(line)?;
    let text = |name: &str| json[name].as_str().unwrap_or_default();
    let sample = Metric::of_id(text("metric"))
        .zip(Proxy::of_name(text("proxy")))
        .zip(json["value"].as_f64())
        .map(|((metric, proxy), value)| Sample { metric, proxy, value });
    sample.ok_or_else(|| format!("not a sample: {line}").into())
}

/// Runs one round.
fn inside(options: &Options) -> Outcome {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !up.success() {
        return Err("ip cannot bring up loopback in a new network namespace".into());
    }
    for (name, value) in SYSCTLS {
        fs::write(Path::new("/proc/sys/net/ipv4").join(name), value)
            .map_err(|error| format!("net.ipv4.{name} of the new namespace: {error}"))?;
    }
    allow_files(options.plan.idle)?;
    let core = pin()?;
    let folder = options.folder();
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let folder = fs::canonicalize(folder)?;
    let Options { gateway, plan, .. } = options;
    let setting = Setting { gateway, folder: &folder, core, unprivileged: plan.unprivileged };
    round::run(plan, &setting, |Sample { metric, proxy, value }| {
        let sample = json!({"metric": metric.id(), "proxy": proxy.name(), "value": value});
        writeln!(io::stdout(), "{sample}")
    })?;
    Ok(())
}

/// Raises the limit of open files, which the proxies inherit.
fn allow_files(idle: usize) -> Outcome {
    let hard = getrlimit(Resource::Nofile).maximum;
    let needed = 2 * idle as u64 + SPARE_FILES;
    if hard.is_some_and(|hard| hard < needed) {
        return Err(format!(
            "{idle} idle connections need {needed} open files and the hard limit is lower; raise it with ulimit -n, or give a lower --idle"
        )
        .into());
    }
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(())
}

/// Leaves the last core to the proxies: this process and its threads run on the others.
fn pin() -> Outcome<usize> {
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        return Err("a comparison needs two cores: one for the proxy, one for the load".into());
    }
    let mut others = CpuSet::new();
    (0..cores - 1).for_each(|core| others.set(core));
    sched_setaffinity(None, &others)?;
    Ok(cores - 1)
}

/// Writes the results; whether nothing is missing or missed.
fn finish(options: &Options, report: &Report) -> Outcome<bool> {
    save(&options.json, &format!("{:#}\n", report.json()))?;
    // What is written must be what a program can read.
    let _: Value = serde_json::from_str(&fs::read_to_string(&options.json)?)?;
    let tables = report.markdown();
    say(format_args!("\n{tables}\nload {}; all samples are in {}", Machine::load(), options.json.display()));
    let gaps = report.results.gaps(&options.plan);
    for gap in &gaps {
        say(format_args!("not measured: {gap}"));
    }
    if let (Some(document), true) = (&options.write, gaps.is_empty() && options.plan.is_whole()) {
        let text = put_into(&fs::read_to_string(document)?, &tables);
        save(
            document,
            &text.ok_or_else(|| format!("{} lacks the marks of the tables", document.display()))?,
        )?;
    }
    let missed = report.results.judged().iter().any(|(.., verdict)| *verdict == Verdict::Missed);
    Ok(gaps.is_empty() && (options.report || !missed))
}

fn save(file: &Path, text: &str) -> Outcome {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(file, text)?)
}
