//! What the operator is told of a config.yaml: mistakes that stop the start, and warnings.
//!
//! Readers drop their findings into one [`Report`] and go on, so that all are told at once; at the
//! end both lists are put into the order of the document, whatever order the readers ran in.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use serde_json::Value;

/// One finding: where, and a sentence about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Such as `apisix.stream_proxy.tcp[0].addr`; for an environment variable its name.
    pub path: String,
    /// What is wrong, which value, what is allowed.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

/// All that is wrong with a configuration, in the order of the document; never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// A lone mistake.
    pub(super) fn one(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self(vec![Mistake { path: path.into(), text: text.into() }])
    }

    /// The mistakes one by one.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Where readers put what they find.
#[derive(Debug, Default)]
pub(super) struct Report {
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

impl Report {
    /// Something that stops the start.
    pub(super) fn mistake(&self, path: &str, text: impl Into<String>) {
        push(&self.mistakes, path, text.into());
    }

    /// Something the operator should know.
    pub(super) fn warn(&self, path: &str, text: impl Into<String>) {
        push(&self.warnings, path, text.into());
    }

    /// The warnings as sentences, or the mistakes where there are any; both in document order.
    pub(super) fn close(self, document: &Value) -> Result<Vec<String>, Mistakes> {
        let order = positions(document);
        let sorted = |found: RefCell<Vec<Mistake>>| {
            let mut found = found.into_inner();
            found.sort_by_key(|mistake| position(&order, &mistake.path));
            found
        };
        let mistakes = sorted(self.mistakes);
        if mistakes.is_empty() {
            return Ok(sorted(self.warnings).iter().map(Mistake::to_string).collect());
        }
        Err(Mistakes(mistakes))
    }
}

/// Two readers may trip over the same value; it is told once.
fn push(list: &RefCell<Vec<Mistake>>, path: &str, text: String) {
    let mistake = Mistake { path: path.into(), text };
    let mut list = list.borrow_mut();
    if !list.contains(&mistake) {
        list.push(mistake);
    }
}

/// The path of a map's entry. Keys that would blur the path stand in quotes.
pub(super) fn entry_path(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let dot = if parent.is_empty() { "" } else { "." };
    if plain { format!("{parent}{dot}{key}") } else { format!("{parent}{dot}{key:?}") }
}

/// The path of a list's item.
pub(super) fn item_path(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Every path of the document with its place in it.
fn positions(document: &Value) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    // A stack, children pushed last to first, gives the order in which they are written.
    let mut waiting = vec![(String::new(), document)];
    while let Some((path, value)) = waiting.pop() {
        match value {
            Value::Object(map) => {
                waiting.extend(map.iter().rev().map(|(key, value)| (entry_path(&path, key), value)));
            }
            Value::Array(list) => {
                waiting
                    .extend(list.iter().enumerate().rev().map(|(at, value)| (item_path(&path, at), value)));
            }
            _ => {}
        }
        let place = found.len();
        found.insert(path, place);
    }
    found
}

/// The place of `path`, or of what stands nearest above it: something missing is told where it
/// would belong.
fn position(order: &HashMap<String, usize>, path: &str) -> usize {
    let mut path = path;
    loop {
        if let Some(place) = order.get(path) {
            return *place;
        }
        let Some(cut) = path.rfind(['.', '[']) else { return 0 };
        path = path.get(..cut).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn findings_follow_the_document_and_are_told_once() {
        let document = json!({"b": {"127.0.0.1:1": 1, "y": [5, 6]}, "a": 1});
        let report = Report::default();
        for path in ["a", "b.y[1]", "b.missing", "b.\"127.0.0.1:1\"", "b.y[0]", "a"] {
            report.mistake(path, "bad");
        }
        let told = report.close(&document).unwrap_err();
        let paths: Vec<_> = told.iter().map(|mistake| mistake.path.as_str()).collect();
        assert_eq!(paths, ["b.missing", "b.\"127.0.0.1:1\"", "b.y[0]", "b.y[1]", "a"]);
        assert_eq!(told.to_string().lines().count(), 5);
        assert_eq!(told.count(), 5);
    }
}
