//! `streamgate accept-state`: tells the running gateway to let a held full read take effect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use super::{ConfigFile, complain, http, say};

/// Arguments of `accept-state`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the running gateway's metrics or status server; default: the one of config.yaml
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let address = match address(arguments) {
        Ok(address) => address,
        Err(code) => return code,
    };
    match http::request(&address.to_string(), "POST", "/streamgate/accept-state") {
        Ok((202, _)) => {
            say("accepted: the held configuration takes effect now");
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            complain(format_args!("the gateway at {address} answered {status}: {}", body.trim()));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(format_args!(
                "cannot reach the gateway at {address}: {error}; it answers on its metrics or status address, \
                 from this host only"
            ));
            ExitCode::FAILURE
        }
    }
}

fn address(arguments: &Arguments) -> Result<SocketAddr, ExitCode> {
    if let Some(address) = arguments.address {
        return Ok(address);
    }
    let config = arguments.config.load()?;
    let found = config.status.or_else(|| config.prometheus.map(|prometheus| prometheus.addr));
    found.map(reachable).ok_or_else(|| {
        complain("config.yaml opens neither a metrics nor a status server: give --address");
        ExitCode::from(super::MISTAKE)
    })
}

/// A server on every address answers on loopback, the only peer it takes commands from.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
