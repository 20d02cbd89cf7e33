//! `log_format`: what of a session a line says, compiled once.
//!
//! A text that begins with `$` is a variable, and its key is left out where the session has no such value;
//! anything else stands for itself (`apisix/utils/log-util.lua:75-137`). JSON is escaped as lua-cjson does it
//! with APISIX's settings: `/` as it is, DEL as `\u007f` (`apisix/patch.lua:386`). Keys keep the order written.

use std::fmt::{self, Write};

use serde_json::Value;

use crate::number;
use crate::session::Variable;

/// Objects and lists further inside are empty (`MAX_LOG_FORMAT_DEPTH`).
const DEEPEST: usize = 5;
/// Added to each line, whatever the format says of it.
const ROUTE: &str = "route_id";

/// What a line says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Format(Box<[Member]>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Member {
    /// In quotes, with its colon; empty in lists.
    key: Box<str>,
    part: Part,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    /// JSON.
    Literal(Box<str>),
    /// The name of one.
    Variable(Box<str>),
    Object(Box<[Member]>),
    List(Box<[Member]>),
}

impl Format {
    /// Reads a `log_format`. `None` where it is no object: an empty list is one to Lua.
    #[must_use]
    pub fn new(format: &Value) -> Option<Self> {
        match format {
            Value::Object(_) => {
                let mut members = members(format, 1);
                members.retain(|member| *member.key != *key(ROUTE));
                Some(Self(members.into()))
            }
            Value::Array(list) if list.is_empty() => Some(Self(Box::default())),
            _ => None,
        }
    }

    /// It says nothing of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the JSON of a session on the route of this id, whose values `variable` gives.
    pub fn render<'a>(
        &self,
        out: &mut String,
        route: &str,
        variable: &impl Fn(&str) -> Option<Variable<'a>>,
    ) {
        out.push('{');
        for member in &self.0 {
            let before = out.len();
            if write_member(out, member, variable) {
                out.push(',');
            } else {
                out.truncate(before);
            }
        }
        out.push_str("\"route_id\":");
        quote(out, format_args!("{route}"));
        out.push('}');
    }
}

/// The members of an object or a list, `depth` deep.
fn members(value: &Value, depth: usize) -> Vec<Member> {
    let part = |value: &Value| match value {
        Value::String(text) => match text.strip_prefix('$') {
            Some(name) => Part::Variable(name.into()),
            None => Part::Literal(quoted(text).into()),
        },
        Value::Object(_) if depth < DEEPEST => Part::Object(members(value, depth + 1).into()),
        Value::Array(_) if depth < DEEPEST => Part::List(members(value, depth + 1).into()),
        Value::Object(_) | Value::Array(_) => Part::Literal("{}".into()),
        Value::Number(number) => Part::Literal(number::to_text(number.as_f64().unwrap_or_default()).into()),
        Value::Bool(_) | Value::Null => Part::Literal(value.to_string().into()),
    };
    match value {
        Value::Object(map) => {
            let member =
                |(name, value): (&String, &Value)| Member { key: key(name).into(), part: part(value) };
            map.iter().map(member).collect()
        }
        Value::Array(list) => {
            list.iter().map(|value| Member { key: Box::default(), part: part(value) }).collect()
        }
        _ => Vec::new(),
    }
}

fn key(name: &str) -> String {
    quoted(name) + ":"
}

/// Reports whether there was anything to write; what was written else is to be taken back.
fn write_member<'a>(
    out: &mut String,
    member: &Member,
    variable: &impl Fn(&str) -> Option<Variable<'a>>,
) -> bool {
    out.push_str(&member.key);
    match &member.part {
        Part::Literal(json) => out.push_str(json),
        Part::Variable(name) => match variable(name) {
            None => return false,
            Some(Variable::Text(text)) => quote_text(out, text),
            Some(value) => quote(out, format_args!("{value}")),
        },
        Part::Object(members) => {
            out.push('{');
            let begin = out.len();
            for member in members {
                let before = out.len();
                if before > begin {
                    out.push(',');
                }
                if !write_member(out, member, variable) {
                    out.truncate(before);
                }
            }
            out.push('}');
        }
        Part::List(members) => write_list(out, members, variable),
    }
    true
}

/// What has no value inside a list is null, at its end nothing; of a list of nothing Lua makes an object.
fn write_list<'a>(out: &mut String, members: &[Member], variable: &impl Fn(&str) -> Option<Variable<'a>>) {
    let begin = out.len();
    let mut end = begin;
    for member in members {
        out.push(if out.len() == begin { '[' } else { ',' });
        if write_member(out, member, variable) {
            end = out.len();
        } else {
            out.push_str("null");
        }
    }
    out.truncate(end);
    out.push_str(if end == begin { "{}" } else { "]" });
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    quote_text(&mut out, text);
    out
}

fn quote(out: &mut String, text: fmt::Arguments<'_>) {
    out.push('"');
    // Writing to a String cannot fail.
    let _ = Escaping(out).write_fmt(text);
    out.push('"');
}

