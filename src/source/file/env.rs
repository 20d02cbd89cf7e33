//! `${{VAR}}` and `${{VAR:=default}}`, as `apisix/cli/file.lua:60-156` replaces them.

use std::borrow::Cow;

/// A variable that is not set and has no default.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Missing {
    /// Its name.
    pub(super) name: String,
    /// Where its `${{` begins, in bytes.
    pub(super) at: usize,
}

/// `text` with every variable replaced by what `lookup` says. A variable set to nothing is set. What
/// only looks like a variable stays as it is.
pub(super) fn substitute<'a>(
    text: &'a str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'a, str>, Missing> {
    let mut done = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        let (before, from) = rest.split_at(start);
        done.push_str(before);
        let Some((name, default, after)) = variable(from) else {
            done.push_str("${{");
            rest = from.strip_prefix("${{").unwrap_or_default();
            continue;
        };
        let value = lookup(name).or_else(|| default.map(str::to_owned));
        let missing = || Missing { name: name.to_owned(), at: text.len() - from.len() };
        done.push_str(&value.ok_or_else(missing)?);
        rest = after;
    }
    if rest.len() == text.len() {
        return Ok(Cow::Borrowed(text));
    }
    done.push_str(rest);
    Ok(Cow::Owned(done))
}

/// Takes `${{ NAME := default }}` off the front: name, default, what follows.
fn variable(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let (inner, after) = text.strip_prefix("${{")?.split_once("}}")?;
    let (name, default) = match inner.split_once(":=") {
        Some((name, default)) => (name.trim(), Some(default.trim())),
        None => (inner.trim(), None),
    };
    let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    valid.then_some((name, default, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, (&str, usize)>) {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let found = substitute(text, &lookup);
        let expected = expected.map(Cow::Borrowed);
        assert_eq!(found, expected.map_err(|(name, at)| Missing { name: name.into(), at }), "{text}");
    }

    #[test]
    fn variables_are_replaced() {
        check("x ${{A}}${{ A }} y", Ok("x 11 y"));
        check("${{B:=2}} ${{ B := two words }}", Ok("2 two words"));
        check("${{A:=2}}", Ok("1"));
        check("[${{EMPTY:=2}}]", Ok("[]"));
        check("nothing", Ok("nothing"));
    }

    #[test]
    fn what_is_no_variable_stays() {
        check("${{A", Ok("${{A"));
        check("${{a b}} ${{A}}", Ok("${{a b}} 1"));
        check("${A} $${{A}}", Ok("${A} $1"));
    }

    #[test]
    fn missing_variable_is_named() {
        check("ab ${{NONE}}", Err(("NONE", 3)));
    }
}
