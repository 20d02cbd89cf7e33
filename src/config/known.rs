//! Keys that are nearly known: as APISIX does, streamgate accepts unknown keys, but a slip of the
//! pen in a key it reads would silently leave a default in force.

use super::read::Node;

/// Sections with the keys that streamgate reads, and neighbours that a slip could be confused with.
const SECTIONS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "apisix",
            "deployment",
            "discovery",
            "nginx_config",
            "plugin_attr",
            "plugins",
            "stream_plugins",
            "streamgate",
            "xrpc",
        ],
    ),
    (
        "apisix",
        &[
            "control",
            "data_encryption",
            "disable_upstream_healthcheck",
            "dns_resolver",
            "dns_resolver_valid",
            "enable_admin",
            "enable_control",
            "enable_dev_mode",
            "enable_http2",
            "enable_ipv6",
            "enable_resolv_search_opt",
            "enable_reuseport",
            "node_listen",
            "proxy_cache",
            "proxy_mode",
            "proxy_protocol",
            "resolver_timeout",
            "router",
            "ssl",
            "status",
            "stream_proxy",
            "tracing",
            "lru",
            "events",
            "id",
        ],
    ),
    ("apisix.stream_proxy", &["tcp", "udp", "only"]),
    (
        "apisix.proxy_protocol",
        &["enable_tcp_pp", "enable_tcp_pp_to_upstream", "listen_http_port", "listen_https_port"],
    ),
    ("apisix.data_encryption", &["enable_encrypt_fields", "keyring"]),
    (
        "apisix.ssl",
        &[
            "enable",
            "fallback_sni",
            "listen",
            "ssl_ciphers",
            "ssl_protocols",
            "ssl_session_tickets",
            "ssl_trusted_certificate",
        ],
    ),
    ("apisix.status", &["ip", "port"]),
    ("apisix.control", &["ip", "port"]),
    (
        "deployment",
        &["admin", "certs", "etcd", "role", "role_control_plane", "role_data_plane", "role_traditional"],
    ),
    ("deployment.role_traditional", &["config_provider"]),
    ("deployment.role_control_plane", &["config_provider"]),
    ("deployment.role_data_plane", &["config_provider"]),
    (
        "deployment.etcd",
        &[
            "health_check_timeout",
            "host",
            "password",
            "prefix",
            "resync_delay",
            "startup_retry",
            "timeout",
            "tls",
            "user",
            "watch_timeout",
        ],
    ),
    ("deployment.etcd.tls", &["cert", "key", "sni", "verify"]),
    (
        "nginx_config",
        &[
            "enable_cpu_affinity",
            "envs",
            "error_log",
            "error_log_level",
            "event",
            "http",
            "main_configuration_snippet",
            "max_pending_timers",
            "max_running_timers",
            "meta",
            "stream",
            "stream_configuration_snippet",
            "user",
            "worker_processes",
            "worker_rlimit_core",
            "worker_rlimit_nofile",
            "worker_shutdown_timeout",
            "http_configuration_snippet",
            "http_server_configuration_snippet",
            "http_end_configuration_snippet",
            "http_admin_configuration_snippet",
            "http_server_location_configuration_snippet",
        ],
    ),
    (
        "nginx_config.stream",
        &[
            "access_log",
            "access_log_format",
            "access_log_format_escape",
            "enable_access_log",
            "lua_shared_dict",
            "metrics_zone_size",
            "real_ip_from",
        ],
    ),
    (
        "plugin_attr.prometheus",
        &[
            "default_buckets",
            "enable_export_server",
            "export_addr",
            "export_uri",
            "metric_prefix",
            "metrics",
            "refresh_interval",
        ],
    ),
    ("plugin_attr.prometheus.export_addr", &["ip", "port"]),
    ("discovery.dns", &["order", "resolv_conf", "servers"]),
    (
        "discovery.consul",
        &[
            "default_service",
            "dump",
            "fetch_interval",
            "keepalive",
            "servers",
            "shared_size",
            "skip_services",
            "sort_type",
            "timeout",
            "token",
            "weight",
        ],
    ),
    ("discovery.consul.default_service", &["host", "metadata", "port"]),
    ("discovery.consul.timeout", &["connect", "read", "wait"]),
    ("discovery.eureka", &["fetch_interval", "host", "prefix", "timeout", "weight"]),
    ("discovery.eureka.timeout", &["connect", "read", "send"]),
    (
        "discovery.nacos",
        &["access_key", "fetch_interval", "host", "prefix", "secret_key", "timeout", "weight"],
    ),
    ("discovery.nacos.timeout", &["connect", "read", "send"]),
    ("xrpc", &["protocols"]),
];

