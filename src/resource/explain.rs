//! Sentences about values a schema refuses: where, what, and what is allowed.

use std::fmt::Write as _;

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{ErrorIterator, ValidationError};
use serde_json::Value;

use super::schema::REFERENCE;

/// More mistakes than these are not listed.
const MAX_MISTAKES: usize = 8;

/// One sentence for each mistake, in the order of the schema. `at` stands before each path.
pub(super) fn mistakes(errors: ErrorIterator<'_>, schema: &Value, at: &str) -> Vec<String> {
    let mut teller = Teller { schema, at, told: Vec::new() };
    for error in errors {
        teller.tell(&error);
    }
    if teller.told.is_empty() {
        teller.told.push(format!("{} is refused by its schema", teller.place("")));
    }
    teller.told.truncate(MAX_MISTAKES);
    teller.told
}

struct Teller<'a> {
    schema: &'a Value,
    at: &'a str,
    told: Vec<String>,
}

impl<'a> Teller<'a> {
    fn tell(&mut self, error: &ValidationError<'_>) {
        let node = self.node(error);
        let place = self.place(error.instance_path().as_str());
        match error.kind() {
            // Their type is wrong, which another error says; what fields they have is no matter.
            Kind::OneOfNotValid { .. } | Kind::OneOfMultipleValid { .. }
                if !distinct(node.get("oneOf")).is_empty() && !error.instance().is_object() => {}
            Kind::Not { .. } if !error.instance().is_object() => {}
            Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
                self.tell_branches(error, node, &place, context);
            }
            Kind::OneOfMultipleValid { .. } => {
                let branches = node.get("oneOf");
                let choices = choices(branches, &common(branches)).join(" as well as ");
                self.say(format!("{place} has {choices}; only one of them is allowed"));
            }
            Kind::Not { .. } => {
                let description = node.get("description").and_then(Value::as_str).unwrap_or_default();
                self.say(format!("{place} has too much; {description} is allowed"));
            }
            Kind::Required { property } => self.missing(node, &place, property.as_str().unwrap_or_default()),
            Kind::AdditionalProperties { unexpected } => {
                for name in unexpected {
                    self.unknown(node, error, name);
                }
            }
            Kind::UniqueItems => self.say(format!("{place} has an entry twice; each may stand there once")),
            _ => self.say(format!("{place} is {}; {} is allowed", shown(error, node), allowed(node))),
        }
    }

    /// Tells of the branch that was meant: the one whose type the value has.
    fn tell_branches(
        &mut self,
        error: &ValidationError<'_>,
        node: &Value,
        place: &str,
        context: &[Vec<ValidationError<'static>>],
    ) {
        let path = error.instance_path().as_str();
        let meant: Vec<_> = context
            .iter()
            .filter(|branch| !branch.iter().any(|inner| has_other_type(inner, path)))
            .filter(|branch| !branch.iter().any(|inner| is_reference(self.node(inner))))
            .collect();
        let alternatives = node.get("oneOf").or_else(|| node.get("anyOf"));
        let names = distinct(alternatives);
        if let [branch] = meant.as_slice() {
            branch.iter().for_each(|inner| self.tell(inner));
        } else if names.is_empty() {
            self.say(format!("{place} is {}; {} is allowed", shown(error, node), allowed(node)));
        } else {
            let common = common(alternatives);
            for name in common.iter().filter(|name| !has(error, name)) {
                self.missing(node, place, name);
            }
            if !names.iter().any(|name| has(error, name)) || common.iter().all(|name| has(error, name)) {
                let choices = choices(alternatives, &common);
                self.say(format!("{place} lacks {}", choices.join(" or ")));
            }
        }
    }

    fn missing(&mut self, node: &Value, place: &str, name: &str) {
        let property = node.get("properties").and_then(|properties| properties.get(name));
        let hint = property.map(|property| format!(": {}", allowed(property))).unwrap_or_default();
        self.say(format!("{place} lacks `{name}`{hint}"));
    }

    fn unknown(&mut self, node: &Value, error: &ValidationError<'_>, name: &str) {
        let title = node.get("title").and_then(Value::as_str).unwrap_or("this object");
        let path = self.place(&format!("{}/{}", error.instance_path(), escaped(name)));
        let known = node.get("properties").and_then(Value::as_object);
        let known = known.into_iter().flat_map(|properties| properties.keys());
        let meant = known.map(|known| (distance(name, known), known)).min();
        let hint = match meant {
            Some((steps, known)) if steps <= 1 + name.len() / 4 => format!("; did you mean `{known}`?"),
            _ => String::new(),
        };
        self.say(format!("{path} is no field of {title}{hint}"));
    }

    fn say(&mut self, sentence: String) {
        if !self.told.contains(&sentence) {
            self.told.push(sentence);
        }
    }

    fn place(&self, path: &str) -> String {
        let place = format!("{}{path}", self.at);
        if place.is_empty() { "the value".into() } else { place }
    }

    /// The schema node whose keyword raised an error.
    fn node(&self, error: &ValidationError<'_>) -> &'a Value {
        let path = error.schema_path().as_str();
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.schema.pointer(parent).unwrap_or(&Value::Null)
    }
}

/// Whether an error says that the value at `path` has another type than the schema asks for.
fn has_other_type(error: &ValidationError<'_>, path: &str) -> bool {
    let here = error.instance_path().as_str() == path;
    here && match error.kind() {
        Kind::Type { .. } => true,
        Kind::AnyOf { context } => {
            context.iter().all(|branch| branch.iter().any(|inner| has_other_type(inner, path)))
        }
        _ => false,
    }
}

fn has(error: &ValidationError<'_>, name: &str) -> bool {
    error.instance().get(name).is_some()
}

fn is_reference(node: &Value) -> bool {
    node.get("$comment").is_some_and(|comment| comment == REFERENCE)
}

fn required(schema: &Value) -> Vec<&str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The `required` lists of branches that consist of nothing else.
fn lists(alternatives: Option<&Value>) -> Vec<Vec<&str>> {
    alternatives.and_then(Value::as_array).into_iter().flatten().map(required).collect()
}

/// Names that every branch asks for.
fn common<'a>(alternatives: Option<&'a Value>) -> Vec<&'a str> {
    let lists: Vec<Vec<&'a str>> = lists(alternatives);
    let first = lists.first().cloned().unwrap_or_default();
    first.into_iter().filter(|name| lists.iter().all(|list| list.contains(name))).collect()
}

