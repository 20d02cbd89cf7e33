//! What a config.yaml that says nothing means (`apisix/cli/config.lua` of APISIX 3.18).
//!
//! Only keys that streamgate reads stand here: a default also fixes the type a user's value must
//! have, and settings of HTTP are none of our business.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

/// The tree that the user's is laid over.
pub(super) fn tree() -> Map<String, Value> {
    let tree = json!({
        "apisix": {
            "enable_admin": true,
            "enable_control": true,
            "enable_dev_mode": false,
            "enable_reuseport": true,
            "enable_ipv6": true,
            "proxy_mode": "http",
            "resolver_timeout": 5,
            "enable_resolv_search_opt": true,
            "ssl": { "enable": true, "ssl_trusted_certificate": "system" },
            "data_encryption": { "keyring": ["qeddd145sfvddff3", "edd1c9f0985e76a2"] },
        },
        "nginx_config": {
            "error_log_level": "warn",
            "worker_processes": "auto",
            "worker_shutdown_timeout": "240s",
            "stream": {
                "enable_access_log": false,
                "access_log": "logs/access_stream.log",
                "access_log_format":
                    "$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time",
                "access_log_format_escape": "default",
            },
            "main_configuration_snippet": "",
            "stream_configuration_snippet": "",
        },
        // Those of APISIX, and the two that it does not have.
        "stream_plugins": [
            "ip-restriction", "limit-bandwidth", "limit-conn", "limit-rate", "mqtt-proxy", "syslog",
            "traffic-split",
        ],
        "plugin_attr": {
            "prometheus": {
                "export_uri": "/apisix/prometheus/metrics",
                "metric_prefix": "apisix_",
                "enable_export_server": true,
                "export_addr": { "ip": "127.0.0.1", "port": 9091 },
            },
        },
        "deployment": {
            "role": "traditional",
            "role_traditional": { "config_provider": "etcd" },
            "etcd": {
                "host": ["http://127.0.0.1:2379"],
                "prefix": "/apisix",
                "timeout": 30,
                "tls": { "verify": true },
            },
        },
    });
    match tree {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
