//! Typed reading of the merged tree: a [`Node`] knows its path and reports what it cannot be read as.
//!
//! Absent and null are the same, `None` without a word; a wrong type or value is a mistake and
//! `None`, so that the reader goes on with a default and all mistakes are found in one run.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value;

use super::report::Report;
use super::report::entry_path;
use super::report::item_path;
use super::time;

/// Longer than any time that is meant: a year. What is added to a clock must not overflow it.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A place in the tree, whether or not something stands there.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    value: Option<&'a Value>,
    path: String,
    report: &'a Report,
}

impl<'a> Node<'a> {
    /// The whole tree.
    pub(super) fn root(value: &'a Value, report: &'a Report) -> Self {
        Self { value: Some(value), path: String::new(), report }
    }

    /// The entry `key` of a map.
    pub(super) fn at(&self, key: &str) -> Self {
        let value = self.map().and_then(|map| map.get(key)).filter(|value| !value.is_null());
        Self { value, path: entry_path(&self.path, key), report: self.report }
    }

    /// What stands here, untyped.
    pub(super) fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// Whether nothing stands here.
    pub(super) fn is_absent(&self) -> bool {
        self.value.is_none()
    }

    /// Where findings go that concern no value of the tree, such as an environment variable.
    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// Refuses every key but `known`: for sections that are ours alone.
    pub(super) fn only(&self, known: &[&str]) {
        for (key, node) in self.entries().filter(|(key, _)| !known.contains(key)) {
            node.mistake(format!("{key} is no setting here; known are {}", known.join(", ")));
        }
    }

    /// Stops the start for this value.
    pub(super) fn mistake(&self, text: impl Into<String>) {
        self.report.mistake(&self.path, text);
    }

    /// Tells the operator something about this value.
    pub(super) fn warn(&self, text: impl Into<String>) {
        self.report.warn(&self.path, text);
    }

    /// A text.
    pub(super) fn string(&self) -> Option<&'a str> {
        self.typed("a text is allowed; put it in quotes", Value::as_str)
    }

    /// A text that no message may show.
    pub(super) fn secret(&self) -> Option<&'a str> {
        let value = self.value?;
        if value.as_str().is_none() {
            let kind = kind(value);
            self.mistake(format!(
                "is {kind}; a text is allowed: put it in quotes, and let `${{{{VAR}}}}` not be digits alone"
            ));
        }
        value.as_str()
    }

    /// true or false.
    pub(super) fn boolean(&self) -> Option<bool> {
        self.typed("true or false is allowed", Value::as_bool)
    }

    /// A whole number; `5.0` is one, as in Lua.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let allowed = format!("a whole number {}..{} is allowed", range.start(), range.end());
        self.typed(&allowed, |value| whole(value).filter(|number| range.contains(number)))
    }

    /// One of `allowed`.
    pub(super) fn choice<'c>(&self, allowed: &[&'c str]) -> Option<&'c str> {
        let text = format!("allowed are {}", allowed.join(", "));
        self.typed(&text, |value| allowed.iter().find(|name| value.as_str() == Some(name)).copied())
    }

    /// Seconds as a number, fractions allowed, or a time as nginx writes it; more than nothing, at
    /// most a year.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.typed(
            "allowed is a number of seconds, or a time such as 500ms, 10s, 1m 30s, above zero and up to a year",
            |value| {
                let found = match value {
                    Value::Number(number) => {
                        number.as_f64().and_then(|it| Duration::try_from_secs_f64(it).ok())
                    }
                    _ => value.as_str().and_then(time::parse),
                };
                found.filter(|time| !time.is_zero() && *time <= LONGEST)
            },
        )
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Option<Vec<Self>> {
        let list = self.typed("a list is allowed", Value::as_array)?;
        let node =
            |(at, value)| Self { value: Some(value), path: item_path(&self.path, at), report: self.report };
        Some(list.iter().enumerate().map(node).collect())
    }

    /// The texts of a list; absent is empty.
    pub(super) fn strings(&self) -> Vec<Box<str>> {
        self.items().unwrap_or_default().iter().filter_map(Self::string).map(Into::into).collect()
    }

    /// The entries of a map, in the order written; absent is empty.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Self)> {
        self.map().into_iter().flatten().map(|(key, _)| (key.as_str(), self.at(key)))
    }

    fn map(&self) -> Option<&'a serde_json::Map<String, Value>> {
        // `{}` and `[]` are the same to Lua: an empty list stands for an empty map.
        if self.value.and_then(Value::as_array).is_some_and(Vec::is_empty) {
            return None;
        }
        self.typed("a map is allowed", Value::as_object)
    }

    fn typed<T>(&self, allowed: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value?;
        let read = read(value);
        if read.is_none() {
            self.mistake(format!("is {}; {allowed}", show(value)));
        }
        read
    }
}

/// A number without fraction, however written.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just before")]
fn whole(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..=EXACT).contains(&number)).then_some(number as u64)
    })
}

/// What a value is, for messages that must not show it.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// A value as messages show it: containers by their kind, texts cut where they grow long.
pub(super) fn show(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        _ => {
            let text = value.to_string();
            match text.char_indices().nth(LONGEST) {
                Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(value: &Value, read: impl FnOnce(&Node<'_>), expected: Option<&str>) {
        let report = Report::default();
        read(&Node::root(&json!({ "k": value }), &report).at("k"));
        let told = report.close(&Value::Null).err().map(|mistakes| mistakes.to_string());
        assert_eq!(told.as_deref(), expected, "{value}");
    }

    #[test]
    fn wrong_values_are_told_with_what_is_allowed() {
        check(
            &json!("5"),
            |node| {
                node.integer(1..=9);
            },
            Some("k: is \"5\"; a whole number 1..9 is allowed"),
        );
        check(&json!(5.0), |node| assert_eq!(node.integer(1..=9), Some(5)), None);
        check(
            &json!(5.5),
            |node| {
                node.integer(1..=9);
            },
            Some("k: is 5.5; a whole number 1..9 is allowed"),
        );
        check(
            &json!(-1),
            |node| {
                node.integer(0..=9);
            },
            Some("k: is -1; a whole number 0..9 is allowed"),
        );
        check(
            &json!([1]),
            |node| {
                node.boolean();
            },
            Some("k: is a list; true or false is allowed"),
        );
        check(&json!(null), |node| assert_eq!(node.boolean(), None), None);
        check(&json!([]), |node| assert_eq!(node.entries().count(), 0), None);
        check(&json!(0.25), |node| assert_eq!(node.duration(), Some(Duration::from_millis(250))), None);
        check(&json!("1y"), |node| assert_eq!(node.duration(), Some(LONGEST)), None);
        check(
            &json!(1e18),
            |node| {
                node.duration();
            },
            Some(
                "k: is 1e+18; allowed is a number of seconds, or a time such as 500ms, 10s, 1m 30s, above zero and up to a year",
            ),
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let report = Report::default();
        let tree = json!({"k": 1234});
        assert_eq!(Node::root(&tree, &report).at("k").secret(), None);
        let told = report.close(&tree).unwrap_err().to_string();
        assert!(told.contains("a number") && !told.contains("1234"), "{told}");
    }
}
