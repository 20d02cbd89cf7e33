//! Objects as APISIX's control API shows them: with the defaults of their schemas and the fields that its
//! loader adds (`apisix/upstream.lua:557-603`), but without secrets.
//!
//! Made from the bytes when somebody asks: what sessions use is typed and has no room for `desc`.

use serde_json::{Value, json};

use super::document::read;
use super::rules::Notes;
use super::schema::Schemas;
use super::{Key, Kind};
use crate::addr::{Host, HostPort};

/// What stands in the place of a secret.
const HIDDEN: &str = "hidden";

/// An object for a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its value.
    pub value: Value,
    /// Some node of its upstream is a name. False where it has no upstream of its own.
    pub has_domain: bool,
}

/// Shows an accepted object. `stored_at` is its whole key in etcd, such as `/apisix/upstreams/1`.
///
/// `None` for what no page shows, certificates and secrets, and for bytes that are no JSON object.
#[must_use]
pub fn shown(key: &Key, bytes: &[u8], stored_at: &str, revision: i64) -> Option<Shown> {
    let mut value = read(bytes, &mut Notes::default()).ok()?;
    let schemas = Schemas::shared();
    match key.kind {
        Kind::StreamRoute => schemas.stream_route.fill(&mut value),
        Kind::Upstream => schemas.upstream.fill(&mut value),
        Kind::Service => schemas.service.fill(&mut value),
        Kind::PluginMetadata => {}
        Kind::Ssl | Kind::Secret | Kind::Plugins => return None,
    }
    value.as_object_mut()?.insert("id".into(), (&*key.id).into());
    if let Some(plugins) = value.get_mut("plugins").and_then(Value::as_object_mut) {
        for (name, conf) in plugins {
            if let Some(schema) = schemas.plugin(name) {
                schema.fill(conf);
            }
        }
    }
    let upstream = if key.kind == Kind::Upstream { Some(&mut value) } else { value.get_mut("upstream") };
    let has_domain = upstream.is_some_and(|upstream| loaded(upstream, &key.id, stored_at, revision));
    hide(&mut value);
    Some(Shown { value, has_domain })
}

/// Brings an upstream into the form that it has in APISIX's memory; reports whether it has a name.
fn loaded(upstream: &mut Value, owner: &str, stored_at: &str, revision: i64) -> bool {
    let Some(fields) = upstream.as_object_mut() else { return false };
    fields.insert("resource_key".into(), stored_at.into());
    fields.insert("resource_version".into(), revision.into());
    fields.insert("resource_id".into(), owner.into());
    let Some(nodes) = fields.get_mut("nodes") else { return false };
    if let Value::Object(map) = nodes {
        *nodes = map.iter().map(|(addr, weight)| node(addr, weight)).collect();
    }
    let is_name = |node: &Value| {
        let host = node.get("host").and_then(Value::as_str).unwrap_or_default();
        matches!(Host::parse(host), Host::Name(_))
    };
    nodes.as_array().is_some_and(|nodes| nodes.iter().any(is_name))
}

/// A node of the form `host:port` to weight.
fn node(addr: &str, weight: &Value) -> Value {
    let port = HostPort::parse_apisix(addr).port;
    let host = if port.is_some() { addr.rsplit_once(':').map_or(addr, |(host, _)| host) } else { addr };
    let mut node = json!({"host": host, "weight": weight});
    if let Some(port) = port {
        node["port"] = port.into();
    }
    node
}

/// Takes secrets out, wherever they are. APISIX shows them as they are stored.
fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                if is_secret(name) && !inner.is_object() && !inner.is_array() && *inner != "" {
                    *inner = HIDDEN.into();
                } else {
                    hide(inner);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(hide),
        Value::String(text) => {
            if text.contains("PRIVATE KEY-----") {
                HIDDEN.clone_into(text);
            } else if let Some((name, _)) = text.split_once(':')
                && is_secret_header(name)
            {
                // A line of `req_headers`.
                *text = format!("{name}: {HIDDEN}");
            }
        }
        _ => {}
    }
}

/// Fields that hold secrets by their name: `tls.client_key`, `redis_password`, `secret_key`, `token`.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // What a probe says may be a login.
    let says = ["client_key", "http_req_body", "streamgate/tcp-send", "streamgate/tcp_send"];
    says.contains(&name.as_str())
        || ["password", "passwd", "secret", "token"].iter().any(|word| name.contains(word))
}