/// Names that some branches ask for and others do not.
fn distinct(alternatives: Option<&Value>) -> Vec<&str> {
    let common = common(alternatives);
    lists(alternatives).concat().into_iter().filter(|name| !common.contains(name)).collect()
}

/// What each branch asks for beyond what all do: "`nodes`", "`service_name` and `discovery_type`".
fn choices(alternatives: Option<&Value>, common: &[&str]) -> Vec<String> {
    let own = |list: Vec<&str>| {
        let own: Vec<&str> = list.into_iter().filter(|name| !common.contains(name)).collect();
        listed(&own, "and")
    };
    lists(alternatives).into_iter().map(own).collect()
}

fn listed(names: &[&str], word: &str) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(&format!(" {word} "))
}

/// The refused value, shortened; secrets and containers are not shown.
fn shown(error: &ValidationError<'_>, node: &Value) -> String {
    let secret = |node: &Value| node.get("writeOnly") == Some(&Value::Bool(true));
    let inner = node.get("anyOf").and_then(|branches| branches.get(0));
    if secret(node) || inner.is_some_and(secret) {
        return "a text that is not shown".into();
    }
    brief(error.instance())
}

/// A value in a sentence.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::Object(map) if map.is_empty() => "an empty object".into(),
        Value::Object(_) => "an object".into(),
        Value::Array(list) if list.is_empty() => "an empty list".into(),
        Value::Array(list) => format!("a list of {}", list.len()),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(60) {
                Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
                None => text,
            }
        }
    }
}

/// What a schema node allows, as part of a sentence.
fn allowed(node: &Value) -> String {
    if let Some(options) = node.get("enum").and_then(Value::as_array) {
        let options: Vec<String> = options.iter().map(Value::to_string).collect();
        return if options.len() == 1 { options.join("") } else { format!("one of {}", options.join(", ")) };
    }
    if let Some(branches) = node.get("anyOf").and_then(Value::as_array) {
        let branches = branches.iter().filter(|branch| !is_reference(branch)).map(allowed);
        return branches.collect::<Vec<_>>().join(" or ");
    }
    let description = node.get("description").and_then(Value::as_str);
    let kind = node.get("type").and_then(Value::as_str).unwrap_or_default();
    let mut text = match kind {
        "integer" | "number" => number(node, kind),
        "boolean" => "true or false".into(),
        "string" => string(node),
        "array" => sized(node, "a list", ["minItems", "maxItems"], "entries"),
        "object" => "an object".into(),
        _ => description.unwrap_or("something else").to_owned(),
    };
    match description {
        Some(description) if !text.contains(description) => {
            let _ = write!(text, " ({description})");
        }
        _ => {}
    }
    text
}

fn number(node: &Value, kind: &str) -> String {
    let article = if kind == "integer" { "an integer" } else { "a number" };
    match (node.get("minimum"), node.get("maximum"), node.get("exclusiveMinimum")) {
        (Some(least), Some(most), _) => format!("{article} from {least} to {most}"),
        (Some(least), None, _) => format!("{article} of at least {least}"),
        (None, _, Some(limit)) => format!("{article} above {limit}"),
        _ => article.into(),
    }
}

fn string(node: &Value) -> String {
    sized(node, "a string", ["minLength", "maxLength"], "characters")
}

fn sized(node: &Value, what: &str, [least, most]: [&str; 2], unit: &str) -> String {
    match (node.get(least), node.get(most)) {
        (Some(least), Some(most)) => format!("{what} of {least} to {most} {unit}"),
        (Some(least), None) => format!("{what} of {least} or more {unit}"),
        (None, Some(most)) => format!("{what} of at most {most} {unit}"),
        (None, None) => what.into(),
    }
}

/// A name as a part of a JSON pointer.
pub(super) fn escaped(name: &str) -> String {
    let name = name.replace('~', "~0").replace('/', "~1");
    match name.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", name.get(..cut).unwrap_or_default()),
        None => name,
    }
}

/// Single-letter changes between two names.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(64).enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&right) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *cell;
            *cell = replaced.min(diagonal + 1).min(before + 1);
            before = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
