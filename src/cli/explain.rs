//! `streamgate explain`: which route and node a connection gets, and why.

use std::io::{self, BufRead, BufWriter, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use streamgate::admin::explain::{Facing, Question, explain, from_hex};
use streamgate::config::Source;
use streamgate::session::Transport;
use streamgate::sni::hello::normalized;
use tokio::time::Instant;

use self::text::Origin;
use super::{ConfigFile, MISTAKE, complain, load, validate};

mod jsonl;
mod remote;
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
    /// The first bytes the client sends, in hexadecimal: some plugins look at them
    #[arg(long, value_name = "HEX")]
    preread: Option<Hex>,
    /// A variable that plugins shall see in place of the session's own; may be given several times
    #[arg(long = "var", value_name = "NAME=VALUE")]
    vars: Vec<Var>,
    /// How many routes that fell out are listed one by one
    #[arg(long, value_name = "N", default_value_t = 10)]
    others: usize,
    /// Ask the running node whose control API has this address (`http://host:port`)
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    node: Option<NodeUrl>,
    /// Read cases from standard input, one JSON object a line, each with its own objects
    #[arg(long, conflicts_with_all = ["client", "server", "sni", "tls", "udp", "preread", "vars", "node"])]
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

/// Bytes.
#[derive(Clone, Debug)]
struct Hex(Vec<u8>);

impl std::str::FromStr for Hex {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self).ok_or("write an even number of hex digits, such as 101000044d515454")
    }
}

/// A variable with its value.
#[derive(Clone, Debug)]
struct Var(String, String);

impl std::str::FromStr for Var {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as mqtt_client_id=c1")?;
        Ok(Self(name.trim_start_matches('$').to_owned(), value.to_owned()))
    }
}

/// Where a running node answers: the `host:port` of its control API.
#[derive(Clone, Debug)]
struct NodeUrl(String);

impl std::str::FromStr for NodeUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "write the control address of a node, such as http://127.0.0.1:9090";
        if text.starts_with("https://") {
            return Err(format!("the control API speaks no TLS; {wanted}"));
        }
        let authority = text.strip_prefix("http://").ok_or(wanted)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let bare = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if authority.is_empty() || !authority.chars().all(bare) {
            return Err(wanted.into());
        }
        let (_, after_address) = authority.rsplit_once(']').unwrap_or(("", authority));
        let port = if after_address.contains(':') { "" } else { ":9090" };
        Ok(Self(format!("{authority}{port}")))
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
    let question = Question {
        client: client.0,
        server,
        transport: if arguments.udp { Transport::Udp } else { Transport::Tcp },
        sni: arguments.sni.clone(),
        tls: arguments.tls,
        preread: arguments.preread.as_ref().map(|hex| hex.0.clone()).unwrap_or_default(),
        vars: arguments.vars.iter().map(|Var(name, value)| (name.clone(), value.clone())).collect(),
        others: arguments.others,
    };
    match &arguments.node {
        Some(node) => match remote::ask(&node.0, &question) {
            Ok(answer) => finish(text::write(&answer, Origin::Node, &mut io::stdout())),
            Err(why) => {
                complain(why);
                ExitCode::FAILURE
            }
        },
        None => here(arguments, &question),
    }
}

/// Reads the objects and answers.
fn here(arguments: &Arguments, question: &Question) -> ExitCode {
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
    let facing = Facing { listens: config.listens, fallback_sni: config.ssl.fallback_sni };
    let (source, origin) = match &config.source {
        Source::Etcd(_) => ("etcd", Origin::Etcd),
        Source::File(path) => ("file", Origin::File(path)),
    };
    let answer = explain(&loaded.snapshot, &facing, question, source, Instant::now().into_std());
    finish(text::write(&answer, origin, &mut io::stdout()))
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
