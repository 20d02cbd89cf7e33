//! `streamgate run`: serves until a signal ends it.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use sd_notify::NotifyState;
use streamgate::app::{Gateway, Options};
use streamgate::config::{self, Config};
use streamgate::live::logs::Which;
use streamgate::log;
use streamgate::metrics::Metrics;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigFile, LogFormat, complain};

/// How long TERM lets sessions finish.
const TERM: Duration = Duration::from_secs(10);
/// How much nicer than the workers the control plane is: sessions go first.
const NICENESS: i32 = 5;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Listen on ports that other processes hold too, sharing their connections
    #[arg(long)]
    share_ports: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let config = match arguments.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let format = if arguments.log_format.is_json() {
        log::Format::Json
    } else {
        log::Format::Human { colours: io::stderr().is_terminal() }
    };
    let metrics = Metrics::new(&streamgate::admin::kinds(), env!("CARGO_PKG_VERSION"));
    let log = match log::init(format, &level(&config), metrics.log_lines_dropped.clone()) {
        Ok(log) => log,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    let options = Options { share_ports: arguments.share_ports, metrics: Some(metrics) };
    let process = Process { file: arguments.config.config.clone(), log };
    let outcome = runtime()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(serve(config, options, &process)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                tracing::error!("cannot start: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// APISIX's default level is warn, which would hide that the gateway is ready, that HUP worked, and that a
/// trouble with etcd, a resolver or a registry is over.
fn level(config: &Config) -> String {
    let sessions = &config.session_log;
    let told = sessions.which == Which::All || sessions.long.is_some();
    match &*config.log_level {
        // The TLS library as in the log's own levels.
        "warn" => {
            "warn,rustls=error,streamgate::app=info,streamgate::control=info,streamgate::cli=info,\
             streamgate::resolve=info,streamgate::discovery=info,streamgate::source=info,streamgate::report=info"
            .to_owned()
            // Who asks for every session wants to see the normal ones, too.
            + if told { ",streamgate::session=info" } else { "" }
        }
        other => other.into(),
    }
}

/// The runtime of everything but sessions.
fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .on_thread_start(|| {
            // Where it is not allowed, it runs as the workers do.
            let _ = rustix::process::nice(NICENESS);
        })
        .enable_all()
        .build()
}

/// The signals of nginx. Taken before anything else, so that none keeps its default action.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    reopen: Signal,
    terminate: Signal,
    upgrade: Signal,
    winch: Signal,
}

/// What outlives a reading of config.yaml.
#[derive(Debug)]
struct Process {
    /// As given with `-c`.
    file: Option<PathBuf>,
    log: log::Log,
}

/// How to end.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Now,
    Within(Duration),
}

impl Signals {
    fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            upgrade: signal(SignalKind::user_defined2())?,
            winch: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for any signal that ends the process.
    async fn ending(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn serve(config: Config, options: Options, process: &Process) -> anyhow::Result<()> {
    let mut signals = Signals::take()?;
    for warning in &config.warnings {
        tracing::warn!("config.yaml: {warning}");
    }
    let mut gateway = Gateway::start(config, options).await?;
    let stop = until_stopped(&mut gateway, &mut signals, process).await?;
    tell(&[NotifyState::Stopping]);
    let limit = match stop {
        Stop::Now => Duration::ZERO,
        Stop::Within(limit) => limit,
    };
    tracing::info!("stopping: sessions have {limit:?} to finish; INT or a second signal ends them at once");
    gateway.stop(limit, signals.ending()).await;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the listens as soon as there is a state, and obeys signals until one ends the process.
async fn until_stopped(
    gateway: &mut Gateway,
    signals: &mut Signals,
    process: &Process,
) -> anyhow::Result<Stop> {
    let mut open = false;
    loop {
        tokio::select! {
            opened = gateway.open(), if !open => {
                opened?;
                open = true;
                tell(&[NotifyState::Ready]);
            }
            _ = signals.hangup.recv() => process.reload(gateway).await,
            _ = signals.interrupt.recv() => return Ok(Stop::Now),
            _ = signals.terminate.recv() => return Ok(Stop::Within(TERM)),
            _ = signals.quit.recv() => return Ok(Stop::Within(gateway.shutdown_timeout())),
            _ = signals.reopen.recv() => gateway.reopen_logs().await,
            _ = signals.upgrade.recv() => {
                tracing::warn!("USR2: replacing the binary without a restart is not built; ignored");
            }
            _ = signals.winch.recv() => tracing::debug!("WINCH: ignored"),
        }
    }
}

impl Process {
    /// Reads config.yaml again and follows it, or says why not.
    async fn reload(&self, gateway: &mut Gateway) {
        tell(&[NotifyState::Reloading]);
        match self.follow(gateway).await {
            Ok(()) => tracing::info!("HUP: config.yaml was read again"),
            Err(why) => {
                for line in why.lines() {
                    tracing::error!("HUP: {line}");
                }
                tracing::error!("HUP: config.yaml cannot be followed; nothing has changed");
            }
        }
        tell(&[NotifyState::Ready]);
    }

    async fn follow(&self, gateway: &mut Gateway) -> Result<(), String> {
        let config = config::load(self.file.as_deref()).map_err(|mistakes| mistakes.to_string())?;
        let level = level(&config);
        gateway.reload(config).await.map_err(|error| format!("{error:#}"))?;
        self.log.set_level(&level).map_err(|error| error.to_string())
    }
}

/// Tells the service manager, where there is one.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager was not told: {error}");
    }
}
