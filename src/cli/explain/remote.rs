//! Asks a running node: `GET /v1/explain` of its control API.

use std::fmt::Write as _;

use serde_json::Value;
use streamgate::admin::explain::{Answer, Question};
use streamgate::net::http::encoded;

use crate::cli::http;

/// The answer of the node at `authority`, a `host:port`. The error is a sentence for the operator.
pub(super) fn ask(authority: &str, question: &Question) -> Result<Answer, String> {
    let (status, body) = http::request(authority, "GET", &path(question)).map_err(|error| {
        format!(
            "cannot ask the node at http://{authority}: {error}; a node answers on apisix.control of its \
             config.yaml, by default on 127.0.0.1:9090 of its own host"
        )
    })?;
    let body: Option<Value> = serde_json::from_str(&body).ok();
    match (status, body) {
        (200, Some(body)) if body.get("source").is_some() => serde_json::from_value(body)
            .map_err(|error| format!("the node at http://{authority} answers in another form: {error}")),
        (400, Some(body)) => {
            let why = body.get("error_msg").and_then(Value::as_str).unwrap_or("it gives no reason");
            Err(format!("the node at http://{authority} refuses the question: {why}"))
        }
        (404, _) => Err(format!(
            "http://{authority} has no /v1/explain: it is an APISIX, or not the control address of a streamgate; \
             its log line `gateway ready` tells that one as `control`"
        )),
        (status, _) => Err(format!(
            "http://{authority} answers {status} with something else than an explanation; is it the control address \
             of a streamgate?"
        )),
    }
}

fn path(question: &Question) -> String {
    let mut path = format!(
        "/v1/explain?client={}&server={}&transport={}&others={}",
        encoded(&question.client.to_string()),
        encoded(&question.server.to_string()),
        question.transport.label(),
        question.others
    );
    if question.tls {
        path.push_str("&tls=true");
    }
    if let Some(sni) = &question.sni {
        path.push_str("&sni=");
        path.push_str(&encoded(sni));
    }
    if !question.preread.is_empty() {
        path.push_str("&preread=");
        question.preread.iter().for_each(|byte| _ = write!(path, "{byte:02x}"));
    }
    for (name, value) in &question.vars {
        let _ = write!(path, "&var.{}={}", encoded(name), encoded(value));
    }
    path
}
