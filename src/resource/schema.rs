//! The JSON Schemas of `schema/*.json`, compiled once.
//!
//! The files are plain draft 2020-12, readable by any editor. What APISIX's validator does beyond
//! the standard (`api7/jsonschema`, `apisix/core/schema.lua`) is added here when they are loaded:
//! - a string that refers to a secret (`$secret://…`, `$env://…`) passes wherever a string or any
//!   type is asked for, whatever else is asked of it;
//! - `$` in a pattern also matches before a final line feed;
//! - `[]` and `{}` are one and the same (`shape.rs` brings them to the form a schema asks for).

use std::sync::LazyLock;

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value, json};

use super::{explain, shape};
use crate::addr::IpMatcher;

/// The files, by the name they refer to each other with.
const FILES: &[(&str, &str)] = &[
    ("common.json", include_str!("../../schema/common.json")),
    ("plugin_ip_restriction.json", include_str!("../../schema/plugin_ip_restriction.json")),
    ("plugin_limit_bandwidth.json", include_str!("../../schema/plugin_limit_bandwidth.json")),
    ("plugin_limit_conn.json", include_str!("../../schema/plugin_limit_conn.json")),
    ("plugin_limit_rate.json", include_str!("../../schema/plugin_limit_rate.json")),
    ("plugin_meta.json", include_str!("../../schema/plugin_meta.json")),
    ("plugin_mqtt_proxy.json", include_str!("../../schema/plugin_mqtt_proxy.json")),
    ("plugin_prometheus.json", include_str!("../../schema/plugin_prometheus.json")),
    ("plugin_syslog.json", include_str!("../../schema/plugin_syslog.json")),
    ("plugin_traffic_split.json", include_str!("../../schema/plugin_traffic_split.json")),
    ("secret.json", include_str!("../../schema/secret.json")),
    ("service.json", include_str!("../../schema/service.json")),
    ("ssl.json", include_str!("../../schema/ssl.json")),
    ("stream_route.json", include_str!("../../schema/stream_route.json")),
    ("upstream.json", include_str!("../../schema/upstream.json")),
    ("xrpc_dubbo.json", include_str!("../../schema/xrpc_dubbo.json")),
    ("xrpc_redis.json", include_str!("../../schema/xrpc_redis.json")),
];

/// Marks the branch that lets a reference to a secret pass.
pub(super) const REFERENCE: &str = "a reference to a secret";

/// One compiled schema.
#[derive(Debug)]
pub(super) struct Schema {
    /// References resolved, otherwise as in the file.
    plain: Value,
    /// What `validator` was made from.
    lenient: Value,
    /// A schema that does not compile refuses everything and says so; a test compiles them all.
    validator: Result<Validator, String>,
}

impl Schema {
    fn load(reference: &str) -> Self {
        let plain = resolve(&json!({ "$ref": reference }), "");
        let lenient = lenient(&plain);
        let validator = jsonschema::options()
            .with_pattern_options(PatternOptions::regex())
            .with_format("ip-or-network", |text: &str| IpMatcher::parse_apisix(text).is_ok())
            .should_validate_formats(true)
            .build(&lenient)
            .map_err(|error| format!("schema {reference} of this program does not compile: {error}"));
        Self { plain, lenient, validator }
    }

    /// Checks a value, bringing its empty containers into the form the schema asks for.
    ///
    /// Errors are sentences for the operator, one a mistake; `at` is the path of the value.
    pub(super) fn check(&self, value: &mut Value, at: &str) -> Result<(), Vec<String>> {
        let validator = self.validator.as_ref().map_err(|error| vec![error.clone()])?;
        if validator.is_valid(value) {
            return Ok(());
        }
        shape::containers(&self.plain, value);
        if validator.is_valid(value) {
            return Ok(());
        }
        Err(explain::mistakes(validator.iter_errors(value), &self.lenient, at))
    }

