//! `streamgate check`: what this gateway would do with config.yaml and every object, before it
//! listens. Opens no port for longer than it takes to see that it is free, writes nothing.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use streamgate::config::{Config, Source};
use streamgate::net::bind;
use streamgate::resource::Kind;
use streamgate::session::Transport;

use super::{ConfigFile, complain, load};

mod certificates;
mod listens;
mod objects;
mod order;
mod upstreams;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Look at config.yaml alone, not at the objects
    #[arg(long)]
    config_only: bool,
    /// Ports that other processes hold are no finding: `run --share-ports` shares them
    #[arg(long)]
    share_ports: bool,
}

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Level {
    /// The object is not served.
    Rejected,
    /// It behaves otherwise than in APISIX.
    Changes,
    /// Worth a look.
    Warn,
    /// Listed for completeness; counts for nothing.
    Unused,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected => "REJECTED",
            Self::Changes => "CHANGES ",
            Self::Warn => "WARN    ",
            Self::Unused => "unused  ",
        })
    }
}

/// One line of the report.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// The id of the difference to APISIX that is behind it (docs/compatibility.md), if one is.
    pub(super) rule: Option<&'static str>,
    /// The object, such as `stream_routes/7`.
    pub(super) object: String,
    pub(super) sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.level)?;
        if let Some(rule) = self.rule {
            write!(f, "{rule} ")?;
        }
        write!(f, "{}  {}", self.object, self.sentence)
    }
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let config = match arguments.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut out = io::stdout().lock();
    match report(&config, arguments, &mut out) {
        Ok(code) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot write the report: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn report(config: &Config, arguments: &Arguments, out: &mut impl Write) -> io::Result<ExitCode> {
    let count = |transport| config.listens.iter().filter(|listen| listen.transport == transport).count();
    writeln!(out, "config   ok; {} tcp and {} udp listens", count(Transport::Tcp), count(Transport::Udp))?;
    let mut findings = config_findings(config, arguments.share_ports);
    if !arguments.config_only {
        match load::load(config) {
            Ok(loaded) => {
                writeln!(out, "{}", source_line(config, &loaded))?;
                findings.extend(objects::findings(&loaded));
                findings.extend(certificates::findings(config, &loaded, now()));
                findings.extend(listens::findings(config, &loaded));
                findings.extend(order::findings(&loaded, config.rules.standalone));
            }
            Err(why) => {
                writeln!(out, "FAILED   {why}")?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    findings.sort_by(|a, b| (a.level, &a.object).cmp(&(b.level, &b.object)));
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    let of = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (rejected, changes, warnings) = (of(Level::Rejected), of(Level::Changes), of(Level::Warn));
    let code = u8::from(rejected + changes > 0);
    writeln!(out, "{rejected} rejected, {changes} change behaviour, {warnings} warnings; exit {code}")?;
    Ok(ExitCode::from(code))
}

/// The wall clock, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn config_findings(config: &Config, share_ports: bool) -> Vec<Finding> {
    let warn = |sentence: &str| Finding {
        level: Level::Warn,
        rule: None,
        object: "config.yaml".into(),
        sentence: sentence.into(),
    };
    let mut findings: Vec<_> = config.warnings.iter().map(|sentence| warn(sentence)).collect();
    if !share_ports {
        let taken = config.listens.iter().filter_map(|listen| {
            let (transport, addr) = (listen.transport, listen.addr);
            bind::bind(&bind::Plan { transport, addr, count: 1, share: false }).err()
        });
        findings.extend(taken.map(|error| warn(&format!("`run` would not start: {error}"))));
    }
    findings
}

fn source_line(config: &Config, loaded: &load::Loaded) -> String {
    let store = &loaded.store;
    let place = match &config.source {
        Source::Etcd(etcd) => {
            format!("etcd     {}{} revision {}", etcd.hosts.join(","), etcd.prefix, store.revision())
        }
        Source::File(path) => format!("file     {}", path.display()),
    };
    format!(
        "{place}; {} stream_routes, {} upstreams ({} used by streams), {} services, {} ssls",
        store.count(Kind::StreamRoute),
        store.count(Kind::Upstream),
        loaded.snapshot.upstream_pools().count(),
        store.count(Kind::Service),
        store.count(Kind::Ssl),
    )
}
