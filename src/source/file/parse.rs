//! From the text of `apisix.yaml` or `apisix.json` to objects, as `apisix/core/config_yaml.lua` reads it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use serde_json::{Map, Number, Value};

use crate::config::variables;
use crate::resource::{Key, Kind};

/// An object with its bytes and a number that differs when they do.
pub(super) type Object = (Key, Bytes, i64);

/// How the file is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    /// `apisix.yaml`: ends with `#END`; variables are replaced in the text.
    Yaml,
    /// `apisix.json`: variables are replaced in strings.
    Json,
}

/// Why the file counts for nothing, and where.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct ParseError {
    /// Line and column, both from 1, where they are known.
    pub(super) at: Option<(u64, u64)>,
    /// For the operator.
    pub(super) what: String,
}

/// A variable that is not set and has no default.
#[derive(Debug, Eq, PartialEq)]
struct Missing {
    name: String,
    /// Where its `${{` begins, in bytes.
    at: usize,
}

/// `text` with its variables replaced.
fn substitute<'t>(text: &'t str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Cow<'t, str>, Missing> {
    variables::replace(text, |reference| {
        let value = lookup(reference.name).or_else(|| reference.default.map(str::to_owned));
        value.ok_or_else(|| Missing { name: reference.name.to_owned(), at: reference.at })
    })
}

/// The objects in the order of the file, and sentences about what was passed over.
pub(super) fn parse(
    text: &str,
    format: Format,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<(Vec<Object>, Vec<String>), ParseError> {
    let tree = match format {
        Format::Yaml => yaml(text, lookup)?,
        Format::Json => json(text, lookup)?,
    };
    let found = match &tree {
        Value::Object(directories) => return Ok(objects(directories)),
        Value::Null => "nothing",
        Value::Array(_) => "a list",
        _ => "a single value",
    };
    Err(plain(format!("the file holds {found} where stream_routes, upstreams and so on are expected")))
}

fn yaml(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Value, ParseError> {
    // The marker shows that the file was written to its end (`core/config_yaml.lua:85-92`).
    let tail = text.as_bytes().last_chunk::<10>().map_or(text.as_bytes(), |tail| tail);
    if !tail.windows(4).any(|window| window == b"#END") {
        let line = text.lines().count().max(1) as u64;
        return Err(ParseError { at: Some((line, 1)), what: "the end mark #END is missing".into() });
    }
    let replaced = substitute(text, lookup).map_err(|missing| missing_variable(text, &missing))?;
    let options = serde_saphyr::options! {
        // The file is the operator's own: its size is no attack.
        budget: None,
        // As libyaml in APISIX reads it.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(&replaced, options).map_err(|error| {
        let at = error.location().map(|location| (location.line(), location.column()));
        ParseError { at, what: without_place(&error.to_string()) }
    })
}

fn json(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Value, ParseError> {
    let tree = serde_json::from_str(text).map_err(|error| ParseError {
        at: Some((error.line() as u64, error.column() as u64)),
        what: without_place(&error.to_string()),
    })?;
    replace_in_strings(tree, lookup).map_err(|missing| {
        let at = text.find(&missing.name).unwrap_or_default();
        missing_variable(text, &Missing { at, ..missing })
    })
}

/// Replaces variables in keys and strings; a string that had one and then reads as a number or a
/// boolean becomes that (`cli/file.lua:60-156`).
fn replace_in_strings(value: Value, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Value, Missing> {
    Ok(match value {
        Value::String(text) => match substitute(&text, lookup)? {
            Cow::Borrowed(_) => Value::String(text),
            Cow::Owned(replaced) => variables::typed(replaced),
        },
        Value::Array(items) => {
            items.into_iter().map(|item| replace_in_strings(item, lookup)).collect::<Result<_, _>>()?
        }
        Value::Object(members) => {
            let mut replaced = Map::new();
            for (name, member) in members {
                let name = substitute(&name, lookup)?.into_owned();
                replaced.insert(name, replace_in_strings(member, lookup)?);
            }
            Value::Object(replaced)
        }
        other => other,
    })
}

fn objects(directories: &Map<String, Value>) -> (Vec<Object>, Vec<String>) {
    let mut slots = Slots::default();
    let mut warnings = Vec::new();
    for (directory, items) in directories {
        // Directories of HTTP are not ours and not a mistake.
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.directory() == directory) else { continue };
        match items {
            // One object: the list itself. A bare `plugins:` names none.
            _ if kind == Kind::Plugins => {
                let list = if items.is_null() { &Value::Array(Vec::new()) } else { items };
                slots.put(Key::new(kind, ""), list);
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let (id, item) = identified(item, index);
                    slots.put(Key::new(kind, id), &item);
                }
            }
            Value::Null => {}
            _ => warnings.push(format!("{directory} is no list and was passed over")),
        }
    }
    (slots.objects, warnings)
}

/// The id of an item, written into it: `id`, else `username`, else its place in the list
/// (`core/config_yaml.lua:315-350`). What is no object is handed on for the store to refuse.
fn identified(item: &Value, index: usize) -> (String, Value) {
    let named = ["id", "username"].into_iter().find_map(|member| match item.get(member)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number_text(number)),
        _ => None,
    });
    let id = named.unwrap_or_else(|| format!("arr_{}", index + 1));
    let mut item = item.clone();
    // A wrong `id` stays as it is, for the schema to refuse.
    if let Some(members) = item.as_object_mut()
        && members.get("id").is_none_or(|id| id.is_number() || id.is_null())
    {
        members.insert("id".into(), Value::String(id.clone()));
    }
    (id, item)
}

