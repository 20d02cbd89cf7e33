//! The text of config.yaml to a tree.
//!
//! APISIX reads YAML 1.1 (lyaml): `yes`, `on` and the like are booleans, `0755` is octal. A key that
//! stands twice is a mistake here; lyaml lets the last win, so that half a file may be without effect.

use serde_json::Map;
use serde_json::Value;

/// Parses one document. An empty file, or one of comments alone, is an empty map.
///
/// # Errors
/// A sentence with line and column. It shows no line of the file: that may hold a password.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Map::new());
    }
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err("is no map of sections; write such as `apisix:` and its settings below it".into()),
        Err(error) => Err(format!("cannot be read as YAML: {}", error.to_string().replace('\n', " "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        assert_eq!(parse(text).map(Value::Object), Ok(expected), "{text}");
    }

    #[track_caller]
    fn refused(text: &str, part: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn the_dialect_is_yaml_1_1() {
        check("a: yes\nb: off\nc: \"yes\"", json!({"a": true, "b": false, "c": "yes"}));
        check(
            "a: 9100\nb: \"9100\"\nc: 2000-2100\nd: 80.5",
            json!({"a": 9100, "b": "9100", "c": "2000-2100", "d": 80.5}),
        );
        check("a: 0755\nb: 0x10", json!({"a": 493, "b": 16}));
        check("a:\nb: ~\nc: null", json!({"a": null, "b": null, "c": null}));
        check("9100: {idle_timeout: 10s}", json!({"9100": {"idle_timeout": "10s"}}));
        check(
            "base: &b {x: 1}\nother:\n  <<: *b\n  y: 2",
            json!({"base": {"x": 1}, "other": {"x": 1, "y": 2}}),
        );
        check("a: |\n  one\n  two\n", json!({"a": "one\ntwo\n"}));
        check("---\na: 1\n...\n", json!({"a": 1}));
        check("z: 1\na: 2", json!({"z": 1, "a": 2}));
    }

    #[test]
    fn nothing_is_all_defaults() {
        check("", json!({}));
        check("# only\n\n   # comments\r\n", json!({}));
        check("---\n", json!({}));
    }

    #[test]
    fn broken_files_are_told_with_a_place() {
        refused("a: 1\nb: 2\na: 3\n", "duplicate");
        refused("a: [1\n", "line");
        refused("- 1\n", "no map of sections");
        refused("a: 1\n---\nb: 2\n", "YAML");
        refused("password: hunter2\n\tx: 1\n", "line");
        assert!(!parse("password: hunter2\n\tx: 1\n").unwrap_err().contains("hunter2"));
    }
}
