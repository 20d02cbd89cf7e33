//! Arguments, and the exit code each ending has.
//!
//! 0: done. 1: start failed, or `check` found rejected objects or changed behaviour. 64: mistakes in
//! config.yaml or in the arguments (`EX_USAGE` of sysexits.h).

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use streamgate::config::{self, Config};

mod accept_state;
mod check;
mod explain;
mod http;
mod load;
mod run;
mod validate;

/// Exit code for mistakes of the operator's.
const MISTAKE: u8 = 64;

/// An L4 gateway configured by the data Apache APISIX keeps in etcd.
#[derive(Debug, Parser)]
#[command(name = "streamgate", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Examples:
  streamgate check -c conf/config.yaml     what this gateway would do with your etcd, before it listens
  streamgate run -c conf/config.yaml       serve
  streamgate explain --client 10.8.0.7 --server 10.0.0.2:3306
                                           which route and node a connection gets, and why")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to stop
    #[command(
        after_help = "Signals: TERM drains for 10 s, QUIT for worker_shutdown_timeout, INT or a second \
        one ends at once; HUP reads config.yaml again, opens and closes listens and keeps every session; \
        USR1 opens the files of the access log and the session log anew.

Examples:
  streamgate run -c conf/config.yaml
  streamgate run -c deploy/standalone.yaml      no etcd: objects from a file"
    )]
    Run(run::Arguments),
    /// Check config.yaml and every object: mistakes, rejected objects, changed behaviour, warnings
    #[command(after_help = "Exit code 64: config.yaml has mistakes. 1: objects are rejected or behave \
        otherwise than in APISIX. 0: neither; there may be warnings.

Examples:
  streamgate check -c conf/config.yaml
  streamgate check -c conf/config.yaml && streamgate run -c conf/config.yaml")]
    Check(check::Arguments),
    /// Judge objects given as JSON lines, as an APISIX data plane would
    #[command(
        after_help = "Each line is {\"id\",\"kind\",\"value\"}; kinds are stream_route, upstream, service, ssl, \
        plugin:<name>. Each answer is {\"id\",\"ok\",\"error\"}.

Example:
  echo '{\"id\":1,\"kind\":\"stream_route\",\"value\":{\"server_port\":\"x\"}}' | streamgate validate"
    )]
    Validate(validate::Arguments),
    /// Say which route and node a connection gets, and why every other candidate fell out
    #[command(after_help = "Examples:
  streamgate explain -c conf/config.yaml --client 10.8.0.7 --server 10.0.0.2:3306
  streamgate explain --client 10.8.0.7:40000 --server 10.0.0.2:8883 --sni mqtt.example.com
  streamgate explain --node http://127.0.0.1:9090 --client 10.8.0.7 --server 10.0.0.2:3306
  streamgate explain --jsonl < cases.jsonl      many cases, objects in the line itself")]
    Explain(explain::Arguments),
    /// Let a full read of the configuration take effect that the running gateway holds back
    #[command(
        after_help = "A full read that would remove more than half of the stream_routes is held for 10 \
        minutes; `/streamgate/status` shows it.

Example:
  streamgate accept-state -c conf/config.yaml"
    )]
    AcceptState(accept_state::Arguments),
    /// Print the version
    #[command(after_help = "Example:
  streamgate version")]
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "Example:
  streamgate completions bash > /etc/bash_completion.d/streamgate")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text with the level in front.
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    fn is_json(self) -> bool {
        match self {
            Self::Auto => !io::stderr().is_terminal(),
            Self::Human => false,
            Self::Json => true,
        }
    }
}

/// Where config.yaml is.
#[derive(Clone, Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file; default conf/config.yaml, or conf/config-$APISIX_PROFILE.yaml
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads it, or prints every mistake.
    fn load(&self) -> Result<Config, ExitCode> {
        config::load(self.config.as_deref()).map_err(|mistakes| {
            complain(&mistakes);
            ExitCode::from(MISTAKE)
        })
    }
}

pub(crate) fn main() -> ExitCode {
    // `head` closing our pipe ends us quietly: a write error is the end of output, not a panic.
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { MISTAKE } else { 0 };
            // There is nowhere else to tell that printing failed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::AcceptState(arguments) => accept_state::run(&arguments),
        Command::Version => {
            say(format_args!("streamgate {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Command::Completions { shell } => {
            let mut command = <Arguments as clap::CommandFactory>::command();
            // The generator panics where it cannot write, which a Vec always lets it.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "streamgate", &mut script);
            let _ = io::stdout().write_all(&script);
            ExitCode::SUCCESS
        }
    }
}

/// Prints a line to standard output. A reader that has gone away is no error of ours.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line to standard error.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
