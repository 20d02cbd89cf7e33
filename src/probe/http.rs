//! A probe that asks by HTTP, over TLS or not (`resty/healthcheck.lua:1037-1159`).
//!
//! Only the status counts. TLS says the Host header as the server name; an address is not said.

use std::net::IpAddr;

use rustls::pki_types::ServerName;

use super::{Plan, Probed};
use crate::balance::Target;
use crate::health::Report;
use crate::net::dial;
use crate::net::http::{self, HttpError, Limits, Request, Secure, To};
use crate::resource::{ActiveCheck, CheckKind};
use crate::session::ConnectFailure;

/// The result, with what was found; `None` where the status is on neither list.
pub(super) async fn probe(plan: &Plan, target: &Target) -> Probed {
    let active = &plan.checks.active;
    let host = active.host_header.as_deref().unwrap_or(&target.host);
    let secure = match secure(active, host, plan) {
        Ok(secure) => secure,
        Err(why) => return Some((Report::TcpFailure, why)),
    };
    let mut headers: Vec<(&str, &str)> =
        active.request.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    if headers.iter().all(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        headers.push(("Host", host));
    }
    let (method, path, body) =
        (&*active.request.method, &*active.request.path, active.request.body.as_bytes());
    let request = Request { method, path, headers: &headers, body };
    let limits = Limits { connect: active.timeout, answer: active.timeout, body: 0 };
    match http::status(To::Addr(target.addr), secure.as_ref(), request, limits).await {
        Ok(status) => {
            let report = active.judge(status)?;
            Some((report, format!("{method} {path} answers {status}")))
        }
        // What this host lacks, or cannot say, is not the node's fault.
        Err(HttpError::Request(_)) => None,
        Err(HttpError::Connect(error)) if dial::failure(&error) == ConnectFailure::Exhausted => None,
        Err(error) => Some((meant(&error), error.to_string())),
    }
}

/// TLS for a probe by https.
fn secure(active: &ActiveCheck, host: &str, plan: &Plan) -> Result<Option<Secure>, String> {
    if active.kind != CheckKind::Https {
        return Ok(None);
    }
    let trust = &plan.shared.trust;
    let config = trust
        .towards(active.request.verify)
        .map_err(|why| format!("its certificate cannot be verified: {why}"))?;
    let bare = host.trim_matches(['[', ']']);
    // A Host header may carry a port, a server name may not.
    let name = if let Ok(ip) = bare.parse::<IpAddr>() {
        ServerName::from(ip)
    } else {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no server name for TLS"))?
    };
    Ok(Some(Secure { config, name }))
}

/// Which counter an error belongs to.
fn meant(error: &HttpError) -> Report {
    match error {
        HttpError::ConnectTimedOut(_) | HttpError::AnswerTimedOut(_) => Report::Timeout,
        HttpError::NotHttp(_) => Report::HttpFailure,
        _ => Report::TcpFailure,
    }
}