/// Headers that carry credentials (RFC 9110, section 11.6; RFC 6265).
fn is_secret_header(name: &str) -> bool {
    const NAMES: &[&str] =
        &["authorization", "proxy-authorization", "cookie", "x-api-key", "apikey", "x-auth-token"];
    NAMES.contains(&name.trim().to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, written: &Value, has_domain: bool, expected: &Value) {
        let stored_at = format!("/apisix/{}/7", kind.directory());
        let shown = shown(&Key::new(kind, "7"), written.to_string().as_bytes(), &stored_at, 9).unwrap();
        assert_eq!(shown.value, *expected, "{written}");
        assert_eq!(shown.has_domain, has_domain, "{written}");
    }

    /// The value that an APISIX 3.18 showed for the same object.
    #[test]
    fn an_upstream_is_as_in_apisix() {
        let written = json!({
            "type": "roundrobin", "retries": 0,
            "nodes": {"127.0.0.1:19301": 1, "127.0.0.1:19399": 1},
            "checks": {"active": {"type": "tcp", "healthy": {"interval": 1, "successes": 1},
                "unhealthy": {"interval": 1, "tcp_failures": 2, "timeouts": 1}}},
        });
        let expected = json!({
            "pass_host": "pass", "retries": 0, "id": "7", "resource_key": "/apisix/upstreams/7",
            "type": "roundrobin",
            "checks": {"active": {
                "healthy": {"successes": 1, "http_statuses": [200, 302], "interval": 1}, "type": "tcp",
                "unhealthy": {"http_failures": 5, "tcp_failures": 2, "timeouts": 1,
                    "http_statuses": [429, 404, 500, 501, 502, 503, 504, 505], "interval": 1},
                "concurrency": 10, "http_method": "GET", "http_path": "/", "http_req_body": "",
                "https_verify_certificate": true, "timeout": 1}},
            "nodes": [{"port": 19301, "host": "127.0.0.1", "weight": 1},
                {"port": 19399, "host": "127.0.0.1", "weight": 1}],
            "scheme": "http", "resource_version": 9, "resource_id": "7", "hash_on": "vars",
        });
        check(Kind::Upstream, &written, false, &expected);
    }

    #[test]
    fn names_are_told_and_secrets_are_not() {
        let written = json!({"upstream": {
            "nodes": [{"host": "db", "port": 1, "weight": 1}],
            "tls": {"client_cert": "c", "client_key": "k"},
            "checks": {"active": {"req_headers": ["Authorization: Bearer x", "X-A: b"]}},
        }});
        let key = Key::new(Kind::Service, "s");
        let shown = shown(&key, written.to_string().as_bytes(), "/services/s", 1).unwrap();
        assert!(shown.has_domain);
        let upstream = &shown.value["upstream"];
        assert_eq!(upstream["tls"], json!({"client_cert": "c", "client_key": HIDDEN, "verify": false}));
        let headers = &upstream["checks"]["active"]["req_headers"];
        assert_eq!(*headers, json!(["Authorization: hidden", "X-A: b"]));
        assert_eq!(upstream["resource_id"], "s");
        let metadata = Key::new(Kind::PluginMetadata, "syslog");
        let pem = br#"{"a":{"redis_password":7,"b":["-----BEGIN PRIVATE KEY-----"]}}"#;
        let value = super::shown(&metadata, pem, "", 1).unwrap().value;
        assert_eq!(value, json!({"a": {"redis_password": HIDDEN, "b": [HIDDEN]}, "id": "syslog"}));
    }

    #[test]
    fn defaults_of_plugins_are_filled_in_and_certificates_never_shown() {
        let written = json!({"plugins": {"prometheus": {}, "strange": {}}});
        let key = Key::new(Kind::StreamRoute, "r");
        let shown = shown(&key, written.to_string().as_bytes(), "/stream_routes/r", 1).unwrap();
        assert_eq!(shown.value["plugins"]["prometheus"]["prefer_name"], false);
        assert_eq!(shown.value["plugins"]["strange"], json!({}));
        assert!(!shown.has_domain);
        for kind in [Kind::Ssl, Kind::Secret, Kind::Plugins] {
            assert_eq!(super::shown(&Key::new(kind, "x"), b"{}", "", 1), None);
        }
    }
}
