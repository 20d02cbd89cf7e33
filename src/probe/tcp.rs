//! A probe that connects, and where it was told to also says and hears something.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Plan, Probed};
use crate::balance::Target;
use crate::health::Report;
use crate::net::dial::{self, DialError};
use crate::session::ConnectFailure;

/// What a node may send before it has to have said what is expected.
const MOST: usize = 16 * 1024;

/// The result, with what was found. That it connects is all that counts, unless `tcp_send` or
/// `tcp_expect` is set.
pub(super) async fn probe(plan: &Plan, target: &Target) -> Probed {
    let limit = plan.checks.active.timeout;
    let stream = match dial::connect(target.addr, limit, pin!(sleep(limit))).await {
        Ok(stream) => stream,
        // What this host lacks is not the node's fault.
        Err(error) if error.failure() == ConnectFailure::Exhausted => return None,
        Err(error) => return Some(failed(&error)),
    };
    let extensions = &plan.extensions;
    if let Some(bytes) = &extensions.tcp_send
        && let Err(failure) = within(limit, "take what is sent", send(&stream, bytes)).await
    {
        return Some(failure);
    }
    if let Some(expected) = &extensions.tcp_expect {
        let mut heard = Vec::new();
        let step = expect(&stream, expected, &mut heard);
        if let Err((report, why)) = within(limit, "answer what is expected", step).await {
            let said = if heard.is_empty() { String::new() } else { format!("; it said {}", shown(&heard)) };
            return Some((report, why + &said));
        }
    }
    let expects = extensions.tcp_expect.is_some();
    let why = if expects { "it answers what is expected" } else { "it takes connections" };
    Some((Report::Success, why.into()))
}

/// What a failed connection means.
fn failed(error: &DialError) -> (Report, String) {
    let report = if matches!(error, DialError::TimedOut(_)) { Report::Timeout } else { Report::TcpFailure };
    (report, error.to_string())
}

async fn within(
    limit: Duration,
    what: &str,
    step: impl Future<Output = io::Result<()>>,
) -> Result<(), (Report, String)> {
    match timeout(limit, step).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err((Report::TcpFailure, format!("it does not {what}: {error}"))),
        Err(_) => Err((Report::Timeout, format!("it does not {what} within {limit:?}"))),
    }
}

/// The beginning of what a node said, for the operator.
fn shown(heard: &[u8]) -> String {
    const SHOWN: usize = 60;
    let more = if heard.len() > SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", heard.get(..SHOWN).unwrap_or(heard).escape_ascii())
}

async fn send(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn expect(stream: &TcpStream, expected: &[u8], heard: &mut Vec<u8>) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let mut chunk = [0; 2048];
        match stream.try_read(&mut chunk) {
            Ok(0) => return Err(io::Error::other("it closed before")),
            Ok(count) => heard.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if heard.windows(expected.len()).any(|window| window == expected) {
            return Ok(());
        }
        if heard.len() >= MOST {
            return Err(io::Error::other("it sent 16 KiB of something else"));
        }
    }
}
