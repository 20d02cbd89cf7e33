//! The user's tree laid over the defaults, by the rules of `apisix/cli/file.lua:178-242`.
//!
//! Maps merge deep, lists replace, null deletes, an empty map replaces (to Lua it is an empty list),
//! and a scalar of another type than its default is a mistake.

use serde_json::Map;
use serde_json::Value;

use super::read::show;
use super::report::Report;
use super::report::entry_path;

/// Lays `user` over `base`. On a mistake the default stays, so that reading can go on.
pub(super) fn merge(base: &mut Map<String, Value>, user: Map<String, Value>, path: &str, report: &Report) {
    for (key, value) in user {
        let path = entry_path(path, &key);
        match value {
            Value::Null => drop(base.remove(&key)),
            Value::Array(_) => drop(base.insert(key, value)),
            Value::Object(map) if map.is_empty() => drop(base.insert(key, Value::Object(map))),
            Value::Object(map) => match base.entry(key).or_insert_with(|| Value::Object(Map::new())) {
                Value::Object(base) => merge(base, map, &path, report),
                // Lua would write the entries into the list; nothing reads such a hybrid.
                base @ Value::Array(_) => *base = Value::Object(map),
                scalar => report.mistake(
                    &path,
                    format!("is a map; {} is expected, such as {}", name(scalar), show(scalar)),
                ),
            },
            scalar => match base.get(&key) {
                Some(default) if name(default) != name(&scalar) && !any_type(&path, &scalar) => {
                    report.mistake(&path, format!("is {}; {} is expected", show(&scalar), name(default)));
                }
                _ => drop(base.insert(key, scalar)),
            },
        }
    }
}

/// Paths where a scalar may replace a default of another type (`file.lua:178-193`).
fn any_type(path: &str, scalar: &Value) -> bool {
    path == "apisix.data_encryption.keyring"
        || (path.starts_with("nginx_config.") && (scalar.is_number() || scalar.is_string()))
}

/// The type of a value as the operator calls it; Lua's five kinds.
fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) | Value::Object(_) => "a map or list",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(user: Value, expected: &Value, told: &str) {
        let mut base = json!({
            "apisix": {"on": true, "n": 5, "list": [1, 2], "deep": {"a": 1, "b": 2}, "data_encryption": {"keyring": ["x"]}},
            "nginx_config": {"time": "240s"}
        });
        let report = Report::default();
        let Value::Object(user) = user else { panic!("no map") };
        merge(base.as_object_mut().unwrap(), user, "", &report);
        assert_eq!(report.close(&Value::Null).err().map(|it| it.to_string()).unwrap_or_default(), told);
        assert_eq!(&base["apisix"]["deep"], expected, "{base}");
    }

    #[test]
    fn maps_merge_lists_replace_null_deletes() {
        check(json!({"apisix": {"deep": {"b": 3, "c": 4}}}), &json!({"a": 1, "b": 3, "c": 4}), "");
        check(json!({"apisix": {"deep": {"b": null}}}), &json!({"a": 1}), "");
        check(json!({"apisix": {"deep": null}}), &json!(null), "");
        check(json!({"apisix": {"deep": {}}}), &json!({}), "");
        check(json!({"apisix": {"deep": [7]}}), &json!([7]), "");
        check(json!({"apisix": null}), &json!(null), "");
        check(json!({"apisix": {"data_encryption": {"keyring": "y"}}}), &json!({"a": 1, "b": 2}), "");
        check(json!({"nginx_config": {"time": 240}}), &json!({"a": 1, "b": 2}), "");
    }

    #[test]
    fn conflicts_of_type_are_mistakes_and_keep_the_default() {
        let kept = json!({"a": 1, "b": 2});
        check(json!({"apisix": {"deep": "x"}}), &kept, "apisix.deep: is \"x\"; a map or list is expected");
        check(
            json!({"apisix": {"on": "yes", "n": "5"}}),
            &kept,
            "apisix.on: is \"yes\"; true or false is expected\napisix.n: is \"5\"; a number is expected",
        );
        check(
            json!({"apisix": {"n": {"x": 1}}}),
            &kept,
            "apisix.n: is a map; a number is expected, such as 5",
        );
        check(
            json!({"nginx_config": {"time": true}}),
            &kept,
            "nginx_config.time: is true; a text is expected",
        );
        check(json!({"apisix": 5}), &kept, "apisix: is 5; a map or list is expected");
    }
}
