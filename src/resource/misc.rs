//! The small objects: plugin metadata, secret managers, the list of plugins.

use std::sync::Arc;

use serde_json::Value;

use super::explain::brief;
use super::rules::{Rejection, Rules};

/// Neither checked nor given defaults in a stream, as in APISIX (`apisix/plugin.lua:1226`).
pub(super) fn plugin_metadata(value: Value) -> Result<Value, Rejection> {
    if value.is_object() || value.as_array().is_some_and(Vec::is_empty) {
        return Ok(value);
    }
    Err(format!("the value is {}; an object is allowed", brief(&value)).into())
}

/// The manager is read from the `id` inside, which has to be there (`apisix/secret.lua:40`).
pub(super) fn secret(rules: &Rules, mut value: Value) -> Result<Value, Rejection> {
    let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
    let manager = id.split_once('/').map_or("", |(manager, _)| manager);
    let Some(schema) = rules.schemas.secret(manager) else {
        return Err(format!(
            "/id is {id:?}; `<manager>/<name>` with the manager vault, aws or gcp is allowed"
        )
        .into());
    };
    schema.check(&mut value, "")?;
    schema.fill(&mut value);
    Ok(value)
}

/// The names of `[{"name":…,"stream":true}, …]`.
pub(super) fn plugins(value: Value) -> Result<Arc<[Box<str>]>, Rejection> {
    let list = match value {
        Value::Array(list) => list,
        Value::Object(map) if map.is_empty() => Vec::new(),
        other => return Err(format!("the value is {}; a list of plugins is allowed", brief(&other)).into()),
    };
    let mut names = Vec::new();
    for (i, plugin) in list.iter().enumerate() {
        let Some(name) = plugin.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
            return Err(format!("/{i} lacks `name`: a string of 1 or more characters").into());
        };
        match plugin.get("stream") {
            Some(Value::Bool(true)) => names.push(name.into()),
            None | Some(Value::Bool(false)) => {}
            Some(other) => {
                return Err(format!("/{i}/stream is {}; true or false is allowed", brief(other)).into());
            }
        }
    }
    Ok(names.into())
}
