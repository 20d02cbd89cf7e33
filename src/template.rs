//! Templates of keys and formats: text with `$name`, `${name}` and `${name ?? default}` in it.
//!
//! The rules are those of `resolve_var` (`apisix/core/utils.lua`): names are made of letters, digits,
//! `_` and `.`; a `$` after a backslash stays as it is, backslash included; a variable without a value
//! is empty text.

use std::fmt;

/// A template, cut into its parts once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Template {
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Text(Box<str>),
    Variable { name: Box<str>, default: Option<Box<str>> },
}

impl Template {
    /// Reads a template. Every text is one: what is no variable stands for itself.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let escaped = literal.ends_with('\\');
            if let Some((part, left)) = variable(after).filter(|_| !escaped) {
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(part);
                rest = left;
            } else {
                literal.push('$');
                rest = after;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Self { parts: parts.into() }
    }

    /// Writes the text with the values that `value` gives to `out`, which must not fail, and tells
    /// how many variables had one (or a default).
    pub fn render<V: fmt::Display>(
        &self,
        out: &mut impl fmt::Write,
        value: impl Fn(&str) -> Option<V>,
    ) -> usize {
        let mut resolved = 0;
        for part in &self.parts {
            let _ = match part {
                Part::Text(literal) => out.write_str(literal),
                Part::Variable { name, default } => {
                    let value = value(name);
                    resolved += usize::from(value.is_some() || default.is_some());
                    match (value, default) {
                        (Some(value), _) => write!(out, "{value}"),
                        (None, default) => out.write_str(default.as_deref().unwrap_or_default()),
                    }
                }
            };
        }
        resolved
    }
}

/// Reads a variable after its `$`, and gives what follows it.
fn variable(text: &str) -> Option<(Part, &str)> {
    let Some(braced) = text.strip_prefix('{') else {
        let end = text.find(|c| !is_name_char(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return (!name.is_empty()).then(|| (Part::Variable { name: name.into(), default: None }, rest));
    };
    let (inner, rest) = braced.split_once('}')?;
    let mut pieces = inner.split("??").map(str::trim);
    let name = pieces.next().filter(|name| !name.is_empty() && name.chars().all(is_name_char))?;
    let default = pieces.next().filter(|default| !default.is_empty());
    Some((Part::Variable { name: name.into(), default: default.map(Into::into) }, rest))
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, expected: &str, resolved: usize) {
        let value = |name: &str| match name {
            "remote_addr" => Some("10.0.0.1"),
            "empty" => Some(""),
            _ => None,
        };
        let mut text = String::new();
        let found = Template::new(template).render(&mut text, value);
        assert_eq!((&*text, found), (expected, resolved), "{template}");
    }

    #[test]
    fn variables_are_replaced_and_the_rest_kept() {
        check("$remote_addr-$none", "10.0.0.1-", 1);
        check("const", "const", 0);
        check("$$remote_addr$", "$10.0.0.1$", 1);
        check(r"\$remote_addr", r"\$remote_addr", 0);
        check("${ remote_addr }:${open", "10.0.0.1:${open", 1);
        check("$remote_addr.x", "", 0);
        check("${a b}", "${a b}", 0);
    }

    #[test]
    fn defaults_count_as_values() {
        check("${none ?? anon}", "anon", 1);
        check("${none??a ?? b}", "a", 1);
        check("${none ?? }", "", 0);
        check("${empty ?? z}", "", 1);
    }
}