fn quote_text(out: &mut String, text: &str) {
    out.push('"');
    let _ = Escaping(out).write_str(text);
    out.push('"');
}

/// Writes text as the inside of a JSON string.
struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        // All that is escaped is ASCII, so each cut is between characters.
        while let Some(at) = rest.bytes().position(is_escaped) {
            let (plain, after) = rest.split_at(at);
            self.0.push_str(plain);
            let mut after = after.chars();
            match after.next().unwrap_or_default() {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\u{8}' => self.0.push_str("\\b"),
                '\t' => self.0.push_str("\\t"),
                '\n' => self.0.push_str("\\n"),
                '\u{c}' => self.0.push_str("\\f"),
                '\r' => self.0.push_str("\\r"),
                other => write!(self.0, "\\u{:04x}", u32::from(other))?,
            }
            rest = after.as_str();
        }
        self.0.push_str(rest);
        Ok(())
    }
}

fn is_escaped(byte: u8) -> bool {
    byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(format: &Value) -> String {
        let variable = |name: &str| match name {
            "remote_addr" => Some(Variable::Ip([127, 0, 0, 1].into())),
            "remote_port" => Some(Variable::Port(5000)),
            "ssl_server_name" => Some(Variable::Text("a/\"b\"\\\u{1}\u{7f}é\n")),
            "empty" => Some(Variable::Text("")),
            _ => None,
        };
        let mut out = String::new();
        Format::new(format).unwrap().render(&mut out, "1", &variable);
        out
    }

    #[track_caller]
    fn check(format: &Value, line: &str) {
        let out = rendered(format);
        assert_eq!(out, line, "{format}");
        assert!(serde_json::from_str::<Value>(&out).is_ok(), "no JSON: {out}");
    }

    #[test]
    fn variables_are_texts_and_all_else_is_itself() {
        check(
            &json!({"b": "static", "a": "$remote_addr", "p": "$remote_port"}),
            r#"{"b":"static","a":"127.0.0.1","p":"5000","route_id":"1"}"#,
        );
        check(
            &json!({"n": 5, "f": 1.0, "x": 0.1, "big": 1e20, "t": true, "z": null, "e": ""}),
            r#"{"n":5,"f":1,"x":0.1,"big":1e+20,"t":true,"z":null,"e":"","route_id":"1"}"#,
        );
        check(&json!({}), r#"{"route_id":"1"}"#);
        check(&json!([]), r#"{"route_id":"1"}"#);
    }

    #[test]
    fn a_variable_without_a_value_takes_its_key_along() {
        check(&json!({"a": "$none", "b": "$empty", "c": "$none"}), r#"{"b":"","route_id":"1"}"#);
        // As in APISIX the whole text is one name.
        check(
            &json!({"a": "$remote_addr:$remote_port", "b": "x$remote_addr"}),
            r#"{"b":"x$remote_addr","route_id":"1"}"#,
        );
        check(
            &json!({"o": {"a": "$none", "b": "$remote_addr", "c": "$none"}}),
            r#"{"o":{"b":"127.0.0.1"},"route_id":"1"}"#,
        );
        check(&json!({"o": {"a": "$none"}}), r#"{"o":{},"route_id":"1"}"#);
    }

    #[test]
    fn the_route_is_always_said_and_once() {
        check(&json!({"route_id": "mine", "a": "1"}), r#"{"a":"1","route_id":"1"}"#);
    }

    #[test]
    fn what_is_too_deep_is_empty() {
        let format = json!({"1": {"2": {"3": {"4": {"v": "$remote_addr", "5": {"x": 1}, "l": [1]}}}}});
        check(&format, r#"{"1":{"2":{"3":{"4":{"v":"127.0.0.1","5":{},"l":{}}}}},"route_id":"1"}"#);
    }

    #[test]
    fn lists_are_those_of_lua() {
        check(&json!({"l": ["$none", "b", "$none"]}), r#"{"l":[null,"b"],"route_id":"1"}"#);
        check(&json!({"l": ["$none"], "e": []}), r#"{"l":{},"e":{},"route_id":"1"}"#);
        check(&json!({"l": [{"a": "$none"}, [1]]}), r#"{"l":[{},[1]],"route_id":"1"}"#);
    }

    #[test]
    fn texts_are_escaped_as_lua_cjson_does() {
        check(&json!({"k/\"": "$ssl_server_name"}), r#"{"k/\"":"a/\"b\"\\\u0001\u007fé\n","route_id":"1"}"#);
        check(&json!({"a": "\u{8}\u{c}\r\t\u{1f}"}), r#"{"a":"\b\f\r\t\u001f","route_id":"1"}"#);
    }

    #[test]
    fn what_is_no_object_is_no_format() {
        for format in [json!("x"), json!(1), json!(["a"]), json!(null)] {
            assert_eq!(Format::new(&format), None, "{format}");
        }
    }
}
