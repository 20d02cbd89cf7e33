//! The pure part of `streamgate validate`: one JSON line in, one out.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::document;
use super::plugins::{self, Owner};
use super::rules::{Notes, Rejection, Rules};
use super::{Key, Kind};

/// A line of input.
#[derive(Deserialize)]
struct Question<'a> {
    #[serde(default)]
    id: Value,
    kind: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// A line of output.
#[derive(Default, Serialize)]
struct Answer {
    id: Value,
    ok: bool,
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Answers one line `{"id","kind","value"}` with `{"id","ok","error"}`, and where there is any with
/// `unusable` (accepted by APISIX, not servable here) and `warnings`.
///
/// `kind` is `stream_route`, `upstream`, `service`, `ssl`, `secret`, `plugins`, `plugin:<name>` (the
/// value is its configuration on a stream_route) or `plugin_metadata:<name>`. A line that cannot be
/// read is answered too, with `ok` false and a null `id` where none is found.
#[must_use]
pub fn validate_line(rules: &Rules, line: &str) -> String {
    let answer = match serde_json::from_str::<Question<'_>>(line) {
        Err(error) => Answer {
            id: serde_json::from_str::<Value>(line)
                .ok()
                .and_then(|line| line.get("id").cloned())
                .unwrap_or_default(),
            error: Some(format!("the line is not an object with `id`, `kind` and `value`: {error}")),
            ..Answer::default()
        },
        Ok(question) => {
            let id = question.id.clone();
            match decide(rules, &question) {
                Ok(notes) => Answer {
                    id,
                    ok: true,
                    error: None,
                    unusable: notes.unusable.map(|why| why.text),
                    warnings: notes.warnings.into_iter().map(|warning| warning.text).collect(),
                },
                Err(rejection) => Answer { id, error: Some(rejection.to_string()), ..Answer::default() },
            }
        }
    };
    // Plain data with string keys always serializes.
    serde_json::to_string(&answer).unwrap_or_default()
}

fn decide(rules: &Rules, question: &Question<'_>) -> Result<Notes, Rejection> {
    let bytes = question.value.get().as_bytes();
    if let Some(name) = question.kind.strip_prefix("plugin:") {
        let mut notes = Notes::default();
        let conf = document::read(bytes, &mut notes)?;
        plugins::one(rules, name.to_owned(), conf, Owner::StreamRoute, &mut notes)?;
        return Ok(notes);
    }
    let id = match &question.id {
        Value::String(id) => id.clone(),
        other => other.to_string(),
    };
    let key = match (question.kind.as_str(), question.kind.strip_prefix("plugin_metadata:")) {
        ("stream_route", _) => Key::new(Kind::StreamRoute, id),
        ("upstream", _) => Key::new(Kind::Upstream, id),
        ("service", _) => Key::new(Kind::Service, id),
        ("ssl", _) => Key::new(Kind::Ssl, id),
        ("secret", _) => Key::new(Kind::Secret, id),
        ("plugins", _) => Key::new(Kind::Plugins, ""),
        (_, Some(name)) => Key::new(Kind::PluginMetadata, name),
        (kind, None) => {
            return Err(format!(
                "kind {kind:?} is unknown; there are stream_route, upstream, service, ssl, secret, plugins, plugin:<name>, plugin_metadata:<name>"
            )
            .into());
        }
    };
    let parsed = rules.parse(&key, bytes)?;
    Ok(Notes { warnings: parsed.warnings, unusable: parsed.unusable })
}