    /// Writes the defaults into a value that passed.
    pub(super) fn fill(&self, value: &mut Value) {
        shape::fill(&self.plain, value);
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Schemas {
    pub(super) stream_route: Schema,
    pub(super) upstream: Schema,
    pub(super) checks: Schema,
    pub(super) service: Schema,
    pub(super) ssl: Schema,
    plugins: Vec<(&'static str, Schema)>,
    protocols: Vec<(&'static str, Schema)>,
    secrets: Vec<(&'static str, Schema)>,
}

impl Schemas {
    /// They are the same for everyone, so there is one set of them.
    pub(super) fn shared() -> &'static Self {
        static SHARED: LazyLock<Schemas> = LazyLock::new(Schemas::load);
        &SHARED
    }

    fn load() -> Self {
        let list = |names: &[(&'static str, &str)]| {
            names.iter().map(|(name, file)| (*name, Schema::load(file))).collect::<Vec<_>>()
        };
        Self {
            stream_route: Schema::load("stream_route.json"),
            upstream: Schema::load("upstream.json"),
            checks: Schema::load("upstream.json#/properties/checks"),
            service: Schema::load("service.json"),
            ssl: Schema::load("ssl.json"),
            plugins: list(&[
                ("ip-restriction", "plugin_ip_restriction.json"),
                ("limit-bandwidth", "plugin_limit_bandwidth.json"),
                ("limit-conn", "plugin_limit_conn.json"),
                ("limit-rate", "plugin_limit_rate.json"),
                ("mqtt-proxy", "plugin_mqtt_proxy.json"),
                ("prometheus", "plugin_prometheus.json"),
                ("syslog", "plugin_syslog.json"),
                ("traffic-split", "plugin_traffic_split.json"),
            ]),
            protocols: list(&[("dubbo", "xrpc_dubbo.json"), ("redis", "xrpc_redis.json")]),
            secrets: list(&[
                ("aws", "secret.json#/$defs/aws"),
                ("gcp", "secret.json#/$defs/gcp"),
                ("vault", "secret.json#/$defs/vault"),
            ]),
        }
    }

    /// The schema of a plugin this program knows.
    pub(super) fn plugin(&self, name: &str) -> Option<&Schema> {
        find(&self.plugins, name)
    }

    /// The schema of `protocol.conf` of an xRPC protocol.
    pub(super) fn protocol(&self, name: &str) -> Option<&Schema> {
        find(&self.protocols, name)
    }

    /// The schema of a secret manager.
    pub(super) fn secret(&self, manager: &str) -> Option<&Schema> {
        find(&self.secrets, manager)
    }
}

fn find<'a>(list: &'a [(&'static str, Schema)], name: &str) -> Option<&'a Schema> {
    list.iter().find(|(known, _)| *known == name).map(|(_, schema)| schema)
}

/// Replaces each `$ref` by what it names; what stands beside it wins. No schema refers to itself.
fn resolve(node: &Value, file: &str) -> Value {
    match node {
        Value::Array(list) => list.iter().map(|entry| resolve(entry, file)).collect(),
        Value::Object(map) => {
            let mut resolved = Map::new();
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                let (named, pointer) = reference.split_once('#').unwrap_or((reference, ""));
                let named = if named.is_empty() { file } else { named };
                let target = source(named).and_then(|document| document.pointer(pointer).cloned());
                if let Some(Value::Object(target)) = target.map(|target| resolve(&target, named)) {
                    resolved = target;
                }
            }
            let own =
                map.iter().filter(|(key, _)| !matches!(key.as_str(), "$ref" | "$defs" | "$id" | "$schema"));
            resolved.extend(own.map(|(key, value)| (key.clone(), resolve(value, file))));
            Value::Object(resolved)
        }
        other => other.clone(),
    }
}

fn source(name: &str) -> Option<Value> {
    let (_, text) = FILES.iter().find(|(file, _)| *file == name)?;
    serde_json::from_str(text).ok()
}

/// Adds to a schema what APISIX's validator does beyond the standard.
fn lenient(node: &Value) -> Value {
    let Value::Object(map) = node else { return node.clone() };
    let changed: Map<String, Value> = map
        .iter()
        .map(|(keyword, value)| {
            let value = match (keyword.as_str(), value) {
                ("pattern", Value::String(pattern)) => with_final_line_feed(pattern).into(),
                ("properties" | "dependentSchemas", Value::Object(named)) => {
                    named.iter().map(|(name, schema)| (name.clone(), lenient(schema))).collect()
                }
                ("anyOf" | "oneOf" | "allOf", Value::Array(branches)) => {
                    branches.iter().map(lenient).collect()
                }
                ("items" | "additionalProperties" | "if" | "then" | "else" | "not", schema) => {
                    lenient(schema)
                }
                _ => value.clone(),
            };
            (keyword.clone(), value)
        })
        .collect();
    let any_type = !map.contains_key("type") && (map.contains_key("anyOf") || map.contains_key("enum"));
    let changed = Value::Object(changed);
    if any_type || map.get("type").is_some_and(|name| name == "string") {
        let reference = json!({
            "$comment": REFERENCE,
            "type": "string",
            "pattern": r"^(\$secret://|\$[eE][nN][vV]://)"
        });
        json!({ "anyOf": [changed, reference] })
    } else {
        changed
    }
}

/// PCRE's `$` also matches before a line feed at the very end.
fn with_final_line_feed(pattern: &str) -> String {
    let pattern = pattern.replace("$|", r"\n?$|");
    match pattern.strip_suffix('$') {
        Some(head) => format!(r"{head}\n?$"),
        None => pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_compiles_and_no_reference_dangles() {
        for (file, _) in FILES {
            let schema = Schema::load(file);
            assert!(schema.validator.is_ok(), "{file}: {:?}", schema.validator.err());
            let text = schema.plain.to_string();
            assert!(!text.contains("$ref"), "{file}");
            let document = source(file).unwrap();
            assert_eq!(document["$schema"], "https://json-schema.org/draft/2020-12/schema", "{file}");
            assert_eq!(document["$id"], format!("https://streamgate.dev/schema/{file}"));
            for reference in document.to_string().split("\"$ref\":\"").skip(1) {
                let reference = reference.split('"').next().unwrap();
                let (named, pointer) = reference.split_once('#').unwrap_or((reference, ""));
                let named = if named.is_empty() { file } else { named };
                assert!(source(named).unwrap().pointer(pointer).is_some(), "{file} names {reference}");
            }
        }
    }

    #[test]
    fn every_named_schema_is_there() {
        let schemas = Schemas::shared();
        for schema in
            [&schemas.stream_route, &schemas.upstream, &schemas.checks, &schemas.service, &schemas.ssl]
        {
            assert_eq!(schema.plain["type"], "object");
            assert!(schema.validator.is_ok());
        }
        let named = schemas.plugins.iter().chain(&schemas.protocols).chain(&schemas.secrets);
        for (name, schema) in named {
            assert_eq!(schema.plain["type"], "object", "{name}");
        }
        for (_, plugin) in &schemas.plugins {
            assert!(plugin.plain.pointer("/properties/_meta/properties/disable").is_some());
        }
    }
}