/// `1.0` names the object 1, as Lua writes it.
fn number_text(number: &Number) -> String {
    let text = number.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Objects in order; a later one of the same key takes the slot of the earlier.
#[derive(Default)]
struct Slots {
    objects: Vec<Object>,
    places: HashMap<Key, usize>,
}

impl Slots {
    fn put(&mut self, key: Key, value: &Value) {
        let bytes = Bytes::from(value.to_string());
        let object = (key.clone(), bytes.clone(), revision(&bytes));
        let place = *self.places.entry(key).or_insert(self.objects.len());
        match self.objects.get_mut(place) {
            Some(earlier) => *earlier = object,
            None => self.objects.push(object),
        }
    }
}

/// Positive, the same for the same bytes while the process lives.
fn revision(bytes: &[u8]) -> i64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    i64::try_from(hasher.finish() >> 1).unwrap_or(i64::MAX).max(1)
}

/// Parsers say the place at the end; it stands in front already.
fn without_place(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(what, _)| what).to_owned()
}

fn plain(what: String) -> ParseError {
    ParseError { at: None, what }
}

fn missing_variable(text: &str, missing: &Missing) -> ParseError {
    let before = text.get(..missing.at).unwrap_or_default();
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() as u64 + 1;
    let name = &missing.name;
    let what =
        format!("the environment variable {name} is not set; set it or write ${{{{{name}:=default}}}}");
    ParseError { at: Some((line, column)), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("9100".into()),
            "LONG" => Some("123456789012345678".into()),
            "FLAG" => Some("true".into()),
            _ => None,
        }
    }

    #[track_caller]
    fn check(format: Format, text: &str, expected: &[(&str, &str)]) {
        let (objects, _) = parse(text, format, &lookup).unwrap();
        let found: Vec<_> = objects
            .iter()
            .map(|(key, value, _)| (key.to_string(), String::from_utf8(value.to_vec()).unwrap()))
            .collect();
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn check_error(format: Format, text: &str, at: Option<(u64, u64)>, what: &str) {
        let error = parse(text, format, &lookup).unwrap_err();
        assert_eq!(error.at, at, "{error:?}");
        assert!(error.what.contains(what), "{error:?}");
    }

    #[test]
    fn objects_come_in_file_order_with_their_ids() {
        check(
            Format::Yaml,
            "upstreams:\n - {id: b}\n - id: 1\n - {}\nstream_routes:\n - {username: u}\nroutes:\n - {id: 1}\n#END",
            &[
                ("upstreams/b", r#"{"id":"b"}"#),
                ("upstreams/1", r#"{"id":"1"}"#),
                ("upstreams/arr_3", r#"{"id":"arr_3"}"#),
                ("stream_routes/u", r#"{"username":"u","id":"u"}"#),
            ],
        );
    }

    #[test]
    fn later_duplicate_takes_the_earlier_slot() {
        check(
            Format::Yaml,
            "upstreams:\n - {id: 1, a: 1}\n - {id: 2}\n - {id: '1', a: 2}\n#END\n",
            &[("upstreams/1", r#"{"id":"1","a":2}"#), ("upstreams/2", r#"{"id":"2"}"#)],
        );
    }

    #[test]
    fn plugins_are_one_object() {
        check(
            Format::Yaml,
            "plugins:\n - {name: a, stream: true}\n#END",
            &[("plugins", r#"[{"name":"a","stream":true}]"#)],
        );
        check(Format::Yaml, "plugins:\n#END", &[("plugins", "[]")]);
        check(Format::Json, r#"{"plugins":null}"#, &[("plugins", "[]")]);
    }

    #[test]
    fn variables_are_text_in_yaml_and_typed_in_json() {
        check(
            Format::Yaml,
            "upstreams:\n - {id: \"${{LONG}}\", p: ${{PORT}}, q: '${{PORT}}'}\n#END",
            &[("upstreams/123456789012345678", r#"{"id":"123456789012345678","p":9100,"q":"9100"}"#)],
        );
        check(
            Format::Json,
            r#"{"upstreams":[{"id":"x${{PORT}}","p":"${{PORT}}","f":"${{FLAG}}","${{PORT}}":"a ${{N:=b}}","h":"${{N:=0x10}}","i":"${{N:=inf}}"}]}"#,
            &[("upstreams/x9100", r#"{"id":"x9100","p":9100,"f":true,"9100":"a b","h":16,"i":"inf"}"#)],
        );
    }

    #[test]
    fn what_is_no_object_is_left_to_the_store() {
        check(
            Format::Json,
            r#"{"services":[7,{"id":[]}]}"#,
            &[("services/arr_1", "7"), ("services/arr_2", r#"{"id":[]}"#)],
        );
        let (objects, warnings) = parse(r#"{"services":{}}"#, Format::Json, &lookup).unwrap();
        assert!(objects.is_empty() && warnings.len() == 1, "{warnings:?}");
    }

    #[test]
    fn same_content_has_the_same_revision() {
        let read = |text| parse(text, Format::Json, &lookup).unwrap().0;
        let (first, second) =
            (read(r#"{"services":[{"id":1},{"id":2}]}"#), read(r#"{ "services":[{"id":1}] }"#));
        assert_eq!(first[0].2, second[0].2);
        assert_ne!(first[0].2, first[1].2);
        assert!(first.iter().all(|(_, _, revision)| *revision > 0));
    }

    #[test]
    fn mistakes_say_where() {
        check_error(Format::Yaml, "upstreams: []\n", Some((1, 1)), "#END");
        check_error(Format::Yaml, "#END is far from the end\nupstreams: []\n", Some((2, 1)), "#END");
        check_error(Format::Yaml, "upstreams:\n  - {id: ]}\n#END", Some((2, 5)), "mismatched bracket");
        check_error(Format::Yaml, "a: 1\nb: ${{NONE}}\n#END", Some((2, 4)), "NONE is not set");
        check_error(Format::Yaml, "#END", None, "nothing");
        check_error(Format::Json, "{\n \"a\": }", Some((2, 7)), "expected");
        check_error(Format::Json, "{\n \"a\": \"${{NONE}}\"}", Some((2, 11)), "NONE is not set");
    }
}
