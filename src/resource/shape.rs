//! Two small changes to a value, guided by a schema: empty containers and defaults.
//!
//! To Lua `[]` and `{}` are the same empty table, which passes as either; encoders of it write
//! whichever they like.

use serde_json::{Map, Value, json};

/// Turns an empty list into an empty object where the schema asks for an object, and the reverse.
pub(super) fn containers(schema: &Value, value: &mut Value) {
    if is_empty(value) {
        match wanted(schema, value) {
            Some("object") => *value = Value::Object(Map::new()),
            Some("array") => *value = json!([]),
            _ => {}
        }
        return;
    }
    walk(schema, value, &mut containers);
}

/// Writes the defaults of absent properties, also into those just written.
pub(super) fn fill(schema: &Value, value: &mut Value) {
    if let (Value::Object(map), Some(Value::Object(properties))) = (&mut *value, schema.get("properties")) {
        for (name, property) in properties {
            if let (Some(default), false) = (property.get("default"), map.contains_key(name)) {
                map.insert(name.clone(), default.clone());
            }
        }
    }
    walk(schema, value, &mut fill);
}

/// Visits what lies directly inside a value, each part with its schema.
fn walk(schema: &Value, value: &mut Value, visit: &mut impl FnMut(&Value, &mut Value)) {
    match value {
        Value::Object(map) => {
            let others = schema.get("additionalProperties");
            for (name, inner) in map {
                let property = schema.get("properties").and_then(|properties| properties.get(name));
                if let Some(schema) = property.or(others) {
                    visit(schema, inner);
                }
            }
        }
        Value::Array(list) => {
            if let Some(schema) = schema.get("items") {
                for inner in list {
                    visit(schema, inner);
                }
            }
        }
        _ => return,
    }
    let kind = type_of(value);
    for branch in branches(schema).filter(|branch| branch.get("type").is_some_and(|name| name == kind)) {
        visit(branch, value);
    }
}

fn branches(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].into_iter().filter_map(|keyword| schema.get(keyword)?.as_array()).flatten()
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn type_of(value: &Value) -> &'static str {
    if value.is_object() { "object" } else { "array" }
}

/// The container an empty value has to become, if it is not one the schema takes already.
fn wanted<'a>(schema: &'a Value, value: &Value) -> Option<&'a str> {
    let mut names =
        schema.get("type").into_iter().chain(branches(schema).filter_map(|branch| branch.get("type")));
    let own = type_of(value);
    let mut other = None;
    for name in names.by_ref().filter_map(Value::as_str) {
        if name == own {
            return None;
        }
        other = other.or(Some(name).filter(|name| matches!(*name, "object" | "array")));
    }
    other
}
