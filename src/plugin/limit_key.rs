//! What a limit counts sessions under: `key` and `key_type`.

use std::fmt;
use std::fmt::Write as _;

use serde_json::Value;

use super::Scene;
use crate::live::limits::LimitKey;
use crate::resource::Key as Owner;
use crate::template::Template;

/// `key` of a limit.
#[derive(Debug)]
pub(super) enum Key {
    /// The value of a variable.
    Variable(Box<str>),
    /// Several in one text (`key_type: var_combination`).
    Combination(Template),
}

impl Key {
    /// Reads `key` and `key_type`; without a key sessions are counted by the address of their client.
    pub(super) fn new(conf: &Value) -> Self {
        let key = conf.get("key").and_then(Value::as_str).unwrap_or("remote_addr");
        match conf.get("key_type").and_then(Value::as_str) {
            Some("var_combination") => Self::Combination(Template::new(key)),
            _ => Self::Variable(key.into()),
        }
    }

    /// Writes the key of a session to `key`. One that has nothing of what is asked for is counted by its
    /// address; an empty value is one (`apisix/plugins/limit-conn/init.lua`).
    pub(super) fn write(&self, scene: &Scene<'_>, key: &mut LimitKey) {
        self.write_to(scene, key, LimitKey::clear);
    }

    /// The same as a text.
    pub(super) fn text(&self, scene: &Scene<'_>) -> String {
        let mut text = String::new();
        self.write_to(scene, &mut text, String::clear);
        text
    }

    fn write_to<W: fmt::Write>(&self, scene: &Scene<'_>, key: &mut W, clear: fn(&mut W)) {
        // Writing to a text cannot fail.
        let found = match self {
            Self::Variable(name) => scene.variable(name).map(|value| _ = write!(key, "{value}")).is_some(),
            Self::Combination(template) => template.render(key, |name| scene.variable(name)) > 0,
        };
        if !found {
            clear(key);
            if let Some(client) = scene.variable("remote_addr") {
                _ = write!(key, "{client}");
            }
        }
    }
}

/// The name of a limit: whose it is and how it is configured, in an order that nobody wrote. An object
/// that is read again, or changed elsewhere, has the same.
pub(super) fn identity(owner: &Owner, conf: &Value) -> String {
    let mut text = owner.to_string();
    canonical(conf, &mut text);
    text
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(name, _)| *name);
            for (name, value) in entries {
                _ = write!(out, " {name:?}:");
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(list) => {
            for value in list {
                out.push(',');
                canonical(value, out);
            }
            out.push(']');
        }
        other => _ = write!(out, "{other}"),
    }
}

/// A number of the configuration; the schema says that it is one, not below zero.
pub(super) fn number(conf: &Value, name: &str) -> Result<f64, String> {
    let number = conf.get(name).and_then(Value::as_f64).filter(|number| *number >= 0.0);
    number.ok_or_else(|| format!("{name} is no number from 0 on"))
}

/// The same, where it counts things; what is too large counts as the largest number there is.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not below zero, and it saturates"
)]
pub(super) fn count(conf: &Value, name: &str) -> Result<u64, String> {
    number(conf, name).map(|number| number as u64)
}
