//! References to secrets: `$env://NAME` and `$env://NAME/member` (`apisix/core/env.lua:99-141`).
//!
//! The environment of a process does not change, so a reference is replaced where the object is read.
//! APISIX goes on with the reference itself where nothing is behind it and fails each handshake; here
//! the error says so at once. `$secret://` names a secret manager, which this version does not ask.

use std::borrow::Cow;

use serde_json::Value;

use super::document::is_reference;
use super::explain::escaped;
use crate::config::Variables;

const ENV: usize = "$env://".len();

/// What `text` stands for: the secret where it is a reference, else itself. The error reads on after
/// the name of the field.
pub(super) fn resolve<'a>(variables: &Variables, text: &'a str) -> Result<Cow<'a, str>, String> {
    if !is_reference(text) {
        return Ok(Cow::Borrowed(text));
    }
    if text.starts_with("$secret://") {
        return Err(format!(
            "is {text:?}, and secret managers are not asked by this version; write the text itself or an \
             $env:// reference"
        ));
    }
    let path = text.get(ENV..).unwrap_or_default();
    let (name, member) = path.split_once('/').unwrap_or((path, ""));
    let Some(value) = variables.get(name) else {
        return Err(format!(
            "is {text:?}, and this process has no environment variable {name}; set it and restart"
        ));
    };
    if member.is_empty() {
        return Ok(Cow::Owned(value.to_owned()));
    }
    match serde_json::from_str::<Value>(value)
        .ok()
        .and_then(|mut value| value.get_mut(member).map(Value::take))
    {
        Some(Value::String(secret)) => Ok(Cow::Owned(secret)),
        _ => Err(format!(
            "is {text:?}, and the environment variable {name} is no JSON object with a text {member:?}"
        )),
    }
}

/// Replaces the references in all texts below `value`; `secrets` gets what they stood for. The error is a
/// sentence that begins with the path, after `at`, of the first one with nothing behind it.
pub(super) fn replace(
    variables: &Variables,
    value: &mut Value,
    at: &str,
    secrets: &mut Vec<String>,
) -> Result<(), String> {
    match value {
        Value::String(text) if is_reference(text) => {
            *text = resolve(variables, text).map_err(|why| format!("{at} {why}"))?.into_owned();
            secrets.push(text.clone());
        }
        Value::Array(list) => {
            for (place, inner) in list.iter_mut().enumerate() {
                replace(variables, inner, &format!("{at}/{place}"), secrets)?;
            }
        }
        Value::Object(map) => {
            for (name, inner) in map.iter_mut() {
                replace(variables, inner, &format!("{at}/{}", escaped(name)), secrets)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The same text; another one where it shows what a reference stood for.
pub(super) fn without(secrets: &[String], text: String) -> String {
    let shows = |secret: &String| {
        let quoted = format!("{secret:?}");
        !secret.is_empty() && (text.contains(secret.as_str()) || text.contains(quoted.trim_matches('"')))
    };
    if secrets.iter().any(shows) {
        return "something is wrong with what a reference to a secret stands for; look at the variables"
            .into();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let variables = [("CERT", "pem"), ("BOTH", r#"{"cert":"c","n":1}"#)];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variables = Variables::new(variables.into());
        match (resolve(&variables, text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn references_become_what_they_stand_for() {
        check("plain", Ok("plain"));
        check("$env://CERT", Ok("pem"));
        check("$ENV://CERT", Ok("pem"));
        check("$env://BOTH/cert", Ok("c"));
        check("$env://BOTH/n", Err("no JSON object with a text \"n\""));
        check("$env://BOTH/other", Err("no JSON object"));
        check("$env://CERT/cert", Err("no JSON object"));
        check("$env://NONE", Err("no environment variable NONE"));
        check("$secret://vault/1/cert", Err("secret managers are not asked"));
    }
}
