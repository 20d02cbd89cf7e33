//! Bytes to a JSON value, and the fields of one that passed its schema.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::rules::{Notes, Rejection};
use crate::number;

/// Reads a value as APISIX's decoder (lua-cjson) does: bytes that are no UTF-8 and control characters
/// inside strings pass there, so here they are repaired with a warning.
pub(super) fn read(bytes: &[u8], notes: &mut Notes) -> Result<Value, Rejection> {
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let text = String::from_utf8_lossy(bytes);
    if let Ok(value) = serde_json::from_str(&without_control_characters(&text)) {
        let broken = "the value is not strict JSON: it has";
        match text {
            Cow::Borrowed(_) => {
                notes.warn(format!("{broken} line breaks inside strings; they were repaired"));
            }
            Cow::Owned(_) => {
                notes.differs(
                    "SG-012",
                    format!("{broken} bytes that are no UTF-8; each was replaced by U+FFFD"),
                );
            }
        }
        return Ok(value);
    }
    let start: String = text.chars().take(40).collect();
    let more = if text.chars().nth(40).is_some() { "…" } else { "" };
    Err(format!("the value is not JSON: {error}; it begins with {start:?}{more}").into())
}

/// Writes control characters inside strings as escapes.
fn without_control_characters(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte < b' ') {
        return text.into();
    }
    let (mut repaired, mut inside, mut escaped) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        if inside && c < ' ' {
            let _ = write!(repaired, "\\u{:04x}", u32::from(c));
        } else {
            repaired.push(c);
        }
        inside ^= c == '"' && !escaped;
        escaped = inside && c == '\\' && !escaped;
    }
    repaired.into()
}

/// The fields of an object that passed its schema.
#[derive(Debug, Default)]
pub(super) struct Document(Map<String, Value>);

impl From<Value> for Document {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(map) => Self(map),
            _ => Self::default(),
        }
    }
}

impl Document {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The names of all fields.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// A nested object; absent and empty are the same to a reader.
    pub(super) fn nested(&mut self, name: &str) -> Self {
        self.take(name).map(Self::from).unwrap_or_default()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    pub(super) fn boxed(&self, name: &str) -> Option<Box<str>> {
        self.text(name).map(Box::from)
    }

    pub(super) fn truth(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Value::as_f64)
    }

    /// An id, which may be written as a number: `7` and `7.0` name the object `7`.
    pub(super) fn id(&self, name: &str) -> Option<Arc<str>> {
        match self.get(name)? {
            Value::String(text) => Some(text.as_str().into()),
            other => other.as_f64().map(|id| number::to_text(id).into()),
        }
    }

    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        self.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub(super) fn into_fields(self) -> Map<String, Value> {
        self.0
    }
}

/// A string that stands for a secret kept elsewhere (`apisix/secret.lua:268`).
pub(super) fn is_reference(text: &str) -> bool {
    text.starts_with("$secret://") || text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("$env://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<&str>, warned: bool) {
        let mut notes = Notes::default();
        let read = read(bytes, &mut notes).ok();
        assert_eq!(read, expected.map(|json| serde_json::from_str(json).unwrap()), "{bytes:?}");
        assert_eq!(!notes.warnings.is_empty(), warned, "{bytes:?}");
    }

    #[test]
    fn decodes_what_cjson_decodes() {
        check(br#"{"a":1}"#, Some(r#"{"a":1}"#), false);
        check(b"{\"a\":\"x\ny\"}", Some(r#"{"a":"x\ny"}"#), true);
        check(b"{\n\"a\\\"\":\"\t\\\\\"}", Some(r#"{"a\"":"\t\\"}"#), true);
        check(b"{\"a\":\"\xff\"}", Some("{\"a\":\"\u{fffd}\"}"), true);
        check(b"", None, false);
        check(b"init_dir", None, false);
        check(br#"{"a":}"#, None, false);
        check(b"{\"a\":\"\n\"", None, false);
    }

    #[test]
    fn only_replaced_bytes_are_a_difference() {
        let rules = |bytes: &[u8]| {
            let mut notes = Notes::default();
            read(bytes, &mut notes).unwrap();
            notes.warnings.iter().map(|remark| remark.rule).collect::<Vec<_>>()
        };
        assert_eq!(rules(b"{\"a\":\"\xff\"}"), [Some("SG-012")]);
        assert_eq!(rules(b"{\"a\":\"\n\"}"), [None]);
    }

    #[test]
    fn references_are_told_from_texts() {
        for text in ["$secret://vault/1/a", "$env://A", "$ENV://a", "$eNv://"] {
            assert!(is_reference(text), "{text}");
        }
        for text in ["$SECRET://vault/1/a", "env://A", "$env:/A", "", "$envé://"] {
            assert!(!is_reference(text), "{text}");
        }
    }
}
