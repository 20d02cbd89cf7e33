//! `streamgate explain`: which route and node a connection gets, and why.

use std::io::{self, BufRead, BufWriter, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use streamgate::session::{Inbound, Transport};
use streamgate::sni::hello::normalized;

use super::{ConfigFile, MISTAKE, complain, load, validate};

mod jsonl;
mod text;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// The client's address; the port may be left out
    #[arg(long, value_name = "IP[:PORT]", required_unless_present = "jsonl")]
    client: Option<Endpoint>,
    /// The local address the client connects to
    #[arg(long, value_name = "IP:PORT", required_unless_present = "jsonl")]
    server: Option<SocketAddr>,
    /// The TLS server name the client sends
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The client speaks TLS that is terminated here: without a name it gets `fallback_sni` of config.yaml
    #[arg(long, conflicts_with = "udp")]
    tls: bool,
    /// A datagram instead of a TCP connection
    #[arg(long)]
    udp: bool,
    /// How many routes that fell out are listed one by one
    #[arg(long, value_name = "N", default_value_t = 10)]
    others: usize,
    /// Read cases from standard input, one JSON object a line, each with its own objects
    #[arg(long, conflicts_with_all = ["client", "server", "sni", "tls", "udp"])]
    jsonl: bool,
}

/// A client's address whose port does not matter much.
#[derive(Clone, Copy, Debug)]
struct Endpoint(SocketAddr);

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alone = || text.trim_matches(['[', ']']).parse().map(|ip| SocketAddr::new(ip, 0));
        text.parse()
            .or_else(|_| alone())
            .map(Self)
            .map_err(|_| "write 10.0.0.1, 10.0.0.1:5000 or [2001:db8::1]:5000".into())
    }
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    if arguments.jsonl {
        return cases(arguments);
    }
    // clap asks for both unless --jsonl is there.
    let (Some(client), Some(server)) = (arguments.client, arguments.server) else {
        return ExitCode::from(MISTAKE);
    };
    let config = match arguments.config.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let loaded = match load::load(&config) {
        Ok(loaded) => loaded,
        Err(why) => {
            complain(why);
            return ExitCode::FAILURE;
        }
    };
    let transport = if arguments.udp { Transport::Udp } else { Transport::Tcp };
    let mut inbound = Inbound::new(transport, client.0, server);
    let tls = arguments.tls || arguments.sni.is_some();
    let fallback = config.ssl.fallback_sni.as_deref().filter(|_| tls);
    inbound.sni = arguments.sni.as_deref().or(fallback).and_then(server_name);
    let (inbound, others, listens) = (&inbound, arguments.others, config.listens.as_slice());
    let question = text::Question { inbound, tls, ends: arguments.tls, others, listens };
    finish(text::explain(&loaded, &question, &mut io::stdout()))
}

fn cases(arguments: &Arguments) -> ExitCode {
    let rules = match validate::rules(&arguments.config) {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let mut output = BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().split(b'\n') {
        let written = line.and_then(|line| {
            let line = String::from_utf8_lossy(&line);
            if line.trim().is_empty() {
                return Ok(());
            }
            writeln!(output, "{}", jsonl::answer(&rules, &line))?;
            // A co-process waits for each answer.
            output.flush()
        });
        if written.is_err() {
            return finish(written);
        }
    }
    ExitCode::SUCCESS
}

fn finish(written: io::Result<()>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot read or write lines: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A server name as routes see it: lower case, without its final dot; none where it is empty.
fn server_name(text: &str) -> Option<Arc<str>> {
    let name = normalized(text);
    (!name.is_empty()).then(|| name.into())
}
