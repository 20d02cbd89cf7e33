//! `${{VAR}}` and `${{VAR:=default}}` in texts, as `apisix/cli/file.lua:60-156` replaces them.

use std::borrow::Cow;
use std::convert::Infallible;

use serde_json::{Number, Value};

/// A reference to a variable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reference<'t> {
    /// The variable.
    pub name: &'t str,
    /// What counts where it is not set.
    pub default: Option<&'t str>,
    /// Where its `${{` begins in the text, in bytes.
    pub at: usize,
    /// A blank stands before `:=`: APISIX then looks for a variable whose name ends in that blank
    /// (`file.lua:75`), finds none and takes the default.
    pub blank: bool,
}

/// `text` with every reference replaced by what `resolve` says. What only looks like a reference
/// stays as it is.
pub fn replace<'t, E>(
    text: &'t str,
    mut resolve: impl FnMut(Reference<'t>) -> Result<String, E>,
) -> Result<Cow<'t, str>, E> {
    let mut done = String::new();
    let mut rest = text;
    let mut found = false;
    while let Some(start) = rest.find("${{") {
        let (before, from) = rest.split_at(start);
        done.push_str(before);
        if let Some((reference, after)) = reference(from, text.len() - from.len()) {
            done.push_str(&resolve(reference)?);
            found = true;
            rest = after;
        } else {
            done.push('$');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    if !found {
        return Ok(Cow::Borrowed(text));
    }
    done.push_str(rest);
    Ok(Cow::Owned(done))
}

/// The same where resolving cannot fail.
pub fn replace_all<'t>(text: &'t str, mut resolve: impl FnMut(Reference<'t>) -> String) -> Cow<'t, str> {
    let infallible = replace(text, |reference| Ok::<_, Infallible>(resolve(reference)));
    infallible.unwrap_or_else(|never| match never {})
}

/// Takes a reference off the front of `text`.
fn reference(text: &str, at: usize) -> Option<(Reference<'_>, &str)> {
    let (inner, after) = text.strip_prefix("${{")?.split_once("}}")?;
    let (name, default) = match inner.split_once(":=") {
        Some((name, default)) => (name, Some(default.trim())),
        None => (inner, None),
    };
    let blank = default.is_some() && name.ends_with(char::is_whitespace);
    let name = name.trim();
    let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    valid.then_some((Reference { name, default, at, blank }, after))
}

/// A number or boolean where a text that had a reference looks like one, quotes or not.
#[must_use]
pub fn typed(text: String) -> Value {
    match text.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => number(&text).map_or(Value::String(text), Value::Number),
    }
}

/// Lua's `tonumber`: decimal, exponent, hexadecimal, blanks around it. Infinite values and
/// hexadecimal fractions, which no setting can use, stay texts.
fn number(text: &str) -> Option<Number> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let plain = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let number = plain.then(|| i64::from_str_radix(hex, 16).ok()).flatten()?;
        return Some(if negative { -number } else { number }.into());
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Ok(number) = digits.parse::<i64>() {
        return Some(if negative { -number } else { number }.into());
    }
    let number = digits.parse::<f64>().ok()?;
    Number::from_f64(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let replaced = replace_all(text, |reference| {
            let set = (reference.name == "A").then(|| "1".to_owned());
            set.or_else(|| reference.default.map(str::to_owned)).unwrap_or_else(|| "?".into())
        });
        assert_eq!(replaced, expected, "{text}");
    }

    #[test]
    fn references_are_replaced_and_the_rest_stays() {
        check("a ${{A}} b ${{ A }}", "a 1 b 1");
        check("${{B:=x y}}", "x y");
        check("${{ B := }}|", "|");
        check("${{B}}", "?");
        check("$ ${ ${{}} ${{a-b}} ${{A", "$ ${ ${{}} ${{a-b}} ${{A");
        check("$${{A}}}}", "$1}}");
    }

    #[test]
    fn the_place_and_the_blank_are_told() {
        let mut seen = Vec::new();
        replace_all("ä ${{A}} ${{B :=1}}", |reference| {
            seen.push((reference.at, reference.blank));
            String::new()
        });
        assert_eq!(seen, [(3, false), (10, true)]);
    }

    #[test]
    fn texts_become_what_lua_makes_of_them() {
        let texts = ["0x10", " 1e3 ", "-5", "true", "1.5", "inf", "0x", "12a", ""];
        let values: Vec<Value> = texts.iter().map(|text| typed((*text).to_owned())).collect();
        let expected = serde_json::json!([16, 1000.0, -5, true, 1.5, "inf", "0x", "12a", ""]);
        assert_eq!(Value::from(values), expected);
    }
}