/// Keys of one listen written as a map.
const LISTEN: &[&str] = &["addr", "proxy_protocol", "proxy_protocol_to_upstream", "tls", "tls_passthrough"];

/// Warns of keys that are one or two slips away from a known one.
pub(super) fn warn_of_slips(root: &Node<'_>) {
    for (path, known) in SECTIONS {
        let keys = path.split('.').filter(|key| !key.is_empty());
        warn_in(&keys.fold(root.clone(), |node, key| node.at(key)), known);
    }
    for item in root.at("apisix").at("stream_proxy").at("tcp").items().unwrap_or_default() {
        if item.value().is_some_and(serde_json::Value::is_object) {
            warn_in(&item, LISTEN);
        }
    }
    let etcd = root.at("etcd");
    if !etcd.is_absent() {
        etcd.warn("has no effect since APISIX 3.0; write it below deployment");
    }
}

fn warn_in(section: &Node<'_>, known: &[&str]) {
    for (key, node) in section.entries().filter(|(key, _)| !known.contains(key)) {
        if let Some(meant) = nearest(key, known) {
            node.warn(format!(
                "is no key that APISIX or streamgate knows and has no effect; is {meant} meant?"
            ));
        }
    }
}

/// The known key at most two slips away; short keys allow one.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let near = |name: &&'k str| {
        let distance = distance(key.as_bytes(), name.as_bytes());
        let allowed = if name.len() < 6 { 1 } else { 2 };
        (distance <= allowed && name.len() > 2).then_some((distance, *name))
    };
    known.iter().filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// How many insertions, deletions, replacements and swaps of neighbours lie between two keys.
fn distance(a: &[u8], b: &[u8]) -> usize {
    // Rows of the usual table, the last two kept: a swap looks back two rows and two columns.
    let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last_x = None;
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        let mut last_y = None;
        for (j, y) in b.iter().enumerate() {
            let replaced = at(&row, j) + usize::from(x != y);
            let mut best = replaced.min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            if last_x == Some(y) && last_y == Some(x) {
                best = best.min(at(&before, j.wrapping_sub(1)) + 1);
            }
            next.push(best);
            last_y = Some(y);
        }
        before = std::mem::replace(&mut row, next);
        last_x = Some(x);
    }
    at(&row, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(key: &str, meant: Option<&str>) {
        assert_eq!(nearest(key, &["stream_proxy", "tls", "id", "host"]), meant, "{key}");
    }

    #[test]
    fn slips_are_near_and_strangers_are_not() {
        check("stream_prxy", Some("stream_proxy"));
        check("steam_porxy", Some("stream_proxy"));
        check("stem_porxy", None);
        check("tsl", Some("tls"));
        check("straem_proxy", Some("stream_proxy"));
        check("hosts", Some("host"));
        check("it", None);
        check("node_listen", None);
    }

    #[test]
    fn the_documentation_names_every_key() {
        let page = include_str!("../../docs/config.md");
        for (section, keys) in SECTIONS {
            for key in *keys {
                assert!(page.contains(key), "{section}.{key} is not in docs/config.md");
            }
        }
    }
}
